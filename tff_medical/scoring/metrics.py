"""Metrics of a model that medical papers report.

Metrics are an ordered mapping of floats with flat, stable names: `loss`,
`accuracy`, `balanced_accuracy`, `auc`, `f1`, `ece`, for ordinal labels `kappa`
and `mae`, and for each class `sensitivity/CLASS` and `specificity/CLASS`. For
each site the same metrics have the prefix `site/SITE/`. A metric that the
labels do not determine, such as the sensitivity to a class without any label,
is NaN and is left out of averages. Findings that are unknown
(`label_values.UNKNOWN`) are left out of every metric. If a score is not finite,
as after diverged training, every metric is NaN.

- loss: mean cross-entropy of the images; multi-label: of the known labels.
- accuracy: share of correct classes; multi-label: share of correct labels.
- balanced accuracy: mean sensitivity of the classes; multi-label: mean over the
  labels of (sensitivity + specificity) / 2.
- AUC: area under the ROC curve of class 1 for two classes. For more classes it
  is the mean over one-against-the-rest curves; multi-label: mean over labels.
- F1: mean over the classes that have a label (macro), both classes of two.
- ECE: expected calibration error of the predicted class or of each finding, in
  15 bins of equal width (Guo et al. 2017).
- kappa: Cohen's, quadratically weighted; mae: mean distance in grades.

Each metric is a function of weighted counts, so that a bootstrap is a product
of matrices: `Measures.values` takes a weight for each image and resample.

>>> logits = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
>>> images = scored.ScoredImages(logits, np.array([0, 1, 1, 0]), ('no', 'yes'))
>>> for name, value in metrics(images).items():
...   print(f'{name:<18}{value:.3f}')
loss              0.400
accuracy          0.750
balanced_accuracy 0.750
auc               1.000
f1                0.733
ece               0.300
sensitivity/no    1.000
sensitivity/yes   0.500
specificity/no    0.500
specificity/yes   1.000
"""

from __future__ import annotations

import collections
import functools
import warnings

import numpy as np
from scipy import special

from tff_medical import _validate
from tff_medical.scoring import fitted as fitted_lib
from tff_medical.scoring import scored

Metrics = collections.OrderedDict[str, float]

ECE_BINS = 15
_OVERALL = ('loss', 'accuracy', 'balanced_accuracy', 'auc', 'f1', 'ece')
_ORDINAL = ('kappa', 'mae')


def metrics(
  images: scored.ScoredImages, fitted: fitted_lib.Fitted | None = None
) -> Metrics:
  """Returns the metrics of all images together.

  Args:
    images: Scores and labels.
    fitted: Numbers that were fitted on other images. They add the metrics
      `sensitivity_at/CLASS` and `specificity_at/CLASS` of the thresholds, and
      `ece_with_temperature`.
  """
  measures = Measures(images, fitted)
  values = measures.values(np.ones((1, len(images.logits))))[0]
  return collections.OrderedDict(zip(measures.names, map(float, values)))


def by_group(
  images: scored.ScoredImages, groups: np.ndarray, prefix: str = 'site'
) -> Metrics:
  """Returns the metrics of each group, named `PREFIX/GROUP/METRIC`.

  Args:
    images: Scores and labels.
    groups: Group of each image, [N], as numbers or names.
    prefix: Kind of the groups, the first part of the names.

  Returns:
    The metrics of each group in the sorted order of the groups.
  """
  if groups.shape != (len(images.logits),):
    raise _validate.InputError(
      f'groups must have one entry for each of {len(images.logits)} images, '
      f'got shape {groups.shape}'
    )
  values: Metrics = collections.OrderedDict()
  for group in np.unique(groups):
    part = metrics(images.take(groups == group))
    values.update((f'{prefix}/{group}/{name}', v) for name, v in part.items())
  return values


