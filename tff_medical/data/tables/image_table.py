"""The table of a hospital's own images, complete before any pixel is decoded.

What: readers (`folder_tables`, `file_tables`) give one `Row` a line; `build`
checks them all and returns an `ImageTable`. Every conflict of labels, paths,
patients and splits is refused here, in seconds and by row, before any image is
decoded. Class names and sites are numbered in their natural order (2 before
10), once for all sites and splits.

Patients are pairs of site and text, since two hospitals may use the same
number. No error, note or repr shows one: rows are named instead.

>>> rows = [Row('row 2', 'a.png', ('ill',)), Row('row 3', 'b.png', ('well',))]
>>> table = build(pathlib.Path('.'), rows)
>>> table.class_names, table.labels.tolist()
(('ill', 'well'), [0, 1])
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
import dataclasses
import pathlib
import re
import unicodedata

import numpy as np

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import label_values

# Names that people give to splits.
SPLIT_WORDS = {
  'train': 'train', 'training': 'train',
  'val': 'validation', 'valid': 'validation', 'validation': 'validation',
  'dev': 'validation', 'tune': 'validation',
  'test': 'test', 'testing': 'test', 'holdout': 'test',
}  # fmt: skip
# Texts that stand for a patient whose number is not known.
_NO_PATIENT = frozenset(
  'nan na n/a nat null none nil - -- --- . ? unknown unk missing anonymous '
  'anonymized anonymised anon not_available'.split()
) | {'', '#n/a', '<na>', 'not available', 'not known'}
MISSING_PATIENTS = ('refuse', 'own', 'leave_out')
# Names of fields of rows in errors, where they differ.
_NAMES_IN_ERRORS = {'unknown': 'unknown labels'}


@dataclasses.dataclass(frozen=True, repr=False)
class Row:
  """Entry of a table for one image file.

  Attributes:
    where: Name of the row in errors.
    path: Path of the file, relative to the folder of the images.
    labels: Names of its classes: one, or any number with several findings.
    unknown: Names of findings that are unknown; with several findings only.
    site: Name of the site, or None where sites are unknown.
    patient: Text that distinguishes the patients of a site, or None where none
      are known.
    split: One of `images.SPLIT_NAMES`, or None where the table has none.
  """

  where: str
  path: str
  labels: tuple[str, ...]
  site: str | None = None
  patient: str | None = None
  split: str | None = None
  unknown: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageTable:
  """Checked rows, one an image file.

  Attributes:
    root: Folder of the images.
    paths: Paths of the N files, relative to it.
    labels: int64 [N] class indices, or int64 [N, L] of 0, 1 and
      `label_values.UNKNOWN`.
    class_names: One name a class or finding.
    multi_label: Whether an image may have several findings, or none.
    sites: int64 [N] indices of `site_names`, or None where sites are unknown.
    site_names: Names of the sites.
    patients: Pairs (site, text), [N], or None where none are known.
    splits: int64 [N] indices of `images.SPLIT_NAMES`, or None if not given.
    num_rows: Number of rows before those of one image were merged.
    ignored: Number of files that operating systems left behind.
    notes: Sentences that whoever prepares the images should read.
  """

  root: pathlib.Path
  paths: tuple[str, ...]
  labels: np.ndarray
  class_names: tuple[str, ...]
  multi_label: bool
  sites: np.ndarray | None
  site_names: tuple[str, ...]
  patients: tuple[tuple[str, str], ...] | None
  splits: np.ndarray | None
  num_rows: int
  ignored: int = 0
  notes: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.paths)

  @property
  def num_patients(self) -> int | None:
    """Number of patients, or None where none are known."""
    return None if self.patients is None else len(set(self.patients))

  def shown(self, index: int) -> str:
    """Returns a path for a message, the patient's text in it replaced."""
    path = self.paths[index]
    if self.patients is None:
      return path
    text = self.patients[index][1].rpartition('\0')[2]
    parts = path.split('/')
    return '/'.join(_masked(part, text) for part in parts)


