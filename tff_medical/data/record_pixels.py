"""Pixels of TFDS records: an array, or a raw file beside the records.

Pixels of a set that take more than `MAX_ARRAY_BYTES` go into a raw file beside the
records and are read from there; see `pixels`. A later start finds them there
without decoding, as long as neither the records nor the raw file changed.

`sink` returns where the images of a split go, or `Stored` where they are already.
A sink is given the images in their order, and is then closed or discarded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import os
import pathlib
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from tff_medical import _files
from tff_medical.data import pixels as pixels_lib

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

MAX_ARRAY_BYTES = 2**31
_RAW_PREFIX = 'pixels_'


class ArraySink:
  """Collects images in memory."""

  def __init__(self, shape: pixels_lib.Shape):
    self._pixels = np.empty(shape, np.uint8)
    self._count = 0

  def add(self, image: np.ndarray) -> None:
    """Takes the next image, uint8 [H, W, C]."""
    self._pixels[self._count] = image
    self._count += 1

  def close(self, note: Mapping[str, Any]) -> pixels_lib.ArrayOrPixels:
    """Returns all images; `note` is of files alone."""
    del note
    return self._pixels

  def discard(self) -> None:
    """Nothing is left behind in memory."""


class Stored:
  """Images that an earlier start left in a raw file.

  Attributes:
    note: What that start noted beside the file.
  """

  def __init__(self, pixels: pixels_lib.StoredPixels, note: Mapping[str, Any]):
    self._pixels = pixels
    self.note = note

  def add(self, image: object) -> None:
    """Nothing is decoded."""

  def close(self, note: Mapping[str, Any]) -> pixels_lib.ArrayOrPixels:
    """Returns all images; they have their note."""
    del note
    return self._pixels

  def discard(self) -> None:
    """The file stays for the next start."""


class FileSink:
  """Collects images in a raw file, which appears when all are there."""

  def __init__(
    self, path: pathlib.Path, shape: pixels_lib.Shape, source: list[Any]
  ):
    self._path = path
    self._shape = shape
    self._source = source
    self._partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    self._file = open(self._partial, 'wb')
    self._digest = hashlib.sha256()

  def add(self, image: np.ndarray) -> None:
    """Takes the next image, uint8 [H, W, C]."""
    content = np.ascontiguousarray(image).tobytes()
    self._digest.update(content)
    self._file.write(content)

  def close(self, note: Mapping[str, Any]) -> pixels_lib.ArrayOrPixels:
    """Returns all images.

    Args:
      note: Further plain JSON that a later start finds in `Stored.note`.
    """
    self._file.close()
    os.replace(self._partial, self._path)
    digest = self._digest.hexdigest()
    _files.write_json(
      _note_path(self._path),
      {
        'source': self._source,
        'raw': _file_state(self._path),
        'sha256': digest,
        **note,
      },
    )
    return pixels_lib.StoredPixels(self._path, self._shape, digest)

  def discard(self) -> None:
    """Removes the part that was written."""
    self._file.close()
    self._partial.unlink()


Sink = Union[ArraySink, FileSink, Stored]


def fit_in_memory(builder: tfds.core.DatasetBuilder, image_bytes: int) -> bool:
  """Returns whether the pixels of all splits of a set are to be an array.

  Args:
    builder: Builder of prepared records.
    image_bytes: Size of the pixels of one image.
  """
  total = sum(info.num_examples for info in builder.info.splits.values())
  return total * image_bytes <= MAX_ARRAY_BYTES


def sink(
  builder: tfds.core.DatasetBuilder,
  split: str,
  name: str,
  shape: pixels_lib.Shape,
  image_key: str,
  noted: Sequence[str] = (),
) -> Sink:
  """Returns where the images of a split go, or where they are already.

  Args:
    builder: Builder of prepared records.
    split: Split as `images` calls it, for the name of the file.
    name: Name of the split in the records.
    shape: Shape (N, s, s, C) of its images.
    image_key: Name of the feature that holds the images.
    noted: Names without which a note is of no use.
  """
  if fit_in_memory(builder, int(np.prod(shape[1:]))):
    return ArraySink(shape)
  path = _folder(builder) / f'{_RAW_PREFIX}{shape[1]}_{split}.raw'
  source = _source(builder, name, image_key, shape[1])
  try:
    note = _files.read_json(_note_path(path))
    is_same = note.get('source') == source and note.get('raw') == (
      _file_state(path)
    )
    if is_same and all(name in note for name in noted):
      return Stored(pixels_lib.StoredPixels(path, shape, note['sha256']), note)
  except (OSError, KeyError, TypeError, AttributeError, ValueError):
    pass  # Nothing is stored, or the note is damaged: images are read again.
  return FileSink(path, shape, source)


def undecoded(image_key: str) -> Any:
  """Returns decoders by which TFDS leaves the image as it is."""
  import tensorflow_datasets as tfds

  decoders: Any = tfds.decode.SkipDecoding()
  for part in reversed(image_key.split('/')):
    decoders = {part: decoders}
  return decoders


def _source(
  builder: tfds.core.DatasetBuilder, name: str, image_key: str, side: int
) -> list[Any]:
  """Returns what the pixels of a split are made from, as plain JSON."""
  return [
    builder.info.full_name,
    name,
    image_key,
    side,
    [
      [path.name, *_file_state(path)]
      for path in sorted(_folder(builder).iterdir())
      if not path.name.startswith(_RAW_PREFIX)
    ],
  ]


def _folder(builder: tfds.core.DatasetBuilder) -> pathlib.Path:
  return pathlib.Path(os.fspath(builder.data_path))


def _note_path(raw: pathlib.Path) -> pathlib.Path:
  return raw.with_suffix('.json')


def _file_state(path: pathlib.Path) -> list[int]:
  status = path.stat()
  return [status.st_size, status.st_mtime_ns]
