"""A hospital's own images, from a folder or a table to an `ImageData`.

`OwnImages` holds every choice. `load` reads the table, prepares its images once
and returns them. Warnings tell whoever holds the data of files left out, values
that use little of their range, images that may name a patient, and duplicates
across splits.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import os
import pathlib
import re
from typing import Any

from absl import logging
import numpy as np

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import preparation_counts
from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import decoding_worker
from tff_medical.data.preparing import archives
from tff_medical.data.preparing import preparation
from tff_medical.data.preparing import prepared
from tff_medical.data.tables import file_tables
from tff_medical.data.tables import folder_tables
from tff_medical.data.tables import image_table
from tff_medical.data.tables import label_cells
from tff_medical.data.tables import splitting

FOLDER = 'folder'
TABLE = 'table'
NAMES = (FOLDER, TABLE)
# Names of own images in cards and reports start so, if they have a name.
_PREFIX = 'own:'
_NAME = re.compile(r'[\w.-]{1,64}')
_SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True)
class OwnImages:
  """Choices for own images.

  Attributes:
    dataset_name: Name of the images that is published, or None.
    decoding: Choices that image files cannot make themselves.
    folder_levels: Meaning of the folders, the `levels` of `folder_tables.read`.
    columns: Columns of a table.
    labels: Form of the labels in a table.
    image_dir: Folder or archive of a table's images; the table's if None.
    dicom_patients: Whether DICOM headers tell patients apart.
    missing_files: Treatment of rows without their file; see `file_tables.read`.
    missing_patients: Treatment of rows without a patient; see
      `image_table.build`.
    channels: 1 or 3; None for 3 if any image is in colour.
    prepared_dir: Folder of prepared images; None for a cache folder.
    max_bad_fraction: Largest fraction of the files that may be unusable.
    workers: Number of decoding processes; None for one for each core.
    file_seconds: Largest number of seconds for decoding a file.
  """

  dataset_name: str | None = None
  decoding: decoded.DecodingPolicy = decoded.DecodingPolicy()
  folder_levels: str | None = None
  columns: file_tables.Columns = file_tables.Columns()
  labels: label_cells.LabelForm = label_cells.LabelForm()
  image_dir: str | None = None
  dicom_patients: bool = False
  missing_files: str = 'refuse'
  missing_patients: str = 'refuse'
  channels: int | None = None
  prepared_dir: str | None = None
  max_bad_fraction: float = 0.0
  workers: int | None = None
  file_seconds: float = 60.0

  def __post_init__(self) -> None:
    if self.dataset_name is not None and not _NAME.fullmatch(self.dataset_name):
      raise _validate.InputError(
        'dataset_name must be 1 to 64 letters, digits, ., _ and -, got '
        f'{self.dataset_name!r}'
      )
    if self.folder_levels is not None:
      folder_tables.parse_levels(self.folder_levels)
    _validate.one_of(
      file_tables.MISSING_FILES, missing_files=self.missing_files
    )
    _validate.one_of(
      image_table.MISSING_PATIENTS, missing_patients=self.missing_patients
    )
    if self.channels not in (None, 1, 3):
      raise _validate.InputError(
        f'channels must be 1 (grey) or 3 (RGB), got {self.channels!r}'
      )


def load(
  name: str, data_dir: str | None, image_size: int, own: OwnImages
) -> images.ImageData:
  """Returns own images.

  Args:
    name: `FOLDER` or `TABLE`.
    data_dir: Folder or archive of the images, or file of the table.
    image_size: Height and width that images are resized to.
    own: Choices for the images.

  Raises:
    InputError: The table or too many of its files cannot be used.
  """
  table = read_table(name, data_dir, own)
  prepared_dir = _prepared_dir(own)
  if name == FOLDER and _is_inside(prepared_dir, table.root):
    raise _validate.InputError(
      f'prepared_dir must not lie in data_dir, got {str(prepared_dir)!r}: what is '
      'prepared would be taken for images; give another folder'
    )
  prepared_images = preparation.prepare(
    table,
    preparation.Options(
      decoding_worker.Task(own.decoding, image_size, own.channels),
      prepared_dir,
      own.max_bad_fraction,
      own.workers,
      own.file_seconds,
    ),
  )
  _warn(prepared_images)
  return _image_data(
    stated_name(name, own.dataset_name), prepared_images, own.decoding
  )


def stated_name(dataset: str, dataset_name: str | None) -> str:
  """Returns the name of a data set in its card.

  >>> stated_name('folder', 'north-2023'), stated_name('folder', None)
  ('own:north-2023', 'folder')

  Args:
    dataset: Name of any data set, e.g. `FOLDER`.
    dataset_name: Name that own images were given, or None.
  """
  return dataset if dataset_name is None else f'{_PREFIX}{dataset_name}'


def may_be_same(earlier: str, later: str) -> bool:
  """Returns whether two sets of own images may hold the same images.

  Their digests are secret, so that names alone can tell them apart: two sets are
  different if both were given a name, and the names differ.

  Args:
    earlier: Name of a data set in its card, own images or not.
    later: Name of the other data set.
  """
  names = [earlier.split(' ')[0], later.split(' ')[0]]
  if not all(n in NAMES or n.startswith(_PREFIX) for n in names):
    return False
  return names[0] == names[1] or any(name in NAMES for name in names)


def read_table(
  name: str, data_dir: str | None, own: OwnImages
) -> image_table.ImageTable:
  """Returns the checked table of own images; unpacks archives, decodes none.

  Args:
    name: `FOLDER` or `TABLE`.
    data_dir: Folder or archive of the images, or file of the table.
    own: Choices for the images.

  Raises:
    InputError: The table cannot be used.
  """
  _validate.one_of(NAMES, name=name)
  if data_dir is None:
    what = 'folder of the images' if name == FOLDER else 'file of the table'
    raise _validate.InputError(
      f'data_dir must be given with dataset={name}: the {what}'
    )
  path = pathlib.Path(data_dir).expanduser()
  if name == FOLDER:
    return folder_tables.read(
      _unpacked('data_dir', path, own),
      levels=own.folder_levels,
      dicom_patients=own.dicom_patients,
      missing_patients=own.missing_patients,
      may_be_wrapped=archives.is_archive(path),
    )
  image_dir = None
  if own.image_dir is not None:
    image_dir = pathlib.Path(own.image_dir).expanduser()
    if archives.is_archive(image_dir):  # It may take long.
      file_tables.check_columns(path, own.columns, own.labels)
    image_dir = _unpacked('image_dir', image_dir, own)
  return file_tables.read(
    path,
    own.columns,
    own.labels,
    image_dir=image_dir,
    dicom_patients=own.dicom_patients,
    missing_files=own.missing_files,
    missing_patients=own.missing_patients,
  )


def _unpacked(flag: str, path: pathlib.Path, own: OwnImages) -> pathlib.Path:
  """Returns the folder of an archive's files; any other path as it is."""
  if not archives.is_archive(path):
    return path
  return archives.unpacked(flag, path, _prepared_dir(own))


