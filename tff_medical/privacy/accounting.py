"""Epsilon of a number of rounds, by PLD and by RDP, from dp-accounting.

PLD (privacy loss distributions; Koskela et al. 2020, Doroshenko et al. 2022)
gives the stated epsilon. RDP (Mironov 2017) is looser and serves as an
independent check.

Rounds with all units have Gaussian noise alone, whose epsilon has a closed form
(Balle and Wang 2018). Otherwise the loss is discretised, and rounded towards
more loss. The grid follows the loss of a round: its interval is at most .08
standard deviations of that loss, which overstates epsilon by at most .1 %. It
is 1e-3, finer for small losses, and coarser for rounds with large losses only if
they are many.

Time and memory are bounded for every noise multiplier. With hardly any noise,
very many rounds or a very small rate, the grid is coarser than that. A coarser
grid states a larger epsilon, never a smaller one. More than 1,024 rounds are
counted in steps of at most 1/512 of their number, rounded up. Rounds in between
share one epsilon, so that a run of 10,000 rounds charges each within 1 ms.

Earlier versions counted each round and had a grid of 1e-3. What they state may
thus be above what this version states, or a little below. Both are true.
`agrees` accepts what any version has stated.

>>> event = dp_accounting.PoissonSampledDpEvent(
...     0.1, dp_accounting.GaussianDpEvent(1.0))
>>> round(pld_epsilon(event, rounds=200, delta=1e-3), 3)
7.096
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
import importlib.metadata
import math
from typing import Any
import warnings

from absl import logging
import dp_accounting
from dp_accounting import dp_event
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution
from scipy import special

from tff_medical import _validate
from tff_medical.privacy import loss_grids

# Interval of the losses' grid. All others are this times a power of 2: of two
# such grids the coarser one never states the smaller epsilon.
_DISCRETIZATION = 1e-3
# Largest interval that is still fine, in standard deviations s of a round's
# loss. A grid of interval h adds about h**2 / 6 to the variance s**2, and so
# h**2 / (12 s**2) to epsilon, as a fraction: .05 % here.
_FINE_STDDEVS = 0.08
# Points that a grid of one round, and one of all rounds, may have to be finer
# than it must: .4 s to build the first, 3 ms to compose it.
_MAX_FINE_POINTS = 4e4
# Events that a charge may pay for.
_EVENTS = (
  'NonPrivateDpEvent',
  'GaussianDpEvent',
  'PoissonSampledDpEvent',
  'TruncatedSubsampledGaussianDpEvent',
  'ZCDpEvent',
  'SelfComposedDpEvent',
  'ComposedDpEvent',
  'RepeatAndSelectDpEvent',
)
# Events whose Renyi divergence alone is known.
_RDP_EVENTS = (dp_accounting.ZCDpEvent, dp_event.RepeatAndSelectDpEvent)
# No run has as many charges; computing epsilon for 1e9 would never end.
_MAX_COUNT = 10**7
# Number of rounds from which their number is rounded up to 10 binary digits.
_EXACT_COUNT_BITS = 10
# Relative difference of one epsilon on two machines.
_ROUNDING = 1e-6
# The exponential of a larger interval overflows in dp-accounting.
_MAX_DISCRETIZATION = 256.0
# Points of the grids of one round and of all rounds: some seconds and 300 MB.
_MAX_ROUND_POINTS = 1e5
_MAX_COMPOSED_POINTS = 4e6
_ADD_OR_REMOVE = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


def accountant_version() -> str:
  """Returns the name and version of the library that computes epsilon."""
  return f'dp-accounting {importlib.metadata.version("dp-accounting")}'


def _noise_to_sensitivity(event: dp_accounting.DpEvent) -> float:
  """Returns the multiplier of a Gaussian no more private than one round.

  Sampling only lowers the cost of a round. In a full cohort an added unit may
  displace another one, so the sensitivity of a capped round is 2.
  """
  if isinstance(event, dp_accounting.TruncatedSubsampledGaussianDpEvent):
    return event.noise_multiplier / 2
  if isinstance(event, dp_accounting.PoissonSampledDpEvent):
    event = event.event
  if not isinstance(event, dp_accounting.GaussianDpEvent):
    raise dp_accounting.UnsupportedEventError(f'no PLD for {event}')
  return event.noise_multiplier


# As many events as the ledger of a data set may well hold: 0.3 MB each, rarely
# 2 MB, and 0.3 s to build one.
@functools.lru_cache(maxsize=256)
def _round_loss(
  event: dp_accounting.DpEvent, interval: float
) -> loss_grids.RoundLoss:
  """Returns the loss of one round on a grid; cached, as it is slow to build."""
  grid = {
    'value_discretization_interval': interval,
    'neighboring_relation': _ADD_OR_REMOVE,
  }
  if isinstance(event, dp_accounting.TruncatedSubsampledGaussianDpEvent):
    from_truncated = (
      privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism
    )
    return loss_grids.RoundLoss.of(
      from_truncated(
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
  return loss_grids.RoundLoss.of(
    privacy_loss_distribution.from_gaussian_mechanism(
      standard_deviation=_noise_to_sensitivity(event),
      sampling_prob=sampling_probability,
      **grid,
    )
  )


def _fine_interval(event: dp_accounting.DpEvent) -> float:
  """Returns the interval up to which a grid of one round's loss is fine.

  The standard deviation of a sampled Gaussian's loss is at most that of the
  ratio of densities, q sqrt(exp(1/z**2) - 1), and at most 1/z.
  """
  noise = _noise_to_sensitivity(event)
  rate = getattr(event, 'sampling_probability', 1.0)
  precision = min(noise**-2, 50.0)
  return _FINE_STDDEVS * min(1 / noise, rate * math.expm1(precision) ** 0.5)


@functools.lru_cache(maxsize=256)
def _finest_interval(event: dp_accounting.DpEvent, tight: bool) -> float:
  """Returns the interval of an event's grid for few rounds."""
  noise, fine = _noise_to_sensitivity(event), _fine_interval(event)
  # Range of a Gaussian's losses, 10 standard deviations to both sides.
  reach = noise**-2 + 20 / noise
  interval = _DISCRETIZATION
  while reach > interval * (
    _MAX_FINE_POINTS
    if 2 * interval <= fine and not tight
    else _MAX_ROUND_POINTS
  ):
    interval *= 2
  if interval > _DISCRETIZATION:
    return interval
  points = len(_round_loss(event, interval))
  while interval > fine and 2 * points <= _MAX_FINE_POINTS:
    interval, points = interval / 2, points * 2
  return interval


