"""Lower bounds on epsilon from an attack on canaries: plain NumPy and SciPy.

The ledger says what a run can leak at most; an audit says what it leaks at
least. Canaries are units whose contribution the auditor chose. Each takes part
in the training or not by a fair coin, and after it the auditor scores each by
how much it seems to have taken part. A lower bound above the ledger's upper
bound proves the implementation wrong. Three numbers come from one run:

- `one_run_bound`: Steinke, Nasr & Jagielski 2023, "Privacy Auditing with One (1)
  Training Run" (arXiv 2305.08846), Theorem 5.2, from the number of right guesses
  of the coins. It assumes nothing about the training. With r guesses it cannot
  exceed about log(r / 3) at 95 %, however much is leaked.
- `threshold_bound`: from the share of the canaries that took part which score
  above a threshold, against the share of canaries that did not, which is known
  in closed form for random directions (Andrew et al. 2023, "One-shot Empirical
  Privacy Estimation for Federated Learning", arXiv 2302.03098). It has no such
  ceiling, but takes canaries to be found or missed independently of each other;
  directions of many dimensions are nearly so (their section 3).
- `gaussian_estimate`: the estimate of Andrew et al., without confidence.

>>> all_right = one_run_p_value(
...     canaries=1000, guesses=1000, correct=1000, epsilon=2.0, delta=0.0)
>>> all_right < 1e-50
True
>>> chance = np.arange(1, 101) / 101  # as those that did not take part
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

# Shares of the canaries that are guessed to have taken part, and not to have.
_GUESSES = ((0.5, 0.5), (0.25, 0.25), (0.1, 0.1), (0.05, 0.0))
_MAX_EPSILON = 700.0  # exp(epsilon) is still a number


def one_run_p_value(
  *, canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
  """Returns how likely so many right guesses are under (epsilon, delta)-DP.

  An upper bound on the probability, over the coins and the training, that at
  least `correct` of the guesses are right (Steinke et al. 2023, Theorem 5.2).

  Args:
    canaries: How many there are, each in or out by a fair coin.
    guesses: For how many of them the auditor made a guess.
    correct: How many guesses were right.
    epsilon: 0 or more.
    delta: In [0, 1).
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
  """Returns the largest epsilon that so many right guesses rule out.

  Args:
    canaries: As for `one_run_p_value`.
    guesses: Likewise; fixed before the coins are looked at.
    correct: Likewise.
    delta: Likewise.
    confidence: In (0, 1): the true epsilon at `delta` is at least what is
      returned with this probability.
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
  """Returns where `function` of epsilon turns positive, or 0, from below."""
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
  """Returns a lower bound on epsilon that needs no assumption on the training.

  The canaries with the highest scores are guessed to have taken part, those
  with the lowest not to have. How many are guessed is tried at some fixed
  values, each with its share of the allowed error.

  Args:
    scores: float [m], higher for canaries that seem to have taken part.
    included: bool [m], each True by a fair coin, whether they did.
    delta: The delta at which epsilon is bounded.
    confidence: In (0, 1), of the bound.
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
  """Returns a lower bound on epsilon from canaries that are independent.

  For every threshold, epsilon is at least log((TPR - delta) / FPR). The FPR is
  known; the TPR is at least the share of the canaries above the threshold less
  sqrt(log(1 / error) / 2k), at all thresholds at once (Dvoretzky-Kiefer-Wolfowitz
  inequality with Massart's constant, one-sided).

  Args:
    log_false_positive_rates: float [k], for each canary that took part, the log
      of the probability that one that did not scores as high, or of a bound
      on it.
    delta: The delta at which epsilon is bounded.
    confidence: In [0.5, 1), of the bound.
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
    cosines: float [...], c in [-1, 1].
    dimensions: Of the space, at least 2; the direction is isotropic in it.

  Returns:
    float [...]: exact, as (C + 1) / 2 has a beta distribution; where that is
    too small for a float, the bound -dimensions * c**2 / 2 (Ball 1997, lemma
    2.2), which is larger.
  """
  half = (dimensions - 1) / 2
  with np.errstate(divide='ignore'):
    exact = np.log(special.betainc(half, half, (1 - cosines) / 2))
  bound = np.where(cosines > 0, -dimensions * cosines**2 / 2, 0.0)
  return np.where(np.isfinite(exact), exact, bound)


def gaussian_estimate(standardized: np.ndarray, delta: float) -> float:
  """Returns the epsilon estimate of Andrew et al. 2023, Algorithm 1.

  It fits a normal distribution to the canaries that took part and returns the
  epsilon at which it cannot be told from the standard normal distribution, that
  of canaries that did not. An estimate, not a bound.

  Args:
    standardized: float [k], k at least 2, scores of canaries that took part,
      in standard deviations of those that did not.
    delta: The delta at which epsilon is estimated.
  """
  mean, std = float(np.mean(standardized)), float(np.std(standardized, ddof=1))
  std = max(std, 1e-6)

  def spare(epsilon: float) -> float:
    return delta - max(
      _hockey_stick(mean, std, epsilon),
      # Exchanged, and scaled so that the second is the standard normal.
      _hockey_stick(-mean / std, 1 / std, epsilon),
    )

  if spare(0.0) >= 0:
    return 0.0
  if spare(_MAX_EPSILON) < 0:
    return math.inf
  return float(optimize.bisect(spare, 0.0, _MAX_EPSILON, xtol=1e-6))


def _hockey_stick(mean: float, std: float, epsilon: float) -> float:
  """Returns sup over events E of N(mean, std)(E) - exp(epsilon) N(0, 1)(E).

  The best event is where the log of the densities' ratio, a quadratic in x,
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
  """Returns a number between two, each of which may be infinite."""
  if math.isinf(low):
    return 0.0 if math.isinf(high) else high - 1
  return low + 1 if math.isinf(high) else (low + high) / 2


def _mass(low: float, high: float) -> float:
  """Returns the standard normal probability of [low, high], exact in tails."""
  if low > 0:
    low, high = -high, -low
  return float(special.ndtr(high) - special.ndtr(low))


def attack_auc(scores: np.ndarray, included: np.ndarray) -> float:
  """Returns the probability that a canary that took part scores higher."""
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
  """Returns the largest share of members found at a false positive rate.

  Args:
    scores: float [m].
    included: bool [m], who is a member.
    false_positive_rate: At most this share of the others is taken for members.
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
