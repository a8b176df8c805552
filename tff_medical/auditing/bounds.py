"""Lower bounds on epsilon from an attack on canaries: plain NumPy and SciPy.

The ledger bounds the leakage of a run from above, an audit bounds it from
below. Canaries are units whose contribution the auditor chose. A fair coin
decides whether each canary takes part in the training. After the training the
auditor gives each canary a score, which is high if it seems to have taken part.
A lower bound above the ledger's upper bound proves the implementation wrong.
One run gives three numbers:

- `one_run_bound`: Steinke, Nasr & Jagielski 2023, "Privacy Auditing with One
  (1) Training Run" (arXiv 2305.08846), Theorem 5.2, from the number of correct
  guesses of the coins. It assumes nothing about the training. With r guesses it
  cannot exceed about log(r / 3) at 95 %, however large the leakage.
- `threshold_bound`: the share of participating canaries above a threshold (TPR)
  against the share of absent ones (FPR). The FPR is known in closed form for
  random directions (Andrew et al. 2023, "One-shot Empirical Privacy Estimation
  for Federated Learning", arXiv 2302.03098). This bound has no such ceiling. It
  assumes that canaries are found independently of each other, which holds
  approximately for directions of many dimensions (their section 3).
- `gaussian_estimate`: the estimate of Andrew et al., without confidence.

>>> all_right = one_run_p_value(
...     canaries=1000, guesses=1000, correct=1000, epsilon=2.0, delta=0.0)
>>> all_right < 1e-50
True
>>> chance = np.arange(1, 101) / 101  # Rates of absent canaries.
>>> threshold_bound(np.log(chance), delta=0.0, confidence=0.95)
0.0
"""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np
from scipy import optimize
from scipy import special
from scipy import stats

from tff_medical import _validate

# Shares of the canaries that are guessed as participating and as absent.
_GUESSES = ((0.5, 0.5), (0.25, 0.25), (0.1, 0.1), (0.05, 0.0))
_MAX_EPSILON = 700.0  # exp(700) is still finite.


