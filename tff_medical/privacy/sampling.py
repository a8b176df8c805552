"""Samplers of a round's units, each with the event that accounts for it.

A unit is what the guarantee protects: a client, a record or a patient. A
sampler draws the units that really take part and returns the `DpEvent` of
exactly that draw. Most software of the field accounts for Poisson sampling but
draws cohorts of a fixed size. Here one object defines both.

>>> sampling = PoissonSampling(population=1000, expected_cohort=50)
>>> sampling.rate
0.05
>>> cohort = sampling.draw(cohort_seed=0, round_num=1, attempt=1)
>>> bool(np.all(np.diff(cohort) > 0))  # A cohort may also be empty.
True
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from typing import Union

import dp_accounting
import numpy as np

from tff_medical import _validate


@dataclasses.dataclass(frozen=True)
class PoissonSampling:
  """Each unit joins each round independently with the same probability.

  Attributes:
    population: Number of units.
    expected_cohort: Expected number of units in a round, below `population`.
  """

  population: int
  expected_cohort: float

  name = 'poisson'
  amplifies = True
  draws_by_attempt = True

  def __post_init__(self) -> None:
    _validate.positive_int(population=self.population)
    _validate.positive(expected_cohort=self.expected_cohort)
    if self.expected_cohort >= self.population:
      raise _validate.InputError(
        f'expected_cohort must be below the population ({self.population}) '
        f'for Poisson sampling, got {self.expected_cohort:g}; lower it, or '
        'let everybody take part in every round'
      )

  @property
  def rate(self) -> float:
    """Probability, in (0, 1), that a unit joins a round."""
    return self.expected_cohort / self.population

  def draw(self, cohort_seed: int, round_num: int, attempt: int) -> np.ndarray:
    """Returns the sorted indices, int64 [n], of a round's cohort."""
    del round_num  # A repeated round draws anew and is charged for it.
    rng = cohort_rng(cohort_seed, attempt)
    return independent_units(rng, self.population, self.rate)

  def event(self, inner: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """Returns the event of `inner` applied to a cohort of this sampler."""
    return dp_accounting.PoissonSampledDpEvent(self.rate, inner)


@dataclasses.dataclass(frozen=True)
class FullParticipation:
  """Every unit takes part in every round: no amplification by sampling."""

  population: int

  name = 'all'
  amplifies = False
  draws_by_attempt = True
  rate = 1.0

  def __post_init__(self) -> None:
    _validate.positive_int(population=self.population)

  @property
  def expected_cohort(self) -> float:
    """Cohort size, which is the population."""
    return float(self.population)

  def draw(self, cohort_seed: int, round_num: int, attempt: int) -> np.ndarray:
    """Returns the indices of all units, in every round."""
    del cohort_seed, round_num, attempt
    return np.arange(self.population)

  def event(self, inner: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """Returns `inner`: full participation amplifies nothing."""
    return inner


@dataclasses.dataclass(frozen=True)
class TruncatedPoissonSampling:
  """Poisson sampling with a cap: a larger draw is cut down at random.

  The cap bounds the time and memory of a round. It makes a unit's participation
  depend on the other units, which dp-accounting's event of the same name
  accounts for.

  Attributes:
    population: Number of units.
    expected_cohort: Expected number of units in a round before the cap.
    max_cohort: Largest number of units in a round, an integer not below
      `expected_cohort`.
  """

  population: int
  expected_cohort: float
  max_cohort: int

  name = 'truncated_poisson'
  amplifies = True
  draws_by_attempt = True

  def __post_init__(self) -> None:
    PoissonSampling(self.population, self.expected_cohort)
    _validate.positive_int(max_cohort=self.max_cohort)
    if self.max_cohort < self.expected_cohort:
      raise _validate.InputError(
        f'max_cohort must be at least the expected cohort '
        f'({self.expected_cohort:g}), got {self.max_cohort}'
      )

  @property
  def rate(self) -> float:
    """Probability, in (0, 1), that a unit is drawn, before the cap."""
    return self.expected_cohort / self.population

  def draw(self, cohort_seed: int, round_num: int, attempt: int) -> np.ndarray:
    """Returns the sorted indices, int64 [n], of a round's cohort."""
    del round_num  # A repeated round draws anew and is charged for it.
    rng = cohort_rng(cohort_seed, attempt)
    # A uniform part of uniformly drawn units is itself uniformly drawn.
    size = min(_binomial(rng, self.population, self.rate), self.max_cohort)
    return _distinct(rng, self.population, size)

  def event(self, inner: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """Returns the event of a Gaussian applied to a cohort of this sampler.

    The event's `dataset_size` is the size of the larger of two neighbours. The
    cap binds if max_cohort of the other dataset_size - 1 units are drawn
    besides the unit in which the neighbours differ (dp-accounting's
    `from_truncated_subsampled_gaussian_mechanism`). A unit may be removed from
    the population or added to it, so the larger neighbour may have population
    + 1 units. This case costs no less than the removal: with more other units
    the cap binds more often.
    """
    if not isinstance(inner, dp_accounting.GaussianDpEvent):
      raise dp_accounting.UnsupportedEventError(
        f'a capped cohort is accounted for with Gaussian noise, not {inner}'
      )
    return dp_accounting.TruncatedSubsampledGaussianDpEvent(
      dataset_size=self.population + 1,
      sampling_probability=self.rate,
      truncated_batch_size=self.max_cohort,
      noise_multiplier=inner.noise_multiplier,
    )


Sampling = Union[PoissonSampling, FullParticipation, TruncatedPoissonSampling]


def cohort_rng(cohort_seed: int, draw_num: int) -> np.random.Generator:
  """Returns the generator of one draw, a pure function of its arguments.

  Args:
    cohort_seed: Non-negative integer. Amplification by sampling holds only
      against those who do not know the seed: keep it out of published files.
    draw_num: Number of the draw. Draws that are charged as independent must
      have different numbers: Poisson sampling takes the number of the attempt.
  """
  return np.random.default_rng((cohort_seed, draw_num))


def independent_units(
  rng: np.random.Generator, population: int, rate: float
) -> np.ndarray:
  """Returns the units that join, each independently with the same probability.

  The number of these units is drawn first, from Binomial(population, rate).
  Given their number, all sets of units are equally likely. Time and memory
  therefore follow the cohort, not the population.

  Args:
    rng: Generator of the draw.
    population: Number of units.
    rate: Probability, in (0, 1), that a unit joins.

  Returns:
    Sorted distinct indices below `population`, int64 [n].
  """
  return _distinct(rng, population, _binomial(rng, population, rate))


def _binomial(rng: np.random.Generator, population: int, rate: float) -> int:
  """Returns a draw from Binomial(population, rate), by inversion.

  NumPy's own sampler uses floating-point rejection and cuts tails off. Its
  error would have to be added to δ in every round. This draw compares integers
  of about 200 bits. Its total variation distance from the binomial distribution
  of exactly this double `rate` is below 2**-150 (`_cumulative_weights`). That
  leaves ε and δ unchanged as doubles, for any number of rounds.
  """
  first, cumulative = _cumulative_weights(population, rate)
  total = cumulative[-1]
  num_bytes = (total.bit_length() + 7) // 8
  excess_bits = 8 * num_bytes - total.bit_length()
  while True:  # Rejection keeps the point uniform; half of all points pass.
    point = int.from_bytes(rng.bytes(num_bytes), 'little') >> excess_bits
    if point < total:
      return first + bisect.bisect_right(cumulative, point)


# Weight of the mode. Weights are rounded down to integers.
_MODE_WEIGHT = 2**192


@functools.lru_cache(maxsize=16)
def _cumulative_weights(population: int, rate: float) -> tuple[int, list[int]]:
  """Returns the cumulative integer weights of a binomial distribution.

  The weights follow from the mode by the exact ratio of neighbouring
  probabilities. They end where they are below 1, at 16 standard deviations on
  each side. What is left out there has less than population * 2**-192 of the
  mass. Rounding takes at most K from each of the K weights. K is below 2**20
  for every population below 2**31, so that both together are below 2**-150.

  Returns:
    The smallest value with a weight, and the sums of the weights from it on.
  """
  joins, whole = rate.as_integer_ratio()
  stays = whole - joins
  mode = min((population + 1) * joins // whole, population)
  above, below = [_MODE_WEIGHT], []
  for size in range(mode, population):
    weight = above[-1] * (population - size) * joins // ((size + 1) * stays)
    if not weight:
      break
    above.append(weight)
  weight = _MODE_WEIGHT
  for size in range(mode, 0, -1):
    weight = weight * size * stays // ((population - size + 1) * joins)
    if not weight:
      break
    below.append(weight)
  weights = [*reversed(below), *above]
  return mode - len(below), list(itertools.accumulate(weights))


def _distinct(
  rng: np.random.Generator, population: int, size: int
) -> np.ndarray:
  """Returns `size` sorted distinct indices, all such sets equally likely.

  NumPy draws them by Floyd's method or by a partial shuffle, from integers
  without modulo bias. Only a cohort above 5 % of the population makes arrays of
  the population, which then is at most 20 times the cohort.
  """
  drawn = rng.choice(population, size, replace=False, shuffle=False)
  if size <= population // 20:
    return np.sort(drawn).astype(np.int64, copy=False)
  is_drawn = np.zeros(population, bool)
  is_drawn[drawn] = True
  return np.flatnonzero(is_drawn)
