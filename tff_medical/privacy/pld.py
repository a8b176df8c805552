"""Epsilon by privacy loss distributions (PLD): which grid, and the bounds of it.

PLD: Koskela et al. 2020, Doroshenko et al. 2022. Rounds with all units have
Gaussian noise alone, whose epsilon has a closed form (`gaussian_bound`).
Otherwise the loss is discretised, and rounded towards more loss. The grid
follows the loss of a round: its interval is at most .08 standard deviations of
that loss, which overstates epsilon by at most .1 %. It is 1e-3, finer for small
losses, and coarser for rounds with large losses only if they are many.

Time and memory are bounded for every noise multiplier. With hardly any noise,
very many rounds or a very small rate, the grid is coarser than that. A coarser
grid states a larger epsilon, never a smaller one. More than 1,024 rounds are
counted in steps of at most 1/512 of their number, rounded up. Rounds in between
share one epsilon, so that a run of 10,000 rounds charges each within 1 ms.

`loss_grids` composes the losses. Events are `events.parts`.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import math

import dp_accounting
from dp_accounting.pld import privacy_loss_distribution

from tff_medical import _validate
from tff_medical.privacy import events
from tff_medical.privacy import gaussian_bound
from tff_medical.privacy import loss_grids

# Interval of the losses' grid. All others are this times a power of 2: of two
# such grids the coarser one never states the smaller epsilon.
BASE_INTERVAL = 1e-3
# Largest interval that is still fine, in standard deviations s of a round's
# loss. A grid of interval h adds about h**2 / 6 to the variance s**2, and so
# h**2 / (12 s**2) to epsilon, as a fraction: .05 % here.
_FINE_STDDEVS = 0.08
# Points that a grid of one round, and one of all rounds, may have to be finer
# than it must: .4 s to build the first, 3 ms to compose it.
_MAX_FINE_POINTS = 4e4
# Number of rounds from which their number is rounded up to 10 binary digits.
_EXACT_COUNT_BITS = 10
# The exponential of a larger interval overflows in dp-accounting.
_MAX_INTERVAL = 256.0
# Points of the grids of one round and of all rounds: some seconds and 300 MB.
_MAX_ROUND_POINTS = 1e5
_MAX_COMPOSED_POINTS = 4e6


# As many events as the ledger of a data set may well hold: 0.3 MB each, rarely
# 2 MB, and 0.3 s to build one.
@functools.lru_cache(maxsize=256)
def _round_loss(
  event: dp_accounting.DpEvent, interval: float
) -> loss_grids.RoundLoss:
  """Returns the loss of one round on a grid; cached, as it is slow to build."""
  grid = {
    'value_discretization_interval': interval,
    'neighboring_relation': (
      dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    ),
  }
  if isinstance(event, dp_accounting.TruncatedSubsampledGaussianDpEvent):
    from_truncated = (
      privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism
    )
    return loss_grids.RoundLoss.of(
      from_truncated(
        dataset_size=event.dataset_size,
        sampling_probability=event.sampling_probability,
        truncated_batch_size=event.truncated_batch_size,
        noise_multiplier=event.noise_multiplier,
        **grid,
      )
    )
  sampling_probability = 1.0
  if isinstance(event, dp_accounting.PoissonSampledDpEvent):
    sampling_probability = event.sampling_probability
  return loss_grids.RoundLoss.of(
    privacy_loss_distribution.from_gaussian_mechanism(
      standard_deviation=events.noise_to_sensitivity(event),
      sampling_prob=sampling_probability,
      **grid,
    )
  )


def _fine_interval(event: dp_accounting.DpEvent) -> float:
  """Returns the interval up to which a grid of one round's loss is fine.

  The standard deviation of a sampled Gaussian's loss is at most that of the
  ratio of densities, q sqrt(exp(1/z**2) - 1), and at most 1/z.
  """
  noise = events.noise_to_sensitivity(event)
  rate = getattr(event, 'sampling_probability', 1.0)
  precision = min(noise**-2, 50.0)
  return _FINE_STDDEVS * min(1 / noise, rate * math.expm1(precision) ** 0.5)


@functools.lru_cache(maxsize=256)
def _finest_interval(event: dp_accounting.DpEvent, tight: bool) -> float:
  """Returns the interval of an event's grid for few rounds."""
  noise, fine = events.noise_to_sensitivity(event), _fine_interval(event)
  # Range of a Gaussian's losses, 10 standard deviations to both sides.
  reach = noise**-2 + 20 / noise
  interval = BASE_INTERVAL
  while reach > interval * (
    _MAX_FINE_POINTS
    if 2 * interval <= fine and not tight
    else _MAX_ROUND_POINTS
  ):
    interval *= 2
  if interval > BASE_INTERVAL:
    return interval
  points = len(_round_loss(event, interval))
  while interval > fine and 2 * points <= _MAX_FINE_POINTS:
    interval, points = interval / 2, points * 2
  return interval


