"""Image classification sets of TensorFlow Datasets' catalogue, by their names.

`load('malaria', ...)` prepares the records in TFDS's cache and reads them. The
keys of image, label and patient are found from the set's features where there is
one that can be meant, or else are given. Labels are one class an image, or a
sequence of findings. Images are resized as files of own images are. Pixels that
take more than `MAX_ARRAY_BYTES` go into a file beside the records, and are read
from there. TensorFlow is imported by `load` alone.

>>> check_name('malaria')
>>> check_name('mala ria')
Traceback (most recent call last):
...
tff_medical._validate.InputError: dataset must be tfds:NAME or tfds:NAME/CONFIG, \
got 'tfds:mala ria'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import difflib
import hashlib
import os
import pathlib
import re
from typing import TYPE_CHECKING, Any

from absl import logging
import numpy as np

from tff_medical import _validate
from tff_medical.data import image_table
from tff_medical.data import images
from tff_medical.data import missing_splits
from tff_medical.data import pixels as pixels_lib
from tff_medical.data import resizing

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

PREFIX = 'tfds:'
MAX_ARRAY_BYTES = 2**31
_NAME = re.compile(r'\w+(/[\w.+-]+)?(:[\d.*]+)?')
# Keys that tell patients apart; an id of an image does not.
_PATIENT_KEYS = ('patient', 'patient_id', 'subject', 'subject_id')
# Of TFDS: a class that is not known.
_NO_LABEL = -1
# Most of the sizes that are counted apart.
_NUM_SIZES = 20


@dataclasses.dataclass(frozen=True)
class Keys:
  """Names of features, nested ones as a/b; None where they are found.

  Attributes:
    image: Feature of the image.
    label: Feature of the class or the findings.
    patient: Feature that tells patients apart.
  """

  image: str | None = None
  label: str | None = None
  patient: str | None = None


@dataclasses.dataclass(frozen=True)
class _Labels:
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


def check_name(name: str) -> None:
  """Raises `InputError` unless a name may be one of the catalogue."""
  if not _NAME.fullmatch(name):
    raise _validate.InputError(
      f'dataset must be tfds:NAME or tfds:NAME/CONFIG, got {PREFIX + name!r}'
    )


def load(
  name: str,
  image_size: int,
  *,
  data_dir: str | None = None,
  tfds_dir: str | None = None,
  keys: Keys | None = None,
) -> images.ImageData:
  """Returns a set of the catalogue, prepared now or before.

  Args:
    name: NAME, or NAME/CONFIG.
    image_size: Height and width that images are resized to.
    data_dir: Folder of the files that TFDS asks to be fetched by hand.
    tfds_dir: Where records are prepared, TFDS's own default if None.
    keys: Names of features; those that are None are found.

  Raises:
    InputError: There is no such set, its keys are not clear, or it cannot be
      prepared.
  """
  check_name(name)
  builder = _builder(name, tfds_dir)
  features = dict(_flat(builder.info.features))
  keys = keys or Keys()
  image_key = _image_key(name, builder, features, keys.image)
  labels = _labels(name, builder, features, keys.label)
  patient_key = _patient_key(name, features, keys.patient)
  _prepare(name, builder, data_dir)
  reader = _Reader(
    f'{PREFIX}{name}', builder, image_size, image_key, labels, patient_key
  )
  given = dict(reader.splits())
  if patient_key is not None:
    given = _numbered_patients(given)
  splits, rule = missing_splits.made(reader.name, {
    n: reader.split(n, content) for n, content in given.items()
  })  # fmt: skip
  class_names = labels.names
  if not class_names:
    highest = max(int(s.labels.max(initial=0)) for s in splits.values())
    class_names = tuple(map(str, range(highest + 1)))
  return images.ImageData(
    name=reader.name,
    train=splits['train'],
    validation=splits['validation'],
    test=splits['test'],
    class_names=class_names,
    multi_label=labels.multi_label,
    citation=builder.info.citation or '',
    source_digest=images.content_digest(splits),
    preparation=reader.preparation(),
    split_rule=rule,
  )


def _builder(name: str, tfds_dir: str | None) -> tfds.core.DatasetBuilder:
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name, data_dir=tfds_dir)
  except tfds.core.DatasetNotFoundError:
    near = difflib.get_close_matches(
      name.split('/')[0].split(':')[0], tfds.list_builders(), n=1
    )
    hint = f'; did you mean {PREFIX + near[0]!r}?' if near else ''
    raise _validate.InputError(
      f'dataset must name a set of the catalogue of TFDS '
      f'{tfds.__version__}, got {PREFIX + name!r}{hint}'
    ) from None
  except (ValueError, AssertionError, ImportError) as error:
    raise _validate.InputError(
      f'dataset {PREFIX + name!r} cannot be used: {_line(error)}; choose a config '
      'that tfds.builder knows'
    ) from error


def _line(error: BaseException) -> str:
  """Returns the start of an error's text, in one line."""
  return ' '.join(str(error).split())[:300] or type(error).__name__


