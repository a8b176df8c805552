"""Verification of a finished run from its files alone.

An auditor who has a run's folder or an exported model needs neither its data
nor its code. The ledger's chain of digests is replayed. Epsilon is recomputed
from the event and the number of charges. Ledger, checkpoint, summary, card,
metrics and exported weights are checked against each other. Nothing is written.

Limit: whoever can write all files can forge a consistent set. The chain of
digests reveals this only to an auditor who has a digest from elsewhere, such as
the card of a published model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
import os
import pathlib
from typing import Any

import dp_accounting

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import class_counts
from tff_medical.privacy import events
from tff_medical.privacy import ledger_contents
from tff_medical.privacy import stated_epsilon
from tff_medical.program import checkpoints
from tff_medical.program import metrics_table
from tff_medical.program import run_folder
from tff_medical.serving import export
from tff_medical.serving import pretrained

# Tolerance between two statements of the same epsilon.
_RELATIVE_DIFFERENCE = 1e-6
# Number of entries of a long ledger whose epsilon is recomputed.
_MAX_ENTRIES = 50


@dataclasses.dataclass(frozen=True)
class Check:
  """One comparison.

  Attributes:
    what: Name of the two things compared.
    found: Values of both, or the reason of the failure.
    is_right: Whether both agree.
  """

  what: str
  found: str
  is_right: bool


def verify(path: str | os.PathLike[str]) -> list[Check]:
  """Returns every check of a run's folder or of an exported model.

  Args:
    path: The `--output_dir` of a run, or its `saved_model` alone.

  Raises:
    InputError: The path is neither of the two.
  """
  folder = run_folder.RunFolder(pathlib.Path(path))
  if folder.ledger.exists() or folder.config.exists():
    return list(_run(folder))
  if (folder.path / 'saved_model.pb').exists():
    return list(_model(folder.path))
  raise _validate.InputError(
    f'{os.fspath(path)!r} holds neither the ledger of a run nor an exported '
    'model; give the --output_dir of experiments.train or its saved_model'
  )


def _run(folder: run_folder.RunFolder) -> Iterator[Check]:
  """Yields the checks of a run's folder."""
  try:
    ledger = ledger_contents.read(folder.ledger)
  except (FileNotFoundError, _validate.InputError) as error:
    yield Check('ledger', _text(error), False)
    return
  yield Check(
    'ledger: chain of digests',
    f'{len(ledger.entries)} entries, {ledger.digest[:16]}...',
    bool(ledger.header),
  )
  yield from _ledger_epsilon(ledger)
  yield from _guarded('config.json', lambda: _config(folder, ledger))
  yield from _guarded('metrics.csv', lambda: _metrics(folder, ledger))
  summary = card = None
  saved: checkpoints.Record | None = None
  try:
    saved = _newest(folder)
    yield from _checkpoint(saved, ledger)
  except (*checkpoints.UNREADABLE, checkpoints.AlteredError) as error:
    yield Check('checkpoint', _text(error), False)
  try:
    summary = dataclasses.asdict(folder.read_summary())
    yield from _stated('summary.json', summary, ledger, saved)
  except FileNotFoundError:
    yield Check('summary.json', 'missing: the run has not ended', True)
  except _validate.InputError as error:
    yield Check('summary.json', _text(error), False)
  if folder.saved_model.exists():
    try:
      card = export.load_card(folder.saved_model)
      yield from _stated('card', card, ledger, saved)
    except _validate.InputError as error:
      yield Check('card', _text(error), False)
    yield from _model(folder.saved_model)
  elif summary and summary['stop_reason'] not in ('interrupted', 'diverged'):
    yield Check('saved_model', 'missing, though the run has ended', False)


def _guarded(
  what: str, checks: Callable[[], Iterator[Check]]
) -> Iterator[Check]:
  """Yields checks of a file; one failed check if the file cannot be read."""
  try:
    yield from checks()
  except (FileNotFoundError, _validate.InputError) as error:
    yield Check(what, _text(error), False)


