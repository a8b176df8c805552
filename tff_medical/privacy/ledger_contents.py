"""Contents of the privacy ledger: its entries, read and checked.

`read` checks a file without knowledge of the mechanism. `is_one_history` tells
whether a ledger continues an earlier one. `ledger.PrivacyLedger` is what
charges rounds and writes the file; nothing here does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os
import pathlib
from typing import Any

from tff_medical import _files
from tff_medical.privacy import events
from tff_medical.privacy import ledger_file

FORMAT = 2
REMEDY = 'choose another output_dir'
# Number of lines that a ledger may lose and still be recognised as the same.
_HISTORY = 256
_SHORT_DIGEST = 16


@dataclasses.dataclass(frozen=True)
class Entry:
  """One line of the ledger after the header.

  Attributes:
    round_num: Number of the round that was paid for, 1 for the first.
    attempt: Number of the attempt at a round, 1 for the first. It grows with
      every entry, whether or not a round is repeated. The cohort is drawn for
      it, so that a repeated round has a new cohort.
    charges: Number of charges of the run up to this line.
    epsilon: Total epsilon of these charges.
    state_digest: Digest of the state that the round started from; '' if
      unknown.
    restored_from: Evidence that the file had lost charges, if this entry
      restores them; '' for the entry of a round.
    nonce: Random text that makes the digest unique. If two copies of a run both
      go on, their entries differ.
    digest: SHA-256, in hexadecimal, that commits to the file up to this line.
  """

  round_num: int
  attempt: int
  charges: int
  epsilon: float
  state_digest: str = ''
  restored_from: str = ''
  nonce: str = ''
  digest: str = ''

  @classmethod
  def of(cls, record: Mapping[str, Any], digest: str) -> Entry:
    """Returns the entry of a line.

    Raises:
      KeyError: A required value is missing.
      TypeError: A value is of another type.
      ValueError: A value is out of range.
    """
    entry = cls(
      round_num=ledger_file.whole(record['round']),
      attempt=ledger_file.whole(record['attempt']),
      charges=ledger_file.whole(record['charges']),
      epsilon=float(record['epsilon']),
      state_digest=str(record.get('state_sha256', '')),
      restored_from=str(record.get('restored_from', '')),
      nonce=str(record.get('nonce', '')),
      digest=digest,
    )
    for count in (entry.round_num, entry.attempt, entry.charges):
      if count > events.MAX_COUNT:
        raise ValueError(f'{count} is above {events.MAX_COUNT:,}')
    if math.isnan(entry.epsilon) or entry.epsilon < 0:
      raise ValueError(f'epsilon is {entry.epsilon}')
    return entry

  def record(self) -> dict[str, Any]:
    """Returns the values of the entry's line, without the digest."""
    extra = {
      'state_sha256': self.state_digest,
      'restored_from': self.restored_from,
      'nonce': self.nonce,
    }
    return {
      'round': self.round_num,
      'attempt': self.attempt,
      'charges': self.charges,
      'epsilon': _files.plain_json(self.epsilon),
      **{name: value for name, value in extra.items() if value},
    }


@dataclasses.dataclass(frozen=True)
class Contents:
  """Contents of a ledger file whose chain of digests was checked.

  Attributes:
    header: First line, without digest and run id; empty for an empty file.
    run_id: Identity of the run, in hexadecimal.
    header_digest: Digest of the first line.
    entries: Entries of all further lines.
  """

  header: Mapping[str, Any]
  run_id: str
  header_digest: str
  entries: tuple[Entry, ...]

  @property
  def digest(self) -> str:
    """SHA-256, in hexadecimal, that commits to the whole file."""
    return self.entries[-1].digest if self.entries else self.header_digest


def read(path: str | os.PathLike[str]) -> Contents:
  """Returns the contents of a ledger file, without changing it.

  Raises:
    FileNotFoundError: There is no such file.
    InputError: The file is no ledger of this version, or was changed.
  """
  return of(pathlib.Path(path), ledger_file.read(path, REMEDY))


def of(path: pathlib.Path, chain: ledger_file.Chain) -> Contents:
  """Returns the contents of a ledger from its lines.

  Args:
    path: File that the lines are from.
    chain: Lines of the file, whose digests were checked.

  Raises:
    InputError: The lines are not those of a ledger of this version.
  """
  header: dict[str, Any] = {}
  entries: list[Entry] = []
  header_digest = ''
  for line in chain.lines:
    if line.number == 1:
      ledger_file.check_format(path, line.record, FORMAT, REMEDY)
      header, header_digest = line.record, line.digest
      continue
    try:
      entries.append(_follows(Entry.of(line.record, line.digest), entries))
    except (KeyError, TypeError, ValueError) as error:
      raise ledger_file.no_entry(path, line.number, error, REMEDY) from None
  return Contents(
    header=header,
    run_id=str(header.pop('run_id', '')),
    header_digest=header_digest,
    entries=tuple(entries),
  )


def last_digests(
  header_digest: str, entries: Sequence[Entry]
) -> tuple[str, ...]:
  """Returns the digests for `is_one_history`, newest first.

  Args:
    header_digest: Digest of the ledger's first line.
    entries: Entries of the ledger.
  """
  newest = [entry.digest for entry in entries[:-_HISTORY:-1]]
  return tuple(digest[:_SHORT_DIGEST] for digest in (*newest, header_digest))


def is_one_history(
  header_digest: str, entries: Sequence[Entry], digests: Sequence[str]
) -> bool:
  """Returns whether a ledger continues the one that `digests` were taken from.

  The ledger may have grown since. It may also have lost its last lines; an
  entry then states that charges were restored. If the entry of another round
  follows the last shared line, the files were copied and both copies went on.

  Args:
    header_digest: Digest of the ledger's first line.
    entries: Entries of the ledger.
    digests: `last_digests` at the earlier time.
  """
  ledger_digests = [
    d[:_SHORT_DIGEST] for d in (header_digest, *(e.digest for e in entries))
  ]
  if digests and digests[0] in ledger_digests:
    return True
  shared = max(
    (ledger_digests.index(d) for d in digests if d in ledger_digests),
    default=0,
  )
  following = entries[shared : shared + 1]
  return not following or bool(following[0].restored_from)


def _follows(entry: Entry, before: list[Entry]) -> Entry:
  """Returns the entry if it may follow the entries `before` it."""
  charges, attempt = (
    (before[-1].charges, before[-1].attempt) if before else (0, 0)
  )
  if entry.charges < charges or entry.attempt <= attempt - bool(
    entry.restored_from
  ):
    raise ValueError('charges and attempts must grow')
  if entry.round_num < 1 or entry.charges < 1:
    raise ValueError('a round of 1 or more must have a charge')
  return entry
