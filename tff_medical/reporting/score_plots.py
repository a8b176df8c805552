"""Figures of one run, from its scores: ROC, reliability, confusion.

Each function takes the scored images of a run and returns a `Plot`, or None
where the scores have nothing to show in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn import metrics as sklearn_metrics

from tff_medical.reporting import plots
from tff_medical.reporting import sweep_plots
from tff_medical.scoring import metrics
from tff_medical.scoring import scored

# More lines than this cannot be told apart.
_MAX_LINES = len(plots.SERIES)
# More classes than this leave no room for their counts.
_MAX_CLASSES = 12


def all_plots(images: scored.ScoredImages) -> list[sweep_plots.Plot]:
  """Returns every figure that the scores have something to show in."""
  if not images.is_finite:
    return []
  candidates = [roc(images), roc_by_site(images), reliability(images)]
  candidates.append(confusion(images))
  return [plot for plot in candidates if plot is not None]


def roc(images: scored.ScoredImages) -> sweep_plots.Plot | None:
  """Returns the ROC curve of each class against the rest; of two, class 1's."""
  is_binary = len(images.class_names) == 2 and not images.multi_label
  classes = [1] if is_binary else range(len(images.class_names))
  curves = [(images.class_names[k], *_column(images, k)) for k in classes]
  return _roc(
    images,
    'roc',
    'ROC',
    curves,
    'Each class against all others.' if len(curves) > 1 else '',
  )


def roc_by_site(images: scored.ScoredImages) -> sweep_plots.Plot | None:
  """Returns the ROC curve of each site."""
  if images.sites is None:
    return None
  is_binary = len(images.class_names) == 2 and not images.multi_label
  classes = [1] if is_binary else list(range(len(images.class_names)))
  curves = []
  for site in np.unique(images.sites):
    part = images.take(images.sites == site)
    columns = [_column(part, k) for k in classes]
    truth, scores = map(np.concatenate, zip(*columns))
    curves.append((f'site {site}', truth, scores))
  caption = '' if is_binary else 'Decisions on all classes are pooled.'
  return _roc(images, 'roc_sites', 'ROC by site', curves, caption)


def reliability(images: scored.ScoredImages) -> sweep_plots.Plot:
  """Returns the share of right decisions against the stated confidence."""
  confidence, right, bins = metrics.confidences(images)
  figure, axes = plots.new(
    'Reliability', x='stated confidence', y='share of right decisions'
  )
  axes.plot([0, 1], [0, 1], color=plots.color(6), label='calibrated')
  used = [b for b in range(metrics.ECE_BINS) if (bins == b).any()]
  means = [
    (confidence[bins == b].mean(), right[bins == b].mean()) for b in used
  ]
  axes.plot(*zip(*means), marker='o', color=plots.color(0), label='model')
  lowest = min(0.5, min(min(point) for point in means))
  axes.set_xlim(lowest - 0.02, 1.02)
  axes.set_ylim(lowest - 0.02, 1.02)
  plots.legend(figure)
  return sweep_plots.Plot(
    'reliability',
    f'Dots are bins of confidence on {images.split_name} images, of the '
    f'{metrics.ECE_BINS} of the expected calibration error (ECE).',
    figure,
  )


def confusion(images: scored.ScoredImages) -> sweep_plots.Plot | None:
  """Returns the shares of predictions for each class; None for findings."""
  classes = len(images.class_names)
  if images.multi_label or classes > _MAX_CLASSES:
    return None
  counts = sklearn_metrics.confusion_matrix(
    images.labels, images.logits.argmax(axis=1), labels=range(classes)
  )
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  figure, axes = plots.new('Confusion', x='predicted', y='label')
  axes.imshow(shares, cmap='Blues', vmin=0, vmax=1.3, aspect='auto')
  axes.grid(False)
  names = [_short(name) for name in images.class_names]
  axes.set_xticks(range(classes), names, rotation=30 if classes > 3 else 0)
  axes.set_yticks(range(classes), names)
  for row, column in np.ndindex(counts.shape):
    axes.text(
      column, row, f'{counts[row, column]:,}', ha='center', va='center',
      color='black', fontsize=8.5,
    )  # fmt: skip
  return sweep_plots.Plot(
    'confusion',
    f'Numbers of {images.split_name} images; the shade is the share of the label.',
    figure,
  )


def _column(
  images: scored.ScoredImages, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the known labels of class k, and their scores."""
  truth = images.truth[:, k]
  known = truth >= 0
  return truth[known], images.probabilities[known, k]


def _roc(
  images: scored.ScoredImages,
  name: str,
  title: str,
  curves: Sequence[tuple[str, np.ndarray, np.ndarray]],
  caption: str,
) -> sweep_plots.Plot | None:
  """Returns a figure of curves, those with the lowest area if they are many."""
  points = []
  for label, truth, scores in curves:
    if len(np.unique(truth)) == 2:
      area = sklearn_metrics.roc_auc_score(truth, scores)
      xs, ys, _ = sklearn_metrics.roc_curve(truth, scores)
      points.append((area, label, xs, ys))
  if not points:
    return None
  figure, axes = plots.new(title, x='1 - specificity', y='sensitivity')
  points.sort(key=lambda point: point[0])
  for index, (area, label, xs, ys) in enumerate(points[:_MAX_LINES]):
    axes.plot(
      xs, ys, color=plots.color(index), label=f'{_short(label)} ({area:.3f})'
    )
  plots.legend(figure)
  if len(points) > _MAX_LINES:
    caption = (
      f'{caption} Shown are the {_MAX_LINES} of {len(points)} curves with the '
      'lowest area.'
    )
  text = f'Areas in brackets, on {images.split_name} images. {caption}'
  return sweep_plots.Plot(name, text.strip(), figure)


def _short(name: str) -> str:
  return name if len(name) <= 18 else f'{name[:17]}…'
