"""The audit of a training run: scores of canaries, and lower bounds on epsilon.

`UpdateRecorder` collects what the training publishes: the model after each
round. `scores` measures how far the model moved along the direction of each
canary. `findings` turns the scores into lower bounds on epsilon, each beside
the upper bound of the ledger's accountant. A lower bound above the upper bound
proves that the implementation violates its guarantee.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import numpy as np
import tensorflow_federated as tff

from tff_medical.auditing import bounds
from tff_medical.auditing import canaries as canaries_lib

# Theorem 5.2 of Steinke et al. loses a term of delta times the number of
# canaries. Its bound is therefore stated at a smaller delta, beside the epsilon
# at that delta.
_SMALL_DELTA = 1e-6

METHODS = {
  'one_run': 'Steinke et al. 2023, Theorem 5.2; assumes nothing about training',
  'threshold': (
    'true against known false positive rate; assumes that canaries are found '
    'independently of each other, as directions of many dimensions nearly are'
  ),
}


class UpdateRecorder:
  """Records the model update of each round, from the published models.

  The training program calls the recorder in place of an evaluation after every
  round. It holds 4 bytes per round and weight.

  Attributes:
    total: Sum of all updates, float32 [dimensions].
    rounds: Update of each round without server momentum, float32 [dimensions].
  """

  def __init__(
    self,
    initial: tff.learning.models.ModelWeights,
    server_momentum: float = 0.0,
  ):
    """Starts at the initial weights.

    Args:
      initial: Weights before the first round.
      server_momentum: Momentum of the server optimizer. Its part is subtracted,
        so that an update reflects one round.
    """
    self._momentum = server_momentum
    self._weights = _flat(initial)
    self._step = np.zeros_like(self._weights)
    self.total = np.zeros_like(self._weights)
    self.rounds: list[np.ndarray] = []

  def __call__(
    self, weights: tff.learning.models.ModelWeights
  ) -> dict[str, float]:
    """Records the weights after a round; returns no metrics."""
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
  """Scores of the canaries: cosines in [-1, 1], high for likely participants.

  Attributes:
    final: Cosine with the sum of all updates, float [m]: the score of an
      attacker who sees the final model.
    every_round: Cosine with the sum of the rounds' updates at unit length,
      float [m]: the score of an attacker who sees the model of each round.
    best_round: Largest cosine with the update of one round, float [m].
    dimensions: Number of dimensions of the directions.
    rounds: Number of rounds.
  """

  final: np.ndarray
  every_round: np.ndarray
  best_round: np.ndarray
  dimensions: int
  rounds: int

  @property
  def standardized_final(self) -> np.ndarray:
    """Score `final` in standard deviations of absent canaries, float [m]."""
    return self.final * np.sqrt(self.dimensions)

  def log_false_positive_rates(self) -> dict[str, np.ndarray]:
    """Returns log probabilities, [m], that an absent canary scores as high.

    The updates do not depend on the direction of an absent canary. For the best
    round the probabilities of all rounds add up (union bound).
    """
    every = bounds.log_cosine_tail(self.every_round, self.dimensions)
    best = bounds.log_cosine_tail(self.best_round, self.dimensions)
    best = np.minimum(0.0, best + np.log(self.rounds))
    return {'every_round': every, 'best_round': best}


def scores(canaries: canaries_lib.Canaries, recorder: UpdateRecorder) -> Scores:
  """Returns the canaries' scores after the training."""
  rounds = np.stack([_unit(update) for update in recorder.rounds])
  vectors = np.stack(
    [_unit(recorder.total), _unit(rounds.sum(axis=0)), *rounds]
  )
  chunks = []
  for directions in canaries.directions(rounds.shape[1]):
    # Training descends along the gradient, so against the direction.
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    chunks.append(-(directions / lengths) @ vectors.T)
  cosines = np.concatenate(chunks).astype(np.float64)
  return Scores(
    final=cosines[:, 0],
    every_round=cosines[:, 1],
    best_round=cosines[:, 2:].max(axis=1),
    dimensions=rounds.shape[1],
    rounds=len(rounds),
  )


def _unit(vector: np.ndarray) -> np.ndarray:
  """Returns the vector at unit length; zero if its norm is 0 or not finite."""
  norm = np.linalg.norm(vector.astype(np.float64))
  if not np.isfinite(norm) or not norm:
    return np.zeros_like(vector)
  return (vector / norm).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Finding:
  """One lower bound on epsilon, beside the upper bound at the same delta.

  Attributes:
    method: Key of `METHODS`.
    statistic: Field of `Scores` that the bound is computed from.
    delta: Delta of both bounds.
    confidence: Confidence of this lower bound alone.
    lower: Epsilon that the attack proves.
    upper: Epsilon that the accountant states.
  """

  method: str
  statistic: str
  delta: float
  confidence: float
  lower: float
  upper: float

  @property
  def is_violation(self) -> bool:
    """Whether the attack disproves the stated epsilon."""
    return self.lower > self.upper


def findings(
  found: Scores,
  included: np.ndarray,
  *,
  upper: Callable[[float], float],
  delta: float,
  confidence: float,
) -> list[Finding]:
  """Returns every bound; together they hold with `confidence`.

  Args:
    found: Scores of the canaries.
    included: Whether each canary took part, bool [m].
    upper: Function from a delta to the stated epsilon.
    delta: Delta at which epsilon is stated.
    confidence: Joint confidence of all bounds, in [0.5, 1).
  """
  plans = [
    (method, statistic, at)
    for method, at in (
      ('threshold', delta),
      ('one_run', min(delta, _SMALL_DELTA)),
    )
    for statistic in ('every_round', 'best_round')
  ]
  # A union bound shares the allowed error equally among the bounds.
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
