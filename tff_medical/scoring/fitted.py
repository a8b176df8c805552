"""Numbers that are fitted on validation images: thresholds and a temperature.

Neither changes the model. The thresholds say at which probability a class has
to be flagged for a given specificity. The temperature divides the logits such
that the loss on validation images is lowest (Guo et al. 2017). Both are
functions of held-out images without noise: epsilon does not cover them.
"""

from __future__ import annotations

import collections
import dataclasses
import math

import numpy as np

from tff_medical import _validate
from tff_medical.scoring import scored

DEFAULT_SPECIFICITY = 0.9
_LOG_TEMPERATURES = (math.log(1e-2), math.log(1e2))


@dataclasses.dataclass(frozen=True)
class Fitted:
  """Numbers that were fitted on validation images.

  Attributes:
    temperature: Divisor of the logits; above 1 if the model is too sure.
    specificity: Specificity that each threshold has on these images, at least.
    thresholds: Probability of each class from which it is flagged; NaN for a
      class of which no image is known to lack it.
    tested: Indices of the classes whose thresholds are of use: class 1 alone of
      two classes.
  """

  temperature: float
  specificity: float
  thresholds: tuple[float, ...]
  tested: tuple[int, ...]

  def values(self, class_names: tuple[str, ...]) -> dict[str, float]:
    """Returns the numbers by name, for summary and card."""
    values = collections.OrderedDict(
      temperature=self.temperature, specificity=self.specificity
    )
    for k in self.tested:
      values[f'threshold/{class_names[k]}'] = self.thresholds[k]
    return values


def fit(
  images: scored.ScoredImages, specificity: float = DEFAULT_SPECIFICITY
) -> Fitted | None:
  """Returns what fits the scores of validation images.

  Args:
    images: Scores and labels.
    specificity: Specificity of the thresholds, in (0, 1).

  Returns:
    The fitted numbers; None if a score is not finite.
  """
  _validate.in_range(0, 1, specificity=specificity)
  if not images.is_finite:
    return None
  classes = len(images.class_names)
  is_binary = classes == 2 and not images.multi_label
  probabilities, truth = images.probabilities, images.truth
  return Fitted(
    temperature=_temperature(images),
    specificity=specificity,
    thresholds=tuple(
      threshold(probabilities[truth[:, k] == 0, k], specificity)
      for k in range(classes)
    ),
    tested=(1,) if is_binary else tuple(range(classes)),
  )


def threshold(negatives: np.ndarray, specificity: float) -> float:
  """Returns the lowest threshold with a specificity of at least this value.

  An image is flagged if its score is the threshold or more.

  >>> threshold(np.array([0.1, 0.2, 0.3, 0.4]), 0.75) > 0.3
  True

  Args:
    negatives: Scores of the images that lack the finding.
    specificity: Share of these images that must not be flagged.
  """
  if not len(negatives):
    return math.nan
  # Rounding must not ask for one image more: .9 * 10 is above 9 in floats.
  needed = math.ceil(specificity * len(negatives) - 1e-9)
  return float(np.nextafter(np.sort(negatives)[needed - 1], np.inf))


def _temperature(images: scored.ScoredImages) -> float:
  """Returns the temperature with the lowest loss."""
  # Late: flags import this module, and are refused before SciPy is needed.
  from scipy import optimize
  from scipy import special

  logits, truth = images.logits.astype(np.float64), images.truth

  def loss(log_temperature: float) -> float:
    scaled = logits / math.exp(log_temperature)
    if images.multi_label:
      losses = np.logaddexp(0, scaled) - (truth == 1) * scaled
      return float(losses[truth >= 0].mean())
    return -float(special.log_softmax(scaled, axis=1)[truth == 1].mean())

  best = optimize.minimize_scalar(
    loss, bounds=_LOG_TEMPERATURES, method='bounded'
  )
  return math.exp(best.x)