def build(
  root: pathlib.Path,
  rows: Sequence[Row],
  *,
  multi_label: bool = False,
  class_names: Sequence[str] = (),
  missing_patients: str = 'refuse',
  ignored: int = 0,
  notes: Iterable[str] = (),
) -> ImageTable:
  """Returns the checked table of rows.

  Args:
    root: Folder of the images.
    rows: One or more rows; equal rows of the same file are merged.
    multi_label: Whether labels are findings, of which an image may have none.
    class_names: Classes in their order; () for those of the rows in the natural
      order.
    missing_patients: Treatment of rows without a patient, where other rows have
      one: `refuse`, `own` (each such image is a patient) or `leave_out`.
    ignored: Number of files that were ignored.
    notes: Sentences for `ImageTable.notes`.

  Raises:
    InputError: Rows contradict each other or lack what is needed.
  """
  _validate.one_of(MISSING_PATIENTS, missing_patients=missing_patients)
  if not rows:
    raise _validate.InputError(
      f'data_dir names no image below {root}; give a folder or a table with images'
    )
  num_rows = len(rows)
  rows = _merged(rows)
  rows, more = _with_patients(rows, missing_patients)
  if not class_names:
    class_names = natural_order({name for row in rows for name in row.labels})
  check_names('class', class_names)
  if len(class_names) < (1 if multi_label else 2):
    raise _validate.InputError(
      f'images need at least 2 classes, got {", ".join(map(repr, class_names))}; '
      'check the column or the folders of the labels'
    )
  labels = _numbered_labels(rows, class_names, multi_label)
  sites, site_names = _numbered_sites(rows)
  splits = _numbered_splits(rows)
  patients = None
  if rows[0].patient is not None:
    patients = tuple((row.site or '', row.patient or '') for row in rows)
    if splits is not None:
      _check_one_split(rows, patients)
  return ImageTable(
    root=root,
    paths=tuple(row.path for row in rows),
    labels=labels,
    class_names=tuple(class_names),
    multi_label=multi_label,
    sites=sites,
    site_names=site_names,
    patients=patients,
    splits=splits,
    num_rows=num_rows,
    ignored=ignored,
    notes=(*notes, *more, *_notes_of_unknown(labels)),
  )


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
  """Returns names in the order that people expect: numbers count as such.

  >>> natural_order(['Grade 10', 'grade 2', 'Grade 1'])
  ('Grade 1', 'grade 2', 'Grade 10')
  """

  def key(name: str) -> tuple[object, ...]:
    parts = re.split(r'(\d+)', name.casefold())
    return (
      tuple(
        (0, int(part), '') if part.isdecimal() else (1, 0, part)
        for part in parts
        if part
      ),
      name,
    )

  return tuple(sorted(names, key=key))


def check_names(what: str, names: Iterable[str]) -> None:
  """Raises `InputError` for names that differ by case or blanks alone.

  Args:
    what: Noun that the names are of.
    names: Names to check.
  """
  seen: dict[str, str] = {}
  for name in names:
    if not name or not name.isprintable():
      raise _validate.InputError(
        f'{what} names must be printable text, got {name!r}'
      )
    plain = ' '.join(unicodedata.normalize('NFKC', name).casefold().split())
    other = seen.setdefault(re.sub(r'[ _]+', ' ', plain).strip(), name)
    if other != name:
      raise _validate.InputError(
        f'{what} names {other!r} and {name!r} differ by case or blanks alone; '
        'give them one name if they are one, or names that differ'
      )


def named_rows(wheres: Sequence[str], shown: int = 3) -> str:
  """Returns a list of rows for a message, the first few by name."""
  text = ', '.join(wheres[:shown])
  more = len(wheres) - shown
  return f'{text} and {more} more' if more > 0 else text


def split_of(text: str, where: str) -> str:
  """Returns the split that a word means.

  Raises:
    InputError: The word means no split.
  """
  name = SPLIT_WORDS.get(text.strip().casefold())
  if name is None:
    raise _validate.InputError(
      f'{where}: split must be train, validation or test, got {text!r}'
    )
  return name


def _masked(part: str, text: str) -> str:
  """Returns a part of a path without the text of a patient."""
  stem = part.partition('.')[0]
  if text and text in (part, stem):
    return part.replace(text, '*', 1)
  if len(text) >= 4:
    return re.sub(re.escape(text), '*', part, flags=re.IGNORECASE)
  return part


def _merged(rows: Sequence[Row]) -> list[Row]:
  """Returns one row a file; refuses rows that contradict each other."""
  kept: dict[str, Row] = {}
  for row in rows:
    other = kept.setdefault(row.path, row)
    if other is row:
      continue
    for name in ('labels', 'unknown', 'site', 'patient', 'split'):
      first, second = getattr(other, name), getattr(row, name)
      if name in ('labels', 'unknown'):
        first, second = sorted(first), sorted(second)
      if first != second:
        # Neither value is shown where it tells who the patient is.
        values = '' if name == 'patient' else f' ({first!r} and {second!r})'
        raise _validate.InputError(
          f'{other.where} and {row.where} name the same image with different '
          f'{_NAMES_IN_ERRORS.get(name, name)}{values}; keep the right one'
        )
  return list(kept.values())