class Measures:
  """Metrics of scored images, as functions of a weight for each image.

  Attributes:
    names: Names of the metrics.
  """

  names: tuple[str, ...]

  def __init__(
    self, images: scored.ScoredImages, fitted: fitted_lib.Fitted | None = None
  ):
    """Prepares what does not depend on weights.

    Args:
      images: Scores and labels.
      fitted: Numbers that were fitted on other images; see `metrics`.
    """
    self._images = images
    self._fitted = fitted
    classes = tuple(images.class_names)
    self._tested = fitted.tested if fitted else ()
    self.names = (
      *_OVERALL,
      *(_ORDINAL if images.is_ordinal else ()),
      *(('ece_with_temperature',) if fitted else ()),
      *(f'sensitivity/{name}' for name in classes),
      *(f'specificity/{name}' for name in classes),
      *(f'sensitivity_at/{classes[k]}' for k in self._tested),
      *(f'specificity_at/{classes[k]}' for k in self._tested),
    )

  def values(self, weights: np.ndarray) -> np.ndarray:
    """Returns the metrics, float64 [B, M] in the order of `names`.

    Args:
      weights: Weights of the images, float64 [B, N], such as the number of
        times that each image was drawn.
    """
    if not self._images.is_finite:
      return np.full((len(weights), len(self.names)), np.nan)
    total = weights @ self._known.sum(axis=1)
    hits = weights @ (self._predicted & self._present)
    positives = weights @ self._present
    negatives = weights @ self._absent
    rejected = weights @ (~self._predicted & self._absent)
    sensitivity = _ratio(hits, positives)
    specificity = _ratio(rejected, negatives)
    f1 = _ratio(2 * hits, hits + negatives - rejected + positives)
    balanced = sensitivity
    if self._images.multi_label:
      balanced = (sensitivity + specificity) / 2
    else:
      total = total / len(self._images.class_names)
    columns = [
      _ratio(weights @ self._losses, total),
      _ratio(weights @ self._right, total),
      _mean(balanced),
      _mean(self._areas(weights, positives * negatives)),
      _mean(np.where(positives > 0, f1, np.nan)),
      _ece(weights, self._gaps, total),
    ]
    if self._images.is_ordinal:
      columns += [self._kappa(weights), _ratio(weights @ self._errors, total)]
    if self._fitted:
      columns.append(_ece(weights, self._gaps_with_temperature, total))
    parts = [np.stack(columns, axis=1), sensitivity, specificity]
    if self._fitted:
      thresholds = np.array(self._fitted.thresholds)
      parts += self._at_thresholds(thresholds, weights, positives, negatives)
    return np.concatenate(parts, axis=1)

  @functools.cached_property
  def _present(self) -> np.ndarray:
    return self._images.truth == 1

  @functools.cached_property
  def _absent(self) -> np.ndarray:
    return self._images.truth == 0

  @functools.cached_property
  def _known(self) -> np.ndarray:
    return self._present | self._absent

  @functools.cached_property
  def _logits(self) -> np.ndarray:
    return self._images.logits.astype(np.float64)

  @functools.cached_property
  def _ranks(self) -> np.ndarray:
    """Scores that order the images for each class, [N, K]."""
    if self._images.multi_label:
      return self._logits
    return special.log_softmax(self._logits, axis=1)

  @functools.cached_property
  def _predicted(self) -> np.ndarray:
    if self._images.multi_label:
      return self._logits >= 0
    classes = len(self._images.class_names)
    return np.eye(classes, dtype=bool)[self._logits.argmax(axis=1)]

  @functools.cached_property
  def _losses(self) -> np.ndarray:
    """Loss of each image, multi-label the sum over its known labels, [N]."""
    if not self._images.multi_label:
      return -self._ranks[self._present]
    losses = np.logaddexp(0, self._logits) - self._present * self._logits
    return np.where(self._known, losses, 0).sum(axis=1)

  @functools.cached_property
  def _right(self) -> np.ndarray:
    """Number of right decisions of each image, [N]."""
    if not self._images.multi_label:
      return (self._predicted & self._present).sum(axis=1)
    return ((self._predicted == self._present) & self._known).sum(axis=1)

  @functools.cached_property
  def _gaps(self) -> np.ndarray:
    return _calibration_gaps(self._images)

  @functools.cached_property
  def _gaps_with_temperature(self) -> np.ndarray:
    temperature = self._fitted.temperature if self._fitted else 1.0
    return _calibration_gaps(self._images.with_temperature(temperature))

  @functools.cached_property
  def _errors(self) -> np.ndarray:
    """Distance of each predicted grade from the label, [N]."""
    return np.abs(self._logits.argmax(axis=1) - self._images.labels)

  @functools.cached_property
  def _orders(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Columns of the AUC: their rows by score, and where each score begins.

    For two classes both columns have the same area, the one of class 1.
    """
    classes = self._present.shape[1]
    is_binary = classes == 2 and not self._images.multi_label
    orders = []
    for k in [1] if is_binary else range(classes):
      order = np.argsort(self._ranks[:, k], kind='stable')
      ranked = self._ranks[order, k]
      starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
      orders.append((k, order, starts))
    return orders

  def _areas(self, weights: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns the areas under the ROC curves, NaN if undefined, [B, columns].

    An area is the share of pairs of a positive and a negative image in which
    the positive has the higher score; equal scores count half.

    Args:
      weights: Weights of the images, [B, N].
      pairs: Weighted number of pairs of each class, [B, K].
    """
    areas = []
    for k, order, starts in self._orders:
      ordered = weights[:, order]
      negative = ordered * self._absent[order, k]
      positive = ordered * self._present[order, k]
      if len(starts) < len(order):
        negative = np.add.reduceat(negative, starts, axis=1)
        positive = np.add.reduceat(positive, starts, axis=1)
      below = np.cumsum(negative, axis=1) - negative / 2
      areas.append(_ratio((positive * below).sum(axis=1), pairs[:, k]))
    return np.stack(areas, axis=1)

  def _kappa(self, weights: np.ndarray) -> np.ndarray:
    """Returns Cohen's quadratically weighted kappa, [B]."""
    classes = len(self._images.class_names)
    grades = np.arange(classes)
    truth = weights @ self._present
    predicted = weights @ self._predicted
    distances = (grades[:, None] - grades) ** 2
    expected = np.einsum('bi,bj,ij->b', truth, predicted, distances)
    observed = (weights @ self._errors**2) * weights.sum(axis=1)
    return 1 - _ratio(observed, expected)

  def _at_thresholds(
    self,
    thresholds: np.ndarray,
    weights: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
  ) -> list[np.ndarray]:
    """Returns sensitivity and specificity at the thresholds of the classes."""
    tested = list(self._tested)
    flagged = self._images.probabilities[:, tested] >= thresholds[tested]
    hits = weights @ (flagged & self._present[:, tested])
    rejected = weights @ (~flagged & self._absent[:, tested])
    return [
      _ratio(hits, positives[:, tested]),
      _ratio(rejected, negatives[:, tested]),
    ]


def confidences(
  images: scored.ScoredImages,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the confidence of each decision, whether it is right, and its bin.

  Args:
    images: Scores and labels; the scores are finite.

  Returns:
    Confidence float64, correctness bool and bin in 0..`ECE_BINS` - 1, each [N]
    or, multi-label, [N, K], where the bin of an unknown label is -1.
  """
  probabilities = images.probabilities
  if images.multi_label:
    confidence = np.maximum(probabilities, 1 - probabilities)
    right = (probabilities >= 0.5) == (images.labels == 1)
  else:
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == images.labels
  # Bins are open below and closed above, as in Guo et al.
  bins = np.ceil(confidence * ECE_BINS).astype(np.int64) - 1
  bins = np.clip(bins, 0, ECE_BINS - 1)
  if images.multi_label:
    bins = np.where(images.truth >= 0, bins, -1)
  return confidence, right, bins


def _calibration_gaps(images: scored.ScoredImages) -> np.ndarray:
  """Returns confidence minus correctness, summed by bin, [N, bins]."""
  confidence, right, bins = confidences(images)
  count = len(images.logits)
  gaps = (confidence - right).reshape(count, -1)
  bins = bins.reshape(count, -1)
  return np.stack(
    [np.where(bins == b, gaps, 0).sum(axis=1) for b in range(ECE_BINS)], axis=1
  )


def _ece(
  weights: np.ndarray, gaps: np.ndarray, total: np.ndarray
) -> np.ndarray:
  return _ratio(np.abs(weights @ gaps).sum(axis=1), total)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """Returns `part / whole`, NaN where `whole` is 0."""
  undefined = np.full(whole.shape, np.nan)
  return np.divide(part, whole, out=undefined, where=whole > 0)


def _mean(values: np.ndarray) -> np.ndarray:
  """Returns the mean of the known values of each row; NaN if there are none."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)  # Of rows without values.
    return np.nanmean(values, axis=1)