def _flat(features: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields each feature that is no mapping, by its name."""
  import tensorflow_datasets as tfds

  for key, feature in features.items():
    if isinstance(feature, tfds.features.FeaturesDict):
      yield from _flat(feature, f'{prefix}{key}/')
    else:
      yield prefix + key, feature


def _image_key(
  name: str,
  builder: tfds.core.DatasetBuilder,
  features: Mapping[str, Any],
  given: str | None,
) -> str:
  import tensorflow_datasets as tfds

  usable = [
    key
    for key, feature in features.items()
    if isinstance(feature, tfds.features.Image)
    and feature.np_dtype in (np.uint8, np.uint16)
    and feature.shape[-1] in (1, 3)
  ]
  return _chosen(name, 'image_key', given, usable, _supervised(builder, 0))


def _labels(
  name: str,
  builder: tfds.core.DatasetBuilder,
  features: Mapping[str, Any],
  given: str | None,
) -> _Labels:
  import tensorflow_datasets as tfds

  classes = {
    key: _Labels(key, tuple(feature.names), multi_label=False)
    for key, feature in features.items()
    if isinstance(feature, tfds.features.ClassLabel)
  }
  findings = {
    key: _Labels(key, tuple(feature.feature.names), multi_label=True)
    for key, feature in features.items()
    if isinstance(feature, tfds.features.Sequence)
    and isinstance(feature.feature, tfds.features.ClassLabel)
  }
  numbers = {
    key: _Labels(key, (), multi_label=False)
    for key, feature in features.items()
    if key not in classes
    and feature.shape == ()
    and np.issubdtype(feature.np_dtype, np.integer)
  }
  found = {**classes, **findings}
  if given is not None:
    found.update(numbers)
  supervised = _supervised(builder, 1)
  return found[_chosen(name, 'label_key', given, list(found), supervised)]


def _patient_key(
  name: str, features: Mapping[str, Any], given: str | None
) -> str | None:
  scalars = [key for key, feature in features.items() if feature.shape == ()]
  if given is not None:
    return _chosen(name, 'patient_key', given, scalars, None)
  usual = [key for key in scalars if key.split('/')[-1] in _PATIENT_KEYS]
  return usual[0] if len(usual) == 1 else None


def _supervised(builder: tfds.core.DatasetBuilder, place: int) -> str | None:
  """Returns the key that the set itself calls input (0) or target (1)."""
  supervised = builder.info.supervised_keys
  if supervised is None or not isinstance(supervised[place], str):
    return None
  return supervised[place]


def _chosen(
  name: str,
  flag: str,
  given: str | None,
  usable: list[str],
  supervised: str | None,
) -> str:
  """Returns the key that is given or that alone can be meant."""
  if given is not None:
    if given not in usable:
      raise _validate.InputError(
        f'{flag} must be one of {", ".join(usable) or "none"} of {PREFIX}{name}, '
        f'got {given!r}'
      )
    return given
  if supervised in usable:
    return str(supervised)
  if len(usable) == 1:
    return usable[0]
  if not usable:
    raise _validate.InputError(
      f'dataset {PREFIX}{name} has no feature that can be the {flag}; choose a '
      'set of image classification'
    )
  raise _validate.InputError(
    f'{flag} must be given for {PREFIX}{name}: one of {", ".join(usable)}'
  )


def _prepare(
  name: str, builder: tfds.core.DatasetBuilder, data_dir: str | None
) -> None:
  """Writes the records unless they are there."""
  import tensorflow as tf
  import tensorflow_datasets as tfds

  if builder.is_prepared():
    return
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and data_dir is None:
    raise _validate.InputError(
      f'data_dir must be given with {PREFIX}{name}: the folder of the files that '
      f'have to be fetched by hand: {_line_of(builder)}'
    )
  logging.info('Preparing %s%s in %s', PREFIX, name, builder.data_dir)
  manual_dir = None if data_dir is None else os.path.expanduser(data_dir)
  try:
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
    )
  except (
    OSError,  # Covers those of requests.
    AssertionError,  # Files that had to be fetched by hand are missing.
    ImportError,  # Some sets need further packages.
    ValueError,
    RuntimeError,
    tf.errors.OpError,
    tfds.download.DownloadError,
    tfds.download.download_manager.NonMatchingChecksumError,
  ) as error:
    raise _validate.InputError(
      f'dataset {PREFIX}{name} cannot be prepared in {builder.data_dir_root}: '
      f'{_line(error)}; prepare it by tfds.builder({name!r}) where that works, and '
      'name its folder in TFDS_DATA_DIR'
    ) from error


def _line_of(builder: tfds.core.DatasetBuilder) -> str:
  return ' '.join(str(builder.MANUAL_DOWNLOAD_INSTRUCTIONS).split())[:300]


@dataclasses.dataclass
class _Content:
  """One split as it is read; patients are their texts or numbers."""

  pixels: pixels_lib.ArrayOrPixels
  labels: np.ndarray
  patients: np.ndarray | None


class _Reader:
  """Reads the splits of a prepared set."""

  def __init__(
    self,
    name: str,
    builder: tfds.core.DatasetBuilder,
    image_size: int,
    image_key: str,
    labels: _Labels,
    patient_key: str | None,
  ):
    self.name = name
    self._builder = builder
    self._side = image_size
    self._image_key = image_key
    self._labels = labels
    self._patient_key = patient_key
    self._channels = dict(_flat(builder.info.features))[image_key].shape[-1]
    self._sizes: dict[str, int] = {}
    total = sum(info.num_examples for info in builder.info.splits.values())
    row_bytes = image_size * image_size * self._channels
    self._in_memory = total * row_bytes <= MAX_ARRAY_BYTES

  def splits(self) -> Iterator[tuple[str, _Content]]:
    """Yields train, validation and test, as far as they have labels."""
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

  def split(self, name: str, content: _Content) -> images.Split:
    """Returns a split once its patients are numbers."""
    try:
      return images.Split(
        content.pixels, content.labels, patients=content.patients
      )
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

  def _read(self, split: str, name: str) -> _Content:
    import tensorflow_datasets as tfds

    dataset = self._builder.as_dataset(
      split=name,
      read_config=tfds.ReadConfig(
        interleave_cycle_length=1, try_autocache=False
      ),
    )
    count = self._builder.info.splits[name].num_examples
    shape = (count, self._side, self._side, self._channels)
    sink = (
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
    return _Content(
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


def _at(example: Mapping[str, Any], key: str) -> Any:
  """Returns what a nested example holds under a/b."""
  value: Any = example
  for part in key.split('/'):
    value = value[part]
  return value


def _numbered_patients(given: Mapping[str, _Content]) -> dict[str, _Content]:
  """Returns the splits with patients as numbers, which name nobody."""
  texts = [content.patients for content in given.values()]
  _, numbers = np.unique(np.concatenate(texts), return_inverse=True)
  ends = np.cumsum([len(text) for text in texts])[:-1]
  return {
    name: dataclasses.replace(content, patients=part.astype(np.int64))
    for (name, content), part in zip(given.items(), np.split(numbers, ends))
  }
