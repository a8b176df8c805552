"""Verifies the claims of a run or an exported model, for an auditor.

    python -m experiments.verify runs/first
    python -m experiments.verify runs/first/saved_model

The command needs neither the data nor the settings of the run, and writes no
file. It replays the ledger's chain, computes ε again from the events, and
compares ledger, checkpoint, summary, card, metrics and exported weights. It
prints one line per check. Exit code 1 says that a check failed.
"""

from __future__ import annotations

from collections.abc import Sequence
import sys

from experiments.running import command
from tff_medical import _validate

if __name__ == '__main__':
  command.parse(takes_arguments=True)

from tff_medical.auditing import verification

EXIT_DIFFERS = 1


def main(arguments: Sequence[str]) -> int:
  """Prints the checks of a folder, the only argument; returns the exit code."""
  if len(arguments) != 1:
    raise _validate.InputError(
      'arguments must be one folder, that of a run or its saved_model, got '
      f'{len(arguments)} arguments'
    )
  checks = verification.verify(arguments[0])
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
  command.run(main, takes_arguments=True)