@functools.lru_cache(maxsize=1024)
def _interval(event: dp_accounting.DpEvent, rounds: int, tight: bool) -> float:
  """Returns the interval of the grid for `rounds`; inf if no grid fits memory.

  The interval never becomes finer with more rounds, so that epsilon never falls
  from one round to the next.
  """
  interval = _finest_interval(event, tight)
  while interval <= _MAX_DISCRETIZATION:
    points = loss_grids.num_points([(_round_loss(event, interval), rounds)])
    may_be_coarser = not tight and 2 * interval <= _fine_interval(event)
    limit = _MAX_FINE_POINTS if may_be_coarser else _MAX_COMPOSED_POINTS
    if points <= limit:
      return interval
    excess = points / _MAX_COMPOSED_POINTS
    interval *= 2 ** max(1, int(math.log2(excess)))
  return math.inf


def accountant_of(event: dp_accounting.DpEvent) -> str:
  """Returns the accountant that `epsilon` uses for an event: PLD or RDP."""
  by_rdp = any(isinstance(part, _RDP_EVENTS) for part in _parts([(event, 1)]))
  return 'RDP' if by_rdp else 'PLD'


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
  return composed_epsilon(with_before(event, rounds, before), delta=delta)


def with_before(
  event: dp_accounting.DpEvent,
  rounds: int,
  before: dp_accounting.DpEvent | None,
) -> list[tuple[dp_accounting.DpEvent, int]]:
  """Returns the events of a run and their numbers, for `composed_epsilon`.

  Args:
    event: Event of one round.
    rounds: Number of rounds, 0 or more.
    before: Event that is paid for once besides, if any.
  """
  charges = [(event, rounds)]
  if before is not None:
    charges.append((before, 1))
  return charges


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
  pairs = list(charges)
  if any(isinstance(part, _RDP_EVENTS) for part in _parts(pairs)):
    return _rdp_epsilon(pairs, delta)
  return _pld_epsilon(pairs, delta, tight)


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
  >>> epsilon_of_all = composed_epsilon(charges, delta=1e-5)
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
  now = composed_epsilon(pairs, delta=delta)
  if stated == now or math.isclose(stated, now, rel_tol=_ROUNDING):
    return True
  if stated < now:
    least = composed_epsilon(pairs, delta=delta, tight=True)
    return stated >= least * (1 - _ROUNDING)
  return stated <= _earlier_epsilon(pairs, delta) * (1 + _ROUNDING)


