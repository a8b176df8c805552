"""Whether an epsilon that a file states is true, whichever version stated it.

Earlier versions counted each round and had a grid of 1e-3. What they state may
thus be above what this version states, or a little below. Both are true.
"""

from __future__ import annotations

from collections.abc import Iterable
import math

import dp_accounting

from tff_medical.privacy import accounting
from tff_medical.privacy import events
from tff_medical.privacy import gaussian_bound
from tff_medical.privacy import pld

# Relative difference of one epsilon on two machines.
_ROUNDING = 1e-6


def agrees(
  stated: float,
  charges: Iterable[tuple[dp_accounting.DpEvent, int]],
  *,
  delta: float,
) -> bool:
  """Returns whether some version of this package states this epsilon.

  Epsilon of this version is an upper bound on a grid, for a number of rounds
  that may be rounded up. A stated epsilon below it may therefore be true. The
  least that is accepted is the tightest bound, which no version has undercut.
  The most is the bound of the versions with one grid. The tolerance is that of
  rounding alone on both sides.

  >>> charges = [(dp_accounting.GaussianDpEvent(2.0), 1)]
  >>> epsilon_of_all = accounting.composed_epsilon(charges, delta=1e-5)
  >>> agrees(epsilon_of_all, charges, delta=1e-5)
  True
  >>> agrees(0.999 * epsilon_of_all, charges, delta=1e-5)
  False

  Args:
    stated: Epsilon that a file states; NaN never agrees.
    charges: Pairs of an event and the number, 0 or more, of such events.
    delta: Probability, in (0, 1), with which epsilon may be exceeded.
  """
  pairs = list(charges)
  now = accounting.composed_epsilon(pairs, delta=delta)
  if stated == now or math.isclose(stated, now, rel_tol=_ROUNDING):
    return True
  if stated < now:
    least = accounting.composed_epsilon(pairs, delta=delta, tight=True)
    return stated >= least * (1 - _ROUNDING)
  return stated <= _earlier_epsilon(pairs, delta) * (1 + _ROUNDING)


def _earlier_epsilon(charges: events.Charges, delta: float) -> float:
  """Returns the epsilon of the versions with one grid, that of 1e-3.

  They had it for Gaussian rounds as well, and a coarser one for want of memory.
  """
  parts = events.parts(charges)
  others = (dp_accounting.NonPrivateDpEvent, *events.RDP_ALONE)
  if not parts or any(isinstance(event, others) for event in parts):
    return accounting.composed_epsilon(charges, delta=delta)
  base = pld.BASE_INTERVAL
  interval = max(base, pld.common_interval(parts, tight=True))
  on_grid = pld.epsilon_on_grid(parts, interval, delta)
  if interval == base:
    return on_grid
  noise = events.total_noise(parts)
  return min(gaussian_bound.gaussian_epsilon(noise, delta), on_grid)
