"""Contents of the ledger of a data set: what each run reserved or settled.

`read` checks a file and changes nothing. `Book` composes the charges of all
runs. `data_ledger.DataLedger` is what reserves, settles and writes the file.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import itertools
import math
import os
import pathlib
import secrets
from typing import Any

from tff_medical import _files
from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import events
from tff_medical.privacy import ledger_file

FORMAT = 1
KIND = 'data_ledger'
REMEDY = 'give another data_ledger'
RESERVED, SETTLED = 'reserved', 'settled'


@dataclasses.dataclass(frozen=True)
class Entry:
  """One line of the file after the header.

  Attributes:
    kind: `RESERVED` or `SETTLED`.
    run_id: Identity of the run.
    purpose: Command of the run.
    event: Event of one charge, as text.
    charges: Number of all charges of the run, which replaces that of its
      earlier lines.
    epsilon: Epsilon of all runs with this line.
    before: Event that is paid for once before the first charge, as text; '' if
      there is none.
    ledger_digest: Digest of the run's own ledger; '' before it has settled.
    digest: SHA-256, in hexadecimal, that commits to the file up to this line.
  """

  kind: str
  run_id: str
  purpose: str
  event: str
  charges: int
  epsilon: float
  before: str = ''
  ledger_digest: str = ''
  digest: str = ''

  @classmethod
  def of(cls, line: ledger_file.Line) -> Entry:
    """Returns the entry of a line.

    Raises:
      KeyError: A required value is missing.
      TypeError: A value is of another type.
      ValueError: A value is out of range.
    """
    record = line.record
    entry = cls(
      kind=str(record['kind']),
      run_id=str(record['run_id']),
      purpose=str(record['purpose']),
      event=str(record['event']),
      charges=ledger_file.whole(record['charges']),
      epsilon=float(record['epsilon']),
      before=str(record.get('event_before', '')),
      ledger_digest=str(record.get('ledger_sha256', '')),
      digest=line.digest,
    )
    _validate.one_of((RESERVED, SETTLED), kind=entry.kind)
    entry.costs()  # Raises if an event is none.
    if not 0 <= entry.charges <= events.MAX_COUNT:
      raise ValueError(f'{entry.charges} charges')
    if math.isnan(entry.epsilon) or entry.epsilon < 0 or not entry.run_id:
      raise ValueError(f'epsilon is {entry.epsilon}, run {entry.run_id!r}')
    return entry

  def costs(self) -> events.Charges:
    """Returns all that the run was charged."""
    return events.with_before(
      events.parse_event(self.event),
      self.charges,
      events.parse_event(self.before) if self.before else None,
    )

  def record(self) -> dict[str, Any]:
    """Returns the values of the line, without the digest."""
    return {
      'kind': self.kind,
      'run_id': self.run_id,
      'purpose': self.purpose,
      'event': self.event,
      'charges': self.charges,
      'epsilon': _files.plain_json(self.epsilon),
      **({'event_before': self.before} if self.before else {}),
      **({'ledger_sha256': self.ledger_digest} if self.ledger_digest else {}),
      # Two copies of the file that both go on have different digests.
      'nonce': secrets.token_hex(16),
    }


@dataclasses.dataclass(frozen=True)
class Book:
  """Contents of a data ledger whose chain of digests was checked.

  Attributes:
    header: First line, without digest.
    entries: Entries of all further lines.
    digest: SHA-256, in hexadecimal, that commits to the whole file.
  """

  header: Mapping[str, Any]
  entries: tuple[Entry, ...] = ()
  digest: str = ''

  @property
  def budget(self) -> float:
    """Largest epsilon of all runs together."""
    return float(self.header['budget'])

  @property
  def delta(self) -> float:
    """Delta at which the total epsilon is stated."""
    return float(self.header['delta'])

  @property
  def runs(self) -> dict[str, Entry]:
    """Last entry of each run, by its id, in the order of first entries."""
    return {entry.run_id: entry for entry in self.entries}

  @property
  def epsilon(self) -> float:
    """Epsilon of all runs together."""
    return self.epsilon_with({})

  def epsilon_with(self, changed: Mapping[str, events.Charges]) -> float:
    """Returns the total epsilon if some runs had other charges.

    Args:
      changed: What a run is charged, by the id of the run, which may be new.
    """
    return accounting.composed_epsilon(self.costs(changed), delta=self.delta)

  def costs(
    self, changed: Mapping[str, events.Charges] | None = None
  ) -> events.Charges:
    """Returns the events of all runs and their numbers.

    Args:
      changed: What a run is charged instead, by the id of the run.
    """
    costs = {run_id: entry.costs() for run_id, entry in self.runs.items()}
    return [*itertools.chain(*{**costs, **(changed or {})}.values())]

  def charges(self, run_id: str) -> int:
    """Returns the number of charges that a run has reserved or settled."""
    entry = self.runs.get(run_id)
    return entry.charges if entry else 0

  def settled(self, run_id: str) -> Entry | None:
    """Returns the last entry with which a run was settled, if any."""
    for entry in reversed(self.entries):
      if (entry.run_id, entry.kind) == (run_id, SETTLED):
        return entry
    return None

  def describe(self) -> dict[str, Any]:
    """Returns what a privacy card says of the runs on the same data."""
    return {
      'epsilon': self.epsilon,
      'delta': self.delta,
      'budget': self.budget,
      'runs': len(self.runs),
      'unit': self.header['privacy_unit'],
      'sha256': self.digest,
    }


def read(path: str | os.PathLike[str]) -> Book:
  """Returns the contents of a data ledger, without changing it.

  Raises:
    FileNotFoundError: There is no such file.
    InputError: The file is no data ledger of this version, or was changed.
  """
  return of(pathlib.Path(path), ledger_file.read(path, REMEDY))


def of(path: pathlib.Path, chain: ledger_file.Chain) -> Book:
  """Returns the contents of a data ledger from its lines.

  Args:
    path: File that the lines are from.
    chain: Lines of the file, whose digests were checked.

  Raises:
    InputError: The lines are not those of a data ledger of this version.
  """
  if not chain.lines:
    return Book({})
  header = chain.lines[0].record
  if header.get('kind') != KIND:
    raise _validate.InputError(
      f'{path} is no data ledger, perhaps the ledger of one run; {REMEDY}'
    )
  ledger_file.check_format(path, header, FORMAT, REMEDY)
  try:
    _validate.positive(budget=header['budget'])
    _validate.in_range(0, 1, delta=header['delta'])
    key_of(header)
  except (KeyError, TypeError, ValueError) as error:
    raise ledger_file.no_entry(path, 1, error, REMEDY) from None
  entries = []
  for line in chain.lines[1:]:
    try:
      entries.append(Entry.of(line))
    except (KeyError, TypeError, ValueError) as error:
      raise ledger_file.no_entry(path, line.number, error, REMEDY) from None
  return Book(header, tuple(entries), chain.lines[-1].digest)


def key_of(header: Mapping[str, Any]) -> bytes:
  """Returns the secret of the file, by which its digests are keyed."""
  return bytes.fromhex(header['key'])
