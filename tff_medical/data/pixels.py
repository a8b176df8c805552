"""Pixels of images: an array in memory, or a raw file that is read by rows.

`StoredPixels` reads images of a file by their numbers, so that a data set may
be far larger than the memory. `read`, `select` and `batches` treat it and an
array alike. A memory map would be slower: its page faults wait for the disk one
after the other, while reads of several threads wait at the same time. A memory
map took 17 times as long for 256 images of 224 x 224 x 3 that were not in the
page cache (`python -m experiments.pixels_benchmark --images=8000
--image_size=224 --channels=3`).

The file holds the bytes of a uint8 array [N, H, W, C] in C order, without a
header. Fixed features of images are stored and read in the same way, as float32
[N, ...].

>>> import tempfile
>>> path = os.path.join(tempfile.mkdtemp(), 'train.raw')
>>> np.arange(12, dtype=np.uint8).tofile(path)
>>> stored = StoredPixels(path, (3, 2, 2, 1))
>>> stored.rows(np.array([2, 0])).reshape(2, 4).tolist()
[[8, 9, 10, 11], [0, 1, 2, 3]]
>>> StoredPixels(path, (4, 2, 2, 1))  # doctest: +ELLIPSIS
Traceback (most recent call last):
...
tff_medical._validate.InputError: pixels .../train.raw must have 16 bytes for \
shape (4, 2, 2, 1), got 12; prepare the data again
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import os
from typing import Protocol, Union, runtime_checkable
import weakref

import numpy as np

from tff_medical import _files
from tff_medical import _validate

Shape = tuple[int, ...]

# Number of reads that wait for the disk at the same time.
_THREADS = 8
# Limits of one read. The system limits its buffers (IOV_MAX), and the limit in
# bytes divides large reads among the threads.
_MAX_BUFFERS = 1024
_READ_BYTES = 4 * 2**20
# Size in bytes of a batch of `batches`.
_BATCH_BYTES = 16 * 2**20


@runtime_checkable
class Pixels(Protocol):
  """Pixels, or features of images, that are read on demand."""

  @property
  def shape(self) -> Shape:
    """Shape (N, H, W, C) of pixels, (N, ...) of features."""

  @property
  def dtype(self) -> np.dtype:
    """Data type: uint8 of pixels, float32 of features."""

  @property
  def digest(self) -> str:
    """Digest of the pixels; '' if it is unknown without reading them."""

  def __len__(self) -> int: ...

  def rows(self, indices: np.ndarray) -> np.ndarray:
    """Returns a new array of the images at `indices`, uint8 [..., H, W, C].

    Args:
      indices: Integers in 0..N-1, in any shape and order, with or without
        repetition.

    Raises:
      IndexError: An index is out of range.
      InputError: The pixels cannot be read.
    """


ArrayOrPixels = Union[np.ndarray, Pixels]


def read(pixels: ArrayOrPixels, indices: np.ndarray) -> np.ndarray:
  """Returns a new array of the images at `indices`, as `Pixels.rows` does."""
  if isinstance(pixels, np.ndarray):
    return pixels[_checked(indices, len(pixels))]
  return pixels.rows(indices)


def select(pixels: ArrayOrPixels, indices: np.ndarray) -> ArrayOrPixels:
  """Returns the images at `indices`; stored images are read later.

  Args:
    pixels: Array, or pixels that are read on demand.
    indices: Index into the first axis of an array: integers or booleans.
  """
  if isinstance(pixels, np.ndarray):
    return pixels[indices]
  return SelectedPixels(pixels, np.arange(len(pixels))[indices])


def batches(
  pixels: ArrayOrPixels, batch_size: int | None = None
) -> Iterator[np.ndarray]:
  """Yields all images in their order, one batch in memory at a time.

  Args:
    pixels: Array, whose batches are views, or pixels that are read on demand.
    batch_size: Number of images per batch; by default, the number that 16 MiB
      hold.
  """
  if batch_size is None:
    batch_size = max(1, _BATCH_BYTES // max(1, math.prod(pixels.shape[1:])))
  for start in range(0, len(pixels), batch_size):
    stop = min(start + batch_size, len(pixels))
    if isinstance(pixels, np.ndarray):
      yield pixels[start:stop]
    else:
      yield pixels.rows(np.arange(start, stop))


def digest(pixels: ArrayOrPixels) -> str:
  """Returns the digest that pixels carry or, without one, computes it.

  The computed digest is the SHA-256 of all bytes, in hexadecimal.
  """
  carried = '' if isinstance(pixels, np.ndarray) else pixels.digest
  if carried:
    return carried
  content = hashlib.sha256()
  for batch in batches(pixels):
    content.update(np.ascontiguousarray(batch).data)
  return content.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class StoredRows:
  """Rows of a raw file, as features are; it stays open while the object lives.

  Several threads can use the object at once.

  Attributes:
    path: Path of the file; see the module for its layout.
    shape: Shape (N, ...) of all rows.
    digest: SHA-256 of the file in hexadecimal, taken when the file was written;
      '' if unknown.
    dtype: Data type of the values.

  Raises:
    InputError: The file cannot be read, or its size does not fit the shape.
  """

  path: str | os.PathLike[str]
  shape: Shape
  digest: str = ''
  dtype: np.dtype = np.dtype(np.uint8)
  _descriptor: int = dataclasses.field(init=False, repr=False)

  def __post_init__(self) -> None:
    object.__setattr__(self, 'shape', self._checked_shape())
    descriptor = self._open()
    object.__setattr__(self, '_descriptor', descriptor)
    weakref.finalize(self, os.close, descriptor)

  def __len__(self) -> int:
    return self.shape[0]

  def rows(self, indices: np.ndarray) -> np.ndarray:
    """Returns the images at `indices`; see `Pixels.rows`."""
    indices = _checked(indices, len(self))
    flat = indices.ravel()
    pixels = np.empty((flat.size, *self.shape[1:]), self.dtype)
    order = np.argsort(flat, kind='stable')
    in_order = flat[order]
    is_first = np.diff(in_order, prepend=-1) != 0
    self._read_rows(in_order[is_first], order[is_first], pixels)
    if not is_first.all():
      first_of = order[is_first][np.cumsum(is_first) - 1]
      pixels[order[~is_first]] = pixels[first_of[~is_first]]
    return pixels.reshape(*indices.shape, *self.shape[1:])

  @property
  def _row_bytes(self) -> int:
    return math.prod(self.shape[1:]) * self.dtype.itemsize

  def _checked_shape(self) -> Shape:
    _validate.whole(rows=self.shape[0])
    _validate.non_negative(rows=self.shape[0])
    for size in self.shape[1:]:
      _validate.positive_int(shape=size)
    return tuple(map(int, self.shape))

  def _open(self) -> int:
    size = self.shape[0] * self._row_bytes
    try:
      with _files.open_regular(self.path) as file:
        file_size = os.fstat(file.fileno()).st_size
        if file_size != size:
          raise _validate.InputError(
            f'pixels {os.fspath(self.path)} must have {size} bytes for shape '
            f'{self.shape}, got {file_size}; prepare the data again'
          )
        return os.dup(file.fileno())
    except OSError as error:
      raise self._unreadable(error) from error

  def _unreadable(self, error: OSError) -> _validate.InputError:
    return _validate.InputError(
      f'pixels {os.fspath(self.path)} cannot be read: '
      f'{error.strerror or error}; prepare the data again'
    )

  def _read_rows(
    self, rows: np.ndarray, positions: np.ndarray, target: np.ndarray
  ) -> None:
    """Reads distinct sorted rows to their positions in `target`."""
    limit = min(_MAX_BUFFERS, max(1, _READ_BYTES // self._row_bytes))
    parts = list(_neighbours(rows, positions, limit))
    memory = target.reshape(-1).view(np.uint8).data
    if len(parts) <= 1:
      self._read_parts(parts, memory)
      return
    reads = [
      _pool().submit(self._read_parts, parts[first::_THREADS], memory)
      for first in range(min(_THREADS, len(parts)))
    ]
    # All reads write into the memory, so that none may outlive this call.
    concurrent.futures.wait(reads)
    for future in reads:
      future.result()

  def _read_parts(
    self, parts: Sequence[tuple[int, np.ndarray]], memory: memoryview
  ) -> None:
    for row, positions in parts:
      buffers = _buffers(memory, positions, self._row_bytes)
      self._fill(row * self._row_bytes, buffers)

  def _fill(self, offset: int, buffers: list[memoryview]) -> None:
    """Reads the bytes from `offset` on until the buffers are full."""
    while buffers:
      try:
        # Python repeats a call that a signal has interrupted (PEP 475).
        count = os.preadv(self._descriptor, buffers, offset)
      except OSError as error:
        raise self._unreadable(error) from error
      if not count:
        raise _validate.InputError(
          f'pixels {os.fspath(self.path)} end at byte {offset}: the file was '
          'cut while it was in use; prepare the data again'
        )
      offset += count
      buffers = _unfilled(buffers, count)


class StoredPixels(StoredRows):
  """Pixels uint8 [N, H, W, C] in a raw file."""

  def _checked_shape(self) -> Shape:
    if len(self.shape) != 4:
      raise _validate.InputError(
        f'shape must be (N, H, W, C), got {tuple(self.shape)}'
      )
    _validate.whole(images=self.shape[0])
    _validate.non_negative(images=self.shape[0])
    for name, size in zip(('height', 'width', 'channels'), self.shape[1:]):
      _validate.positive_int(**{name: size})
    return super()._checked_shape()


@dataclasses.dataclass(frozen=True, eq=False)
class SelectedPixels:
  """Some images of other pixels, which are read on demand.

  Attributes:
    source: Pixels that the images are selected from.
    indices: Numbers of the selected images in `source`, int64 [n].
  """

  source: Pixels
  indices: np.ndarray

  @property
  def shape(self) -> Shape:
    """Shape of the selected images; see `Pixels.shape`."""
    return len(self.indices), *self.source.shape[1:]

  @property
  def dtype(self) -> np.dtype:
    """Data type of the source."""
    return self.source.dtype

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of the source's digest and the indices; '' if unknown."""
    if not self.source.digest:
      return ''
    indices = np.ascontiguousarray(self.indices, '<i8').tobytes()
    return hashlib.sha256(self.source.digest.encode() + indices).hexdigest()

  def __len__(self) -> int:
    return len(self.indices)

  def rows(self, indices: np.ndarray) -> np.ndarray:
    """Returns the images at `indices`; see `Pixels.rows`."""
    return self.source.rows(self.indices[_checked(indices, len(self))])


