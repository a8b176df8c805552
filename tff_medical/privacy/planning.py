"""How much noise a privacy budget means, before anything is trained.

What: for a population, a cohort, a number of rounds and a budget, the noise
multiplier z that `privacy.calibration` would choose, and how the noise compares
with what clients can contribute. Why: most settings that fail could have been
seen to fail beforehand.

The mean update of a round has at most the clip norm C. The noise added to it
has in each of d dimensions the standard deviation z C / m, where m is the
expected cohort, so its expected norm is close to z sqrt(d) / m clip norms:
`noise_per_round`. Over T rounds the noise adds up as sqrt(T), the updates, if
all point the same way, as T: `noise_over_run` is the first divided by sqrt(T),
the noise in the final weights against the longest way that training could have
gone. It hardly depends on T and m, as a calibrated z grows with sqrt(T) m: what
remains is d, epsilon and, above all, the population (compare Bassily et al.
2014, arXiv 1405.7085, where the same sqrt(d) / (N epsilon) is shown to be the
price of privacy).

The verdicts' limits come from runs with `cnn_small` and adaptive clipping, test
AUC by noise_over_run, one or two seeds each. PneumoniaMNIST (2 classes, 470
clients, 100 rounds): .95 without noise, .95 at 0.20, .93 at 0.28, .92 at 0.45,
.90 at 0.84. Generated images (4 classes, hard; 300 clients, 40 rounds): .87
without noise, .83 at 0.14, .77 at 0.27, .58 at 0.65. So what is usable depends
on the task too: 0.3 costs an easy one little and a hard one a tenth.

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
# Adaptive clipping is named as a cause where it adds that much noise.
_ADAPTIVE_EXCESS = 1.2
# The search for a cohort ends at this relative width.
_COHORT_TOLERANCE = 0.05


class Verdict(enum.Enum):
  """What to expect of a setting, by its `noise_over_run`."""

  USABLE = 'usable'  # up to 0.3
  NOISY = 'noisy'  # up to 1: it learns what is easy, at a clear cost
  HOPELESS = 'hopeless'  # above: the noise outweighs all that could be learnt

  @classmethod
  def of(cls, noise_over_run: float) -> Verdict:
    """Returns the verdict on a setting."""
    if noise_over_run <= USABLE_NOISE:
      return cls.USABLE
    return cls.NOISY if noise_over_run <= HOPELESS_NOISE else cls.HOPELESS


@dataclasses.dataclass(frozen=True)
class Outlook:
  """What one budget means for one scenario and model.

  Attributes:
    epsilon: The budget of the whole training.
    noise_multiplier: The smallest z that keeps it; inf if none does.
    noise_per_round: Norm of the noise on a round's mean update, in clip norms.
    noise_over_run: The same over all rounds, against the longest way.
    cohort_needed: The smallest expected cohort, no less than the scenario's,
      that is usable with the same population; None if even everybody in every
      round is not enough.
    population_needed: The smallest population, no less than the scenario's,
      that is usable with the same rate, rounds and delta.
    parameters_affordable: The largest model that is usable as things are.
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
    """Whether this can work."""
    return Verdict.of(self.noise_over_run)


class CostOfCap(NamedTuple):
  """What a cap on the cohort costs at one budget.

  Attributes:
    noise_multiplier: The smallest that keeps the budget with the cap.
    noise_multiplier_without: The smallest that keeps it without.
    epsilon_at_that_noise: The epsilon with the cap at the latter.
  """

  noise_multiplier: float
  noise_multiplier_without: float
  epsilon_at_that_noise: float


class _Noise(NamedTuple):
  total: float
  value: float  # The multiplier of the noise on the updates.


@dataclasses.dataclass(frozen=True)
class Scenario:
  """Who is protected, how many take part, and for how long.

  Attributes:
    unit: One of `mechanisms.PRIVACY_UNITS`.
    population: The number of units.
    expected_cohort: Units expected in a round, at most the population; if
      equal, all take part in every round.
    rounds: Rounds of training.
    delta: At which epsilon is meant.
    adaptive: Whether the clip norm is adaptive, which needs a little more noise
      on the updates and cannot have much of it with a small cohort.
    max_cohort: No round has more units; None is no cap.
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
      # A cap that is asked about for a larger cohort is as much larger.
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
    """Returns what a budget means for a model with so many parameters.

    Takes some seconds, most of them in the accountant.
    """
    _validate.positive(epsilon=epsilon)
    _validate.positive_int(parameters=parameters)
    noise = self._calibrated(epsilon, self.adaptive)
    per_noise = math.sqrt(parameters / self.rounds) / self.expected_cohort
    over_run = per_noise * noise.value
    excess = over_run / USABLE_NOISE
    # What adaptive clipping adds to the noise vanishes with a large cohort.
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
    """Returns what `max_cohort` costs, in noise or in epsilon.

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
    """Returns the noise for a budget; inf where no noise is enough."""
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
    """Whether the noise that a usable run can bear keeps the budget."""
    bearable = USABLE_NOISE * math.sqrt(self.rounds / parameters) * cohort
    mechanism = self.mechanism(cohort)
    if self.adaptive:  # The count's share is paid for out of the total.
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
    """Finds it by bisection: a larger cohort lowers the noise on its mean."""
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
  """Returns what would make a setting usable; '' where it is."""
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
  """The noise of a round if its multiplier were the total one."""
  total = outlook.noise_multiplier * math.sqrt(parameters)
  return total / scenario.expected_cohort
