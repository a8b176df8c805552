"""Metrics of a model that medical papers report.

Scores [N, K] and labels give an ordered mapping of floats with flat, stable
names: `loss`, `accuracy`, `balanced_accuracy`, `auc`, and for each class
`sensitivity/CLASS` and `specificity/CLASS`. For each site the same metrics have
the prefix `site/SITE/`. A metric that the labels do not determine, such as the
sensitivity to a class without any label, is NaN and is left out of averages.
Findings that are unknown (`images.UNKNOWN`) are left out of every metric. If a
score is not finite, as after diverged training, every metric is NaN.

- loss: mean cross-entropy of the images; multi-label: of the known labels.
- accuracy: share of correct classes; multi-label: share of correct labels.
- balanced accuracy: mean sensitivity of the classes; multi-label: mean over the
  labels of (sensitivity + specificity) / 2.
- AUC: area under the ROC curve of class 1 for two classes. For more classes it
  is the mean over one-against-the-rest curves; multi-label: mean over labels.

>>> logits = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
>>> values = metrics(logits, np.array([0, 1, 1, 0]), class_names=('no', 'yes'))
>>> for name, value in values.items():
...   print(f'{name:<18}{value:.3f}')
loss              0.400
accuracy          0.750
balanced_accuracy 0.750
auc               1.000
sensitivity/no    1.000
sensitivity/yes   0.500
specificity/no    0.500
specificity/yes   1.000
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np
from scipy import special
from sklearn import metrics as sklearn_metrics
import tensorflow as tf

from tff_medical import _validate
from tff_medical import models
from tff_medical.data import examples
from tff_medical.data import images as images_lib
from tff_medical.data import pixels

_EPSILON = 1e-15  # A probability of 0 costs a loss of 35, not infinity.


def evaluate(
  scores: np.ndarray,
  labels: np.ndarray,
  *,
  class_names: Sequence[str],
  multi_label: bool = False,
  sites: np.ndarray | None = None,
) -> collections.OrderedDict[str, float]:
  """Returns the metrics of logits, over all images and, if given, by site.

  Args:
    scores: Logits [N, K], as `predict` returns them; N at least 1.
    labels: Integer classes [N] or, multi-label, 0, 1 and -1
      (unknown) [N, K].
    class_names: Names of the K classes, which become part of metric names.
    multi_label: Whether the K outputs are independent labels.
    sites: Site of each image, [N], as numbers or names.

  Returns:
    The metrics of the module docstring.
  """
  values = metrics(
    scores, labels, class_names=class_names, multi_label=multi_label
  )
  if sites is not None:
    values.update(
      by_group(
        scores,
        labels,
        sites,
        class_names=class_names,
        multi_label=multi_label,
      )
    )
  return values


def predict(
  model: tf.keras.Model,
  images: pixels.ArrayOrPixels,
  *,
  batch_size: int = 128,
) -> np.ndarray:
  """Returns float32 logits [N, K] for uint8 images [N, H, W, C]."""
  _validate.positive_int(batch_size=batch_size)
  expected = model.input_shape[1:]
  if images.dtype != np.uint8 or images.shape[1:] != expected:
    raise _validate.InputError(
      f'images must be uint8 [N, {", ".join(map(str, expected))}] for this '
      f'model, got {images.dtype} {list(images.shape)}'
    )
  models.restore_eager(model)
  parts = [np.zeros((0, model.output_shape[-1]), np.float32)]
  for batch in pixels.batches(images, batch_size):
    parts.append(model(examples.scaled(batch), training=False).numpy())
  return np.concatenate(parts)


def metrics(
  scores: np.ndarray,
  labels: np.ndarray,
  *,
  class_names: Sequence[str],
  multi_label: bool = False,
  from_logits: bool = True,
) -> collections.OrderedDict[str, float]:
  """Returns the metrics of given predictions.

  Args:
    scores: Logits or probabilities [N, K], N at least 1.
    labels: Integer classes [N] or, multi-label, 0, 1 and -1
      (unknown) [N, K].
    class_names: Names of the K classes, which become part of metric names.
    multi_label: Whether the K scores are independent labels.
    from_logits: Whether `scores` are logits rather than probabilities.

  Returns:
    The metrics of the module docstring.
  """
  labels = _checked_labels(scores, labels, class_names, multi_label)
  truth = labels if multi_label else np.eye(len(class_names), dtype=int)[labels]
  logits = scores.astype(np.float64)
  if not from_logits:
    logits = _logits(logits, multi_label)
  values = np.full(4 + 2 * len(class_names), np.nan)
  if np.isfinite(logits).all():
    values = _values(logits, truth, multi_label)
  names = ['loss', 'accuracy', 'balanced_accuracy', 'auc']
  names += [f'sensitivity/{name}' for name in class_names]
  names += [f'specificity/{name}' for name in class_names]
  return collections.OrderedDict(zip(names, map(float, values)))


def by_group(
  scores: np.ndarray,
  labels: np.ndarray,
  groups: np.ndarray,
  *,
  class_names: Sequence[str],
  multi_label: bool = False,
  from_logits: bool = True,
  prefix: str = 'site',
) -> collections.OrderedDict[str, float]:
  """Returns the metrics of each group, named `PREFIX/GROUP/METRIC`.

  Args:
    scores: Logits or probabilities [N, K].
    labels: Integer classes [N] or, multi-label, 0, 1 and -1
      (unknown) [N, K].
    groups: Group of each image, [N], as numbers or names.
    class_names: Names of the K classes, which become part of metric names.
    multi_label: Whether the K scores are independent labels.
    from_logits: Whether `scores` are logits rather than probabilities.
    prefix: Kind of the groups, the first part of the names.

  Returns:
    The metrics of each group in the sorted order of the groups.
  """
  if groups.shape != (len(scores),):
    raise _validate.InputError(
      f'groups must have one entry for each of {len(scores)} images, '
      f'got shape {groups.shape}'
    )
  values: collections.OrderedDict[str, float] = collections.OrderedDict()
  for group in np.unique(groups):
    members = groups == group
    part = metrics(
      scores[members],
      labels[members],
      class_names=class_names,
      multi_label=multi_label,
      from_logits=from_logits,
    )
    values.update((f'{prefix}/{group}/{name}', v) for name, v in part.items())
  return values


def _values(
  logits: np.ndarray, truth: np.ndarray, multi_label: bool
) -> np.ndarray:
  """Returns the metrics in order, from finite logits and truth [N, K]."""
  present, absent = truth == 1, truth == 0
  if multi_label:
    predicted = logits >= 0
    is_known = present | absent
    losses = (np.logaddexp(0, logits) - present * logits)[is_known]
    right = (predicted == present)[is_known]
    ranks = logits
  else:
    choice = logits.argmax(axis=1)
    predicted = np.eye(truth.shape[1], dtype=bool)[choice]
    ranks = special.log_softmax(logits, axis=1)
    losses = -ranks[present]
    right = predicted[present]
  sensitivity = _ratio((predicted & present).sum(0), present.sum(0))
  specificity = _ratio((~predicted & absent).sum(0), absent.sum(0))
  balanced = (sensitivity + specificity) / 2 if multi_label else sensitivity
  overall = (_mean(losses), _mean(right), _mean(balanced), _auc(ranks, truth))
  return np.concatenate([overall, sensitivity, specificity])


def _auc(ranks: np.ndarray, truth: np.ndarray) -> float:
  """Returns the mean area under the ROC curve over the defined columns.

  For two classes both columns have the same area, the one of class 1.
  """
  areas = []
  for column, scores in zip(truth.T, ranks.T):
    is_known = column != images_lib.UNKNOWN
    if len(np.unique(column[is_known])) == 2:
      areas.append(
        sklearn_metrics.roc_auc_score(column[is_known], scores[is_known])
      )
  return _mean(np.array(areas))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """Returns `part / whole`, NaN where `whole` is 0."""
  undefined = np.full(whole.shape, np.nan)
  return np.divide(part, whole, out=undefined, where=whole > 0)


def _mean(values: np.ndarray) -> float:
  """Returns the mean of the values that are not NaN; NaN if there are none."""
  defined = values[~np.isnan(values)]
  return float(defined.mean()) if defined.size else float('nan')


def _logits(probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
  """Returns finite logits that give `probabilities`."""
  if multi_label:
    return special.logit(np.clip(probabilities, _EPSILON, 1 - _EPSILON))
  return np.log(np.clip(probabilities, _EPSILON, None))


def _checked_labels(
  scores: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str],
  multi_label: bool,
) -> np.ndarray:
  """Returns integer labels that fit the scores, or raises `InputError`."""
  count, classes = len(scores), len(class_names)
  if scores.shape != (count, classes) or not count or classes < 1:
    raise _validate.InputError(
      f'scores must be [N, {classes}] for {classes} class names with at '
      f'least one image, got {list(scores.shape)}'
    )
  shape = (count, classes) if multi_label else (count,)
  if labels.shape != shape or labels.dtype.kind not in 'iub':
    raise _validate.InputError(
      f'labels must be integers {list(shape)}, '
      f'got {labels.dtype} {list(labels.shape)}'
    )
  lowest = images_lib.UNKNOWN if multi_label else 0
  highest = 1 if multi_label else classes - 1
  if labels.min() < lowest or labels.max() > highest:
    raise _validate.InputError(
      f'labels must lie in {lowest}..{highest}, got '
      f'{labels.min()}..{labels.max()}'
    )
  return labels.astype(np.int64)