def _checked(indices: np.ndarray, count: int) -> np.ndarray:
  indices = np.asarray(indices)
  if indices.size and not 0 <= indices.min() <= indices.max() < count:
    raise IndexError(
      f'indices must lie in 0..{count - 1}, got '
      f'{indices.min()}..{indices.max()}'
    )
  return indices.astype(np.int64, copy=False)


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(
    _THREADS, thread_name_prefix='pixels'
  )


# A forked process does not have the threads of the pool.
os.register_at_fork(after_in_child=_pool.cache_clear)


def _neighbours(
  rows: np.ndarray, positions: np.ndarray, limit: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields the first row of each read, and the positions of the read's rows.

  Args:
    rows: Distinct sorted rows of the file.
    positions: Position of each row in the result.
    limit: Largest number of rows per read.
  """
  starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
  for start, stop in zip(starts, [*starts[1:], len(rows)]):
    for first in range(start, stop, limit):
      yield int(rows[first]), positions[first : min(first + limit, stop)]


def _buffers(
  memory: memoryview, positions: np.ndarray, row_bytes: int
) -> list[memoryview]:
  """Returns the parts of `memory` at `positions`, neighbours merged."""
  if len(positions) == 1:  # The common case takes a tenth of the time this way.
    first = int(positions[0])
    return [memory[first * row_bytes : (first + 1) * row_bytes]]
  starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
  lengths = np.diff(starts, append=len(positions))
  return [
    memory[first * row_bytes : (first + length) * row_bytes]
    for first, length in zip(positions[starts].tolist(), lengths.tolist())
  ]


def _unfilled(buffers: list[memoryview], count: int) -> list[memoryview]:
  """Returns the rest of the buffers after their first `count` bytes."""
  for number, buffer in enumerate(buffers):
    if count < len(buffer):
      return [buffer[count:], *buffers[number + 1 :]]
    count -= len(buffer)
  return []