def _ledger_epsilon(ledger: ledger_contents.Contents) -> Iterator[Check]:
  try:
    event = events.parse_event(str(ledger.header.get('event')))
    before = _event_before(ledger.header)
    delta = float(ledger.header['delta'])
    _validate.in_range(0, 1, delta=delta)
  except (KeyError, TypeError, ValueError) as error:
    yield Check('ledger: event', _text(error), False)
    return
  step = max(1, len(ledger.entries) // _MAX_ENTRIES)
  chosen = [*ledger.entries[::-step]][::-1]
  try:
    wrong = [
      entry
      for entry in chosen
      if not _agrees(entry.epsilon, event, entry.charges, delta, before)
    ]
  except _validate.InputError as error:
    yield Check('ledger: ε from its events', _text(error), False)
    return
  last = (
    ledger.entries[-1].epsilon
    if ledger.entries
    else _computed(event, 0, delta, before)
  )
  yield Check(
    'ledger: ε from its events',
    f'round {wrong[0].round_num} states ε {wrong[0].epsilon:.6g}'
    if wrong
    else f'ε {last:.6g} at δ {delta:.3g}, {len(chosen)} entries computed',
    not wrong,
  )
  yield from _header_fits(ledger.header, event)
  if ledger.header.get('epsilon_budget') is not None:
    budget = _number(ledger.header['epsilon_budget'])
    yield Check(
      'ledger: budget',
      f'ε {last:.6g} of {budget:.6g}',
      all(e.restored_from or e.epsilon <= budget for e in ledger.entries),
    )


def _event_before(
  stated: Mapping[str, Any],
) -> dp_accounting.DpEvent | None:
  """Returns the event that a ledger or card states before the first round.

  Raises:
    InputError: There is no such event, or it is not that of the class counts.
  """
  if not any(key in stated for key in ('event_before', 'class_counts')):
    return None
  counts = class_counts.ClassCounts.of(dict(stated))
  event = events.parse_event(str(stated.get('event_before')))
  if counts is None or counts.release.event() != event:
    raise _validate.InputError(
      f'the event before the first round ({event}) is not that of the class '
      'counts; restore the file'
    )
  return event


def _computed(
  event: dp_accounting.DpEvent,
  charges: int,
  delta: float,
  before: dp_accounting.DpEvent | None,
) -> float:
  """Returns the epsilon of an event from a file, which may be any event.

  Raises:
    InputError: The event belongs to no mechanism, or there are too many
      charges.
  """
  with _event_errors(event, charges):
    return accounting.epsilon(event, rounds=charges, delta=delta, before=before)


def _agrees(
  stated: float,
  event: dp_accounting.DpEvent,
  charges: int,
  delta: float,
  before: dp_accounting.DpEvent | None,
) -> bool:
  """Returns whether a stated epsilon is that of an event from a file.

  It may be that of an earlier version. See `stated_epsilon.agrees`.

  Raises:
    InputError: As `_computed` says.
  """
  with _event_errors(event, charges):
    costs = events.with_before(event, charges, before)
    return stated_epsilon.agrees(stated, costs, delta=delta)


@contextlib.contextmanager
def _event_errors(event: dp_accounting.DpEvent, charges: int) -> Iterator[None]:
  """Turns the errors of computing an epsilon into an `InputError`."""
  if charges > events.MAX_COUNT:
    raise _validate.InputError(
      f'{charges} charges are more than any run has ({events.MAX_COUNT:,})'
    )
  try:
    yield
  except (
    ArithmeticError,
    MemoryError,
    TypeError,
    ValueError,
    dp_accounting.UnsupportedEventError,
  ) as error:
    raise _validate.InputError(
      f'no ε can be computed for {event} ({_text(error)})'
    ) from None


def _header_fits(
  header: Mapping[str, Any], event: dp_accounting.DpEvent
) -> Iterator[Check]:
  """Yields checks of the described mechanism against the charged event."""
  inner = getattr(event, 'event', event)
  # A plain Gaussian is the event of all units in every round.
  everybody = 1.0 if isinstance(event, dp_accounting.GaussianDpEvent) else None
  for name, stated in (
    ('noise_multiplier', getattr(inner, 'noise_multiplier', None)),
    ('sampling_rate', getattr(event, 'sampling_probability', everybody)),
  ):
    # The events of trees and of discrete noise have other parameters.
    if stated is not None and 'tree_height' not in header:
      yield Check(
        f'ledger: {name} of mechanism and event',
        f'{header.get(name)} and {stated}',
        header.get(name) == stated,
      )


def _config(
  folder: run_folder.RunFolder, ledger: ledger_contents.Contents
) -> Iterator[Check]:
  config = folder.read_config()
  yield _same('config.json: run', config.run_id, ledger.run_id)


def _metrics(
  folder: run_folder.RunFolder, ledger: ledger_contents.Contents
) -> Iterator[Check]:
  rows = metrics_table.read(folder.metrics)
  by_round: dict[int, set[float]] = {}
  for entry in ledger.entries:
    if not entry.restored_from:
      by_round.setdefault(entry.round_num, set()).add(entry.epsilon)
  wrong = [
    n
    for n, row in rows.items()
    if 'epsilon' in row
    and n in by_round
    and not any(_close(row['epsilon'], e) for e in by_round[n])
  ]
  last = max(rows, default=0)
  last_charged = max((e.round_num for e in ledger.entries), default=0)
  yield Check(
    'metrics.csv: ε by round',
    f'round {wrong[0]} states another ε than the ledger'
    if wrong
    else f'{len(rows)} rounds',
    not wrong and last <= last_charged,
  )


def _newest(folder: run_folder.RunFolder) -> checkpoints.Record:
  """Returns the record of the newest checkpoint."""
  rounds = (
    checkpoints.rounds_in(folder.checkpoints)
    if folder.checkpoints.is_dir()
    else []
  )
  if not rounds:
    raise FileNotFoundError('there is none')
  name = checkpoints.file_name(rounds[-1])
  return checkpoints.read(folder.checkpoints / name)[1]


def _checkpoint(
  saved: checkpoints.Record, ledger: ledger_contents.Contents
) -> Iterator[Check]:
  yield _same('checkpoint: run', saved.run_id, ledger.run_id)
  charges = ledger.entries[-1].charges if ledger.entries else 0
  is_same_history = ledger_contents.is_one_history(
    ledger.header_digest, ledger.entries, saved.ledger_digests
  )
  yield Check(
    'checkpoint: charges in the ledger',
    f'round {saved.round_num}, {saved.charges} charges of {charges}'
    + ('' if is_same_history else '; the ledger took another way since'),
    is_same_history and saved.charges <= charges,
  )


def _stated(
  name: str,
  stated: Mapping[str, Any],
  ledger: ledger_contents.Contents,
  saved: checkpoints.Record | None,
) -> Iterator[Check]:
  """Yields checks of a summary or a card against ledger and checkpoint."""
  last = ledger.entries[-1] if ledger.entries else None
  for key, in_ledger in (
    ('run_id', ledger.run_id),
    ('ledger_sha256', ledger.digest),
    ('charges', last.charges if last else 0),
    ('rounds_charged', last.attempt if last else 0),
    ('delta', ledger.header.get('delta')),
  ):
    yield _same(f'{name}: {key}', stated.get(key), in_ledger)
  epsilon = _number(stated.get('epsilon'))
  yield Check(
    f'{name}: ε',
    f'{epsilon:.6g}, ledger {last.epsilon if last else 0.0:.6g}',
    last is not None and _close(epsilon, last.epsilon),
  )
  if 'charge_event' in stated:
    yield _same(
      f'{name}: event', stated['charge_event'], ledger.header.get('event')
    )
    for key in ('event_before', 'class_counts'):
      if key in stated or key in ledger.header:
        yield _same(f'{name}: {key}', stated.get(key), ledger.header.get(key))
  if saved is not None:
    yield _same(f'{name}: rounds', stated.get('rounds'), saved.round_num)
    yield _same(
      f'{name}: weights of the checkpoint',
      stated.get('weights_sha256'),
      saved.weights_digest,
    )


def _model(path: pathlib.Path) -> Iterator[Check]:
  """Yields checks of an exported model without the rest of its run."""
  try:
    card = export.load_card(path)
    weights = pretrained.read_weights(path)
  except _validate.InputError as error:
    yield Check('saved_model', _text(error), False)
    return
  yield _same(
    'saved_model: weights of the card',
    checkpoints.weights_digest(weights),
    card.get('weights_sha256'),
  )
  if card['epsilon'] == 'inf':
    yield Check('card: guarantee', 'none: ε is infinite', True)
    return
  try:
    event = events.parse_event(str(card.get('charge_event')))
    charges = _validate.count(card.get('charges'), 'charges')
    before = _event_before(card)
    epsilon = _computed(event, charges, card['delta'], before)
    agrees = _agrees(
      _number(card['epsilon']), event, charges, card['delta'], before
    )
  except _validate.InputError as error:
    yield Check('card: ε from its event', _text(error), False)
    return
  yield Check(
    'card: ε from its event',
    f'{card["epsilon"]:.6g} stated, {epsilon:.6g} computed for {charges} '
    'charges',
    agrees and not (card['rounds'] and not charges),
  )


def _same(what: str, first: object, second: object) -> Check:
  if first == second:
    return Check(what, _short(first), True)
  return Check(what, f'{_short(first)} and {_short(second)}', False)


def _short(value: object) -> str:
  text = str(value)
  return text if len(text) <= 40 else f'{text[:16]}...'


def _close(first: float, second: float) -> bool:
  return first == second or math.isclose(
    first, second, rel_tol=_RELATIVE_DIFFERENCE
  )


def _number(value: Any) -> float:
  try:
    return float(value)
  except (TypeError, ValueError):
    return math.nan


def _text(error: BaseException) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


def table(checks: Sequence[Check]) -> str:
  """Returns the checks as aligned text, one line each."""
  width = max(len(check.what) for check in checks)
  return '\n'.join(
    f'{"ok   " if c.is_right else "WRONG"}  {c.what:<{width}}  {c.found}'
    for c in checks
  )
