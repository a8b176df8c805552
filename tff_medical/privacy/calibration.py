"""The smallest noise that keeps a run within its privacy budget.

>>> from tff_medical.privacy import mechanisms, sampling
>>> mechanism = mechanisms.GaussianMechanism(
...     sampling=sampling.PoissonSampling(1000, 100),
...     clipping=mechanisms.FixedClipping(1.0),
... )
>>> private = calibrate(
...     mechanism, target_epsilon=4.0, delta=1e-3, rounds=200)
>>> 1.38 < private.noise_multiplier < 1.39
True
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math

import dp_accounting

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import interface
from tff_medical.privacy import limits

# Function of the event of one charge and the number of charges.
Price = Callable[[dp_accounting.DpEvent, int], float]

# Relative width of the bracket at which the search ends.
_TOLERANCE = 1e-3
# More noise than this drowns any model, whatever the cohort size.
_MAX_NOISE_MULTIPLIER = 1000.0


def calibrate(
  mechanism: interface.PricedT,
  *,
  target_epsilon: float,
  delta: float,
  rounds: int,
  before: dp_accounting.DpEvent | None = None,
  progress: Callable[[str], None] | None = None,
  price: Price | None = None,
) -> interface.PricedT:
  """Returns the mechanism with the noise that `target_epsilon` needs.

  The result is never less private than the target. The search ends with a
  bracket and returns its noisier end, whose epsilon was computed.

  Args:
    mechanism: Clipping and sampling; its noise multiplier is ignored.
    target_epsilon: Epsilon, above 0, that all rounds together may cost.
    delta: Delta, in (0, 1), at which epsilon is stated.
    rounds: Number of planned rounds.
    before: Event that is paid for once before the first round, if any; its
      noise stays as it is.
    progress: Callback that gets one line after every step of the search.
    price: Epsilon, at `delta`, of everything that has to stay within the target
      if these rounds are a part of it. By default it is that of the rounds.

  Raises:
    InputError: No noise multiplier that the mechanism allows is enough.
  """
  _validate.positive(target_epsilon=target_epsilon)
  _validate.positive_int(rounds=rounds)
  charges = mechanism.charges_for(rounds)
  if before is not None:
    spent = accounting.epsilon(before, rounds=1, delta=delta)
    if spent >= target_epsilon:
      raise _validate.InputError(
        f'target_epsilon {target_epsilon:g} is out of reach: what is released '
        f'before the first round costs ε {spent:.3g}; raise its noise '
        '(class_count_noise) or target_epsilon'
      )

  def epsilon(noise_multiplier: float) -> float:
    event = mechanism.with_noise(noise_multiplier).charge_event()
    if price is None:
      result = accounting.epsilon(
        event, rounds=charges, delta=delta, before=before
      )
    else:
      result = price(event, charges)
    if progress:
      progress(f'noise multiplier {noise_multiplier:.4f}: ε {result:.4f}')
    return result

  low, high = _bracket(mechanism, epsilon, target_epsilon, rounds)
  while high.noise > low.noise * (1 + _TOLERANCE):
    width = high.noise / low.noise
    # Near the target a line is so good that one step on each side of its root
    # ends the search. The bracket is halved wherever it is not.
    for side in (1, -1):
      if high.noise <= low.noise * (1 + _TOLERANCE):
        break
      step = _step(low, high, target_epsilon, side, epsilon)
      if step.epsilon <= target_epsilon:
        high = step
      else:
        low = step
    if high.noise / low.noise > math.sqrt(width):
      noise = math.sqrt(low.noise * high.noise)
      middle = _Point(noise, epsilon(noise))
      if middle.epsilon <= target_epsilon:
        high = middle
      else:
        low = middle
  return mechanism.with_noise(high.noise)


@dataclasses.dataclass(frozen=True)
class _Point:
  """A noise multiplier and its epsilon."""

  noise: float
  epsilon: float


def _step(
  low: _Point,
  high: _Point,
  target_epsilon: float,
  side: int,
  epsilon: Callable[[float], float],
) -> _Point:
  """Returns a point within the bracket, at one side of where a line ends it.

  The line is in the logarithms of noise and epsilon, where it is nearly
  straight. The middle takes its place where an end of it is 0 or infinite.
  """
  share = 0.5
  if 0 < high.epsilon < low.epsilon < math.inf:
    share = math.log(low.epsilon / target_epsilon) / math.log(
      low.epsilon / high.epsilon
    )
  noise = low.noise * (high.noise / low.noise) ** share
  noise *= 1 + side * _TOLERANCE / 3
  margin = 1 + _TOLERANCE / 4
  noise = min(max(noise, low.noise * margin), high.noise / margin)
  return _Point(noise, epsilon(noise))


def _bracket(
  mechanism: interface.Priced,
  epsilon: Callable[[float], float],
  target_epsilon: float,
  rounds: int,
) -> tuple[_Point, _Point]:
  """Returns a noise multiplier that is too small and one that suffices.

  Both are the same if even the smallest multiplier suffices.
  """
  limit = min(_MAX_NOISE_MULTIPLIER, mechanism.max_noise_multiplier)
  limit *= 1 - 1e-6
  if limit <= limits.MIN_NOISE_MULTIPLIER:
    raise _validate.InputError(
      f'target_epsilon {target_epsilon:g} is out of reach: the noise '
      f'multiplier must stay below {limit:.3g} here; raise the expected cohort '
      'or choose fixed clipping'
    )

  def point(noise: float) -> _Point:
    return _Point(noise, epsilon(noise))

  high = point(min(1.0, limit))
  if high.epsilon <= target_epsilon:
    while high.noise > limits.MIN_NOISE_MULTIPLIER:
      low = point(max(high.noise / 2, limits.MIN_NOISE_MULTIPLIER))
      if low.epsilon > target_epsilon:
        return low, high
      high = low
    return high, high
  while high.noise < limit:
    low, high = high, point(min(2 * high.noise, limit))
    if high.epsilon <= target_epsilon:
      return low, high
  raise _validate.InputError(
    f'target_epsilon {target_epsilon:g} is out of reach for {rounds} rounds: '
    f'the largest noise multiplier possible here, {limit:.4g}, gives ε '
    f'{high.epsilon:.3g}; plan fewer rounds'
    + (
      ', raise target_epsilon or the expected cohort, or choose fixed clipping'
      if limit < _MAX_NOISE_MULTIPLIER / 2
      else ' or raise target_epsilon'
    )
  )