@functools.lru_cache(maxsize=1024)
def _interval(event: dp_accounting.DpEvent, rounds: int, tight: bool) -> float:
  """Returns the interval of the grid for `rounds`; inf if no grid fits memory.

  The interval never becomes finer with more rounds, so that epsilon never falls
  from one round to the next.
  """
  interval = _finest_interval(event, tight)
  while interval <= _MAX_INTERVAL:
    points = loss_grids.num_points([(_round_loss(event, interval), rounds)])
    may_be_coarser = not tight and 2 * interval <= _fine_interval(event)
    limit = _MAX_FINE_POINTS if may_be_coarser else _MAX_COMPOSED_POINTS
    if points <= limit:
      return interval
    excess = points / _MAX_COMPOSED_POINTS
    interval *= 2 ** max(1, int(math.log2(excess)))
  return math.inf


def composed_epsilon(
  parts: Mapping[dp_accounting.DpEvent, int],
  *,
  delta: float,
  tight: bool = False,
) -> float:
  """Returns the epsilon at `delta` of different events together, by PLD.

  Args:
    parts: Number of each event, as `events.parts` returns it.
    delta: Probability, in (0, 1), with which epsilon may be exceeded.
    tight: Whether to count every round, on the finest grid that fits memory.
  """
  _validate.in_range(0, 1, delta=delta)
  if not parts:
    return 0.0
  if any(isinstance(e, dp_accounting.NonPrivateDpEvent) for e in parts):
    return math.inf
  noise = events.total_noise(parts)
  if all(isinstance(e, dp_accounting.GaussianDpEvent) for e in parts):
    return gaussian_bound.gaussian_epsilon(noise, delta)
  counted = tuple(
    (event, n if tight else _counted(n)) for event, n in parts.items()
  )
  on_grid = _grid_epsilon(counted, delta, tight)
  # A grid may overstate epsilon more than a bound without amplification does.
  if (
    on_grid < math.inf
    and gaussian_bound.excess_of_delta(on_grid, noise, delta)[0] > 0
  ):
    return on_grid  # The bound is larger.
  return min(gaussian_bound.gaussian_epsilon(noise, delta), on_grid)


def _counted(rounds: int) -> int:
  """Returns a number of rounds, rounded up to `_EXACT_COUNT_BITS` digits.

  >>> [_counted(n) for n in (7, 1023, 1025, 10_000, 10_001)]
  [7, 1023, 1026, 10000, 10016]
  """
  step = 2 ** max(0, rounds.bit_length() - _EXACT_COUNT_BITS)
  return -(-rounds // step) * step


# A card, a check and an entry of a data ledger ask for the same total.
@functools.lru_cache(maxsize=256)
def _grid_epsilon(
  charges: tuple[tuple[dp_accounting.DpEvent, int], ...],
  delta: float,
  tight: bool,
) -> float:
  parts = dict(charges)
  return epsilon_on_grid(parts, common_interval(parts, tight=tight), delta)


def epsilon_on_grid(
  parts: Mapping[dp_accounting.DpEvent, int], interval: float, delta: float
) -> float:
  """Returns the epsilon of events on one grid; inf if no grid is so coarse.

  Args:
    parts: Number of each event, none of them without noise.
    interval: Interval of the grid.
    delta: Probability, in (0, 1), with which epsilon may be exceeded.
  """
  if interval > _MAX_INTERVAL:
    return math.inf
  losses = [(_round_loss(event, interval), n) for event, n in parts.items()]
  return loss_grids.epsilon_of(losses, delta=delta)


def common_interval(
  parts: Mapping[dp_accounting.DpEvent, int], *, tight: bool
) -> float:
  """Returns the finest interval at which all events fit memory together.

  Args:
    parts: Number of each event, none of them without noise.
    tight: Whether the grid is the finest that fits memory, for any number of
      rounds.
  """
  interval = max(_interval(event, n, tight) for event, n in parts.items())
  while len(parts) > 1 and interval <= _MAX_INTERVAL:
    points = sum(
      loss_grids.num_points([(_round_loss(event, interval), count)])
      for event, count in parts.items()
    )
    if points <= _MAX_COMPOSED_POINTS:
      break
    interval *= 2
  return interval