def one_run_p_value(
  *, canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
  """Returns the p-value of (epsilon, delta)-DP from the number of guesses.

  It bounds from above the probability, over the coins and the training, that at
  least `correct` of the guesses are correct (Steinke et al. 2023, Theorem 5.2).

  Args:
    canaries: Number of canaries, each included by a fair coin.
    guesses: Number of canaries for which the auditor made a guess.
    correct: Number of correct guesses.
    epsilon: Epsilon to test, 0 or more.
    delta: Delta to test, in [0, 1).

  Raises:
    ValueError: The numbers are not in order: correct, guesses, canaries.
  """
  if not 0 <= correct <= guesses <= canaries:
    raise ValueError(
      'correct <= guesses <= canaries must hold, got '
      f'{correct}, {guesses} and {canaries}'
    )
  accuracy = special.expit(epsilon)
  at_least = stats.binom.sf(correct - 1, guesses, accuracy)
  if not correct:
    return 1.0
  below = np.arange(correct - 1, -1, -1)
  just_below = np.cumsum(stats.binom.pmf(below, guesses, accuracy))
  alpha = np.max(just_below / np.arange(1, correct + 1))
  return float(min(1.0, at_least + 2 * canaries * delta * alpha))


def one_run_epsilon(
  *,
  canaries: int,
  guesses: int,
  correct: int,
  delta: float,
  confidence: float,
) -> float:
  """Returns the largest epsilon that the correct guesses rule out.

  Args:
    canaries: Number of canaries, each included by a fair coin.
    guesses: Number of guesses, fixed before the coins are revealed.
    correct: Number of correct guesses.
    delta: Delta, in [0, 1), at which epsilon is bounded.
    confidence: Confidence, in (0, 1), with which the true epsilon at `delta` is
      at least the returned one.
  """
  _validate.in_range(0, 1, confidence=confidence)

  def excess(epsilon: float) -> float:
    p_value = one_run_p_value(
      canaries=canaries,
      guesses=guesses,
      correct=correct,
      epsilon=epsilon,
      delta=delta,
    )
    return p_value - (1 - confidence)

  return _first_root(excess)


def _first_root(function: Callable[[float], float]) -> float:
  """Returns an epsilon just below the first root of `function`, or 0."""
  high = 0.0
  while function(high) < 0:
    high += 1.0
  if not high:
    return 0.0
  root = optimize.bisect(function, high - 1.0, high, xtol=1e-6)
  return max(0.0, float(root) - 1e-6)


def one_run_bound(
  scores: np.ndarray,
  included: np.ndarray,
  *,
  delta: float,
  confidence: float,
) -> float:
  """Returns a lower bound on epsilon without assumptions on the training.

  The canaries with the highest scores are guessed as participating, those with
  the lowest scores as absent. Several fixed numbers of guesses are tried, each
  with its share of the allowed error.

  Args:
    scores: Scores, float [m], higher for canaries that seem to have taken part.
    included: Whether each canary took part, bool [m], by fair coins.
    delta: Delta at which epsilon is bounded.
    confidence: Confidence of the bound, in (0, 1).
  """
  _check_same_length(scores, included)
  order = np.argsort(scores, kind='stable')
  ascending = included[order]
  error = (1 - confidence) / len(_GUESSES)
  bounds = []
  for share_in, share_out in _GUESSES:
    count_in = int(share_in * len(scores))
    count_out = int(share_out * len(scores))
    right = ascending[len(scores) - count_in :].sum()
    right += count_out - ascending[:count_out].sum()
    bounds.append(
      one_run_epsilon(
        canaries=len(scores),
        guesses=count_in + count_out,
        correct=int(right),
        delta=delta,
        confidence=1 - error,
      )
    )
  return max(bounds)


def threshold_bound(
  log_false_positive_rates: np.ndarray, *, delta: float, confidence: float
) -> float:
  """Returns a lower bound on epsilon from independent canaries.

  For every threshold epsilon is at least log((TPR - delta) / FPR). The FPR is
  known. The TPR is at least the share of canaries above the threshold minus
  sqrt(log(1 / error) / 2k), at all thresholds at once (one-sided
  Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant).

  Args:
    log_false_positive_rates: For each of k participating canaries, float [k]:
      log of the probability that an absent canary scores as high, or of an
      upper bound on this probability.
    delta: Delta at which epsilon is bounded.
    confidence: Confidence of the bound, in [0.5, 1).
  """
  _validate.in_range(0.499, 1, confidence=confidence)
  count = len(log_false_positive_rates)
  if not count:
    return 0.0
  slack = math.sqrt(-math.log(1 - confidence) / (2 * count))
  share = np.arange(1, count + 1) / count - slack - delta
  useful = share > 0
  if not useful.any():
    return 0.0
  rates = np.sort(log_false_positive_rates)
  return max(0.0, float(np.max(np.log(share[useful]) - rates[useful])))


def log_cosine_tail(cosines: np.ndarray, dimensions: int) -> np.ndarray:
  """Returns log P(C >= c) of the cosine C of a random and a fixed direction.

  Args:
    cosines: Cosines c in [-1, 1], float [...].
    dimensions: Number of dimensions, at least 2; the random direction is
      isotropic.

  Returns:
    Log probabilities, float [...]. They are exact, as (C + 1) / 2 has a beta
    distribution. If the probability is too small for a float, the larger bound
    -dimensions * c**2 / 2 takes its place (Ball 1997, lemma 2.2).
  """
  half = (dimensions - 1) / 2
  with np.errstate(divide='ignore'):
    exact = np.log(special.betainc(half, half, (1 - cosines) / 2))
  bound = np.where(cosines > 0, -dimensions * cosines**2 / 2, 0.0)
  return np.where(np.isfinite(exact), exact, bound)


def gaussian_estimate(standardized: np.ndarray, delta: float) -> float:
  """Returns the epsilon estimate of Andrew et al. 2023, Algorithm 1.

  A normal distribution is fitted to the scores of the participating canaries.
  Scores of absent canaries have the standard normal distribution. The result is
  the epsilon at which the two distributions are (epsilon, delta)-close. It is
  an estimate, not a bound.

  Args:
    standardized: Scores of participating canaries in standard deviations of
      absent ones, float [k] with k at least 2.
    delta: Delta at which epsilon is estimated.
  """
  mean, std = float(np.mean(standardized)), float(np.std(standardized, ddof=1))
  std = max(std, 1e-6)

  def spare(epsilon: float) -> float:
    return delta - max(
      _hockey_stick(mean, std, epsilon),
      # The exchanged pair, scaled so that the second is the standard normal.
      _hockey_stick(-mean / std, 1 / std, epsilon),
    )

  if spare(0.0) >= 0:
    return 0.0
  if spare(_MAX_EPSILON) < 0:
    return math.inf
  return float(optimize.bisect(spare, 0.0, _MAX_EPSILON, xtol=1e-6))


def _hockey_stick(mean: float, std: float, epsilon: float) -> float:
  """Returns sup over events E of N(mean, std)(E) - exp(epsilon) N(0, 1)(E).

  The best event is the set where the log density ratio, a quadratic in x,
  exceeds epsilon.
  """
  square = (1 - std**-2) / 2
  linear = mean / std**2
  constant = -((mean / std) ** 2) / 2 - math.log(std) - epsilon
  edges = [-math.inf, *_real_roots(square, linear, constant), math.inf]
  total = 0.0
  for low, high in zip(edges, edges[1:]):
    inside = _between(low, high)
    if square * inside**2 + linear * inside + constant > 0:
      total += _mass((low - mean) / std, (high - mean) / std)
      total -= math.exp(epsilon) * _mass(low, high)
  return total


def _real_roots(square: float, linear: float, constant: float) -> list[float]:
  if abs(square) < 1e-12:
    return [-constant / linear] if linear else []
  discriminant = linear**2 - 4 * square * constant
  if discriminant <= 0:
    return []
  root = math.sqrt(discriminant)
  return sorted([(-linear - root) / 2 / square, (-linear + root) / 2 / square])


def _between(low: float, high: float) -> float:
  """Returns a number between two bounds, each of which may be infinite."""
  if math.isinf(low):
    return 0.0 if math.isinf(high) else high - 1
  return low + 1 if math.isinf(high) else (low + high) / 2


def _mass(low: float, high: float) -> float:
  """Returns the standard normal probability of [low, high], exact in tails."""
  # The lower tail keeps its precision, the upper tail cancels to 0.
  if low > 0:
    low, high = -high, -low
  return float(special.ndtr(high) - special.ndtr(low))


def attack_auc(scores: np.ndarray, included: np.ndarray) -> float:
  """Returns the AUC: the probability that a participant outscores an absentee.

  Args:
    scores: Scores, float [m], higher for canaries that seem to have taken part.
    included: Whether each canary took part, bool [m].
  """
  _check_same_length(scores, included)
  ranks = stats.rankdata(scores)
  inside = int(included.sum())
  outside = len(included) - inside
  if not inside or not outside:
    return math.nan
  above = ranks[included].sum() - inside * (inside + 1) / 2
  return float(above / (inside * outside))


def tpr_at_fpr(
  scores: np.ndarray, included: np.ndarray, false_positive_rate: float
) -> float:
  """Returns the largest true positive rate at a false positive rate.

  Args:
    scores: Scores, float [m], higher for likely members.
    included: Whether each entry is a member, bool [m].
    false_positive_rate: Largest share of non-members that are taken for
      members.
  """
  _check_same_length(scores, included)
  outside = np.sort(scores[~included])[::-1]
  if not len(outside) or not included.any():
    return math.nan
  threshold = outside[int(false_positive_rate * len(outside))]
  return float(np.mean(scores[included] > threshold))


def _check_same_length(scores: np.ndarray, included: np.ndarray) -> None:
  if scores.shape != included.shape or included.dtype != bool:
    raise ValueError(
      'scores and included, a bool array, must have one entry a canary, got '
      f'{scores.shape} and {included.dtype} {included.shape}'
    )
