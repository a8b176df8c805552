"""Pixels of images: an array in memory, or a raw file that is read by rows.

What: `StoredPixels` reads images of a file by their numbers, so that a data set
may be far larger than the memory. `read`, `select` and `batches` treat it and
an array alike. Why not a memory map: its page faults wait for the disk one
after the other, while reads of several threads wait at once. For 256 images of
224 x 224 x 3 that are not in the page cache, a memory map took 17 times as long
(`python -m experiments.pixels_benchmark --images=8000 --image_size=224
--channels=3`).

File: the bytes of a uint8 array [N, H, W, C] in C order, without a header.

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

Shape = tuple[int, int, int, int]

# Reads that wait for the disk at once.
_THREADS = 8
# Rows of one read: their buffers are limited by the system (IOV_MAX), and
# large reads are divided among the threads.
_MAX_BUFFERS = 1024
_READ_BYTES = 4 * 2**20
# What is held at a time where all pixels are gone through.
_BATCH_BYTES = 16 * 2**20


@runtime_checkable
class Pixels(Protocol):
  """Pixels that are read when they are needed."""

  @property
  def shape(self) -> Shape:
    """(N, H, W, C)."""

  @property
  def dtype(self) -> np.dtype:
    """Always uint8."""

  @property
  def digest(self) -> str:
    """Identifies the pixels; '' where nothing does without reading them."""

  def __len__(self) -> int: ...

  def rows(self, indices: np.ndarray) -> np.ndarray:
    """Returns a new uint8 array [..., H, W, C] of the images at `indices`.

    Args:
      indices: Integers in 0..N-1 of any shape, in any order, repeated or not.

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
  """Returns the images at `indices`, which are read later unless in memory.

  Args:
    pixels: An array, or what is read when it is needed.
    indices: What indexes the first axis of an array, as integers or booleans.
  """
  if isinstance(pixels, np.ndarray):
    return pixels[indices]
  return SelectedPixels(pixels, np.arange(len(pixels))[indices])


