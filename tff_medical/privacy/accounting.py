"""Epsilon of a number of rounds, by PLD and by RDP, from dp-accounting.

PLD (privacy loss distributions; Koskela et al. 2020, Doroshenko et al. 2022)
gives the number of record; RDP (Mironov 2017) is looser and stands beside it as
a check by independent means. The loss is discretised at 1e-3, rounding towards
more loss: at most 1e-4 of epsilon too much where epsilon exceeds 0.5, and ten
times faster than the library's default of 1e-4, so that every single round can
be charged exactly. Where that grid would take gigabytes, with hardly any noise
or very many rounds, it is coarser, which states a larger epsilon, never a
smaller one; time and memory are bounded for every noise.

>>> event = dp_accounting.PoissonSampledDpEvent(
...     0.1, dp_accounting.GaussianDpEvent(1.0))
>>> round(pld_epsilon(event, rounds=200, delta=1e-3), 3)
7.096
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
import contextlib
import functools
import importlib.metadata
import math
from typing import Any
import warnings

from absl import logging
import dp_accounting
from dp_accounting import rdp
from dp_accounting.pld import common
from dp_accounting.pld import privacy_loss_distribution

from tff_medical import _validate

_DISCRETIZATION = 1e-3
# What a charge may pay for.
_EVENTS = (
  'NonPrivateDpEvent',
  'GaussianDpEvent',
  'PoissonSampledDpEvent',
  'TruncatedSubsampledGaussianDpEvent',
  'ZCDpEvent',
)
# Beyond, dp-accounting's exponentials of an interval overflow.
_MAX_DISCRETIZATION = 256.0
# Points of the grids, of one round and of all of them: some seconds and 200 MB.
_MAX_ROUND_POINTS = 1e5
_MAX_COMPOSED_POINTS = 4e6
# What PLDs leave out of the tails when they are composed (dp-accounting).
_TAIL_MASS = 1e-15
_ADD_OR_REMOVE = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


def accountant_version() -> str:
  """Returns the library that computes epsilon, with its version."""
  return f'dp-accounting {importlib.metadata.version("dp-accounting")}'


def _noise_to_sensitivity(event: dp_accounting.DpEvent) -> float:
  """Returns the multiplier of a Gaussian no more private than one round.

  Sampling only lowers what a round costs. A full cohort may lose another unit to
  the one that is added, so its sensitivity is 2.
  """
  if isinstance(event, dp_accounting.TruncatedSubsampledGaussianDpEvent):
    return event.noise_multiplier / 2
  if isinstance(event, dp_accounting.PoissonSampledDpEvent):
    event = event.event
  if not isinstance(event, dp_accounting.GaussianDpEvent):
    raise dp_accounting.UnsupportedEventError(f'no PLD for {event}')
  return event.noise_multiplier


@functools.lru_cache(maxsize=32)
def _round_distribution(
  event: dp_accounting.DpEvent, interval: float
) -> privacy_loss_distribution.PrivacyLossDistribution:
  """Returns one round's loss distribution; kept, as it is slow to build."""
  grid = {
    'value_discretization_interval': interval,
    'neighboring_relation': _ADD_OR_REMOVE,
  }
  if isinstance(event, dp_accounting.TruncatedSubsampledGaussianDpEvent):
    return (
      privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
        dataset_size=event.dataset_size,
        sampling_probability=event.sampling_probability,
        truncated_batch_size=event.truncated_batch_size,
        noise_multiplier=event.noise_multiplier,
        **grid,
      )
    )
  sampling_probability = 1.0
  if isinstance(event, dp_accounting.PoissonSampledDpEvent):
    sampling_probability = event.sampling_probability
  return privacy_loss_distribution.from_gaussian_mechanism(
    standard_deviation=_noise_to_sensitivity(event),
    sampling_prob=sampling_probability,
    **grid,
  )


@functools.lru_cache(maxsize=256)
def _interval(event: dp_accounting.DpEvent, rounds: int) -> float:
  """Returns the grid for so many rounds: the finest that memory bears.

  It is inf where none is fine and small enough. It never becomes finer with more rounds, so that epsilon keeps growing.
  """
  noise = _noise_to_sensitivity(event)
  # The losses of a Gaussian, 10 standard deviations to both sides.
  reach = noise**-2 + 20 / noise
  interval = _DISCRETIZATION
  while reach > interval * _MAX_ROUND_POINTS:
    interval *= 2
  while interval <= _MAX_DISCRETIZATION:
    distribution = _round_distribution(event, interval)
    excess = _composed_points(distribution, rounds) / _MAX_COMPOSED_POINTS
    if excess <= 1:
      return interval
    interval *= 2 ** max(1, int(math.log2(excess)))
  return math.inf


