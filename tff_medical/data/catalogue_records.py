"""Reads the records of a set of TFDS's catalogue into images and labels.

Pixels that take more than `MAX_ARRAY_BYTES` go into a raw file beside the records
and are read from there; see `pixels`. `catalogue` says which features are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import hashlib
import os
import pathlib
from typing import TYPE_CHECKING, Any, Union

from absl import logging
import numpy as np

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import pixels as pixels_lib
from tff_medical.data.decoders import resizing
from tff_medical.data.tables import image_table

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

MAX_ARRAY_BYTES = 2**31
# Of TFDS: a class that is not known.
_NO_LABEL = -1
# Most of the sizes that are counted apart.
_NUM_SIZES = 20


@dataclasses.dataclass(frozen=True)
class Labels:
  """How labels are read.

  Attributes:
    key: Name of their feature.
    names: Names of the classes or findings; () for their numbers.
    multi_label: Whether an image may have several findings, or none.
  """

  key: str
  names: tuple[str, ...]
  multi_label: bool

  def row(self, where: str, value: np.ndarray) -> np.ndarray:
    """Returns the label of an image, int64 [] or [L]."""
    if not self.multi_label:
      return np.asarray(value, np.int64)
    if len(np.unique(value)) < len(value):
      raise _validate.InputError(
        f'{where} has the same finding twice in an image: label_key={self.key} '
        'is no list of findings; give another as --label_key'
      )
    row = np.zeros(len(self.names), np.int64)
    row[value] = 1
    return row


@dataclasses.dataclass
class Content:
  """One split as it is read; patients are their texts or numbers."""

  pixels: pixels_lib.ArrayOrPixels
  labels: np.ndarray
  patients: np.ndarray | None


class _ArraySink:
  """Collects images in memory."""

  def __init__(self, shape: pixels_lib.Shape):
    self._pixels = np.empty(shape, np.uint8)
    self._count = 0

  def add(self, image: np.ndarray) -> None:
    self._pixels[self._count] = image
    self._count += 1

  def close(self) -> pixels_lib.ArrayOrPixels:
    return self._pixels

  def discard(self) -> None:
    """Nothing is left behind in memory."""


class _FileSink:
  """Collects images in a raw file, which appears when all are there."""

  def __init__(self, path: pathlib.Path, shape: pixels_lib.Shape):
    self._path = path
    self._shape = shape
    self._partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    self._file = open(self._partial, 'wb')
    self._digest = hashlib.sha256()

  def add(self, image: np.ndarray) -> None:
    content = np.ascontiguousarray(image).tobytes()
    self._digest.update(content)
    self._file.write(content)

  def close(self) -> pixels_lib.ArrayOrPixels:
    self._file.close()
    os.replace(self._partial, self._path)
    return pixels_lib.StoredPixels(
      self._path, self._shape, self._digest.hexdigest()
    )

  def discard(self) -> None:
    self._file.close()
    self._partial.unlink()


_Sink = Union[_ArraySink, _FileSink]


class Reader:
  """Reads the splits of a prepared set."""

  def __init__(
    self,
    name: str,
    builder: tfds.core.DatasetBuilder,
    image_size: int,
    image_key: str,
    labels: Labels,
    patient_key: str | None,
  ):
    self.name = name
    self._builder = builder
    self._side = image_size
    self._image_key = image_key
    self._labels = labels
    self._patient_key = patient_key
    self._channels = dict(flat(builder.info.features))[image_key].shape[-1]
    self._sizes: dict[str, int] = {}
    total = sum(info.num_examples for info in builder.info.splits.values())
    row_bytes = image_size * image_size * self._channels
    self._in_memory = total * row_bytes <= MAX_ARRAY_BYTES

  def read(self) -> dict[str, images.Split]:
    """Returns train, validation and test, as far as they have labels."""
    given = dict(self._splits())
    texts = [c.patients for c in given.values() if c.patients is not None]
    numbers: list[np.ndarray | None] = [None] * len(given)
    if texts:
      # In place of what names a patient.
      _, number = np.unique(np.concatenate(texts), return_inverse=True)
      ends = np.cumsum([len(text) for text in texts])[:-1]
      numbers = list(np.split(number.astype(np.int64), ends))
    return {
      name: self._checked(name, content, patients)
      for (name, content), patients in zip(given.items(), numbers)
    }

  def _splits(self) -> Iterator[tuple[str, Content]]:
    known = {
      image_table.SPLIT_WORDS[name.lower()]: name
      for name in self._builder.info.splits
      if name.lower() in image_table.SPLIT_WORDS
    }
    names = list(self._builder.info.splits)
    if len(names) == 1:
      known = {'train': names[0]}
    left_out = sorted(set(names) - set(known.values()))
    if left_out:
      logging.warning(
        '%s: splits are left out: %s', self.name, ', '.join(left_out)
      )
    for split, name in known.items():
      content = self._read(split, name)
      without = (content.labels == _NO_LABEL).sum()
      if without and without == content.labels.size:
        logging.warning('%s: %s is left out, without labels', self.name, name)
        continue
      yield split, content

  def _checked(
    self, name: str, content: Content, patients: np.ndarray | None
  ) -> images.Split:
    try:
      return images.Split(content.pixels, content.labels, patients=patients)
    except _validate.InputError as error:
      raise _validate.InputError(f'{self.name}: {name}: {error}') from None

  def preparation(self) -> images.Preparation:
    """Returns the sizes of the images that were read."""
    most = sorted(self._sizes, key=self._sizes.__getitem__, reverse=True)
    rules = {text: self._sizes[text] for text in most[:_NUM_SIZES]}
    others = sum(self._sizes[text] for text in most[_NUM_SIZES:])
    if others:
      rules['other sizes'] = others
    return images.Preparation(
      files=sum(self._sizes.values()),
      bad_files={'all': 0},
      rules={'all': rules},
      warnings={'all': {}},
      largest_group=None,
    )

  def _read(self, split: str, name: str) -> Content:
    import tensorflow_datasets as tfds

    dataset = self._builder.as_dataset(
      split=name,
      read_config=tfds.ReadConfig(
        interleave_cycle_length=1, try_autocache=False
      ),
    )
    count = self._builder.info.splits[name].num_examples
    shape = (count, self._side, self._side, self._channels)
    sink: _Sink = (
      _ArraySink(shape)
      if self._in_memory
      else _FileSink(self._path(split), shape)
    )
    labels: list[np.ndarray] = []
    patients: list[Any] = []
    try:
      for example in tfds.as_numpy(dataset):
        sink.add(self._image(_at(example, self._image_key)))
        where = f'{self.name}: {name}'
        labels.append(self._labels.row(where, _at(example, self._labels.key)))
        if self._patient_key is not None:
          patients.append(_at(example, self._patient_key))
    except BaseException:
      sink.discard()
      raise
    return Content(
      sink.close(),
      np.stack(labels).astype(np.int64),
      np.array(patients) if self._patient_key is not None else None,
    )

  def _path(self, split: str) -> pathlib.Path:
    folder = pathlib.Path(os.fspath(self._builder.data_path))
    return folder / f'pixels_{self._side}_{split}.raw'

  def _image(self, image: np.ndarray) -> np.ndarray:
    """Returns uint8 [s, s, C]."""
    height, width = image.shape[:2]
    text = f'{height} x {width} pixels of {image.dtype.itemsize * 8} bits'
    self._sizes[text] = self._sizes.get(text, 0) + 1
    if (height, width) == (self._side,) * 2 and image.dtype == np.uint8:
      return image
    scaled = image.astype(np.float32) / np.iinfo(image.dtype).max
    return resizing.to_uint8(scaled, self._side, self._channels)


def _at(example: Mapping[str, Any], key: str) -> Any:
  """Returns what a nested example holds under a/b."""
  value: Any = example
  for part in key.split('/'):
    value = value[part]
  return value


def flat(features: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields each feature that is no mapping, by its name."""
  import tensorflow_datasets as tfds

  for key, feature in features.items():
    if isinstance(feature, tfds.features.FeaturesDict):
      yield from flat(feature, f'{prefix}{key}/')
    else:
      yield prefix + key, feature
