"""Labels from the cells of a table, in the forms that tables have.

One column with a class a row; one column with several findings in a cell, by a
separator, with a word for none; several columns of 0 and 1, either findings or,
with `one_hot`, classes of which each row has exactly one. Uncertain (-1) and
blank cells are a choice that is asked for: as 0, as 1, the image left out, or,
among several columns of findings, the single finding masked. A masked finding
is unknown: the loss and the metrics leave it out (U-Ignore of Irvin et al. 2019,
arXiv 1901.07031).

>>> form = LabelForm(('Edema', 'Effusion'), uncertain='mask')
>>> read(form, [('row 2', {'Edema': '-1', 'Effusion': '1'})])
[Labels(present=('Effusion',), unknown=('Edema',))]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import NamedTuple

from tff_medical import _validate
from tff_medical.data.tables import image_paths
from tff_medical.data.tables import image_table

MASK = 'mask'
CHOICES = ('0', '1', 'leave_out', MASK)
_BLANK = frozenset(('', 'nan', '<na>'))
_NUMBERS = {
  '0': 0, '0.0': 0, 'false': 0, 'no': 0, '1': 1, '1.0': 1, 'true': 1, 'yes': 1,
}  # fmt: skip


class Labels(NamedTuple):
  """Labels of a row.

  Attributes:
    present: Names of its classes: one, or any number with several findings.
    unknown: Names of the findings that are masked.
  """

  present: tuple[str, ...]
  unknown: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LabelForm:
  """Form of the labels in a table.

  Attributes:
    columns: Names of the columns: one, or several of 0 and 1.
    one_hot: Whether several columns are classes, exactly one a row.
    separator: Text between several findings in the cell of a single column, or
      None where a cell is one class.
    no_finding: Word for an image without findings; with `separator` only.
    uncertain: Meaning of -1, one of `CHOICES`, or None to refuse it.
    blank: Meaning of an empty cell, one of `CHOICES`, or None to refuse it.
  """

  columns: tuple[str, ...] = ('label',)
  one_hot: bool = False
  separator: str | None = None
  no_finding: str | None = None
  uncertain: str | None = None
  blank: str | None = None

  def __post_init__(self) -> None:
    if not self.columns or not all(self.columns):
      raise _validate.InputError(
        f'label_columns must name columns, got {",".join(self.columns)!r}'
      )
    if len(set(self.columns)) < len(self.columns):
      raise _validate.InputError(
        f'label_columns must name each column once, got {self.columns}'
      )
    if self.one_hot and len(self.columns) < 2:
      raise _validate.InputError(
        f'label_columns must name several columns with one_hot, got '
        f'{self.columns[0]!r}'
      )
    if self.separator is not None and len(self.columns) > 1:
      raise _validate.InputError(
        f'label_separator={self.separator} would be ignored with '
        f'{len(self.columns)} label_columns; leave it out'
      )
    if self.no_finding is not None and self.separator is None:
      raise _validate.InputError(
        f'no_finding={self.no_finding} would be ignored without '
        'label_separator; leave it out'
      )
    for name in ('uncertain', 'blank'):
      self._check_choice(name, getattr(self, name))

  @property
  def multi_label(self) -> bool:
    """Whether an image may have several findings, or none."""
    if len(self.columns) > 1:
      return not self.one_hot
    return self.separator is not None

  @property
  def class_names(self) -> tuple[str, ...]:
    """The classes, if the columns name them; else ()."""
    return self.columns if len(self.columns) > 1 else ()

  @property
  def can_mask(self) -> bool:
    """Whether cells are single findings, which may be masked one by one."""
    return len(self.columns) > 1 and not self.one_hot

  def choices(self, kind: str) -> tuple[str, ...]:
    """Returns the allowed meanings of cells.

    Args:
      kind: `uncertain` or `blank`.
    """
    if self.can_mask:
      return CHOICES
    if kind == 'uncertain' or len(self.columns) > 1:
      return tuple(choice for choice in CHOICES if choice != MASK)
    return ('leave_out',)

  def _check_choice(self, name: str, choice: str | None) -> None:
    if choice is None:
      return
    if choice not in CHOICES:
      hint = (
        f'; {MASK} leaves the single finding out' if choice == 'ignore' else ''
      )
      raise _validate.InputError(
        f'{name} must be one of {", ".join(CHOICES)}, got {choice!r}{hint}'
      )
    if choice == MASK and not self.can_mask:
      raise _validate.InputError(
        f'{name}={MASK} needs several label_columns that are findings, got '
        f'{", ".join(self.columns)}{" with one_hot" if self.one_hot else ""}; '
        'choose leave_out, which leaves the image out'
      )


# Names in errors of the cells whose meaning is a choice.
_ASKED = {'uncertain': 'uncertain (-1)', 'blank': 'blank'}


@dataclasses.dataclass(frozen=True, repr=False)
class Problem:
  """A cell that the form leaves open."""

  where: str
  kind: str  # 'uncertain', 'blank' or a sentence.
  column: str


def read(
  form: LabelForm, rows: Sequence[tuple[str, Mapping[str, str]]]
) -> list[Labels | None]:
  """Returns the labels of each row, or None for a row that is left out.

  Args:
    form: Form of the labels.
    rows: Name of each row for messages, and its cells by column.

  Raises:
    InputError: Cells are no labels or ask for a choice; the text names rows.
  """
  problems: list[Problem] = []
  several = len(form.columns) > 1
  labels = [
    (_of_columns if several else _of_cell)(form, where, cells, problems)
    for where, cells in rows
  ]
  if problems:
    _refuse(form, problems)
  return labels


def _refuse(form: LabelForm, problems: list[Problem]) -> None:
  """Raises the error of cells that cannot be read, all kinds in one line."""
  kinds = {kind: [p for p in problems if p.kind == kind] for kind in _ASKED}
  other = [p for p in problems if p.kind not in kinds]
  if other:
    more = f' (and {len(other) - 1} more cells)' if len(other) > 1 else ''
    raise _validate.InputError(f'{other[0].where}: {other[0].kind}{more}')
  parts = []
  for kind, cells in kinds.items():
    if cells:
      places = image_table.named_rows(
        [f'{p.where}, column {p.column!r}' for p in cells]
      )
      allowed = ', '.join(form.choices(kind))
      parts.append(
        f'{len(cells)} labels are {_ASKED[kind]} ({places}): choose what they '
        f'count as with --{kind}={allowed}'
      )
  raise _validate.InputError('; '.join(parts))


def _of_cell(
  form: LabelForm,
  where: str,
  cells: Mapping[str, str],
  problems: list[Problem],
) -> Labels | None:
  """Reads the one column of labels."""
  column = form.columns[0]
  text = image_paths.normal(cells[column])
  if text.casefold() in _BLANK:
    if form.blank != 'leave_out':
      problems.append(Problem(where, 'blank', column))
    return None
  if form.separator is not None:
    return _of_findings(form, where, text, problems)
  text = _plain_number(text)
  if text == '-1':
    if form.uncertain is None:
      problems.append(Problem(where, 'uncertain', column))
    return Labels((form.uncertain,)) if form.uncertain in ('0', '1') else None
  return Labels((text,))


def _of_findings(
  form: LabelForm, where: str, text: str, problems: list[Problem]
) -> Labels:
  """Reads several findings in a cell."""
  names = [image_paths.normal(n) for n in text.split(form.separator or '|')]
  names = [_plain_number(name) for name in names if name]
  none = image_paths.normal(form.no_finding or '').casefold()
  findings = [name for name in names if not none or name.casefold() != none]
  if findings and len(findings) < len(names):
    problems.append(
      Problem(
        where,
        f'label {text!r} names findings and {form.no_finding!r}; keep what is '
        'right',
        form.columns[0],
      )
    )
  return Labels(tuple(dict.fromkeys(findings)))


def _of_columns(
  form: LabelForm,
  where: str,
  cells: Mapping[str, str],
  problems: list[Problem],
) -> Labels | None:
  """Reads several columns of 0 and 1."""
  present: list[str] = []
  unknown: list[str] = []
  is_left_out = False
  for column in form.columns:
    text = cells[column].strip().casefold()
    value = _NUMBERS.get(_plain_number(text))
    if value is None:
      choice = _choice(form, where, column, cells[column], problems)
      is_left_out |= choice == 'leave_out'
      if choice == MASK:
        unknown.append(column)
      value = int(choice == '1')
    if value:
      present.append(column)
  if is_left_out:
    return None
  if form.one_hot and len(present) != 1 and not problems:
    problems.append(
      Problem(
        where,
        f'{len(present)} of the label columns are 1, but exactly one must be '
        'with one_hot; mend the row, or leave one_hot out if an image may have '
        'several findings',
        form.columns[0],
      )
    )
  return Labels(tuple(present), tuple(unknown))


def _choice(
  form: LabelForm,
  where: str,
  column: str,
  text: str,
  problems: list[Problem],
) -> str | None:
  """Returns the meaning of a cell that is neither 0 nor 1."""
  plain = text.strip().casefold()
  if _plain_number(plain) == '-1':
    kind, choice = 'uncertain', form.uncertain
  elif plain in _BLANK:
    kind, choice = 'blank', form.blank
  else:
    kind = f'column {column!r} must hold 0 or 1, got {text!r}'
    choice = None
  if choice is None:
    problems.append(Problem(where, kind, column))
  return choice


def _plain_number(text: str) -> str:
  """Returns a whole number without the decimals that programs add."""
  return re.sub(r'^([+-]?\d+)\.0*$', r'\1', text)
