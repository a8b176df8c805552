"""Fixed features of a data set, computed once an image and kept on disk.

The features of each split are one raw float32 file, which `pixels.StoredRows`
reads by rows. It is named by a digest of the images and of the frozen layers, so
that a change of either makes new features. Writing goes on where a
killed process stopped. Two processes never compute the same features at once.

The files hold features of client data: they are private to their owner, and
nothing of them is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import fcntl
import hashlib
import math
import os
import pathlib
from typing import Any

import numpy as np
import tqdm

from tff_medical import _files
from tff_medical import _validate
from tff_medical import models
from tff_medical.data import examples
from tff_medical.data import images as images_lib
from tff_medical.data import pixels

# Size of the float32 images of one batch. A network holds some tens of times as
# much in its layers.
_BATCH_BYTES = 2**23
_MAX_BATCH = 256
_DTYPE = np.dtype('<f4')
_FORMAT = 1


def with_features(
  data: images_lib.ImageData,
  transfer: models.Transfer,
  folder: str | os.PathLike[str] | None = None,
) -> images_lib.ImageData:
  """Returns the data with the features of every image of its splits.

  Features that the folder already holds are not computed again.

  Args:
    data: Images of all splits.
    transfer: Network with a frozen part that takes images of the data's shape.
    folder: Folder of all features, which is made if it does not exist; None for
      one in the user's cache folder.

  Raises:
    InputError: The folder cannot be written, or the features are not finite.
  """
  root = pathlib.Path(
    _files.cache_folder('features') if folder is None else folder
  )
  splits = {name: split for name, split in data.splits() if len(split)}
  paths = {name: _path(root, split, transfer) for name, split in splits.items()}
  missing = {
    n: s for n, s in splits.items() if not _is_whole(paths[n], s, transfer)
  }
  total = sum(len(split) for split in missing.values())
  bar = tqdm.tqdm(
    total=total, unit='image', desc='fixed features', disable=not total
  )
  with bar, _disk_errors(root):
    for name, split in missing.items():
      _write(paths[name], split, transfer, bar.update)
  with_rows: dict[str, Any] = {
    name: dataclasses.replace(
      split, features=_open(paths[name], split, transfer)
    )
    for name, split in splits.items()
  }
  return dataclasses.replace(data, **with_rows)


def _open(
  path: pathlib.Path,
  split: images_lib.Split,
  transfer: models.Transfer,
) -> pixels.StoredRows:
  shape = (len(split), *_shape(transfer))
  return pixels.StoredRows(path, shape, dtype=_DTYPE)


def _is_whole(
  path: pathlib.Path, split: images_lib.Split, transfer: models.Transfer
) -> bool:
  """Returns whether a file is there with all of its bytes."""
  nbytes = len(split) * math.prod(_shape(transfer)) * _DTYPE.itemsize
  try:
    return path.stat().st_size == nbytes
  except OSError:  # Writing the file tells what is wrong.
    return False


def _path(
  root: pathlib.Path,
  split: images_lib.Split,
  transfer: models.Transfer,
) -> pathlib.Path:
  """Returns the file of a split's features."""
  key = hashlib.sha256()
  for part in (
    str(_FORMAT),
    transfer.digest,
    str(split.images.shape),
    pixels.digest(split.images),
  ):
    key.update(f'{part}\n'.encode())
  return root / f'{key.hexdigest()}.f32'


def _write(
  path: pathlib.Path,
  split: images_lib.Split,
  transfer: models.Transfer,
  show: Callable[[int], object],
) -> None:
  """Computes and writes the features of a split; goes on with a partial file.

  Args:
    path: File of the features.
    split: Images.
    transfer: Network with a frozen part.
    show: Function that is called with the number of images done.
  """
  path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
  partial = path.with_suffix('.partial')
  with _locked(partial) as file:
    if _is_whole(path, split, transfer):  # Another process was faster.
      partial.unlink(missing_ok=True)
      show(len(split))
      return
    row_bytes = math.prod(_shape(transfer)) * _DTYPE.itemsize
    done = os.fstat(file).st_size // row_bytes
    os.ftruncate(file, done * row_bytes)
    os.lseek(file, 0, os.SEEK_END)
    show(done)
    for batch in _batches(split, done):
      values = _compute(transfer, batch)
      _write_all(file, values.tobytes())
      show(len(batch))
    os.fsync(file)
    os.rename(partial, path)


def _batches(split: images_lib.Split, start: int) -> Iterator[np.ndarray]:
  """Yields the scaled images from `start` on, float32 [n, H, W, C]."""
  size = math.prod(split.image_shape) * _DTYPE.itemsize
  step = max(1, min(_MAX_BATCH, _BATCH_BYTES // size))
  for first in range(start, len(split), step):
    rows = np.arange(first, min(first + step, len(split)))
    yield examples.scaled(split.rows(rows))


def _compute(transfer: models.Transfer, images: np.ndarray) -> np.ndarray:
  values = transfer.compute(images).numpy()
  if not np.isfinite(values).all():
    raise _validate.InputError(
      f'the frozen layers {dict(transfer.identity)} give features that are not '
      'finite; choose other layers or weights'
    )
  return np.ascontiguousarray(values, _DTYPE)


def _shape(transfer: models.Transfer) -> tuple[int, ...]:
  shape = transfer.feature_shape
  if shape is None:
    raise ValueError('no part of the network is frozen, so it has no features')
  return shape


def _write_all(file: int, content: bytes) -> None:
  rest = memoryview(content)
  while rest:
    rest = rest[os.write(file, rest) :]


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[int]:
  """Opens a private file for writing; waits until no other process has it."""
  file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
  try:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield file
  finally:
    os.close(file)


@contextlib.contextmanager
def _disk_errors(root: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise _validate.InputError(
      f'features_dir {os.fspath(root)} cannot be written: '
      f'{error.strerror or error}; make room there or give another folder'
    ) from error
