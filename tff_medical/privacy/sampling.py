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

import dataclasses
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
    return np.flatnonzero(rng.random(self.population) < self.rate)

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
    drawn = np.flatnonzero(rng.random(self.population) < self.rate)
    if len(drawn) > self.max_cohort:
      drawn = np.sort(rng.choice(drawn, self.max_cohort, replace=False))
    return drawn

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