def is_no_patient(text: str) -> bool:
  """Returns whether a text stands for a patient who is not known."""
  return text.strip().casefold() in _NO_PATIENT


def _with_patients(
  rows: list[Row], policy: str
) -> tuple[list[Row], tuple[str, ...]]:
  """Deals with rows that lack the patient as the policy says."""
  lacking = {
    id(row) for row in rows if row.patient is not None and
    is_no_patient(row.patient)
  }  # fmt: skip
  if not lacking:
    return rows, ()
  wheres = [row.where for row in rows if id(row) in lacking]
  if policy == 'refuse':
    raise _validate.InputError(
      f'{len(wheres)} of {len(rows)} images have no patient '
      f'({named_rows(wheres)}); give their patients, or choose '
      '--missing_patients=own (each such image is a patient of its own) or '
      'leave_out'
    )
  if policy == 'leave_out':
    kept = [row for row in rows if id(row) not in lacking]
    if not kept:
      raise _validate.InputError(
        f'missing_patients=leave_out leaves none of the {len(rows)} images; '
        'check the column of the patients'
      )
    return kept, (f'{len(wheres)} images without a patient were left out.',)
  return [
    # No text of a table can be like it: those are stripped and printable.
    dataclasses.replace(row, patient=f'\0image {row.path}')
    if id(row) in lacking
    else row
    for row in rows
  ], (
    f'{len(wheres)} images without a patient count as patients of their own.',
  )


def _numbered_sites(
  rows: Sequence[Row],
) -> tuple[np.ndarray | None, tuple[str, ...]]:
  if rows[0].site is None:
    return None, ()
  blank = [row.where for row in rows if not row.site]
  if blank:
    raise _validate.InputError(
      f'{len(blank)} of {len(rows)} images have no site ({named_rows(blank)}); '
      'fill the column in, or leave the flag of the site out'
    )
  names = natural_order({row.site or '' for row in rows})
  check_names('site', names)
  number = {name: i for i, name in enumerate(names)}
  return np.array([number[row.site or ''] for row in rows], np.int64), names


def _numbered_splits(rows: Sequence[Row]) -> np.ndarray | None:
  if rows[0].split is None:
    return None
  number = {name: i for i, name in enumerate(images.SPLIT_NAMES)}
  return np.array([number[row.split or ''] for row in rows], np.int64)


def _numbered_labels(
  rows: Sequence[Row], class_names: Sequence[str], multi_label: bool
) -> np.ndarray:
  number = {name: i for i, name in enumerate(class_names)}
  if not multi_label:
    return np.array([number[row.labels[0]] for row in rows], np.int64)
  labels = np.zeros((len(rows), len(class_names)), np.int64)
  for i, row in enumerate(rows):
    for name in row.labels:
      labels[i, number[name]] = 1
    for name in row.unknown:
      labels[i, number[name]] = label_values.UNKNOWN
  return labels


def _notes_of_unknown(labels: np.ndarray) -> tuple[str, ...]:
  unknown = int((labels == label_values.UNKNOWN).sum())
  if not unknown:
    return ()
  without = int((~label_values.has_label(labels)).sum())
  return (
    f'{unknown} of {labels.size} labels are unknown and masked; {without} images '
    'have no known label.',
  )


def _check_one_split(
  rows: Sequence[Row], patients: Sequence[tuple[str, str]]
) -> None:
  """Refuses a patient in two splits, by number and row."""
  first: dict[tuple[str, str], Row] = {}
  pairs: dict[tuple[str, str], tuple[Row, Row]] = {}
  for row, patient in zip(rows, patients):
    other = first.setdefault(patient, row)
    if other.split != row.split:
      pairs.setdefault(patient, (other, row))
  if not pairs:
    return
  count = len(pairs)
  examples = [f'{a.where} and {b.where}' for a, b in pairs.values()]
  raise _validate.InputError(
    f'{count} patient{"s are" if count > 1 else " is"} in several splits '
    f'({named_rows(examples)}); move all images of a patient into one split, or '
    'leave the split out to have one made by patient'
  )


def by_split(table: ImageTable) -> dict[str, int]:
  """Returns the number of images of each split that has some."""
  if table.splits is None:
    return {}
  counts = collections.Counter(table.splits.tolist())
  return {
    name: counts[i] for i, name in enumerate(images.SPLIT_NAMES) if counts[i]
  }
