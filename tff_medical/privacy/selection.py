"""The price of choosing the best of several trainings on the same data.

Each trial is one training. There are two ways to pay for the choice:

- `Together`: all trials are composed. Everything about each of them may be
  published, and a trial may be chosen by any rule.
- `Selected`: Papernot and Steinke 2022 (arXiv 2110.03620). The number of trials
  is drawn from a truncated negative binomial distribution, each trial draws its
  settings anew from the same candidates, and only the best trial is released.
  Its price grows with the logarithm of the mean number. The number itself and
  all other trials must stay secret.

Both have the members of a mechanism that calibration and data ledger use, with
a single charge for everything.

>>> trial = dp_accounting.GaussianDpEvent(10.0)
>>> selected = NumberOfTrials(mean=10.0).event(trial)
>>> alone = accounting.rdp_epsilon(trial, rounds=1, delta=1e-5)
>>> price = accounting.epsilon(selected, rounds=1, delta=1e-5)
>>> round(alone, 2), round(price, 2)
(0.38, 0.85)
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
import random
from typing import TypeVar

import dp_accounting
from dp_accounting import dp_event
from dp_accounting.rdp import rdp_privacy_accountant

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import calibration
from tff_medical.privacy import events
from tff_medical.privacy import interface

_MAX_MEAN = 1000.0
_MAX_SHAPE = 100.0
# A draw beyond it has a probability below 1e-20 at the largest mean and shape 0.
_MAX_TRIALS = 10**7
# Noise multiplier at which the costs of trials are compared.
_PLACEHOLDER = 0.01
# Relative width at which the search for the trials' epsilon ends.
_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class NumberOfTrials:
  """Truncated negative binomial distribution of the number of trials.

  Attributes:
    mean: Mean number of trials, above 1.
    shape: Shape parameter eta: 1 is the geometric distribution, 0 the
      logarithmic one, and a larger shape concentrates the number and costs more.
  """

  mean: float
  shape: float = 1.0

  def __post_init__(self) -> None:
    _validate.within(1 + 1e-6, _MAX_MEAN, trials=self.mean)
    _validate.within(0, _MAX_SHAPE, trials_shape=self.shape)

  @property
  def gamma(self) -> float:
    """Parameter gamma, in (0, 1), as the accountant derives it from the mean."""
    return float(
      rdp_privacy_accountant._gamma_truncated_negative_binomial(
        self.shape, self.mean
      )
    )

  def event(self, trial: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """Returns the event of releasing the best of trials, each of an event."""
    return dp_event.RepeatAndSelectDpEvent(trial, self.mean, self.shape)

  def probabilities(self, largest: int) -> list[float]:
    """Returns the probabilities of 1, 2, ..., `largest` trials."""
    gamma, eta = self.gamma, self.shape
    # Definition 1 of the paper.
    if eta:
      first = eta * (1 - gamma) / math.expm1(-eta * math.log(gamma))
    else:
      first = (1 - gamma) / -math.log(gamma)
    values = [first]
    for number in range(1, largest):
      values.append(values[-1] * (1 - gamma) * (number + eta) / (number + 1))
    return values

  def draw(self, rng: random.Random | None = None) -> int:
    """Returns a number of trials, 1 or more, which must stay secret.

    Args:
      rng: Generator; by default the operating system's entropy. A number that
        somebody can draw again is not secret.
    """
    point = (rng or random.SystemRandom()).random()
    gamma, eta = self.gamma, self.shape
    (probability,) = self.probabilities(1)
    number = 1
    while point >= probability and number < _MAX_TRIALS:
      point -= probability
      probability *= (1 - gamma) * (number + eta) / (number + 1)
      number += 1
    return number


@dataclasses.dataclass(frozen=True)
class Trial:
  """One training of a choice.

  Attributes:
    mechanism: Mechanism of the training.
    rounds: Number of its rounds.
    before: Event that is paid for once before its first round, if any.
  """

  mechanism: interface.Mechanism
  rounds: int
  before: dp_accounting.DpEvent | None = None

  @property
  def charges(self) -> int:
    """Number of charges of the training."""
    return self.mechanism.charges_for(self.rounds)

  def epsilon(self, delta: float) -> float:
    """Returns the epsilon of this training alone."""
    return accounting.epsilon(
      self.mechanism.charge_event(),
      rounds=self.charges,
      delta=delta,
      before=self.before,
    )

  def event(self) -> dp_accounting.DpEvent:
    """Returns the event of the whole training."""
    rounds = dp_event.SelfComposedDpEvent(
      self.mechanism.charge_event(), self.charges
    )
    if self.before is None:
      return rounds
    return dp_event.ComposedDpEvent((self.before, rounds))

  def with_noise(self, noise_multiplier: float) -> Trial:
    """Returns the trial with another noise multiplier."""
    return dataclasses.replace(
      self, mechanism=self.mechanism.with_noise(noise_multiplier)
    )


@dataclasses.dataclass(frozen=True)
class _Choice:
  """Members that both prices have; a single charge pays for all trials.

  Attributes:
    trials: Trials, or the candidates that trials are drawn from.
  """

  trials: tuple[Trial, ...]

  def __post_init__(self) -> None:
    if not self.trials:
      raise _validate.InputError('trials must hold at least one, got none')

  @property
  def noise_multiplier(self) -> float:
    """Noise multiplier of the first trial."""
    return self.trials[0].mechanism.noise_multiplier

  @property
  def max_noise_multiplier(self) -> float:
    """Exclusive upper bound of the noise multiplier of every trial."""
    return min(t.mechanism.max_noise_multiplier for t in self.trials)

  def charges_for(self, rounds: int) -> int:
    """Returns 1: one charge pays for all trials with all of their rounds."""
    del rounds
    return 1

  def with_noise(self: _ChoiceT, noise_multiplier: float) -> _ChoiceT:
    """Returns the choice with another noise multiplier in every trial."""
    trials = tuple(t.with_noise(noise_multiplier) for t in self.trials)
    return dataclasses.replace(self, trials=trials)


_ChoiceT = TypeVar('_ChoiceT', bound=_Choice)


@dataclasses.dataclass(frozen=True)
class Together(_Choice):
  """Trials that are all paid for, by composition."""

  def charge_event(self) -> dp_accounting.DpEvent:
    """Returns the event of all trials together."""
    return events.composed_event((trial.event(), 1) for trial in self.trials)


@dataclasses.dataclass(frozen=True)
class Selected(_Choice):
  """Trials of which only the best is released, drawn in a secret number.

  Attributes:
    number: Distribution of the number of trials.
  """

  number: NumberOfTrials

  def __post_init__(self) -> None:
    super().__post_init__()
    events = {repr(t.with_noise(_PLACEHOLDER).event()) for t in self.trials}
    if len(events) > 1:
      raise _validate.InputError(
        'search must leave rounds, cohort and sampling alone with '
        f'price=papernot_steinke, got {len(events)} different costs of a '
        'trial; leave those settings out or choose price=composition'
      )

  def charge_event(self) -> dp_accounting.DpEvent:
    """Returns the event of releasing the best trial."""
    return self.number.event(self.trials[0].event())


def calibrate_together(
  trials: Sequence[Trial], *, target_epsilon: float, delta: float
) -> Together:
  """Returns trials whose noise keeps all of them together within a target.

  Each trial gets the same epsilon. The result is never less private than the
  target.

  Args:
    trials: Trials; their noise multipliers are ignored.
    target_epsilon: Epsilon of all trials together.
    delta: Delta at which epsilon is stated.

  Raises:
    InputError: The target is out of reach for a trial.
  """

  def key(trial: Trial) -> str:
    return repr(trial.with_noise(_PLACEHOLDER).event())

  kinds = {key(trial): trial for trial in trials}
  if len(kinds) == 1:
    return calibration.calibrate(
      Together(tuple(trials)),
      target_epsilon=target_epsilon,
      delta=delta,
      rounds=1,
    )

  def at(epsilon: float) -> Together:
    """Returns the trials with `epsilon` for each."""
    noise = {
      name: calibration.calibrate(
        trial.mechanism,
        target_epsilon=epsilon,
        delta=delta,
        rounds=trial.rounds,
        before=trial.before,
      ).noise_multiplier
      for name, trial in kinds.items()
    }
    return Together(tuple(t.with_noise(noise[key(t)]) for t in trials))

  # Composition is no worse than the sum of all ε, at the sum of all δ.
  low, high = 0.0, target_epsilon
  best = None
  while best is None or high > low * (1 + _TOLERANCE):
    middle = math.sqrt(low * high) if low else high / 2
    together = at(middle)
    total = accounting.epsilon(together.charge_event(), rounds=1, delta=delta)
    if total <= target_epsilon:
      low, best = middle, together
    else:
      high = middle
  return best


def calibrate_selected(
  candidates: Sequence[Trial],
  number: NumberOfTrials,
  *,
  target_epsilon: float,
  delta: float,
) -> Selected:
  """Returns candidates whose noise keeps the release of the best in a target.

  Args:
    candidates: Candidates of the trials, which all cost the same; their noise
      multipliers are ignored.
    number: Distribution of the secret number of trials.
    target_epsilon: Epsilon of the released trial.
    delta: Delta at which epsilon is stated.

  Raises:
    InputError: The target is out of reach, or candidates cost differently.
  """
  return calibration.calibrate(
    Selected(tuple(candidates), number),
    target_epsilon=target_epsilon,
    delta=delta,
    rounds=1,
  )
