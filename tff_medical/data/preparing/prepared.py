"""A folder of prepared images: raw pixels, numbers, and how they were made.

`preparation` writes the folder, and `load` reads it:

| file | content |
|---|---|
| `pixels.raw` | uint8 [N, H, W, C], images of a file beside each other |
| `table.npz` | labels, sites, salted patient numbers, splits: numbers alone |
| `files.npz` | which rows come from which state of a file, as keyed hashes |
| `prepared.json` | shape, names, counts by rule and site, duplicates, digests |
| `bad_files.tsv` | files that cannot be used, by name: for the data's holder |

The folder stays with whoever holds the data: it is as private as the images.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import io
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data import equal_images
from tff_medical.data import images
from tff_medical.data import pixels

PIXELS = 'pixels.raw'
TABLE = 'table.npz'
FILES = 'files.npz'
INFO = 'prepared.json'
BAD_FILES = 'bad_files.tsv'
VERSION = 2
# Exceptions that NumPy raises for damaged archives.
UNREADABLE = (
  OSError,
  EOFError,
  ValueError,
  KeyError,
  TypeError,
  zipfile.BadZipFile,
  zlib.error,
)
# More than the numbers of a hundred million images take.
_MAX_TABLE_BYTES = 2**33


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """A prepared data set.

  Attributes:
    folder: Folder of the data set.
    info: Content of `prepared.json`.
    labels: int64 [N] or [N, L].
    splits: int64 [N], indices of `images.SPLIT_NAMES`.
    sites: int64 [N], or None.
    patients: int64 [N], salted numbers, or None.
  """

  folder: pathlib.Path
  info: Mapping[str, Any]
  labels: np.ndarray
  splits: np.ndarray
  sites: np.ndarray | None
  patients: np.ndarray | None

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """(N, H, W, C)."""
    count, height, width, channels = self.info['shape']
    return count, height, width, channels

  @property
  def duplicates(self) -> equal_images.Duplicates:
    """Equal images within and across splits, as they were counted."""
    counted = self.info['duplicates']
    return equal_images.Duplicates(
      within=counted['within'],
      across={(a, b): n for a, b, n in counted['across']},
    )

  def split(self, rows: np.ndarray) -> images.Split:
    """Returns the split of some rows, int64 [n]; no pixel is read."""
    stored = open_pixels(self.folder, self.shape, self.info['pixels_sha256'])
    return images.Split(
      images=pixels.select(stored, rows),
      labels=self.labels[rows],
      sites=None if self.sites is None else self.sites[rows],
      patients=None if self.patients is None else self.patients[rows],
    )


def open_pixels(
  folder: pathlib.Path, shape: tuple[int, int, int, int], digest: str = ''
) -> pixels.StoredPixels:
  """Returns the pixels of a prepared folder, which are read when they are drawn.

  Args:
    folder: Prepared folder.
    shape: Shape (N, H, W, C) of all images.
    digest: SHA-256 of the file, in hexadecimal.

  Raises:
    InputError: The file is missing, or is not of this shape.
  """
  try:
    return pixels.StoredPixels(folder / PIXELS, shape, digest)
  except _validate.InputError:
    raise _damaged(folder) from None


def load(folder: pathlib.Path) -> Prepared:
  """Returns the prepared data set of a folder.

  Raises:
    InputError: The folder is damaged.
  """
  try:
    info = _files.read_json(folder / INFO)
    table = read_npz(folder / TABLE)
    data = Prepared(
      folder,
      info,
      table['labels'],
      table['splits'],
      table.get('sites'),
      table.get('patients'),
    )
    if info['version'] != VERSION or len(data.labels) != data.shape[0]:
      raise _damaged(folder)
  except UNREADABLE:
    raise _damaged(folder) from None
  open_pixels(folder, data.shape)
  return data


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of an archive; raises as `UNREADABLE` says."""
  content = _files.read_bytes(path, _MAX_TABLE_BYTES)
  with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
    return {name: arrays[name] for name in arrays.files}


def _damaged(folder: pathlib.Path) -> _validate.InputError:
  return _validate.InputError(
    f'prepared_dir holds {str(folder)!r}, which is damaged or of another '
    'version; remove that folder to prepare the images again'
  )
