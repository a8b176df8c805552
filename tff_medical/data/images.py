"""Image arrays with labels, sites and patients, checked once when built.

`Split` holds the images of one split. `ImageData` holds the three splits of a
data set and what belongs to them (class names, licence, citation, digest of the
source). All code after loading may rely on the layout, on the label range, and
on no patient being in two splits. Nothing here imports TensorFlow.

Images are uint8 [N, H, W, C] in 0..255 with C of 1 or 3. They are an array, or
`pixels.Pixels` that are read on demand. Labels are int64 [N] class indices, or
int64 [N, L] of 0, 1 and `label_values.UNKNOWN` for multi-label data. Sites and
patients are int64 [N] or None. Sites index `ImageData.site_names`; patient
numbers are unique over the whole data set.

>>> images = np.zeros([2, 28, 28, 1], np.uint8)
>>> split = Split(images=images, labels=np.array([0, 3]))
>>> len(split), split.image_shape
(2, (28, 28, 1))
>>> Split(images=images, labels=np.array([0]))
Traceback (most recent call last):
...
tff_medical._validate.InputError: labels has 1 rows but images has 2; \
give one row of labels per image
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import hashlib
import itertools
import math

import numpy as np

from tff_medical import _validate
from tff_medical.data import equal_images
from tff_medical.data import label_values
from tff_medical.data import pixels
from tff_medical.data import preparation_counts
from tff_medical.data.decoders import decoded

VALIDATION = 'validation'
TEST = 'test'
SPLIT_NAMES = ('train', VALIDATION, TEST)
# Splits that models are evaluated on. Settings are chosen on the first one.
EVAL_SPLITS = (VALIDATION, TEST)

# Origins of a data set.
OFFICIAL = 'official file'
OTHER_FILE = 'file with another content than the official one'
GENERATED = 'generated'
UNSTATED = 'not stated'
ORIGINS = (OFFICIAL, OTHER_FILE, GENERATED, UNSTATED)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Images of one split.

  Attributes:
    images: Pixels, uint8 [N, H, W, C] in 0..255, where C is 1 (grey) or 3
      (RGB); in memory, or stored as `pixels.Pixels`. `rows` and `batches` read
      both.
    labels: Class indices, int64 [N], or 0, 1 and `label_values.UNKNOWN`, int64
      [N, L].
    sites: Index of each image's site (hospital, scanner), int64 [N], or None.
    patients: Patient number of each image, int64 [N]; None if unknown.
    features: Fixed features of each image, float32 [N, ...], which models then
      take instead of its pixels; None if models take pixels.
  """

  images: pixels.ArrayOrPixels
  labels: np.ndarray
  sites: np.ndarray | None = None
  patients: np.ndarray | None = None
  features: pixels.ArrayOrPixels | None = None

  def __post_init__(self) -> None:
    _check_images(self.images)
    _check_integers('labels', self.labels, len(self.images), dims=(1, 2))
    if self.labels.size:
      low, high = self.labels.min(), self.labels.max()
      if self.labels.ndim == 1 and low < 0:
        raise _validate.InputError(f'labels must be 0 or more, got {low}')
      if self.labels.ndim == 2 and (low < label_values.UNKNOWN or high > 1):
        raise _validate.InputError(
          'multi-label labels must be 0 or 1, or '
          f'{label_values.UNKNOWN} where unknown, got '
          f'{low if low < label_values.UNKNOWN else high}'
        )
    for name in ('sites', 'patients'):
      values = getattr(self, name)
      if values is not None:
        _check_integers(name, values, len(self.images), dims=(1,))
    if self.features is not None and (
      self.features.dtype != np.float32
      or len(self.features) != len(self.images)
    ):
      raise _validate.InputError(
        f'features must be float32 with {len(self.images)} rows, got '
        f'{self.features.dtype} with {len(self.features)}; make them again'
      )

  def __len__(self) -> int:
    return len(self.images)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Height, width and channels of every image."""
    height, width, channels = self.images.shape[1:]
    return height, width, channels

  @property
  def model_inputs(self) -> pixels.ArrayOrPixels:
    """What a model takes, as it is stored: uint8 pixels or float32 features."""
    return self.images if self.features is None else self.features

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Shape of what a model takes for an image: its pixels or features."""
    return self.model_inputs.shape[1:]

  @property
  def nbytes(self) -> int:
    """Size of what a model takes for all images, as stored, in bytes."""
    stored = self.model_inputs
    return math.prod(stored.shape) * stored.dtype.itemsize

  def rows(self, indices: np.ndarray) -> np.ndarray:
    """Returns a new uint8 array [..., H, W, C] of the images at `indices`.

    Args:
      indices: Integers in 0..N-1, in any shape and order, with or without
        repetition.

    Raises:
      IndexError: An index is out of range.
      InputError: Stored images cannot be read.
    """
    return pixels.read(self.images, indices)

  def batches(self, batch_size: int | None = None) -> Iterator[np.ndarray]:
    """Yields all images in their order; see `pixels.batches`."""
    return pixels.batches(self.images, batch_size)

  def take(self, indices: np.ndarray) -> Split:
    """Returns the split of the images at `indices`; reads no stored image."""
    return Split(
      images=pixels.select(self.images, indices),
      labels=self.labels[indices],
      sites=None if self.sites is None else self.sites[indices],
      patients=None if self.patients is None else self.patients[indices],
      features=None
      if self.features is None
      else pixels.select(self.features, indices),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
  """A data set: three splits and their description.

  Attributes:
    name: Name for `loading.load`, e.g. `medmnist/pneumoniamnist`.
    train: Images to train on, which are spread over the clients.
    validation: Images to choose settings on; it may be empty.
    test: Images held out for the reported metrics.
    class_names: One name per class or, for multi-label data, per finding.
    multi_label: Whether an image may have several findings, or none.
    site_names: One name per site; empty if sites are unknown.
    citation: BibTeX entries to cite.
    license: Licence of the images.
    source_digest: Digest of the source: `md5:` of the source file, `sha256:` of
      the settings of generated images, or `content_digest`.
    origin: Origin of the images, one of `ORIGINS`.
    counted_duplicates: Equal images as counted when the data was prepared; None
      if `duplicates` has to count them.
    decoding_policy: Choices by which image files were decoded; None if the
      images do not come from such files.
    preparation: Counts of the decoding of own images; None for other data.
    split_rule: Origin of the splits: `given`, or how they were made.
    is_ordinal: Whether the classes are grades, from the lowest to the highest.
  """

  name: str
  train: Split
  validation: Split
  test: Split
  class_names: tuple[str, ...]
  multi_label: bool = False
  site_names: tuple[str, ...] = ()
  citation: str = ''
  license: str = ''
  source_digest: str = ''
  origin: str = UNSTATED
  counted_duplicates: equal_images.Duplicates | None = None
  decoding_policy: decoded.DecodingPolicy | None = None
  preparation: preparation_counts.Preparation | None = None
  split_rule: str = 'given'
  is_ordinal: bool = False

  def __post_init__(self) -> None:
    _validate.one_of(ORIGINS, origin=self.origin)
    if len(self.class_names) < 2 and not self.multi_label:
      raise _validate.InputError(
        f'{self.name} needs at least 2 classes, got {self.class_names!r}'
      )
    if self.is_ordinal and self.multi_label:
      raise _validate.InputError(
        f'{self.name} has findings without an order, so ordinal_labels would be '
        'ignored; leave it out'
      )
    for name, split in self.splits():
      self._check_split(name, split)
    self._check_patients()

  def splits(self) -> Iterator[tuple[str, Split]]:
    """Yields the name and the images of each split."""
    for name in SPLIT_NAMES:
      yield name, getattr(self, name)

  @property
  def has_validation(self) -> bool:
    """Whether an image of the validation split has a known label."""
    return bool(label_values.has_label(self.validation.labels).any())

  def eval_split(self, name: str) -> Split:
    """Returns a split that models are evaluated on.

    Args:
      name: Name of the split, one of `EVAL_SPLITS`.

    Raises:
      InputError: The split has another name, or no image with a label.
    """
    _validate.one_of(EVAL_SPLITS, eval_split=name)
    if name == VALIDATION and not self.has_validation:
      raise _validate.InputError(
        f'eval_split={name} needs validation images with labels, and '
        f'{self.name} has none; give eval_split=test, which evaluates the '
        'final model alone, or a validation split'
      )
    return self.test if name == TEST else self.validation

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Height, width and channels of every image."""
    return self.train.image_shape

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Shape of what a model takes for an image: its pixels or features."""
    return self.train.input_shape

  @property
  def num_classes(self) -> int:
    """Number of classes or, for multi-label data, of findings."""
    return len(self.class_names)

  @property
  def is_public(self) -> bool:
    """Whether anybody can obtain the very same images.

    The `source_digest` of other data must not be published: anybody who holds a
    copy of the data could recognize it by the digest.
    """
    return self.origin in (OFFICIAL, GENERATED)

  @property
  def described(self) -> str:
    """Name for a card or a table, which claims no more than is known.

    A file with other content may bear the name of a public set and hold any
    data.
    """
    if self.origin == OTHER_FILE:
      return f'{self.name} (not the official file)'
    return self.name

  @functools.cached_property
  def duplicates(self) -> equal_images.Duplicates:
    """Equal images within and across the splits.

    They are `counted_duplicates` if given. Otherwise they are counted at first
    use, which reads every image.
    """
    if self.counted_duplicates is not None:
      return self.counted_duplicates
    return equal_images.find_duplicates(
      {name: s.images for name, s in self.splits()}
    )

  @property
  def largest_group(self) -> int | None:
    """Number of images in the largest group of copies, if it is known."""
    return self.preparation.largest_group if self.preparation else None

  def _check_split(self, name: str, split: Split) -> None:
    where = f'{self.name}: {name}'
    if not len(split):
      if name == 'validation':
        return
      raise _validate.InputError(f'{where} has no images')
    if split.image_shape != self.image_shape:
      raise _validate.InputError(
        f'{where} images have shape {split.image_shape} but train images '
        f'{self.image_shape}; make all images the same size'
      )
    label_values.check_labels(
      where,
      split.labels,
      self.num_classes,
      self.multi_label,
      may_be_unknown=True,
    )
    if name != 'validation':
      label_values.check_has_label(where, split.labels)
    if split.sites is not None:
      if split.sites.min() < 0 or split.sites.max() >= len(self.site_names):
        raise _validate.InputError(
          f'{where} sites must lie in 0..{len(self.site_names) - 1} '
          f'(site_names has {len(self.site_names)}), got '
          f'{split.sites.min()}..{split.sites.max()}'
        )

  def _check_patients(self) -> None:
    numbers = {
      name: np.unique(split.patients)
      for name, split in self.splits()
      if split.patients is not None
    }
    for (a, first), (b, second) in itertools.combinations(numbers.items(), 2):
      shared = np.intersect1d(first, second)
      if shared.size:
        raise _validate.InputError(
          # The numbers are left out: a number may identify a patient.
          f'{self.name}: {shared.size} patients are in both {a} and {b}; keep '
          'each patient in one split'
        )


def content_digest(splits: Mapping[str, Split]) -> str:
  """Returns the digest of the content of splits: `sha256:` and hexadecimal.

  Stored images have the digest of the same images in memory if they carry the
  SHA-256 of their file; they are then not read. The digest of private data must
  not be published: whoever holds a copy of the data can compute it.

  >>> split = Split(np.zeros([1, 2, 2, 1], np.uint8), np.array([0]))
  >>> copy = split.take(np.array([0]))
  >>> content_digest({'train': copy}) == content_digest({'train': split})
  True

  Args:
    splits: Splits by name, as `ImageData.splits` yields them.
  """
  content = hashlib.sha256()
  for name, split in splits.items():
    content.update(f'{name} {split.images.shape} '.encode())
    content.update(f'{pixels.digest(split.images)}\n'.encode())
    for column in ('labels', 'sites', 'patients'):
      values = getattr(split, column)
      if values is not None:
        content.update(f'{column} {values.shape} '.encode())
        content.update(np.ascontiguousarray(values, '<i8').tobytes())
  return f'sha256:{content.hexdigest()}'


def _check_images(images: pixels.ArrayOrPixels) -> None:
  if (
    not isinstance(images, (np.ndarray, pixels.Pixels))
    or images.dtype != np.uint8
  ):
    raise _validate.InputError(
      'images must be a uint8 array of values 0..255, got '
      f'{getattr(images, "dtype", type(images).__name__)}'
    )
  if len(images.shape) != 4 or images.shape[3] not in (1, 3):
    raise _validate.InputError(
      'images must have shape [N, H, W, C] with C of 1 or 3, got '
      f'{list(images.shape)}'
    )


def _check_integers(
  name: str, values: np.ndarray, rows: int, dims: tuple[int, ...]
) -> None:
  if not isinstance(values, np.ndarray) or values.dtype != np.int64:
    raise _validate.InputError(
      f'{name} must be an int64 array, got '
      f'{getattr(values, "dtype", type(values).__name__)}'
    )
  if values.ndim not in dims:
    raise _validate.InputError(
      f'{name} must have {" or ".join(map(str, dims))} dimensions, got '
      f'shape {list(values.shape)}'
    )
  if len(values) != rows:
    raise _validate.InputError(
      f'{name} has {len(values)} rows but images has {rows}; give one row '
      f'of {name} per image'
    )