def _composed_points(
  distribution: privacy_loss_distribution.PrivacyLossDistribution, rounds: int
) -> int:
  """Returns the size of the larger grid that `self_compose` will make."""
  points = 0
  for pmf in (distribution._pmf_remove, distribution._pmf_add):
    # By the same bound as that of dp-accounting's own convolution.
    low, high = common.compute_self_convolve_bounds(
      pmf.to_dense_pmf()._probs, rounds, _TAIL_MASS
    )
    points = max(points, high - low + 1)
  return points


def accountant_of(event: dp_accounting.DpEvent) -> str:
  """Returns which accountant `epsilon` uses for an event: PLD or RDP."""
  return 'RDP' if isinstance(event, dp_accounting.ZCDpEvent) else 'PLD'


def epsilon(
  event: dp_accounting.DpEvent, *, rounds: int, delta: float
) -> float:
  """Returns the stated epsilon at `delta` of `rounds` such events.

  By PLD, and by RDP for events of which no more is known than their Renyi
  divergence. Arguments as for `pld_epsilon`.
  """
  if accountant_of(event) == 'RDP':
    return rdp_epsilon(event, rounds=rounds, delta=delta)
  return pld_epsilon(event, rounds=rounds, delta=delta)


def pld_epsilon(
  event: dp_accounting.DpEvent, *, rounds: int, delta: float
) -> float:
  """Returns the epsilon at `delta` of `rounds` such events, by PLD.

  Args:
    event: What one round releases: a Gaussian, Poisson-sampled or not, or a
      non-private event, whose epsilon is inf.
    rounds: How often it is released, 0 or more.
    delta: The probability, in (0, 1), with which epsilon may be exceeded.
  """
  _validate.in_range(0, 1, delta=delta)
  if rounds == 0:
    return 0.0
  if isinstance(event, dp_accounting.NonPrivateDpEvent):
    return math.inf
  interval = _interval(event, rounds)
  found = math.inf
  if interval <= _MAX_DISCRETIZATION:
    composed = _round_distribution(event, interval).self_compose(
      rounds, _TAIL_MASS
    )
    found = float(composed.get_epsilon_for_delta(delta))
  if interval == _DISCRETIZATION:
    return found
  # A coarse grid may overstate more than leaving out the sampling does.
  noise = _noise_to_sensitivity(event) / math.sqrt(rounds)
  return min(found, float(dp_accounting.get_epsilon_gaussian(noise, delta)))


def rdp_epsilon(
  event: dp_accounting.DpEvent, *, rounds: int, delta: float
) -> float:
  """Returns the epsilon at `delta` of `rounds` such events, by RDP.

  inf stands for an event that the RDP accountant does not support.
  """
  _validate.in_range(0, 1, delta=delta)
  if rounds == 0:
    return 0.0
  # The theorems behind our ZCDpEvents hold for whole orders.
  whole = isinstance(event, dp_accounting.ZCDpEvent)
  accountant = rdp.RdpAccountant(
    orders=range(2, 1025) if whole else None,
    neighboring_relation=_ADD_OR_REMOVE,
  )
  if not accountant.supports(event):
    return math.inf
  with _quiet():
    accountant.compose(event, rounds)
    return float(accountant.get_epsilon(delta))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides warnings of orders left out: epsilon is valid without them."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      yield
  finally:
    logging.set_verbosity(verbosity)


def parse_event(text: str) -> dp_accounting.DpEvent:
  """Returns the event whose `repr` a ledger or a card states.

  >>> parse_event('GaussianDpEvent(noise_multiplier=1.5)')
  GaussianDpEvent(noise_multiplier=1.5)

  Args:
    text: Nested constructor calls of `_EVENTS` with named numbers, and nothing
      else: it is parsed, never run.

  Raises:
    InputError: It is something else.
  """
  try:
    event = _event_of(ast.parse(text, mode='eval').body)
    if not isinstance(event, dp_accounting.DpEvent) or repr(event) != text:
      raise ValueError(text)
  except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
    raise _validate.InputError(
      f'{text[:200]!r} is no event that a ledger states; restore the file'
    ) from None
  return event


def _event_of(node: ast.expr) -> Any:
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
    if node.func.id not in _EVENTS or node.args:
      raise ValueError(node.func.id)
    kind = getattr(dp_accounting, node.func.id)
    return kind(**{str(k.arg): _event_of(k.value) for k in node.keywords})
  value = ast.literal_eval(node)
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise ValueError(value)
  return value


def default_delta(population: int) -> float:
  """Returns population**-1.1, as McMahan et al. 2018 (section 4) choose it."""
  return float(population**-1.1)
