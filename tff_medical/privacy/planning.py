"""Outlook on the noise that a privacy budget implies, before any training.

What: the noise multiplier z that `privacy.calibration` would choose for a
population, a cohort size, a number of rounds and a budget. The outlook compares
that noise with the largest possible contribution of the clients. Why: most
settings that fail can be seen to fail beforehand.

The mean update of a round has at most the clip norm C. In each of d dimensions
its noise has the standard deviation z C / m, where m is the expected cohort
size. So the expected norm of the noise is close to z sqrt(d) / m clip norms:
`noise_per_round`. Over T rounds the noise adds up as sqrt(T). The updates, if
all point the same way, add up as T. `noise_over_run` is `noise_per_round`
divided by sqrt(T): the noise in the final weights relative to the longest path
that training could have taken. It hardly depends on T and m, as a calibrated z
grows with sqrt(T) m. What remains is d, epsilon and, above all, the population.
Bassily et al. 2014 (arXiv 1405.7085) show the same sqrt(d) / (N epsilon) to be
the price of privacy.

The limits of the verdicts come from runs with `cnn_small` and adaptive
clipping. Test AUC by noise_over_run, one or two seeds each:

- PneumoniaMNIST (2 classes, 470 clients, 100 rounds): .95 without noise, .95 at
  0.20, .93 at 0.28, .92 at 0.45, .90 at 0.84.
- Generated images (4 classes, hard; 300 clients, 40 rounds): .87 without noise,
  .83 at 0.14, .77 at 0.27, .58 at 0.65.

So the usable noise depends on the task as well: 0.3 costs an easy task little
and a hard task a tenth.

>>> outlook = Scenario('client', 470, 47, rounds=100, delta=1e-3).outlook(
...     epsilon=8.0, parameters=14_194)
>>> round(outlook.noise_multiplier, 2), round(outlook.noise_per_round, 1)
(0.78, 2.0)
>>> outlook.verdict.name
'USABLE'
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import NamedTuple

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import calibration
from tff_medical.privacy import limits
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling as sampling_lib

# Upper ends of `noise_over_run` for each verdict.
USABLE_NOISE = 0.3
HOPELESS_NOISE = 1.0
# Factor on the noise from which adaptive clipping is named as a cause.
_ADAPTIVE_EXCESS = 1.2
# The search for a cohort ends at this relative width.
_COHORT_TOLERANCE = 0.05


class Verdict(enum.Enum):
  """Expectation of a setting, by its `noise_over_run`."""

  USABLE = 'usable'  # up to 0.3
  NOISY = 'noisy'  # up to 1: easy tasks are learnt, at a clear cost
  HOPELESS = 'hopeless'  # above 1: the noise exceeds the longest path

  @classmethod
  def of(cls, noise_over_run: float) -> Verdict:
    """Returns the verdict on a setting."""
    if noise_over_run <= USABLE_NOISE:
      return cls.USABLE
    return cls.NOISY if noise_over_run <= HOPELESS_NOISE else cls.HOPELESS


@dataclasses.dataclass(frozen=True)
class Outlook:
  """Consequences of one budget for one scenario and model.

  Attributes:
    epsilon: Budget of the whole training.
    noise_multiplier: Smallest z that keeps the budget; inf if none does.
    noise_per_round: Norm of the noise on a round's mean update, in clip norms.
    noise_over_run: Norm of the noise over all rounds, relative to the longest
      path that training could have taken.
    cohort_needed: Smallest expected cohort size, no less than the scenario's,
      that is usable with the same population. None if even full participation
      is not enough.
    population_needed: Smallest population, no less than the scenario's, that is
      usable with the same rate, rounds and delta.
    parameters_affordable: Largest number of model parameters that is usable in
      this scenario.
  """

  epsilon: float
  noise_multiplier: float
  noise_per_round: float
  noise_over_run: float
  cohort_needed: int | None
  population_needed: int
  parameters_affordable: int

  @property
  def verdict(self) -> Verdict:
    """Verdict on the setting."""
    return Verdict.of(self.noise_over_run)


class CostOfCap(NamedTuple):
  """Cost of a cap on the cohort size at one budget.

  Attributes:
    noise_multiplier: Smallest noise multiplier that keeps the budget with the
      cap.
    noise_multiplier_without: Smallest noise multiplier that keeps the budget
      without the cap.
    epsilon_at_that_noise: Epsilon with the cap at `noise_multiplier_without`.
  """

  noise_multiplier: float
  noise_multiplier_without: float
  epsilon_at_that_noise: float


class _Noise(NamedTuple):
  """Noise multipliers: the total one, and that of the summed updates."""

  total: float
  value: float


@dataclasses.dataclass(frozen=True)
class Scenario:
  """Privacy unit, population, cohort size and length of a training.

  Attributes:
    unit: Privacy unit, from `mechanisms.PRIVACY_UNITS`.
    population: Number of units.
    expected_cohort: Expected number of units in a round, at most the
      population; if equal, all units take part in every round.
    rounds: Number of rounds of training.
    delta: Delta, in (0, 1), at which epsilon is stated.
    adaptive: Whether the clip norm is adaptive. Adaptive clipping needs a
      little more noise on the updates, and bounds the noise multiplier: z must
      stay below a tenth of the expected cohort size.
    max_cohort: Largest number of units in a round; None is no cap.
  """

  unit: str
  population: int
  expected_cohort: float
  rounds: int
  delta: float
  adaptive: bool = False
  max_cohort: int | None = None

  def __post_init__(self) -> None:
    _validate.positive_int(population=self.population, rounds=self.rounds)
    _validate.in_range(0, 1, delta=self.delta)
    self.mechanism(self.expected_cohort)

  def mechanism(
    self, expected_cohort: float, noise_multiplier: float = 0.0
  ) -> mechanisms.GaussianMechanism:
    """Returns the mechanism of this scenario with another cohort and noise."""
    sampling: sampling_lib.Sampling
    if expected_cohort == self.population:
      sampling = sampling_lib.FullParticipation(self.population)
    elif self.max_cohort is not None:
      # For another cohort size the cap is scaled by the same factor.
      slack = self.max_cohort / self.expected_cohort
      sampling = sampling_lib.TruncatedPoissonSampling(
        self.population,
        expected_cohort,
        math.ceil(round(slack * expected_cohort, 6)),
      )
    else:
      sampling = sampling_lib.PoissonSampling(self.population, expected_cohort)
    clipping: mechanisms.Clipping = mechanisms.FixedClipping()
    if self.adaptive:
      clipping = mechanisms.AdaptiveClipping()
    return mechanisms.GaussianMechanism(
      sampling, clipping, noise_multiplier, self.unit
    )

  def outlook(self, *, epsilon: float, parameters: int) -> Outlook:
    """Returns the outlook of a budget for a model.

    The call takes some seconds, most of them in the accountant.

    Args:
      epsilon: Budget of the whole training, above 0.
      parameters: Number of trainable parameters of the model.

    Raises:
      InputError: A value is out of range, or no noise keeps the budget.
    """
    _validate.positive(epsilon=epsilon)
    _validate.positive_int(parameters=parameters)
    noise = self._calibrated(epsilon, self.adaptive)
    per_noise = math.sqrt(parameters / self.rounds) / self.expected_cohort
    over_run = per_noise * noise.value
    excess = over_run / USABLE_NOISE
    # The extra noise of adaptive clipping vanishes with a large cohort, so the
    # population that is needed follows from fixed clipping.
    growth = per_noise * self._calibrated(epsilon, False).total / USABLE_NOISE
    return Outlook(
      epsilon=epsilon,
      noise_multiplier=noise.total,
      noise_per_round=over_run * math.sqrt(self.rounds),
      noise_over_run=over_run,
      cohort_needed=(
        self._cohort_needed(epsilon, parameters)
        if excess > 1
        else math.ceil(self.expected_cohort)
      ),
      population_needed=math.ceil(self.population * max(1.0, growth)),
      parameters_affordable=int(parameters / excess**2),
    )

  def cost_of_cap(self, epsilon: float) -> CostOfCap:
    """Returns the cost of `max_cohort`, in noise and in epsilon.

    Raises:
      InputError: There is no cap, or no noise keeps the budget.
    """
    if self.max_cohort is None:
      raise _validate.InputError('max_cohort must be given, got None')
    free = dataclasses.replace(self, max_cohort=None)
    noise = {
      scenario: calibration.calibrate(
        scenario.mechanism(self.expected_cohort),
        target_epsilon=epsilon,
        delta=self.delta,
        rounds=self.rounds,
      ).noise_multiplier
      for scenario in (self, free)
    }
    event = self.mechanism(self.expected_cohort, noise[free]).charge_event()
    return CostOfCap(
      noise_multiplier=noise[self],
      noise_multiplier_without=noise[free],
      epsilon_at_that_noise=accounting.pld_epsilon(
        event, rounds=self.rounds, delta=self.delta
      ),
    )

  def _calibrated(self, epsilon: float, adaptive: bool) -> _Noise:
    """Returns the noise for a budget; inf if adaptive clipping allows none."""
    scenario = dataclasses.replace(self, adaptive=adaptive)
    try:
      mechanism = calibration.calibrate(
        scenario.mechanism(self.expected_cohort),
        target_epsilon=epsilon,
        delta=self.delta,
        rounds=self.rounds,
      )
    except _validate.InputError:
      if not adaptive:
        raise
      return _Noise(math.inf, math.inf)
    return _Noise(mechanism.noise_multiplier, mechanism.value_noise_multiplier)

  def _is_enough(self, cohort: float, epsilon: float, parameters: int) -> bool:
    """Whether the largest noise of a usable run keeps the budget."""
    bearable = USABLE_NOISE * math.sqrt(self.rounds / parameters) * cohort
    mechanism = self.mechanism(cohort)
    if self.adaptive:  # The count's noise is part of the total multiplier.
      count = 2 * mechanism.count_stddev
      bearable = 1 / math.hypot(1 / bearable, 1 / count)
    if bearable < limits.MIN_NOISE_MULTIPLIER:
      return False
    bearable = min(bearable, limits.MAX_NOISE_MULTIPLIER)
    spent = accounting.pld_epsilon(
      mechanism.with_noise(bearable).charge_event(),
      rounds=self.rounds,
      delta=self.delta,
    )
    return spent <= epsilon

  def _cohort_needed(self, epsilon: float, parameters: int) -> int | None:
    """Returns the smallest usable cohort size, or None if there is none.

    Bisection finds it: a larger cohort lowers the noise on its mean update.
    """
    low, high = 0.0, float(self.population)
    if not self._is_enough(high, epsilon, parameters):
      return None
    while high - low > max(1.0, _COHORT_TOLERANCE * high):
      middle = math.sqrt(max(low, 1.0) * high)
      if self._is_enough(middle, epsilon, parameters):
        high = middle
      else:
        low = middle
    return math.ceil(high)


def advice(scenario: Scenario, outlook: Outlook, parameters: int) -> str:
  """Returns the changes that make a setting usable; '' if it is usable."""
  if outlook.verdict is Verdict.USABLE:
    return ''
  unit = scenario.unit
  ways = []
  plain = _per_round(scenario, outlook, parameters)
  if math.isinf(plain) or outlook.noise_per_round > _ADAPTIVE_EXCESS * plain:
    ways.append('choose fixed clipping, as adaptive needs larger cohorts')
  if outlook.cohort_needed:
    ways.append(f'draw {outlook.cohort_needed:,} {unit}s a round')
  if outlook.population_needed > scenario.population:
    ways.append(f'have {outlook.population_needed:,} {unit}s')
  if outlook.parameters_affordable:
    ways.append(f'train at most {outlook.parameters_affordable:,} parameters')
  if unit == 'client':
    ways.append('protect records, if that is the promise to keep')
  return ', or '.join(ways)


def _per_round(scenario: Scenario, outlook: Outlook, parameters: int) -> float:
  """Returns the norm of a round's noise under the total noise multiplier."""
  total = outlook.noise_multiplier * math.sqrt(parameters)
  return total / scenario.expected_cohort