def batches(
  pixels: ArrayOrPixels, batch_size: int | None = None
) -> Iterator[np.ndarray]:
  """Yields all images in their order, a batch in memory at a time.

  Args:
    pixels: An array, whose batches are views of it, or what is read.
    batch_size: Images of a batch; if None, as many as 16 MiB hold.
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
  """Returns what identifies pixels: the digest they carry, if they carry one.

  Otherwise all of them are read for the SHA-256 of their bytes, in hexadecimal.
  """
  carried = '' if isinstance(pixels, np.ndarray) else pixels.digest
  if carried:
    return carried
  content = hashlib.sha256()
  for batch in batches(pixels):
    content.update(np.ascontiguousarray(batch).data)
  return content.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class StoredPixels:
  """Pixels in a raw file; the file stays open while the object lives.

  Several threads can use the object at once.

  Attributes:
    path: The file; see the module for its layout.
    shape: (N, H, W, C).
    digest: Identifies the content, as the SHA-256 of the file's bytes in
      hexadecimal that was taken when the file was written; '' if there is none.

  Raises:
    InputError: The file cannot be read, or has not the size of the shape.
  """

  path: str | os.PathLike[str]
  shape: Shape
  digest: str = ''
  _descriptor: int = dataclasses.field(init=False, repr=False)

  def __post_init__(self) -> None:
    object.__setattr__(self, 'shape', _checked_shape(self.shape))
    descriptor = self._open()
    object.__setattr__(self, '_descriptor', descriptor)
    weakref.finalize(self, os.close, descriptor)

  @property
  def dtype(self) -> np.dtype:
    """Always uint8."""
    return np.dtype(np.uint8)

  def __len__(self) -> int:
    return self.shape[0]

  def rows(self, indices: np.ndarray) -> np.ndarray:
    """Returns the images at `indices`; see `Pixels.rows`."""
    indices = _checked(indices, len(self))
    wanted = indices.ravel()
    pixels = np.empty((wanted.size, *self.shape[1:]), np.uint8)
    order = np.argsort(wanted, kind='stable')
    in_order = wanted[order]
    is_first = np.diff(in_order, prepend=-1) != 0
    self._read_rows(in_order[is_first], order[is_first], pixels)
    if not is_first.all():
      first_of = order[is_first][np.cumsum(is_first) - 1]
      pixels[order[~is_first]] = pixels[first_of[~is_first]]
    return pixels.reshape(*indices.shape, *self.shape[1:])

  @property
  def _row_bytes(self) -> int:
    return math.prod(self.shape[1:])

  def _open(self) -> int:
    size = math.prod(self.shape)
    try:
      with _files.open_regular(self.path) as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
          raise _validate.InputError(
            f'pixels {os.fspath(self.path)} must have {size} bytes for shape '
            f'{self.shape}, got {found}; prepare the data again'
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
    memory = target.reshape(-1).data
    if len(parts) <= 1:
      self._read_parts(parts, memory)
      return
    reads = [
      _pool().submit(self._read_parts, parts[first::_THREADS], memory)
      for first in range(min(_THREADS, len(parts)))
    ]
    # All of them write into the memory, so that none may outlive this call.
    concurrent.futures.wait(reads)
    for done in reads:
      done.result()

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
          f'pixels {os.fspath(self.path)} end at byte {offset}: the file was cut '
          'while it was in use; prepare the data again'
        )
      offset += count
      buffers = _unfilled(buffers, count)


@dataclasses.dataclass(frozen=True, eq=False)
class SelectedPixels:
  """Some images of other pixels, which are read when they are needed.

  Attributes:
    source: The other pixels.
    indices: int64 [n], the images of `source`.
  """

  source: Pixels
  indices: np.ndarray

  @property
  def shape(self) -> Shape:
    """(n, H, W, C)."""
    _, height, width, channels = self.source.shape
    return len(self.indices), height, width, channels

  @property
  def dtype(self) -> np.dtype:
    """Always uint8."""
    return self.source.dtype

  @functools.cached_property
  def digest(self) -> str:
    """The SHA-256 of the source's digest and the indices, or ''."""
    if not self.source.digest:
      return ''
    indices = np.ascontiguousarray(self.indices, '<i8').tobytes()
    return hashlib.sha256(self.source.digest.encode() + indices).hexdigest()

  def __len__(self) -> int:
    return len(self.indices)

  def rows(self, indices: np.ndarray) -> np.ndarray:
    """Returns the images at `indices`; see `Pixels.rows`."""
    return self.source.rows(self.indices[_checked(indices, len(self))])


def _checked_shape(shape: Sequence[int]) -> Shape:
  if len(shape) != 4:
    raise _validate.InputError(
      f'shape must be (N, H, W, C), got {tuple(shape)}'
    )
  _validate.whole(images=shape[0])
  _validate.non_negative(images=shape[0])
  for name, size in zip(('height', 'width', 'channels'), shape[1:]):
    _validate.positive_int(**{name: size})
  images, height, width, channels = map(int, shape)
  return images, height, width, channels


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


# The threads of a pool stay behind when a process is forked.
os.register_at_fork(after_in_child=_pool.cache_clear)


def _neighbours(
  rows: np.ndarray, positions: np.ndarray, limit: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields what one read can fetch: its first row, and where its rows go.

  Args:
    rows: Distinct sorted rows of the file.
    positions: The position of each in the result.
    limit: Rows of one read at most.
  """
  starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
  for start, stop in zip(starts, [*starts[1:], len(rows)]):
    for first in range(start, stop, limit):
      yield int(rows[first]), positions[first : min(first + limit, stop)]


def _buffers(
  memory: memoryview, positions: np.ndarray, row_bytes: int
) -> list[memoryview]:
  """Returns the parts of `memory` for rows at `positions`, neighbours as one."""
  if len(positions) == 1:  # The common case, in a tenth of the time.
    first = int(positions[0])
    return [memory[first * row_bytes : (first + 1) * row_bytes]]
  starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
  lengths = np.diff(starts, append=len(positions))
  return [
    memory[first * row_bytes : (first + length) * row_bytes]
    for first, length in zip(positions[starts].tolist(), lengths.tolist())
  ]


def _unfilled(buffers: list[memoryview], count: int) -> list[memoryview]:
  """Returns what is left of the buffers after `count` bytes."""
  for number, buffer in enumerate(buffers):
    if count < len(buffer):
      return [buffer[count:], *buffers[number + 1 :]]
    count -= len(buffer)
  return []