def _earlier_epsilon(
  charges: Sequence[tuple[dp_accounting.DpEvent, int]], delta: float
) -> float:
  """Returns the epsilon of the versions with one grid, that of 1e-3.

  They had it for Gaussian rounds as well, and a coarser one for want of memory.
  """
  parts = _parts(charges)
  others = (dp_accounting.NonPrivateDpEvent, *_RDP_EVENTS)
  if not parts or any(isinstance(event, others) for event in parts):
    return composed_epsilon(charges, delta=delta)
  interval = max(_DISCRETIZATION, _common_interval(parts, tight=True))
  bound = _gaussian_epsilon(_total_noise(parts), delta)
  if interval > _MAX_DISCRETIZATION:
    return bound
  losses = [(_round_loss(event, interval), n) for event, n in parts.items()]
  on_grid = loss_grids.epsilon_of(losses, delta=delta)
  return on_grid if interval == _DISCRETIZATION else min(bound, on_grid)


def composed_event(
  charges: Iterable[tuple[dp_accounting.DpEvent, int]],
) -> dp_accounting.DpEvent:
  """Returns one event that costs what all of them cost together.

  Args:
    charges: Pairs of an event and the number, 0 or more, of such events.
  """
  counts: dict[dp_accounting.DpEvent, int] = {}
  for event, count in _flat(charges):
    counts[event] = counts.get(event, 0) + count
  return dp_event.ComposedDpEvent(
    tuple(dp_event.SelfComposedDpEvent(e, n) for e, n in counts.items() if n)
  )


def _parts(
  charges: Iterable[tuple[dp_accounting.DpEvent, int]],
) -> Mapping[dp_accounting.DpEvent, int]:
  """Returns the number of each event, none of them composed of others."""
  parts: dict[dp_accounting.DpEvent, int] = {}
  for event, count in _flat(charges):
    if count:
      parts[event] = parts.get(event, 0) + count
  if sum(parts.values()) > _MAX_COUNT:
    raise _validate.InputError(
      f'{sum(parts.values())} charges are more than any run has '
      f'({_MAX_COUNT:,}); restore the file that states them'
    )
  gaussians = {
    e: n
    for e, n in parts.items()
    if isinstance(e, dp_accounting.GaussianDpEvent)
  }
  if len(gaussians) > 1:
    # Gaussians compose to a Gaussian, exactly.
    for event in gaussians:
      del parts[event]
    parts[dp_accounting.GaussianDpEvent(_total_noise(gaussians))] = 1
  # In one order, so that the order of runs does not change the last digits.
  return dict(sorted(parts.items(), key=repr))


def _flat(
  charges: Iterable[tuple[dp_accounting.DpEvent, int]],
) -> Iterator[tuple[dp_accounting.DpEvent, int]]:
  for event, count in charges:
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
      yield from _flat([(event.event, event.count * count)])
    elif isinstance(event, dp_accounting.ComposedDpEvent):
      yield from _flat((inner, count) for inner in event.events)
    else:
      yield event, count


def _total_noise(parts: Mapping[dp_accounting.DpEvent, int]) -> float:
  """Returns the multiplier of a Gaussian no more private than all events."""
  precision = sum(n / _noise_to_sensitivity(e) ** 2 for e, n in parts.items())
  return float(precision**-0.5)


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
  return _pld_epsilon(with_before(event, rounds, before), delta)


def _pld_epsilon(
  charges: Iterable[tuple[dp_accounting.DpEvent, int]],
  delta: float,
  tight: bool = False,
) -> float:
  _validate.in_range(0, 1, delta=delta)
  parts = _parts(charges)
  if not parts:
    return 0.0
  if any(isinstance(e, dp_accounting.NonPrivateDpEvent) for e in parts):
    return math.inf
  noise = _total_noise(parts)
  if all(isinstance(e, dp_accounting.GaussianDpEvent) for e in parts):
    return _gaussian_epsilon(noise, delta)
  counted = tuple(
    (event, n if tight else _counted(n)) for event, n in parts.items()
  )
  on_grid = _grid_epsilon(counted, delta, tight)
  # A grid may overstate epsilon more than a bound without amplification does.
  if on_grid < math.inf and _excess_of_delta(on_grid, noise, delta)[0] > 0:
    return on_grid  # The bound is larger.
  return min(_gaussian_epsilon(noise, delta), on_grid)


