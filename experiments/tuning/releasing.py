"""What a search releases: the best trial with the card of the whole search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import pathlib
import shutil
from typing import Any

import dp_accounting

from experiments.running import cells
from experiments.tuning import search as search_lib
from experiments.tuning import tuning_folder
from tff_medical import _files
from tff_medical import _validate
from tff_medical.privacy import data_ledger_contents
from tff_medical.privacy import events
from tff_medical.program import run_folder
from tff_medical.reporting import run_tables

# Name of the cell that evaluates a copy of the best trial on test images.
_ON_TEST = 'best_on_test'


def on_test(
  tuning: tuning_folder.Tuning, training: cells.Training
) -> cells.Training:
  """Returns the training that evaluates a copy of a trial on test images.

  It goes on with a run that has ended, so that nothing is trained or charged.
  The trial itself stays as it was chosen.
  """
  source = pathlib.Path(training.flags.output_dir or '')
  target = cells.cell_folder(tuning.trials_folder, _ON_TEST)
  if not target.exists():
    partial = target.with_name(f'{target.name}{_files.PARTIAL_SUFFIX}')
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)
  changed = training.flags.changed(
    eval_split=tuning.base.eval_split, output_dir=str(target)
  )
  return cells.Training(_ON_TEST, changed)


def composed_event(
  book: data_ledger_contents.Book, run_ids: Sequence[str]
) -> dp_accounting.DpEvent:
  """Returns the event of all that runs were charged in a data ledger.

  Raises:
    InputError: The ledger lacks a run.
  """
  missing = [run_id for run_id in run_ids if run_id not in book.runs]
  if missing:
    raise _validate.InputError(
      f'the data_ledger lacks run {missing[0]}; restore the file'
    )
  return events.composed_event(
    cost for run_id in run_ids for cost in book.runs[run_id].costs()
  )


def release(
  cell: str,
  target: str,
  event: str,
  described: Mapping[str, Any],
  data_ledger: str | None,
) -> dict[str, Any]:
  """Copies the best model with the card of the search; returns the card.

  Args:
    cell: Folder of the best trial.
    target: Folder of the released model.
    event: Event of the whole search, as text.
    described: The search, for the card.
    data_ledger: File of the ledger of the data set, if there is one.
  """
  # These import TensorFlow, which only a child process may do.
  from tff_medical.privacy import card as card_lib
  from tff_medical.serving import export

  source = run_folder.RunFolder(pathlib.Path(cell)).saved_model
  card = card_lib.of_the_best(
    export.load_card(source),
    event=events.parse_event(event),
    tuning=described,
    data_ledger=data_ledger_contents.read(data_ledger) if data_ledger else None,
  )
  export.copy_with_card(source, target, card)
  return export.load_card(target)


def flag_file(
  tuning: tuning_folder.Tuning,
  training: cells.Training,
  candidate: search_lib.Candidate,
  epsilon: float,
) -> str:
  """Returns best.flags: the settings of the best trial, as flags of train."""
  unfit = dict.fromkeys(
    ('output_dir', 'data_ledger', 'data_budget', 'epsilon_budget', 'eval_split')
  )
  chosen = ', '.join(f'{name}={value}' for name, value in candidate)
  return '\n'.join(
    [
      f'# Best by validation {tuning.search.metric}: {chosen}.',
      f'# The search cost ε {run_tables.round_up(epsilon, 4)}, which the model',
      '# beside this file states. Another training with these flags adds its ε.',
      *training.flags.changed(**unfit).arguments(),
      '',
    ]
  )