def _prepared_dir(own: OwnImages) -> pathlib.Path:
  if own.prepared_dir is not None:
    return pathlib.Path(own.prepared_dir).expanduser()
  return _files.cache_folder('prepared')


def _is_inside(path: pathlib.Path, folder: pathlib.Path) -> bool:
  real = os.path.realpath(folder)
  return os.path.commonpath([os.path.realpath(path), real]) == real


def _warn(prepared_images: prepared.Prepared) -> None:
  """Logs what whoever holds the data should know."""
  info = prepared_images.info
  for note in info['notes']:
    logging.warning('%s', note)
  if info['bad_files']:
    logging.warning(
      '%d of %d files cannot be used and were left out; they are listed in %s',
      info['bad_files'],
      info['files'],
      prepared_images.folder / prepared.BAD_FILES,
    )
  if info['split'] in (splitting.BY_IMAGE, splitting.BY_COPIES):
    logging.warning(
      'The split is %s, as no patients are known: images of one patient may be in '
      'train and in test. Give the column or the folder of the patients.',
      info['split'],
    )
  if info['patients'] is None and prepared_images.patients is not None:
    logging.warning(
      'Files hold several images each: a file counts as a patient, and ε of '
      'privacy_unit=record protects one image of it; choose patient.'
    )
  for text, count in _over_sites(info['warnings_by_site']).items():
    logging.warning('%d files: %s', count, text)
  _warn_of_duplicates(info['duplicates']['near_across'])


