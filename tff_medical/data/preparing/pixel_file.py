"""The raw file of prepared pixels, written row by row in any order.

A memory map would hold the whole file in the memory of this process, and a full
disk would kill the process without a message (SIGBUS).
"""

from __future__ import annotations

import math
import os
import pathlib
from types import TracebackType

import numpy as np


class PixelFile:
  """A new raw file of uint8 [N, H, W, C]; a context manager that closes it."""

  def __init__(self, path: pathlib.Path, shape: tuple[int, int, int, int]):
    """Makes the file, or empties it.

    Args:
      path: Path of the file.
      shape: Shape (N, H, W, C) of all images; rows that are not put are 0.
    """
    self._row_bytes = math.prod(shape[1:])
    self._size = shape[0] * self._row_bytes
    self._file = open(path, 'wb')

  def __enter__(self) -> PixelFile:
    return self

  def __exit__(
    self,
    error_type: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    with self._file:
      if error is None:
        self._file.truncate(self._size)
        self._file.flush()
        os.fsync(self._file.fileno())

  def put(self, rows: np.ndarray, images: np.ndarray) -> None:
    """Writes images to their rows.

    Args:
      rows: Rows in 0..N-1, int64 [n].
      images: uint8 [n, H, W, C].

    Raises:
      OSError: The disk is full, or fails.
    """
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
    for start, stop in zip(starts, [*starts[1:], len(rows)]):
      self._file.seek(int(rows[start]) * self._row_bytes)
      self._file.write(np.ascontiguousarray(images[start:stop]).data)
