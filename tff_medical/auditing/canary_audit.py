"""The audit of a training run: canaries found again, and what that proves.

`Steps` collects what the training publishes, the model after each round;
`scores` says how far it moved towards the direction of each canary; `findings`
turns that into lower bounds on epsilon, each beside the upper bound from the
ledger's accountant. A lower bound above the upper one proves that the
implementation does not keep its promise.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import numpy as np
import tensorflow_federated as tff

from tff_medical.auditing import bounds
from tff_medical.auditing import canaries as canaries_lib

# Theorem 5.2 of Steinke et al. gives away delta times the number of canaries,
# so its bound is taken at a delta, and beside an epsilon, where that is little.
_SMALL_DELTA = 1e-6

METHODS = {
  'one_run': 'Steinke et al. 2023, Theorem 5.2; assumes nothing about training',
  'threshold': (
    'true against known false positive rate; assumes that canaries are found '
    'independently of each other, as directions of many dimensions nearly are'
  ),
}


class Steps:
  """The steps that the model takes, from what each round publishes.

  It is given to the training program for its evaluation after every round, and
  holds 4 bytes for each round and weight.
  """

  def __init__(
    self,
    initial: tff.learning.models.ModelWeights,
    server_momentum: float = 0.0,
  ):
    """Starts at the initial weights.

    Args:
      initial: Before the first round.
      server_momentum: Of the server's optimizer, to tell a round's own part.
    """
    self._momentum = server_momentum
    self._weights = _flat(initial)
    self._step = np.zeros_like(self._weights)
    self.total = np.zeros_like(self._weights)
    self.rounds: list[np.ndarray] = []

  def __call__(
    self, weights: tff.learning.models.ModelWeights
  ) -> dict[str, float]:
    """Takes the weights after a round; has no metrics to give."""
    new = _flat(weights)
    step = new - self._weights
    self.rounds.append(step - self._momentum * self._step)
    self.total += step
    self._weights, self._step = new, step
    return {}


def _flat(weights: tff.learning.models.ModelWeights) -> np.ndarray:
  return np.concatenate([np.ravel(w) for w in weights.trainable])


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
  """How much each canary seems to have taken part, in [-1, 1] for one vector.

  Attributes:
    final: float [m], the cosine with all that the model moved: an attacker who
      sees the final model.
    every_round: float [m], the cosine with the sum of the rounds' steps, each at
      unit length: one who sees each round's model.
    best_round: float [m], the largest cosine with one of the rounds' steps.
    dimensions: Of the directions.
    rounds: How many there are.
  """

  final: np.ndarray
  every_round: np.ndarray
  best_round: np.ndarray
  dimensions: int
  rounds: int

  @property
  def standardized_final(self) -> np.ndarray:
    """`final` in standard deviations of canaries that do not take part, [m]."""
    return self.final * np.sqrt(self.dimensions)

  def log_false_positive_rates(self) -> dict[str, np.ndarray]:
    """Returns, [m] each, how likely one that is not in scores as high.

    The rounds do not depend on the direction of a canary that does not take
    part. For the best of them the probabilities of all rounds add up.
    """
    every = bounds.log_cosine_tail(self.every_round, self.dimensions)
    best = bounds.log_cosine_tail(self.best_round, self.dimensions)
    best = np.minimum(0.0, best + np.log(self.rounds))
    return {'every_round': every, 'best_round': best}


def scores(canaries: canaries_lib.Canaries, steps: Steps) -> Scores:
  """Returns the canaries' scores after the training."""
  rounds = np.stack([_unit(step) for step in steps.rounds])
  vectors = np.stack([_unit(steps.total), _unit(rounds.sum(axis=0)), *rounds])
  cosines = []
  for directions in canaries.directions(rounds.shape[1]):
    # Training goes down the gradient, so against the direction.
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    cosines.append(-(directions / lengths) @ vectors.T)
  found = np.concatenate(cosines).astype(np.float64)
  return Scores(
    final=found[:, 0],
    every_round=found[:, 1],
    best_round=found[:, 2:].max(axis=1),
    dimensions=rounds.shape[1],
    rounds=len(rounds),
  )


def _unit(vector: np.ndarray) -> np.ndarray:
  """Returns the vector at unit length; zero for one that is not finite."""
  norm = np.linalg.norm(vector.astype(np.float64))
  if not np.isfinite(norm) or not norm:
    return np.zeros_like(vector)
  return (vector / norm).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Finding:
  """One lower bound on epsilon, beside the upper bound at the same delta.

  Attributes:
    method: A key of `METHODS`.
    statistic: The scores that it rests on, see `Scores`.
    delta: The delta of both bounds.
    confidence: Of the lower bound, alone.
    lower: The epsilon that the attack proves.
    upper: The epsilon that the accountant states.
  """

  method: str
  statistic: str
  delta: float
  confidence: float
  lower: float
  upper: float

  @property
  def is_violation(self) -> bool:
    """Whether the attack disproves the statement."""
    return self.lower > self.upper


def findings(
  found: Scores,
  included: np.ndarray,
  *,
  upper: Callable[[float], float],
  delta: float,
  confidence: float,
) -> list[Finding]:
  """Returns every bound; all of them hold together with `confidence`.

  Args:
    found: The scores of the canaries.
    included: bool [m], who took part.
    upper: From a delta to the epsilon that is claimed for it.
    delta: At which epsilon is stated.
    confidence: In [0.5, 1).
  """
  plans = [
    (method, statistic, at)
    for method, at in (
      ('threshold', delta),
      ('one_run', min(delta, _SMALL_DELTA)),
    )
    for statistic in ('every_round', 'best_round')
  ]
  each = 1 - (1 - confidence) / len(plans)
  tails = found.log_false_positive_rates()
  results = []
  for method, statistic, at in plans:
    if method == 'threshold':
      lower = bounds.threshold_bound(
        tails[statistic][included], delta=at, confidence=each
      )
    else:
      lower = bounds.one_run_bound(
        getattr(found, statistic), included, delta=at, confidence=each
      )
    results.append(Finding(method, statistic, at, each, lower, upper(at)))
  return results
