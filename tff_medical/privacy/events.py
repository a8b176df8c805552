"""Events that charges pay for: their text, their parts and their composition.

A ledger and a card state an event as the `repr` of a `dp_accounting.DpEvent`.
`parse_event` reads it back. `parts` counts what composed events consist of,
which is all that epsilon depends on. No epsilon is computed here.

>>> event = dp_accounting.GaussianDpEvent(3.0)
>>> parts([(event, 2), (dp_accounting.SelfComposedDpEvent(event, 3), 1)])
{GaussianDpEvent(noise_multiplier=3.0): 5}
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import dp_accounting
from dp_accounting import dp_event

from tff_medical import _validate

# Pairs of an event and the number, 0 or more, of such events.
Charges = Sequence[tuple[dp_accounting.DpEvent, int]]
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
RDP_ALONE = (dp_accounting.ZCDpEvent, dp_event.RepeatAndSelectDpEvent)
# No run has as many rounds or charges. A damaged file may state any number, and
# computing epsilon for 1e9 charges would never end.
MAX_COUNT = 10**7


def noise_to_sensitivity(event: dp_accounting.DpEvent) -> float:
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


def with_before(
  event: dp_accounting.DpEvent,
  rounds: int,
  before: dp_accounting.DpEvent | None,
) -> Charges:
  """Returns the events of a run and their numbers.

  Args:
    event: Event of one round.
    rounds: Number of rounds, 0 or more.
    before: Event that is paid for once besides, if any.
  """
  return [(event, rounds), *([(before, 1)] if before is not None else [])]


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


def parts(
  charges: Iterable[tuple[dp_accounting.DpEvent, int]],
) -> Mapping[dp_accounting.DpEvent, int]:
  """Returns the number of each event, none of them composed of others."""
  counts: dict[dp_accounting.DpEvent, int] = {}
  for event, count in _flat(charges):
    if count:
      counts[event] = counts.get(event, 0) + count
  if sum(counts.values()) > MAX_COUNT:
    raise _validate.InputError(
      f'{sum(counts.values())} charges are more than any run has '
      f'({MAX_COUNT:,}); restore the file that states them'
    )
  gaussians = {
    e: n
    for e, n in counts.items()
    if isinstance(e, dp_accounting.GaussianDpEvent)
  }
  if len(gaussians) > 1:
    # Gaussians compose to a Gaussian, exactly.
    for event in gaussians:
      del counts[event]
    counts[dp_accounting.GaussianDpEvent(total_noise(gaussians))] = 1
  # In one order, so that the order of runs does not change the last digits.
  return dict(sorted(counts.items(), key=repr))


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


def total_noise(parts: Mapping[dp_accounting.DpEvent, int]) -> float:
  """Returns the multiplier of a Gaussian no more private than all events."""
  precision = sum(n / noise_to_sensitivity(e) ** 2 for e, n in parts.items())
  return float(precision**-0.5)


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
