"""The evaluation of a final model: metrics, intervals and fitted numbers.

Thresholds and temperature are fitted on validation images, and tried on test
images. On the validation images themselves they would look too good, so that
the evaluation there has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import math

import numpy as np

from tff_medical import _validate
from tff_medical.data import images as images_lib
from tff_medical.scoring import fitted as fitted_lib
from tff_medical.scoring import intervals as intervals_lib
from tff_medical.scoring import metrics as metrics_lib
from tff_medical.scoring import scored

# Metrics whose lowest value over the sites is stated.
WORST_SITE = ('auc', 'balanced_accuracy')
# Of probabilities [N, K] and labels [N] or [N, K].
OwnMetric = Callable[[np.ndarray, np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Evaluation of a model on the images of one split.

  Attributes:
    metrics: Metrics by name, overall and by site.
    intervals: Low and high end of the 95 % interval, by the name of the metric.
    fitted: Numbers fitted on validation images, by name; empty without any.
  """

  metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
  intervals: Mapping[str, intervals_lib.Interval] = dataclasses.field(
    default_factory=dict
  )
  fitted: Mapping[str, float] = dataclasses.field(default_factory=dict)


def evaluate(
  images: scored.ScoredImages,
  validation: scored.ScoredImages | None = None,
  specificity: float = fitted_lib.DEFAULT_SPECIFICITY,
  own_metrics: Mapping[str, OwnMetric] | None = None,
) -> Evaluation:
  """Returns the evaluation of a model.

  Args:
    images: Scores and labels of the evaluated images.
    validation: Scores and labels of the validation images; None without any.
    specificity: Specificity of the thresholds.
    own_metrics: Further metrics by name, without intervals.

  Raises:
    InputError: A metric of the user failed or returned no number.
  """
  fitted = None
  if validation is not None and images.split_name == images_lib.TEST:
    fitted = fitted_lib.fit(validation, specificity)
  return Evaluation(
    overall_and_by_site(images, fitted, own_metrics),
    intervals_lib.intervals(images, fitted),
    fitted.values(tuple(images.class_names)) if fitted else {},
  )


def overall_and_by_site(
  images: scored.ScoredImages,
  fitted: fitted_lib.Fitted | None = None,
  own_metrics: Mapping[str, OwnMetric] | None = None,
) -> metrics_lib.Metrics:
  """Returns the metrics of all images, those of each site, and the worst site.

  Args:
    images: Scores and labels.
    fitted: Numbers fitted on other images, if any.
    own_metrics: Further metrics by name.
  """
  values = metrics_lib.metrics(images, fitted)
  for name, function in (own_metrics or {}).items():
    values[name] = _own(name, function, images)
  if images.sites is None:
    return values
  by_site = metrics_lib.by_group(images, images.sites)
  for metric in WORST_SITE:
    known = [
      value
      for name, value in by_site.items()
      if name.split('/')[2:] == [metric] and not math.isnan(value)
    ]
    values[f'worst_site/{metric}'] = min(known, default=math.nan)
  values.update(by_site)
  return values


def _own(name: str, function: OwnMetric, images: scored.ScoredImages) -> float:
  """Returns the value of a metric of the user; NaN for a diverged model."""
  if not images.is_finite:
    return math.nan
  try:
    return float(function(images.probabilities, images.labels))
  except Exception as error:  # A user's function may raise anything.
    raise _validate.InputError(
      f'own_metrics: {name} failed ({type(error).__name__}: {error}); it must '
      'return a number for probabilities [N, K] and labels'
    ) from error
