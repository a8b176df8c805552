"""Epsilon of one Gaussian, in closed form (Balle and Wang 2018).

Rounds with all units compose to one Gaussian, exactly. Sampling only lowers
their cost, so that the Gaussian bounds the epsilon of sampled rounds.
"""

from __future__ import annotations

import math

from scipy import special


def excess_of_delta(
  epsilon: float, noise: float, delta: float
) -> tuple[float, float]:
  """Returns log of a Gaussian's δ at `epsilon` over `delta`, and its slope.

  The first falls with `epsilon` and is 0 at the epsilon of the Gaussian (Balle
  and Wang 2018, theorem 8). It is -inf where δ is too small for doubles.

  Args:
    epsilon: Epsilon, 0 or more.
    noise: Noise multiplier.
    delta: Delta, in (0, 1).
  """
  first = special.log_ndtr(0.5 / noise - epsilon * noise)
  second = epsilon + special.log_ndtr(-0.5 / noise - epsilon * noise)
  if second >= first:
    return -math.inf, -1.0
  log_delta = first + math.log(-math.expm1(second - first))
  return float(log_delta) - math.log(delta), -math.exp(second - log_delta)


def gaussian_epsilon(noise: float, delta: float) -> float:
  """Returns the epsilon of one Gaussian, rounded up (Balle and Wang 2018).

  dp-accounting solves the same equation, in a hundred times the time.

  >>> import dp_accounting
  >>> exact = dp_accounting.get_epsilon_gaussian(2.0, 1e-5)
  >>> 0 <= gaussian_epsilon(2.0, 1e-5) - exact < 1e-8
  True
  """
  if excess_of_delta(0.0, noise, delta)[0] <= 0:
    return 0.0
  # The loss is above this with a probability below `delta`.
  high = 0.5 / noise**2 + math.sqrt(-2 * math.log(delta)) / noise
  low, epsilon = 0.0, high
  while high - low > 1e-12 * high:
    excess, slope = excess_of_delta(epsilon, noise, delta)
    if excess > 0:
      low = epsilon
    else:
      high = epsilon
    step = -excess / slope
    if abs(step) <= 1e-12 * high:
      high = max(epsilon, epsilon + step)
      break
    # Newton's step, or a half where it leads out of what is still possible.
    epsilon += step
    if not low < epsilon < high:
      epsilon = (low + high) / 2
  return high * (1 + 1e-10) + 1e-14  # Errors of rounding are below that.
