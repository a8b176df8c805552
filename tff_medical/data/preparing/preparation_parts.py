"""Parts of a preparation on disk, so that it can go on after a kill.

Each part is a file that is written whole or not at all: the pixels of some
hundred images, the file that each comes from, and statements on each file.
A preparation that was killed decodes the files that no part holds.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import io
import json
import pathlib
import time

import numpy as np

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data.decoders import decoding_worker
from tff_medical.data.decoders import resizing
from tff_medical.data.preparing import prepared

_MAX_FILES = 256
_MAX_BYTES = 2**26
_MAX_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Said:
  """Statements on a decoded file.

  Attributes:
    count: Number of its images; 0 if it cannot be used.
    channels: Number of channels of its images; 0 if it cannot be used.
    rules: Steps that led to its values, as in `decoded.Decoded`.
    warnings: Sentences for whoever prepares the images.
    sizes: Height, width and count of its images before resizing.
    reason: Reason why it cannot be used, or ''.
  """

  count: int
  channels: int
  rules: tuple[str, ...]
  warnings: tuple[str, ...]
  sizes: tuple[tuple[int, int, int], ...]
  reason: str


class Parts:
  """Parts in a folder, and the content of the next one.

  Attributes:
    said: Statements on each file by its number, whether on disk or not yet.
  """

  def __init__(self, folder: pathlib.Path):
    """Reads the statements in the parts of a folder.

    Args:
      folder: An existing folder.
    """
    self._folder = folder
    self.said: dict[int, Said] = {}
    self._paths = sorted(folder.glob('part_*.npz'))
    for path in self._paths:
      self.said.update(_said(path))
    self._clear()

  def add(self, number: int, outcome: decoding_worker.Outcome) -> None:
    """Keeps the outcome of a file; writes a part if it is time."""
    pixels = outcome.images
    self.said[number] = said = Said(
      0 if pixels is None else len(pixels),
      0 if pixels is None else pixels.shape[3],
      outcome.rules,
      outcome.warnings,
      outcome.sizes,
      outcome.reason,
    )
    self._new[number] = said
    if pixels is not None:
      self._pixels.append(pixels)
      self._files += [number] * len(pixels)
      self._bytes += pixels.nbytes
    if (
      len(self._new) >= _MAX_FILES
      or self._bytes >= _MAX_BYTES
      or time.monotonic() - self._since > _MAX_SECONDS
    ):
      self.write()

  def write(self) -> None:
    """Writes the outcomes that are not on disk yet."""
    if not self._new:
      return
    channels = max((p.shape[3] for p in self._pixels), default=1)
    pixels = [resizing.with_channels(p, channels) for p in self._pixels]
    said = {number: dataclasses.astuple(s) for number, s in self._new.items()}
    content = io.BytesIO()
    np.savez(
      content,
      files=np.array(self._files, np.int64),
      pixels=np.concatenate(pixels) if pixels else np.zeros(0, np.uint8),
      said=np.frombuffer(json.dumps(said).encode(), np.uint8),
    )
    path = self._folder / f'part_{len(self._paths):06d}.npz'
    _files.write_bytes(path, content.getvalue(), private=True)
    self._paths.append(path)
    self._clear()

  def pixels(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the file of each image and the images of every part."""
    for path in self._paths:
      part = prepared.read_npz(path)
      if len(part['files']):
        yield part['files'], part['pixels']

  def remove(self) -> None:
    """Removes the parts."""
    for path in self._paths:
      path.unlink(missing_ok=True)
    self._paths = []

  def _clear(self) -> None:
    self._new: dict[int, Said] = {}
    self._pixels: list[np.ndarray] = []
    self._files: list[int] = []
    self._bytes = 0
    self._since = time.monotonic()


def _said(path: pathlib.Path) -> dict[int, Said]:
  try:
    said = json.loads(prepared.read_npz(path)['said'].tobytes())
    return {
      int(number): Said(
        count,
        channels,
        tuple(rules),
        tuple(warnings),
        tuple((h, w, n) for h, w, n in sizes),
        str(reason),
      )
      for number, (
        count,
        channels,
        rules,
        warnings,
        sizes,
        reason,
      ) in said.items()
    }
  except prepared.UNREADABLE:
    raise _validate.InputError(
      f'prepared_dir holds {str(path)!r}, which is damaged; remove that file to '
      'decode its images again'
    ) from None
