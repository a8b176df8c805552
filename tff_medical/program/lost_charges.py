"""Charges that the ledger has lost, and files that the run published show.

A run may lose lines of its ledger, as when an older copy of the file is put
back. What metrics.csv, summary.json or the exported model then show was
released, and hence charged. It is charged again when the run is resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
import pathlib

from absl import logging

from tff_medical import _files
from tff_medical import _validate
from tff_medical.privacy import card_format
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.program import metrics_table
from tff_medical.program import run_folder


def restore(
  folder: run_folder.RunFolder, ledger: ledger_lib.PrivacyLedger
) -> None:
  """Restores charges that published files show and the ledger has lost.

  The training program does the same for the checkpoint that it resumes from.

  Args:
    folder: Folder of the run.
    ledger: Ledger of this folder.

  Raises:
    InputError: A file has another format than this run writes.
    OSError: A charge could not be written.
  """
  for what, rounds, attempts, charges in _evidence(folder, ledger.run_id):
    if ledger.restore(
      round_num=rounds, attempt=attempts, charges=charges, evidence=what
    ):
      logging.warning(
        '%s had lost charges that %s shows; they were put back: %d charges, '
        'ε %.4f',
        folder.ledger,
        what,
        ledger.charges,
        ledger.epsilon,
      )


def _evidence(
  folder: run_folder.RunFolder, run_id: str
) -> Iterator[tuple[str, int, int, int]]:
  """Yields the name, rounds, attempts and charges of each published file."""
  try:
    rounds = metrics_table.read(folder.metrics)
    yield folder.metrics.name, max(rounds, default=0), 0, 0
  except _validate.InputError as error:
    _set_aside(folder.metrics, error)
  try:
    done = folder.read_summary()
    if done.run_id in (run_id, ''):
      yield folder.summary.name, done.rounds, done.rounds_charged, done.charges
  except FileNotFoundError:
    pass
  except _validate.InputError as error:
    _set_aside(folder.summary, error)
  try:
    card = _files.read_json(folder.saved_model / 'assets' / card_format.FILE)
    if card.get('run_id') == run_id:
      counts = [_validate.count(card.get(name)) for name in card_format.COUNTS]
      yield f'{folder.saved_model.name}/', counts[0], counts[1], counts[2]
  except FileNotFoundError:
    pass
  except _validate.InputError as error:
    logging.warning('%s: the model is exported again', error)


def _set_aside(path: pathlib.Path, error: Exception) -> None:
  """Renames a damaged file that can be written again, with a warning."""
  if not path.is_file():
    raise error
  aside = path.with_name(f'{path.name}.damaged')
  path.replace(aside)
  logging.warning('%s: it was renamed to %s', error, aside.name)