def _warn_of_duplicates(near: Mapping[str, int | None]) -> None:
  for split, count in near.items():
    if count is None:
      logging.warning(
        'Near duplicates were not looked for in %s: there are too many pairs.',
        split,
      )
    elif count:
      logging.warning(
        '%d images of %s are near duplicates of images in an earlier split '
        '(mirrored, turned, brighter or recompressed): its metrics are too good',
        count,
        split,
      )


def _over_sites(by_site: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
  total: dict[str, int] = {}
  for counts in by_site.values():
    for text, count in counts.items():
      total[text] = total.get(text, 0) + count
  return total


def _image_data(
  name: str, prepared_images: prepared.Prepared, policy: decoded.DecodingPolicy
) -> images.ImageData:
  rows = _rows_by_split(prepared_images)
  splits = {
    split: prepared_images.split(rows[split]) for split in images.SPLIT_NAMES
  }
  return images.ImageData(
    name=name,
    train=splits['train'],
    validation=splits['validation'],
    test=splits['test'],
    class_names=tuple(prepared_images.info['class_names']),
    multi_label=prepared_images.info['multi_label'],
    site_names=tuple(prepared_images.info['site_names']),
    source_digest=prepared_images.info['digest'],
    origin=images.UNSTATED,
    counted_duplicates=prepared_images.duplicates,
    decoding_policy=policy,
    preparation=_preparation(prepared_images.info),
    split_rule=prepared_images.info['split'],
  )


def _preparation(info: Mapping[str, Any]) -> preparation_counts.Preparation:
  return preparation_counts.Preparation(
    files=info['files'],
    bad_files=info['bad_files_by_site'],
    rules=info['rules_by_site'],
    warnings=info['warnings_by_site'],
    sizes=info['sizes_by_site'],
    largest_group=info['duplicates']['largest_group'],
  )


def _rows_by_split(prepared_images: prepared.Prepared) -> dict[str, np.ndarray]:
  """Returns the rows of each split; those not given are taken from train."""
  rows = {
    name: np.flatnonzero(prepared_images.splits == i)
    for i, name in enumerate(images.SPLIT_NAMES)
  }
  shares = {
    'validation': splitting.VALIDATION_SHARE,
    'test': splitting.TEST_SHARE,
  }
  empty = {n: s for n, s in shares.items() if not len(rows[n])}
  train = rows['train']
  if not empty or len(train) <= len(empty):
    return rows
  groups = (
    train
    if prepared_images.patients is None
    else prepared_images.patients[train]
  )
  made = splitting.split(
    [str(group) for group in groups.tolist()],
    splitting.strata(
      prepared_images.labels[train],
      None if prepared_images.sites is None else prepared_images.sites[train],
    ),
    seed=_SPLIT_SEED,
    validation=empty.get('validation', 0),
    test=empty.get('test', 0),
  )
  for name in empty:
    rows[name] = train[made == images.SPLIT_NAMES.index(name)]
    logging.warning(
      'The data has no %s split; %d images of train became one.',
      name,
      len(rows[name]),
    )
  rows['train'] = train[made == images.SPLIT_NAMES.index('train')]
  return rows
