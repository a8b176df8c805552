"""The table metrics.csv: one line per round, in plain CSV.

The first column is the round. The others are named numbers, empty if a round
has no such number. A last line without a line end is the remainder of a crash,
and no part of the table. This module does not need TensorFlow.

>>> import tempfile
>>> path = pathlib.Path(tempfile.mkdtemp(), 'metrics.csv')
>>> write(path, {1: {'epsilon': 0.5}, 2: {'epsilon': 0.75, 'auc': 0.9}})
>>> print(path.read_text(), end='')
round,epsilon,auc
1,0.5,
2,0.75,0.9
>>> read(path)[2]
{'epsilon': 0.75, 'auc': 0.9}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import os
import pathlib
from typing import Any

from tff_medical import _files
from tff_medical import _validate

# Values by name, for each round.
Rows = dict[int, dict[str, float]]

_KEY = 'round'


@dataclasses.dataclass(frozen=True)
class Content:
  """Content of the file.

  Attributes:
    columns: Names of the columns after the round.
    rows: Values of each round, without empty ones.
    is_whole: Whether the last line is complete.
  """

  columns: tuple[str, ...]
  rows: Rows
  is_whole: bool


def read(path: str | os.PathLike[str]) -> Rows:
  """Returns the values of each round; none if the file is missing.

  Raises:
    InputError: The file is no such table, or cannot be read.
  """
  return read_content(path).rows


def read_content(path: str | os.PathLike[str]) -> Content:
  """Returns the whole content of the file; raises as `read` does."""
  try:
    content = _files.read_bytes(path)
  except FileNotFoundError:
    content = b''
  whole = content[: content.rfind(b'\n') + 1]
  columns, rows = _parse(pathlib.Path(path), whole)
  return Content(tuple(columns), rows, whole == content)


def write(
  path: str | os.PathLike[str],
  rows: Mapping[int, Mapping[str, float]],
  columns: Sequence[str] = (),
) -> None:
  """Writes the whole table, atomically.

  Args:
    path: File to write; an older file is replaced.
    rows: Values of each round.
    columns: Names of the first columns; further names follow in the order in
      which they occur.

  Raises:
    OSError: The file could not be written; an older file is untouched.
  """
  names = list(
    dict.fromkeys([*columns, *(n for row in rows.values() for n in row)])
  )
  lines = [line([_KEY, *names])]
  for round_num, values in rows.items():
    lines.append(line([round_num, *(values.get(n, '') for n in names)]))
  _files.write_bytes(path, b''.join(lines))


def line(values: Sequence[Any]) -> bytes:
  """Returns a line of CSV, in which NaN is 'nan' and no empty cell.

  The form of a number does not depend on its type, so that a line that was read
  is written again without a difference.
  """
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerow(map(_cell, values))
  return text.getvalue().encode()


def _cell(value: Any) -> Any:
  if isinstance(value, str):
    return value
  number = float(value)
  is_whole = number.is_integer() and abs(number) < 2**53
  return int(number) if is_whole else repr(number)


def _parse(path: pathlib.Path, content: bytes) -> tuple[list[str], Rows]:
  """Returns the columns after the round, and the rows."""
  try:
    lines = list(csv.reader(io.StringIO(content.decode('utf-8'), newline='')))
  except (UnicodeDecodeError, csv.Error) as error:
    raise _damaged(path, str(error)) from None
  if not lines:
    return [], {}
  header = lines[0]
  if header[:1] != [_KEY] or len(set(header)) != len(header):
    raise _damaged(path, f'its first column is {header[:1]}, not {_KEY}')
  rows: Rows = {}
  for number, line in enumerate(lines[1:], start=2):
    try:
      round_num = int(line[0])
      values = {n: float(v) for n, v in zip(header[1:], line[1:]) if v != ''}
    except (ValueError, IndexError):
      raise _damaged(path, f'line {number} holds no numbers') from None
    if len(line) != len(header) or round_num < 1:
      raise _damaged(path, f'line {number} is not of its columns')
    rows[round_num] = values
  return header[1:], rows


def _damaged(path: pathlib.Path, why: str) -> _validate.InputError:
  return _validate.InputError(
    f'{path} is damaged ({why}); remove it, and the rounds that can be known '
    'of are put back when the run goes on'
  )
