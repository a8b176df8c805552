"""Verification of a data ledger from its file, and of runs against it.

The chain of digests is replayed, and the total epsilon is computed again from
the events of all runs. A run's folder is checked against its entry: its own
ledger must not hold more charges than the data ledger has for it. Nothing is
written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import os
import pathlib

import dp_accounting

from tff_medical import _validate
from tff_medical.auditing import verification
from tff_medical.privacy import accounting
from tff_medical.privacy import data_ledger_contents
from tff_medical.privacy import ledger_contents
from tff_medical.privacy import stated_epsilon
from tff_medical.program import run_folder

_SHORT = 8


def verify(
  path: str | os.PathLike[str], folders: Sequence[str | os.PathLike[str]] = ()
) -> list[verification.Check]:
  """Returns the checks of a data ledger, and of runs that it holds.

  Args:
    path: File of the data ledger.
    folders: The `--output_dir` of runs on the data.

  Raises:
    InputError: There is no such file, or a folder is not that of a run.
  """
  try:
    book = data_ledger_contents.read(path)
  except FileNotFoundError:
    raise _validate.InputError(
      f'data_ledger {os.fspath(path)} does not exist; give the file of '
      '--data_ledger'
    ) from None
  except _validate.InputError as error:
    return [verification.Check('data ledger', str(error), False)]
  return list(_checks(book, folders))


def _checks(
  book: data_ledger_contents.Book, folders: Sequence[str | os.PathLike[str]]
) -> Iterator[verification.Check]:
  yield verification.Check(
    'data ledger: chain of digests',
    f'{len(book.entries)} entries, {book.digest[:16]}...',
    bool(book.header),
  )
  if not book.header:
    return
  total = book.epsilon
  last = book.entries[-1].epsilon if book.entries else 0.0
  yield verification.Check(
    'data ledger: ε from its events',
    f'{last:.6g} stated, {total:.6g} computed at δ {book.delta:.3g}',
    stated_epsilon.agrees(last, book.costs(), delta=book.delta),
  )
  yield verification.Check(
    'data ledger: budget',
    f'ε {total:.6g} of {book.budget:g}',
    # Earlier versions may have reserved by the tighter epsilon.
    total <= book.budget
    or accounting.composed_epsilon(book.costs(), delta=book.delta, tight=True)
    <= book.budget,
  )
  for folder in folders:
    yield _run(book, pathlib.Path(folder))


def _run(
  book: data_ledger_contents.Book, folder: pathlib.Path
) -> verification.Check:
  """Returns the check of a run's own ledger against its entry."""
  what = f'{folder}: charges in the data ledger'
  try:
    ledger = ledger_contents.read(run_folder.RunFolder(folder).ledger)
  except FileNotFoundError:
    raise _validate.InputError(
      f'{folder} holds no ledger of a run; give the --output_dir of '
      'experiments.train'
    ) from None
  except _validate.InputError as error:
    return verification.Check(what, str(error), False)
  entry = book.runs.get(ledger.run_id)
  if entry is None:
    return verification.Check(what, f'run {ledger.run_id} is missing', False)
  charges = ledger.entries[-1].charges if ledger.entries else 0
  events = (ledger.header.get('event'), ledger.header.get('event_before', ''))
  settled = book.settled(ledger.run_id)
  digests = {ledger.header_digest, *(e.digest for e in ledger.entries)}
  if (entry.event, entry.before) != events:
    problem = ', of other events'
  elif settled is not None and settled.ledger_digest not in digests:
    problem = ', settled with another copy of this ledger'
  else:
    problem = ''
  return verification.Check(
    what,
    f'{charges} of {entry.charges} {entry.kind}{problem}',
    charges <= entry.charges and not problem,
  )


def table(book: data_ledger_contents.Book) -> str:
  """Returns the runs of a data ledger as aligned text, one line each.

  `alone` is the epsilon of the run, `together` that of all runs up to it.
  """
  rows = [('run', 'purpose', 'state', 'charges', 'alone', 'together', 'event')]
  charges: list[tuple[dp_accounting.DpEvent, int]] = []
  for run_id, entry in book.runs.items():
    charges.extend(entry.costs())
    alone = accounting.composed_epsilon(entry.costs(), delta=book.delta)
    together = accounting.composed_epsilon(charges, delta=book.delta)
    rows.append(
      (
        run_id[:_SHORT],
        entry.purpose,
        entry.kind,
        f'{entry.charges:,}',
        f'{alone:.4f}',
        f'{together:.4f}',
        f'{entry.before} + {entry.event}' if entry.before else entry.event,
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
    '  '.join(
      cell.rjust(width) if 3 <= index <= 5 else cell.ljust(width)
      for index, (cell, width) in enumerate(zip(row, widths))
    ).rstrip()
    for row in rows
  ]
  return '\n'.join(
    [
      f'{book.header["dataset"]}, unit: {book.header["privacy_unit"]}, '
      f'δ {book.delta:.3g}, budget ε {book.budget:g}',
      *lines,
      f'ε over all runs on this data: {book.epsilon:.4f} of {book.budget:g}',
    ]
  )
