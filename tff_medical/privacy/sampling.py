"""How the units of a round are drawn, and what that is to the accountant.

A unit is what the guarantee protects: a client, a record or a patient. A
sampler draws the units that really take part and names the `DpEvent` of exactly
that draw. Most of the field's software accounts for Poisson sampling while it
draws a cohort of fixed size; here the two cannot come apart.

>>> sampling = PoissonSampling(population=1000, expected_cohort=50)
>>> sampling.rate
0.05
>>> cohort = sampling.draw(cohort_seed=0, round_num=1, attempt=1)
>>> bool(np.all(np.diff(cohort) > 0))  # It may be empty, too.
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
  """Each unit joins each round on its own with the same probability.

  Attributes:
    population: The number of units there are.
    expected_cohort: How many are expected in a round, below `population`.
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
    """The probability, in (0, 1), that a unit joins a round."""
    return self.expected_cohort / self.population

  def draw(self, cohort_seed: int, round_num: int, attempt: int) -> np.ndarray:
    """Returns the sorted indices, int64 [n], of a round's cohort."""
    del round_num  # A repeated round is another draw, and is charged as one.
    rng = cohort_rng(cohort_seed, attempt)
    return np.flatnonzero(rng.random(self.population) < self.rate)

  def event(self, inner: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """Returns the event of `inner` applied to a cohort drawn like this."""
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
    """The cohort, which is the population."""
    return float(self.population)

  def draw(self, cohort_seed: int, round_num: int, attempt: int) -> np.ndarray:
    """Returns the indices of all units, in every round."""
    del cohort_seed, round_num, attempt
    return np.arange(self.population)

  def event(self, inner: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """Returns `inner`: a cohort of everybody hides nobody."""
    return inner


@dataclasses.dataclass(frozen=True)
class TruncatedPoissonSampling:
  """Poisson sampling with a cap: of a larger draw a random part takes part.

  Bounds a round's time and memory. The cap leaks a little of who else was
  drawn, which dp-accounting's event of the same name accounts for.

  Attributes:
    population: The number of units there are.
    expected_cohort: How many a round without the cap would expect.
    max_cohort: No round has more units, a whole number above the expected.
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
    """The probability, in (0, 1), that a unit is drawn, before the cap."""
    return self.expected_cohort / self.population

  def draw(self, cohort_seed: int, round_num: int, attempt: int) -> np.ndarray:
    """Returns the sorted indices, int64 [n], of a round's cohort."""
    del round_num  # A repeated round is another draw, and is charged as one.
    rng = cohort_rng(cohort_seed, attempt)
    drawn = np.flatnonzero(rng.random(self.population) < self.rate)
    if len(drawn) > self.max_cohort:
      drawn = np.sort(rng.choice(drawn, self.max_cohort, replace=False))
    return drawn

  def event(self, inner: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """Returns the event of a Gaussian applied to a cohort drawn like this.

    The event's `dataset_size` is that of the larger of two neighbours: its cap
    binds if, besides the unit that they differ in, max_cohort of the other
    dataset_size - 1 units were drawn (dp-accounting's
    `from_truncated_subsampled_gaussian_mechanism`). A unit may be removed from
    the population or added to it, so that the larger one has population + 1
    units. That costs no less than the removal: the more others there are, the
    more often the cap binds.
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
    cohort_seed: A non-negative integer. Amplification by sampling holds only
      against those who do not know it: keep it out of published files.
    draw_num: The number of the draw. Draws that are charged as independent must
      have different ones: Poisson sampling takes the number of the attempt.
  """
  return np.random.default_rng((cohort_seed, draw_num))
