"""Epsilon of a number of rounds, by PLD and by RDP, from dp-accounting.

PLD (`pld`) gives the stated epsilon. RDP (Mironov 2017) is looser and serves as
an independent check. `stated_epsilon` holds what a file states against it.

>>> event = dp_accounting.PoissonSampledDpEvent(
...     0.1, dp_accounting.GaussianDpEvent(1.0))
>>> round(pld_epsilon(event, rounds=200, delta=1e-3), 3)
7.096
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import importlib.metadata
import math
import warnings

from absl import logging
import dp_accounting
from dp_accounting import rdp

from tff_medical import _validate
from tff_medical.privacy import events
from tff_medical.privacy import pld


def accountant_version() -> str:
  """Returns the name and version of the library that computes epsilon."""
  return f'dp-accounting {importlib.metadata.version("dp-accounting")}'


def accountant_of(event: dp_accounting.DpEvent) -> str:
  """Returns the accountant that `epsilon` uses for an event: PLD or RDP."""
  return 'RDP' if _is_by_rdp(events.parts([(event, 1)])) else 'PLD'


def epsilon(
  event: dp_accounting.DpEvent,
  *,
  rounds: int,
  delta: float,
  before: dp_accounting.DpEvent | None = None,
) -> float:
  """Returns the stated epsilon at `delta` of `rounds` such events.

  RDP is used for events whose Renyi divergence alone is known, PLD for all
  others.

  Args:
    event: Event of one round.
    rounds: Number of rounds, 0 or more.
    delta: Probability, in (0, 1), with which epsilon may be exceeded.
    before: Event that is paid for once besides, if any, even with no rounds.
  """
  return composed_epsilon(
    events.with_before(event, rounds, before), delta=delta
  )


def composed_epsilon(
  charges: Iterable[tuple[dp_accounting.DpEvent, int]],
  *,
  delta: float,
  tight: bool = False,
) -> float:
  """Returns the stated epsilon at `delta` of different events together.

  The loss distributions of all events are convolved. If the Renyi divergence
  alone is known of one of them, all are composed by RDP.

  >>> z1, z2 = map(dp_accounting.GaussianDpEvent, (3.0, 4.0))
  >>> both = composed_epsilon([(z1, 1), (z2, 1)], delta=1e-5)
  >>> one = epsilon(dp_accounting.GaussianDpEvent(2.4), rounds=1, delta=1e-5)
  >>> math.isclose(both, one)  # 1/2.4**2 = 1/3**2 + 1/4**2
  True

  Args:
    charges: Pairs of an event and the number, 0 or more, of such events.
    delta: Probability, in (0, 1), with which epsilon may be exceeded.
    tight: Whether to count every round, on the finest grid that fits memory. It
      takes up to some seconds.
  """
  parts = events.parts(charges)
  if _is_by_rdp(parts):
    return _rdp_epsilon(parts, delta)
  return pld.composed_epsilon(parts, delta=delta, tight=tight)


def _is_by_rdp(parts: Iterable[dp_accounting.DpEvent]) -> bool:
  return any(isinstance(event, events.RDP_ALONE) for event in parts)


def pld_epsilon(
  event: dp_accounting.DpEvent,
  *,
  rounds: int,
  delta: float,
  before: dp_accounting.DpEvent | None = None,
) -> float:
  """Returns the epsilon at `delta` of `rounds` such events, by PLD.

  Args:
    event: Event of one round: a Gaussian, Poisson-sampled with or without a cap
      or not sampled, or a non-private event, whose epsilon is inf.
    rounds: Number of rounds, 0 or more.
    delta: Probability, in (0, 1), with which epsilon may be exceeded.
    before: Gaussian event that is paid for once besides, if any.
  """
  parts = events.parts(events.with_before(event, rounds, before))
  return pld.composed_epsilon(parts, delta=delta)


def rdp_epsilon(
  event: dp_accounting.DpEvent,
  *,
  rounds: int,
  delta: float,
  before: dp_accounting.DpEvent | None = None,
) -> float:
  """Returns the epsilon at `delta` of `rounds` such events, by RDP.

  The result is inf for an event that the RDP accountant does not support.

  Args:
    event: Event of one round.
    rounds: Number of rounds, 0 or more.
    delta: Probability, in (0, 1), with which epsilon may be exceeded.
    before: Event that is paid for once besides, if any.
  """
  parts = events.parts(events.with_before(event, rounds, before))
  return _rdp_epsilon(parts, delta)


def _rdp_epsilon(
  parts: Mapping[dp_accounting.DpEvent, int], delta: float
) -> float:
  _validate.in_range(0, 1, delta=delta)
  if not parts:
    return 0.0
  # The theorems behind our ZCDpEvents hold for whole orders.
  whole = any('ZCDpEvent(' in repr(event) for event in parts)
  accountant = rdp.RdpAccountant(
    orders=range(2, 1025) if whole else None,
    neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
  )
  if not all(accountant.supports(event) for event in parts):
    return math.inf
  with _quiet():
    for event, count in parts.items():
      accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides warnings about omitted orders: epsilon is valid without them."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      yield
  finally:
    logging.set_verbosity(verbosity)


def default_delta(population: int) -> float:
  """Returns population**-1.1, the choice of McMahan et al. 2018 (section 4)."""
  return float(population**-1.1)
