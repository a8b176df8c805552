"""Bootstrap intervals of metrics and of differences between models.

Intervals are 95 % percentile intervals (Efron 1979) over 1,000 resamples of the
evaluated images, drawn by patient where patients are known. They say how much a
figure depends on which images are in the split. They do not say how it varies
with the seed and the noise of a training. A percentile interval of the expected
calibration error lies too high, as resamples are less calibrated than the data.

Resamples are a function of the seed and of the number of images or patients, so
that two models are compared on the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import math
import warnings

import numpy as np

from tff_medical import _validate
from tff_medical.scoring import fitted as fitted_lib
from tff_medical.scoring import metrics as metrics_lib
from tff_medical.scoring import scored

CONFIDENCE = 0.95
RESAMPLES = 1000
_SEED = 0
# Weights that are held at once, as float64.
_CHUNK = 2_000_000

Interval = tuple[float, float]


def intervals(
  images: scored.ScoredImages,
  fitted: fitted_lib.Fitted | None = None,
  resamples: int = RESAMPLES,
) -> dict[str, Interval]:
  """Returns the interval of each metric that all images determine.

  Args:
    images: Scores and labels.
    fitted: Numbers fitted on other images, which stay as they are.
    resamples: Number of resamples.

  Returns:
    Low and high end by the names of `metrics.metrics`. Metrics that are NaN have
    none. Resamples in which a metric is undefined are left out.
  """
  measures = metrics_lib.Measures(images, fitted)
  values = distribution(images, measures, resamples)
  return {
    name: percentiles(column)
    for name, column in zip(measures.names, values.T)
    if not np.isnan(column).all()
  }


def differences(
  pairs: Sequence[tuple[scored.ScoredImages, scored.ScoredImages]],
  metric: str,
  resamples: int = RESAMPLES,
) -> Interval:
  """Returns the interval of the mean difference of a metric between models.

  Both models of a pair are resampled alike. Pairs with the same images, such as
  those of several seeds, share their resamples as well.

  Args:
    pairs: Scores of a model and of the model that it is compared with.
    metric: Name of the metric.
    resamples: Number of resamples.

  Raises:
    InputError: The scores of a pair are of different images.
  """
  total = np.zeros(resamples)
  for model, base in pairs:
    if not model.pairs_with(base):
      raise _validate.InputError(
        'scores must be of the same images to be compared, got other labels, '
        'sites or patients; compare runs of one data set and split'
      )
    for images, sign in ((model, 1), (base, -1)):
      measures = metrics_lib.Measures(images)
      column = measures.names.index(metric)
      total += sign * distribution(images, measures, resamples)[:, column]
  return percentiles(total / len(pairs))


def distribution(
  images: scored.ScoredImages, measures: metrics_lib.Measures, resamples: int
) -> np.ndarray:
  """Returns the metrics of each resample, float64 [resamples, M]."""
  _validate.positive_int(resamples=resamples)
  parts = [
    measures.values(weights)
    for weights in _weights(images.groups, resamples, _SEED)
  ]
  return np.concatenate(parts)


def percentiles(values: np.ndarray) -> Interval:
  """Returns the ends of the interval of resampled values, NaN left out."""
  tail = 50 * (1 - CONFIDENCE)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)  # Of values all NaN.
    low, high = np.nanpercentile(values, [tail, 100 - tail])
  return float(low), float(high)


def excludes_zero(interval: Interval) -> bool:
  """Returns whether an interval lies on one side of zero.

  >>> excludes_zero((0.01, 0.2)), excludes_zero((-0.1, 0.2))
  (True, False)
  """
  low, high = interval
  return not math.isnan(low) and (low > 0 or high < 0)


def _weights(
  groups: np.ndarray, resamples: int, seed: int
) -> Iterator[np.ndarray]:
  """Yields the number of times that each image was drawn, [b, N]."""
  rng = np.random.default_rng(seed)
  count = int(groups.max()) + 1
  size = max(1, _CHUNK // max(count, len(groups)))
  for start in range(0, resamples, size):
    rows = min(size, resamples - start)
    drawn = rng.integers(0, count, (rows, count))
    drawn += count * np.arange(rows)[:, None]
    times = np.bincount(drawn.ravel(), minlength=rows * count)
    yield times.reshape(rows, count).astype(np.float64)[:, groups]