def _excess_of_delta(
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


def _gaussian_epsilon(noise: float, delta: float) -> float:
  """Returns the epsilon of one Gaussian, rounded up (Balle and Wang 2018).

  dp-accounting solves the same equation, in a hundred times the time.

  >>> exact = dp_accounting.get_epsilon_gaussian(2.0, 1e-5)
  >>> 0 <= _gaussian_epsilon(2.0, 1e-5) - exact < 1e-8
  True
  """
  if _excess_of_delta(0.0, noise, delta)[0] <= 0:
    return 0.0
  # The loss is above this with a probability below `delta`.
  high = 0.5 / noise**2 + math.sqrt(-2 * math.log(delta)) / noise
  low, epsilon = 0.0, high
  while high - low > 1e-12 * high:
    excess, slope = _excess_of_delta(epsilon, noise, delta)
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


def _counted(rounds: int) -> int:
  """Returns a number of rounds, rounded up to `_EXACT_COUNT_BITS` digits.

  >>> [_counted(n) for n in (7, 1023, 1025, 10_000, 10_001)]
  [7, 1023, 1026, 10000, 10016]
  """
  step = 2 ** max(0, rounds.bit_length() - _EXACT_COUNT_BITS)
  return -(-rounds // step) * step


# A card, a check and an entry of a data ledger ask for the same total.
@functools.lru_cache(maxsize=256)
def _grid_epsilon(
  charges: tuple[tuple[dp_accounting.DpEvent, int], ...],
  delta: float,
  tight: bool,
) -> float:
  parts = dict(charges)
  interval = _common_interval(parts, tight)
  if interval > _MAX_DISCRETIZATION:
    return math.inf
  losses = [(_round_loss(event, interval), n) for event, n in parts.items()]
  return loss_grids.epsilon_of(losses, delta=delta)


def _common_interval(
  parts: Mapping[dp_accounting.DpEvent, int], tight: bool
) -> float:
  """Returns the finest interval at which all events fit memory together."""
  interval = max(_interval(event, n, tight) for event, n in parts.items())
  while len(parts) > 1 and interval <= _MAX_DISCRETIZATION:
    points = sum(
      loss_grids.num_points([(_round_loss(event, interval), count)])
      for event, count in parts.items()
    )
    if points <= _MAX_COMPOSED_POINTS:
      break
    interval *= 2
  return interval


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
  return _rdp_epsilon(with_before(event, rounds, before), delta)


def _rdp_epsilon(
  charges: Iterable[tuple[dp_accounting.DpEvent, int]], delta: float
) -> float:
  _validate.in_range(0, 1, delta=delta)
  parts = _parts(charges)
  if not parts:
    return 0.0
  # The theorems behind our ZCDpEvents hold for whole orders.
  whole = any('ZCDpEvent(' in repr(event) for event in parts)
  accountant = rdp.RdpAccountant(
    orders=range(2, 1025) if whole else None,
    neighboring_relation=_ADD_OR_REMOVE,
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


def parse_event(text: str) -> dp_accounting.DpEvent:
  """Returns the event whose `repr` a ledger or a card states.

  >>> parse_event('GaussianDpEvent(noise_multiplier=1.5)')
  GaussianDpEvent(noise_multiplier=1.5)

  Args:
    text: Nested constructor calls of `_EVENTS` with named numbers. The text is
      parsed, never executed.

  Raises:
    InputError: The text is anything else.
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
    kind = getattr(dp_event, node.func.id)
    return kind(**{str(k.arg): _event_of(k.value) for k in node.keywords})
  if isinstance(node, (ast.List, ast.Tuple)):
    parts = [_event_of(part) for part in node.elts]
    return parts if isinstance(node, ast.List) else tuple(parts)
  value = ast.literal_eval(node)
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise ValueError(value)
  return value


def default_delta(population: int) -> float:
  """Returns population**-1.1, the choice of McMahan et al. 2018 (section 4)."""
  return float(population**-1.1)
