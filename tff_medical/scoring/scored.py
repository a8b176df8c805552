"""Scored images: the logits of a split with its labels, and their file.

The file holds no identity: no image, path or patient number. Patients are
groups of rows, whose numbers are drawn anew for each file. Rows stay in the
order of the split, so that the scores of two models can be paired. Whoever
holds the images can tell which row is which: the file is as private as the
labels, and only its owner may read it.

>>> images = ScoredImages(np.zeros([2, 2]), np.array([0, 1]), ('no', 'yes'))
>>> content = images.to_bytes('ab12')
>>> again, weights_sha256 = ScoredImages.from_bytes(content, 'scores.npz')
>>> again.labels.tolist(), again.split_name, weights_sha256
([0, 1], 'test', 'ab12')
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import io
import zipfile

import numpy as np

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import label_values

_EPSILON = 1e-15  # A probability of 0 costs a loss of 35, not infinity.


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredImages:
  """Logits of images, beside their labels.

  Attributes:
    logits: Logits [N, K], N at least 1; they may be infinite or NaN.
    labels: Integer classes [N] or, multi-label, 0, 1 and -1 (unknown) [N, K].
    class_names: Names of the K classes, which become part of metric names.
    multi_label: Whether the K outputs are independent labels.
    is_ordinal: Whether the classes are grades, from the lowest to the highest.
    sites: Site of each image, [N], as numbers or names; None if unknown.
    clusters: Number of the patient of each image, [N]; None if unknown.
    split_name: Split of the images, one of `images.EVAL_SPLITS`.
  """

  logits: np.ndarray
  labels: np.ndarray
  class_names: Sequence[str]
  multi_label: bool = False
  is_ordinal: bool = False
  sites: np.ndarray | None = None
  clusters: np.ndarray | None = None
  split_name: str = images.TEST

  def __post_init__(self) -> None:
    _check(self.logits, self.labels, self.class_names, self.multi_label)
    if self.is_ordinal and self.multi_label:
      raise _validate.InputError(
        'is_ordinal must be False for multi-label data, whose findings have no '
        'order; leave it out'
      )
    for name in ('sites', 'clusters'):
      values = getattr(self, name)
      if values is not None and values.shape != (len(self.logits),):
        raise _validate.InputError(
          f'{name} must have one entry for each of {len(self.logits)} images, '
          f'got shape {values.shape}'
        )
    _validate.one_of(images.EVAL_SPLITS, split_name=self.split_name)

  @property
  def is_finite(self) -> bool:
    """Whether every logit is a finite number."""
    return bool(np.isfinite(self.logits).all())

  @property
  def truth(self) -> np.ndarray:
    """Labels as 1 (present), 0 (absent) and -1 (unknown), int64 [N, K]."""
    labels = self.labels.astype(np.int64)
    if self.multi_label:
      return labels
    return np.eye(len(self.class_names), dtype=np.int64)[labels]

  @property
  def probabilities(self) -> np.ndarray:
    """Probabilities of the classes or findings, float64 [N, K]."""
    from scipy import special  # Late: flags import this module.

    logits = self.logits.astype(np.float64)
    if self.multi_label:
      return special.expit(logits)
    return special.softmax(logits, axis=1)

  def take(self, rows: np.ndarray) -> ScoredImages:
    """Returns the images of some rows, given by number or as booleans."""
    return dataclasses.replace(
      self,
      logits=self.logits[rows],
      labels=self.labels[rows],
      sites=None if self.sites is None else self.sites[rows],
      clusters=None if self.clusters is None else self.clusters[rows],
    )

  def with_temperature(self, temperature: float) -> ScoredImages:
    """Returns the images with logits divided by a temperature."""
    return dataclasses.replace(self, logits=self.logits / temperature)

  def pairs_with(self, other: ScoredImages) -> bool:
    """Returns whether both are scores of the same images, as far as is known.

    The labels, the sites and the groups of the rows are compared.
    """
    return (
      tuple(self.class_names) == tuple(other.class_names)
      and np.array_equal(self.labels, other.labels)
      and _equal(self.sites, other.sites)
      and _equal(_groups(self.clusters), _groups(other.clusters))
    )

  @property
  def groups(self) -> np.ndarray:
    """Number of the resampled unit of each image: patient, or else image.

    Units are numbered in the order in which they first occur, int64 [N].
    """
    groups = _groups(self.clusters)
    return np.arange(len(self.logits)) if groups is None else groups

  def to_bytes(self, weights_sha256: str) -> bytes:
    """Returns the content of the file, with the digest of the model's weights.

    Args:
      weights_sha256: `checkpoints.weights_digest` of the model.
    """
    arrays = {
      'logits': self.logits.astype(np.float32),
      'labels': self.labels,
      'class_names': np.array(self.class_names, dtype=np.str_),
      'multi_label': np.array(self.multi_label),
      'is_ordinal': np.array(self.is_ordinal),
      'split_name': np.array(self.split_name),
      'weights_sha256': np.array(weights_sha256),
    }
    if self.sites is not None:
      arrays['sites'] = self.sites
    groups = _groups(self.clusters)
    if groups is not None:
      # The order of the numbers would be that of first visits, or of ids.
      numbers = np.random.default_rng().permutation(groups.max() + 1)
      arrays['clusters'] = numbers[groups]
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()

  @classmethod
  def from_bytes(cls, content: bytes, what: str) -> tuple[ScoredImages, str]:
    """Returns the images of a file's content, and the digest of the weights.

    Args:
      content: Content of the file.
      what: Name of the file in error messages.

    Raises:
      InputError: The file is damaged.
    """
    try:
      with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        images_of_file = cls(
          logits=arrays['logits'],
          labels=arrays['labels'],
          class_names=tuple(map(str, arrays['class_names'])),
          multi_label=bool(arrays['multi_label']),
          is_ordinal=bool(arrays['is_ordinal']),
          sites=arrays['sites'] if 'sites' in arrays else None,
          clusters=arrays['clusters'] if 'clusters' in arrays else None,
          split_name=str(arrays['split_name']),
        )
        return images_of_file, str(arrays['weights_sha256'])
    except (
      AttributeError,
      EOFError,
      IndexError,
      KeyError,
      MemoryError,
      OSError,
      TypeError,
      ValueError,
      NotImplementedError,
      zipfile.BadZipFile,
    ) as error:
      raise _validate.InputError(
        f'{what} is damaged ({" ".join(str(error).split())[:200]}); start the '
        'run again, which writes it anew'
      ) from None


def of_probabilities(
  probabilities: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str],
  multi_label: bool = False,
) -> ScoredImages:
  """Returns images with finite logits that give `probabilities` [N, K]."""
  from scipy import special  # Late: flags import this module.

  values = probabilities.astype(np.float64)
  logits = (
    special.logit(np.clip(values, _EPSILON, 1 - _EPSILON))
    if multi_label
    else np.log(np.clip(values, _EPSILON, None))
  )
  return ScoredImages(logits, labels, class_names, multi_label)


def _groups(clusters: np.ndarray | None) -> np.ndarray | None:
  """Returns the clusters, numbered in the order of their first rows."""
  if clusters is None:
    return None
  _, first, inverse = np.unique(
    clusters, return_index=True, return_inverse=True
  )
  order = np.empty(len(first), np.int64)
  order[np.argsort(first)] = np.arange(len(first))
  return order[inverse]


def _equal(left: np.ndarray | None, right: np.ndarray | None) -> bool:
  if left is None or right is None:
    return left is right
  return np.array_equal(left, right)


def _check(
  logits: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str],
  multi_label: bool,
) -> None:
  """Raises `InputError` unless the labels fit the logits."""
  count, classes = len(logits), len(class_names)
  if logits.shape != (count, classes) or not count or classes < 1:
    raise _validate.InputError(
      f'scores must be [N, {classes}] for {classes} class names with at '
      f'least one image, got {list(logits.shape)}'
    )
  shape = (count, classes) if multi_label else (count,)
  if labels.shape != shape or labels.dtype.kind not in 'iub':
    raise _validate.InputError(
      f'labels must be integers {list(shape)}, '
      f'got {labels.dtype} {list(labels.shape)}'
    )
  lowest = label_values.UNKNOWN if multi_label else 0
  highest = 1 if multi_label else classes - 1
  if labels.min() < lowest or labels.max() > highest:
    raise _validate.InputError(
      f'labels must lie in {lowest}..{highest}, got '
      f'{labels.min()}..{labels.max()}'
    )
