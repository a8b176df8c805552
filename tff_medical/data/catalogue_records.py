"""Reads the records of a set of TFDS's catalogue into images and labels.

Pixels are an array, or a raw file beside the records; see `record_pixels`.
`catalogue` says which features are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
from typing import TYPE_CHECKING, Any

from absl import logging
import numpy as np

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import pixels as pixels_lib
from tff_medical.data import preparation_counts
from tff_medical.data import record_pixels
from tff_medical.data.decoders import resizing
from tff_medical.data.tables import image_table

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

# Of TFDS: a class that is not known.
_NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class Labels:
  """Labels of a set, and the feature that holds them.

  Attributes:
    key: Name of the labels' feature.
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
  """Content of one split; patients are texts or numbers."""

  pixels: pixels_lib.ArrayOrPixels
  labels: np.ndarray
  patients: np.ndarray | None


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
    self._bits: dict[str, int] = {}

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

  def preparation(self) -> preparation_counts.Preparation:
    """Returns the sizes of the images that were read."""
    return preparation_counts.Preparation(
      files=sum(self._sizes.values()),
      bad_files={'all': 0},
      rules={'all': self._bits},
      warnings={'all': {}},
      sizes={'all': self._sizes},
      largest_group=None,
    )

  def _read(self, split: str, name: str) -> Content:
    import tensorflow_datasets as tfds

    count = self._builder.info.splits[name].num_examples
    shape = (count, self._side, self._side, self._channels)
    sizes, bits = dict(self._sizes), dict(self._bits)
    sink = record_pixels.sink(
      self._builder, split, name, shape, self._image_key, ('sizes', 'bits')
    )
    is_stored = isinstance(sink, record_pixels.Stored)
    if isinstance(sink, record_pixels.Stored):
      _add(self._sizes, sink.note['sizes'])
      _add(self._bits, sink.note['bits'])
    dataset = self._builder.as_dataset(
      split=name,
      decoders=record_pixels.undecoded(self._image_key) if is_stored else None,
      read_config=tfds.ReadConfig(
        interleave_cycle_length=1, try_autocache=False
      ),
    )
    labels: list[np.ndarray] = []
    patients: list[Any] = []
    try:
      for example in tfds.as_numpy(dataset):
        if not is_stored:
          sink.add(self._image(_at(example, self._image_key)))
        where = f'{self.name}: {name}'
        labels.append(self._labels.row(where, _at(example, self._labels.key)))
        if self._patient_key is not None:
          patients.append(_at(example, self._patient_key))
    except BaseException:
      sink.discard()
      raise
    content = sink.close(
      {
        'sizes': _counted_since(sizes, self._sizes),
        'bits': _counted_since(bits, self._bits),
      }
    )
    return Content(
      content,
      np.stack(labels).astype(np.int64),
      np.array(patients) if self._patient_key is not None else None,
    )

  def _image(self, image: np.ndarray) -> np.ndarray:
    """Returns uint8 [s, s, C]."""
    height, width = image.shape[:2]
    _add(self._sizes, {preparation_counts.size_text(height, width): 1})
    _add(self._bits, {f'{image.dtype.itemsize * 8} bits': 1})
    if (height, width) == (self._side,) * 2 and image.dtype == np.uint8:
      return image
    scaled = image.astype(np.float32) / np.iinfo(image.dtype).max
    return resizing.to_uint8(scaled, self._side, self._channels)


def _add(counted: dict[str, int], more: Mapping[str, int]) -> None:
  for text, count in more.items():
    counted[text] = counted.get(text, 0) + count


def _counted_since(
  before: Mapping[str, int], now: Mapping[str, int]
) -> dict[str, int]:
  """Returns what was counted after `before`."""
  since = {text: count - before.get(text, 0) for text, count in now.items()}
  return {text: count for text, count in since.items() if count}


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
