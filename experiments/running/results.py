"""Lines, means and tables of what finished runs measured.

A line is what `summary.json` of one run says, under a name that it shares with
the runs of other seeds. Tables have the mean and the standard deviation over
seeds; epsilon is rounded up, so that no table promises more than was kept.

>>> spread([0.5, 0.75])
'0.625 ± 0.177'
>>> round_up(7.9911, 2)
'8.00'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import decimal
import io
import math
import pathlib
import statistics
from typing import Any

from tff_medical import _files
from tff_medical.program import run_folder
from tff_medical.reporting import sweeps

METRICS = ('auc', 'accuracy', 'balanced_accuracy')
FIELDS = (
  'name',
  'seed',
  'privacy_unit',
  'epsilon',
  'delta',
  'noise_multiplier',
  *METRICS,
  'seconds',
  'ledger_sha256',
)


def row(name: str, seed: int, summary: run_folder.Summary) -> dict[str, Any]:
  """Returns the line of a run; what is not known of it is NaN."""
  values = {
    'name': name,
    'seed': seed,
    **{m: summary.metrics.get(m, math.nan) for m in METRICS},
    **dataclasses.asdict(summary),
  }
  return {field: values[field] for field in FIELDS}


def read(path: pathlib.Path) -> list[dict[str, str]]:
  """Returns the lines of a CSV; none if it is missing.

  Raises:
    InputError: It cannot be read.
  """
  try:
    text = _files.read_text(path)
  except FileNotFoundError:
    return []
  return list(csv.DictReader(io.StringIO(text, newline='')))


def write(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes a CSV, whole or not at all; its columns are the first line's."""
  path.parent.mkdir(parents=True, exist_ok=True)
  text = io.StringIO(newline='')
  writer = csv.DictWriter(text, list(rows[0]) if rows else FIELDS)
  writer.writeheader()
  writer.writerows(rows)
  _files.write_bytes(path, text.getvalue().encode())


def by_name(
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, list[Mapping[str, Any]]]:
  """Returns the lines of each name, in the order in which the names come."""
  found: dict[str, list[Mapping[str, Any]]] = {}
  for one in rows:
    found.setdefault(one['name'], []).append(one)
  return found


def values(rows: Sequence[Mapping[str, Any]], field: str) -> list[float]:
  """Returns a column as numbers, NaN where a run has none: it diverged."""
  return [sweeps.number(one[field]) for one in rows]


def spread(numbers: Sequence[float]) -> str:
  """Returns mean and standard deviation, which is 0 of a single number.

  It is NaN if one of the numbers is: no mean of those that went well.
  """
  if any(map(math.isnan, numbers)):
    return 'nan ± nan'
  deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
  return f'{statistics.mean(numbers):.3f} ± {deviation:.3f}'


def round_up(epsilon: float, digits: int) -> str:
  """Returns so many digits, which promise no more than `epsilon` does."""
  exact = decimal.Decimal(repr(epsilon))
  step = decimal.Decimal(1).scaleb(-digits)
  return str(exact.quantize(step, rounding=decimal.ROUND_CEILING))


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """Returns a table in Markdown.

  >>> print(markdown(('a', 'b'), [('1', '2')]))
  | a | b |
  |---|---|
  | 1 | 2 |
  """
  rows = [list(header), *map(list, lines)]
  text = [f'| {" | ".join(cells)} |' for cells in rows]
  return '\n'.join([text[0], '|' + '---|' * len(header), *text[1:]])
