"""Verifies the claims of a run or an exported model, for an auditor.

    python -m experiments.verify runs/first
    python -m experiments.verify runs/first/saved_model
    python -m experiments.verify --data_ledger=FILE runs/first runs/second

The command needs neither the data nor the settings of the run, and writes no
file. It replays the ledger's chain, computes ε again from the events, and
compares ledger, checkpoint, summary, card, metrics and exported weights. It
prints one line per check. Exit code 1 says that a check failed.

With --data_ledger it prints the runs of a data ledger, with ε of each and of
all together, and checks that no given run has charged more than it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import pathlib
import sys

from absl import flags as absl_flags

from experiments.running import command
from tff_medical import _validate

if __name__ == '__main__':
  _DATA_LEDGER = absl_flags.DEFINE_string(
    'data_ledger', None, 'ledger of a data set, whose runs are printed'
  )
  command.parse(takes_arguments=True)

from experiments.config import fields
from tff_medical.auditing import data_verification
from tff_medical.auditing import verification
from tff_medical.privacy import data_ledger_contents

EXIT_DIFFERS = 1


def main(data_ledger: str | None, arguments: Sequence[str]) -> int:
  """Prints the checks of folders; returns the exit code.

  Args:
    data_ledger: File of a data ledger, or None.
    arguments: Folders of runs that the data ledger holds; without it one
      folder, that of a run or an exported model.
  """
  if data_ledger is not None:
    path = pathlib.Path(fields.local_path('data_ledger', data_ledger))
    checks = data_verification.verify(path, arguments)
    if checks[0].is_right:
      print(data_verification.table(data_ledger_contents.read(path)))
    return _print(checks)
  if len(arguments) != 1:
    raise _validate.InputError(
      'arguments must be one folder, that of a run or its saved_model, got '
      f'{len(arguments)} arguments'
    )
  return _print(verification.verify(arguments[0]))


def _print(checks: Sequence[verification.Check]) -> int:
  """Prints checks and how many failed; returns the exit code."""
  print(verification.table(checks))
  wrong = sum(not check.is_right for check in checks)
  print(
    f'{wrong} of {len(checks)} checks failed: do not rely on what is stated.'
    if wrong
    else f'All {len(checks)} checks hold.'
  )
  sys.stdout.flush()
  return EXIT_DIFFERS if wrong else 0


if __name__ == '__main__':
  command.run(functools.partial(main, _DATA_LEDGER.value), takes_arguments=True)
