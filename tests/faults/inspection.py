"""What must hold of a run's folder, whatever happened to the run.

Each function runs in a forked child, returns sentences on what does not hold,
and takes the folder of `numpy_process.start` with the truth of that run.
"""

from __future__ import annotations

from collections.abc import Iterator
import csv
import json
import math
import pathlib
from typing import Any

from tests.faults import numpy_process
from tff_medical import _validate
from tff_medical.auditing import verification
from tff_medical.privacy import accounting
from tff_medical.privacy import ledger_contents
from tff_medical.program import published
from tff_medical.program import run_folder
from tff_medical.serving import export


def finished(
  folder: str,
  truth: str,
  rounds: int,
  temporary: str | None = None,
) -> list[str]:
  """Returns what is wrong with a run that only ever was killed."""
  run = run_folder.RunFolder(pathlib.Path(folder))
  told = numpy_process.Truth(truth)
  return [
    *_charges(run, told),
    *_published(run, told, rounds),
    *_stated(run, rounds),
    *_verified(folder),
    *_leftovers(run, temporary),
  ]


def stated(folder: str, truth: str, seen: str = 'saved') -> dict[str, Any]:
  """Returns what the folder states, and what was really released.

  Args:
    folder: The run's.
    truth: Of the run.
    seen: 'saved', or 'published' where nothing that is left can tell what was
      saved last.

  For runs whose files were tampered with: `epsilon` of summary and card, None
  where there is none, `released` by the truth, and repeated `attempts`.
  """
  run = run_folder.RunFolder(pathlib.Path(folder))
  lines = numpy_process.Truth(truth).lines(seen)
  released = list(dict.fromkeys(one['nonce'] for one in lines))
  epsilons = []
  rounds = 0
  try:
    summary = run.read_summary()
    epsilons.append(summary.epsilon)
    rounds = summary.rounds
  except (FileNotFoundError, _validate.InputError):
    pass
  try:
    card = export.load_card(run.saved_model)
    epsilons.append(float(card['epsilon']))
    rounds = max(rounds, card['rounds'])
  except _validate.InputError:
    pass
  cohorts = {}
  for one in numpy_process.Truth(truth).lines('ran'):
    cohorts[one['nonce']] = one['cohort']
  drawn = [cohorts[nonce] for nonce in released]
  return {
    'epsilon': min(epsilons, default=None),
    'rounds': rounds,
    'released': accounting.epsilon(
      numpy_process.event(), rounds=len(released), delta=numpy_process.DELTA
    ),
    'repeated': len(drawn) - len(set(drawn)),
    **verified(folder),
  }


def verified(folder: str) -> dict[str, Any]:
  """Returns what `verification.verify` says: its wrong checks, or its error."""
  try:
    checks = verification.verify(folder)
  except _validate.InputError as error:
    return {'refused': str(error), 'wrong': []}
  return {'wrong': [f'{c.what}: {c.found}' for c in checks if not c.is_right]}


def _charges(
  run: run_folder.RunFolder, truth: numpy_process.Truth
) -> Iterator[str]:
  """Yields what the ledger lacks of what was drawn and released."""
  ledger = ledger_contents.read(run.ledger)
  ran, saved = truth.lines('ran'), truth.lines('saved')
  charges = ledger.entries[-1].charges if ledger.entries else 0
  # A machine that loses its power in a round may lose the round's charge with
  # it. The round is then run again, under the same charge: nothing was saved.
  attempts = len({one['attempt'] for one in ran})
  if charges < attempts:
    yield f'{charges} charges for {attempts} attempts that drew noise'
  paid = {entry.attempt: entry.round_num for entry in ledger.entries}
  for one in ran:
    if paid.get(one['attempt']) != one['round']:
      yield f'{one} was not paid for by an entry of its own'
  cohorts = {one['nonce']: one['cohort'] for one in ran}
  if len(cohorts) < len(ran):
    yield 'two rounds drew the same noise'
  for name, values in (
    ('attempt', [one['attempt'] for one in saved]),
    ('nonce', [one['nonce'] for one in saved]),
    ('cohort', [cohorts[one['nonce']] for one in saved]),
  ):
    if len(set(values)) < len(values):
      yield f'two saved rounds have the same {name}'
  if any(entry.restored_from for entry in ledger.entries):
    yield 'charges were put back, though no charge was lost'
  exact = accounting.epsilon(
    numpy_process.event(), rounds=charges, delta=numpy_process.DELTA
  )
  if ledger.entries and ledger.entries[-1].epsilon != exact:
    yield f'ε {ledger.entries[-1].epsilon} is not that of {charges} charges'


def _published(
  run: run_folder.RunFolder, truth: numpy_process.Truth, rounds: int
) -> Iterator[str]:
  """Yields what metrics.csv and TensorBoard's files lack."""
  last = {one['round']: one for one in truth.lines('saved')}
  with open(run.metrics, newline='', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  if [row['round'] for row in rows] != [str(n + 1) for n in range(rounds)]:
    yield f'metrics.csv has the rounds {[row["round"] for row in rows]}'
    return
  events = published.read_events(run.tensorboard)
  for row in rows:
    number = int(row.pop('round'))
    found = {name: float(value) for name, value in row.items() if value}
    wanted = dict(last[number]['values'])
    if last[number]['evaluates']:
      wanted['validation/auc'] = last[number]['norm']
    if found != wanted:
      yield f'metrics.csv round {number}: {found}, not {wanted}'
    there = events.get(number, {})
    if there.keys() != wanted.keys() or not all(
      math.isclose(there[name], wanted[name], rel_tol=1e-6) for name in wanted
    ):
      yield f'tensorboard round {number}: {there}, not {wanted}'
  if set(events) != {n + 1 for n in range(rounds)}:
    yield f'tensorboard has the rounds {sorted(events)}'


def _stated(run: run_folder.RunFolder, rounds: int) -> Iterator[str]:
  """Yields where summary and card differ from the ledger."""
  ledger = ledger_contents.read(run.ledger)
  last = ledger.entries[-1]
  summary = json.loads(run.summary.read_text())
  for name, values in (
    ('summary', summary),
    ('card', export.load_card(run.saved_model)),
  ):
    for key, wanted in (
      ('rounds', rounds),
      ('epsilon', last.epsilon),
      ('charges', last.charges),
      ('rounds_charged', last.attempt),
      ('ledger_sha256', ledger.digest),
      ('run_id', ledger.run_id),
    ):
      if values.get(key) != wanted:
        yield f'{name}: {key} is {values.get(key)}, not {wanted}'


def _verified(folder: str) -> Iterator[str]:
  found = verified(folder)
  if 'refused' in found:
    yield f'verify refused: {found["refused"]}'
  for one in found['wrong']:
    yield f'verify: {one}'


def _leftovers(
  run: run_folder.RunFolder, temporary: str | None
) -> Iterator[str]:
  """Yields what killed processes have left."""
  for path in run.path.rglob('*'):
    if path.name.endswith(('.partial', '.damaged')) or path.name[0] == '.':
      yield f'{path.relative_to(run.path)} was left'
  if temporary is not None:
    for path in pathlib.Path(temporary).iterdir():
      if path.name.startswith('__autograph_generated_file'):
        continue  # TensorFlow's own, of a trace that was killed.
      yield f'{path.name} was left among temporary files'
