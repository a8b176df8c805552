"""The ledger: an append-only file of every round that was paid for.

A round is charged, and the charge is on disk (fsync), before the round runs,
so that nothing that was ever released is missing from the file, whatever
crashes. Some mechanisms are paid for several rounds at once, with the first of
them. A repeated round is charged again, and rounds that the file does not know
of are charged with the next one. A round that would pass the budget is refused.

The file has one JSON object a line. The first line is the header: the
mechanism, the event of one charge, delta, the budget and the run's id. Each
further line is an entry: the round, the number of the attempt, the charges so
far and the epsilon that they add up to. Each line carries the SHA-256 of all
lines before it, so that an auditor who holds the last digest can tell whether
the file was changed. `read` checks a file without any mechanism at hand.

A run without noise is kept in the same file, with the epsilon "inf".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import pathlib
import secrets
import types
from typing import Any

from tff_medical import _files
from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import interface

_FORMAT = 2
# How many lines a ledger may lose without being taken for another one.
_HISTORY = 256
_SHORT_DIGEST = 16
# No run has as many rounds or charges; a damaged file may state any number, and
# the epsilon of that of 1e9 would be computed for ever.
MAX_COUNT = 10**7


class BudgetExceededError(Exception):
  """The round was refused: with it, epsilon would exceed the budget."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """One line of the ledger after the header.

  Attributes:
    round_num: The round that was paid for, 1 for the first.
    attempt: The number of the attempt at a round, 1 for the first; it grows
      with every entry, whether or not a round is repeated. The cohort is drawn
      for it, so that a repeated round has a cohort of its own.
    charges: The charges of the run up to here.
    epsilon: The epsilon that they add up to.
    state_digest: The digest of the state that the round started from; '' where
      it is not known.
    restored_from: What showed that the file had lost charges, where this entry
      puts them back; '' for the entry of a round.
    nonce: Makes the digest the entry's own, so that of two copies of a run that
      both go on, each is known from the other.
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
    """Returns the entry of a line; raises KeyError, TypeError, ValueError."""
    entry = cls(
      round_num=_whole(record['round']),
      attempt=_whole(record['attempt']),
      charges=_whole(record['charges']),
      epsilon=float(record['epsilon']),
      state_digest=str(record.get('state_sha256', '')),
      restored_from=str(record.get('restored_from', '')),
      nonce=str(record.get('nonce', '')),
      digest=digest,
    )
    for count in (entry.round_num, entry.attempt, entry.charges):
      if count > MAX_COUNT:
        raise ValueError(f'{count} is above {MAX_COUNT:,}')
    if math.isnan(entry.epsilon) or entry.epsilon < 0:
      raise ValueError(f'epsilon is {entry.epsilon}')
    return entry

  def record(self) -> dict[str, Any]:
    """Returns the entry as the values of its line, without the digest."""
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
  """What a ledger file says, its chain of digests checked.

  Attributes:
    header: The first line, without digest and run id; empty for an empty file.
    run_id: The identity of the run, in hexadecimal.
    header_digest: The digest of the first line.
    entries: All further lines.
    size: The bytes of the whole lines, of which a torn last line is no part.
    last_line: The last of these lines.
  """

  header: Mapping[str, Any]
  run_id: str
  header_digest: str
  entries: tuple[Entry, ...]
  size: int
  last_line: bytes

  @property
  def digest(self) -> str:
    """SHA-256, in hexadecimal, that commits to the whole file."""
    return self.entries[-1].digest if self.entries else self.header_digest


def read(path: str | os.PathLike[str]) -> Contents:
  """Returns what a ledger file says; needs no mechanism and changes nothing.

  Raises:
    FileNotFoundError: There is no such file.
    InputError: It is no ledger of this version, or it was changed.
  """
  return _parse(pathlib.Path(path), _files.read_bytes(path))


def is_one_history(
  header_digest: str, entries: Sequence[Entry], digests: Sequence[str]
) -> bool:
  """Whether a ledger is the one that something else knows from earlier.

  It may have gone on since. It may have lost its last lines, too, and an entry
  then says that charges were put back. Where the entry of another round follows
  on the last line that both know, a copy of the files was made and both went on.

  Args:
    header_digest: The ledger's.
    entries: The ledger's.
    digests: `PrivacyLedger.last_digests` at that earlier time.
  """
  there = [
    d[:_SHORT_DIGEST] for d in (header_digest, *(e.digest for e in entries))
  ]
  if digests and digests[0] in there:
    return True
  shared = max((there.index(d) for d in digests if d in there), default=0)
  following = entries[shared : shared + 1]
  return not following or bool(following[0].restored_from)


class PrivacyLedger:
  """What a run has spent, kept in a file that this object holds locked.

  Use it as a context manager, or call `close`.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    mechanism: interface.Mechanism,
    *,
    delta: float,
    epsilon_budget: float | None = None,
    run_id: str | None = None,
  ):
    """Opens the ledger at `path`, or starts it.

    Args:
      path: The file; its folder exists.
      mechanism: What the rounds of the run release, and what they cost.
      delta: The delta, in (0, 1), at which epsilon is stated.
      epsilon_budget: No round may bring epsilon above it; None is no limit.
      run_id: The identity of the run, which an existing file must have; by
        default that of the file, or a new one.

    Raises:
      InputError: The file is a ledger of another mechanism, delta, budget or
        run, is not a ledger, was changed, or is in use by another run.
    """
    _validate.in_range(0, 1, delta=delta)
    if epsilon_budget is not None:
      _validate.positive(epsilon_budget=epsilon_budget)
    self._path = pathlib.Path(path)
    self._event = mechanism.charge_event()
    self._charges_for = mechanism.charges_for
    self._delta = delta
    self._budget = epsilon_budget
    self._entries: list[Entry] = []
    self._last_round = 0
    self._run_id = self._header_digest = ''
    self._size, self._last_line, self._changed_at = 0, b'', 0
    self._file = _open_regular(self._path)
    try:
      self._lock()
      header = {
        'format': _FORMAT,
        'delta': delta,
        'epsilon_budget': _files.plain_json(epsilon_budget),
        'event': repr(self._event),
        **mechanism.describe(),
      }
      self._start_or_resume(header, run_id)
    except BaseException:
      self._file.close()
      raise

  def __enter__(self) -> PrivacyLedger:
    return self

  def __exit__(
    self,
    exc_type: type[BaseException] | None,
    exc: BaseException | None,
    traceback: types.TracebackType | None,
  ) -> None:
    self.close()

  def close(self) -> None:
    """Closes the file and gives up its lock."""
    self._file.close()

  @property
  def run_id(self) -> str:
    """The identity of the run, in hexadecimal."""
    return self._run_id

  @property
  def entries(self) -> tuple[Entry, ...]:
    """Every entry of the file so far."""
    return tuple(self._entries)

  @property
  def charges(self) -> int:
    """The number of times that `charge_event` of the mechanism was paid for."""
    return self._entries[-1].charges if self._entries else 0

  @property
  def rounds_charged(self) -> int:
    """The number of the last attempt at a round: repeated rounds count again.

    Right after `charge` it is the number that the round's cohort is drawn for.
    """
    return self._entries[-1].attempt if self._entries else 0

  @property
  def delta(self) -> float:
    """The delta at which every epsilon of this ledger is stated."""
    return self._delta

  @property
  def digest(self) -> str:
    """SHA-256, in hexadecimal, that commits to the whole file."""
    return self._entries[-1].digest if self._entries else self._header_digest

  @property
  def epsilon(self) -> float:
    """Epsilon of all that was paid for."""
    return self._epsilon_of(self.charges)

  def rdp_epsilon(self) -> float:
    """Epsilon, by RDP, of all that was paid for."""
    return accounting.rdp_epsilon(
      self._event, rounds=self.charges, delta=self._delta
    )

  def seed_of_draws(self, cohort_seed: int) -> int:
    """Returns the seed for draws that each charge pays for.

    It is the run's own, until charges are put back: which attempts there were
    since the last line that was left is not known then, and their cohorts must
    not be drawn and released again as if they were new.
    """
    for entry in reversed(self._entries):
      if entry.restored_from:
        text = f'{cohort_seed} {entry.digest}'
        return int.from_bytes(hashlib.sha256(text.encode()).digest(), 'big')
    return cohort_seed

  def cost_between(self, first: int, last: int) -> int:
    """Returns the charges of the rounds after `first`, up to `last`, run once."""
    return self._charges_for(last) - self._charges_for(first)

  def last_digests(self) -> tuple[str, ...]:
    """Returns what `is_one_history` needs of this ledger, newest first."""
    newest = [entry.digest for entry in self._entries[:-_HISTORY:-1]]
    return tuple(
      digest[:_SHORT_DIGEST] for digest in (*newest, self._header_digest)
    )

  def is_one_history(self, digests: Sequence[str]) -> bool:
    """Whether this ledger is the one that `digests` were the last of."""
    return is_one_history(self._header_digest, self._entries, digests)

  def entry_of(self, attempt: int) -> Entry | None:
    """Returns the entry of an attempt; None where the file has lost it."""
    for entry in reversed(self._entries):
      if entry.attempt == attempt and not entry.restored_from:
        return entry
    return None

  def charge(self, round_num: int, *, state_digest: str = '') -> float:
    """Pays for a round; call it before anything of the round is released.

    Args:
      round_num: The round, 1 for the first; the same one again costs again.
      state_digest: The digest of the state that the round starts from, to bind
        that state to this ledger.

    Returns:
      Epsilon including this round.

    Raises:
      BudgetExceededError: The round must not run; nothing was charged.
      InputError: The file was replaced or changed by somebody else; the round
        must not run.
      OSError: The charge could not be written; the round must not run.
    """
    _validate.positive_int(round_num=round_num)
    charges = self.charges + self._due(round_num)
    epsilon = self._epsilon_of(charges)
    if self._budget is not None and epsilon > self._budget:
      raise BudgetExceededError(
        f'round {round_num} would bring ε to {epsilon:.4f}, above the budget '
        f'of {self._budget:g} at δ {self._delta:.3g}'
      )
    self._append(
      Entry(
        round_num=round_num,
        attempt=self.rounds_charged + 1,
        charges=charges,
        epsilon=epsilon,
        state_digest=state_digest,
        nonce=secrets.token_hex(16),
      )
    )
    return epsilon

  def restore(
    self,
    *,
    round_num: int,
    attempt: int,
    charges: int,
    evidence: str,
  ) -> bool:
    """Puts back charges that the file has lost, as something else shows.

    The budget does not matter here: what is put back was spent.

    Args:
      round_num: The last round that is known to have been released.
      attempt: The attempts at rounds that are known of.
      charges: The charges that are known of; never fewer than `round_num`
        rounds cost.
      evidence: What shows them, for whoever reads the file.

    Returns:
      Whether anything was missing.

    Raises:
      InputError: The file was replaced or changed by somebody else, or the
        evidence cannot be true.
      OSError: The entry could not be written.
    """
    if max(round_num, attempt, charges) > MAX_COUNT:
      raise _validate.InputError(
        f'{evidence} states more than {MAX_COUNT:,} rounds or '
        'charges, which no run has; restore or remove it, or choose another '
        'output_dir'
      )
    charges = max(
      charges, self._charges_for(round_num), min(attempt, 1), self.charges
    )
    attempt = max(attempt, round_num, self.rounds_charged)
    if (charges, attempt) == (self.charges, self.rounds_charged):
      return False
    self._append(
      Entry(
        round_num=max(round_num, self._last_round, 1),
        attempt=attempt,
        charges=charges,
        epsilon=self._epsilon_of(charges),
        restored_from=evidence,
        nonce=secrets.token_hex(16),
      )
    )
    return True

  def _due(self, round_num: int) -> int:
    """Returns how many charges the round costs; a repeated one at least one."""
    if round_num > self._last_round:
      return self._charges_for(round_num) - self._charges_for(self._last_round)
    own = self._charges_for(round_num) - self._charges_for(round_num - 1)
    return max(1, own)

  def _epsilon_of(self, charges: int) -> float:
    return accounting.epsilon(self._event, rounds=charges, delta=self._delta)

  def _lock(self) -> None:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise _validate.InputError(
        f'{self._path} is in use by another run; wait for it or choose '
        'another output_dir'
      ) from None

  def _append(self, entry: Entry) -> None:
    self._check_unchanged()
    self._write(entry.record())
    self._keep(dataclasses.replace(entry, digest=_digest_of(self._last_line)))

  def _keep(self, entry: Entry) -> None:
    self._entries.append(entry)
    self._last_round = max(self._last_round, entry.round_num)

  def _write(self, record: Mapping[str, Any]) -> None:
    """Appends a sealed line; it is on disk when this returns."""
    line = _seal(record, _digest_of(self._last_line))
    try:
      if self._file.write(line) != len(line):
        raise OSError(errno.ENOSPC, 'No space left on device', self._path)
      os.fsync(self._file.fileno())
    except OSError:
      self._file.truncate(self._size)
      raise
    self._size += len(line)
    self._last_line = line
    self._changed_at = os.fstat(self._file.fileno()).st_mtime_ns

  def _check_unchanged(self) -> None:
    """Refuses to write into a file that is no longer what was read.

    An editor or rsync puts a new file under the name: what would be written
    here would go to a file that nobody can see any more.
    """
    problem = ''
    own = os.fstat(self._file.fileno())
    try:
      there = os.stat(self._path)
    except OSError:
      problem = 'was removed'
    else:
      if (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino):
        problem = 'was replaced by another file'
      elif own.st_size != self._size or not self._is_as_written(own):
        problem = 'was changed'
    if problem:
      raise _validate.InputError(
        f'{self._path} {problem} while the run went on; no further round is '
        'run. Leave the file alone and start the same command again: what it '
        'has lost is charged again from the checkpoint'
      )

  def _is_as_written(self, status: os.stat_result) -> bool:
    """Whether the file, of the right size, says what was read and written.

    All of it is read only where its time of change shows a need, so that a
    charge costs the same however many there were.
    """
    read_all = status.st_mtime_ns != self._changed_at
    length = self._size if read_all else len(self._last_line)
    content = os.pread(self._file.fileno(), length, self._size - length)
    if not content.endswith(self._last_line):
      return False
    if read_all:
      try:
        _parse(self._path, content)
      except _validate.InputError:
        return False
      self._changed_at = status.st_mtime_ns
    return True

  def _start_or_resume(
    self, header: Mapping[str, Any], run_id: str | None
  ) -> None:
    self._file.seek(0)
    contents = _parse(self._path, self._file.read())
    self._size, self._last_line = contents.size, contents.last_line
    # A line torn by a crash while it was written: its round never ran.
    self._file.truncate(self._size)
    if not contents.header:
      # Two runs with the same settings must not have the same digests.
      self._run_id = run_id or secrets.token_hex(16)
      self._write({**header, 'run_id': self._run_id})
      _files.sync_folder(self._path.parent)
      self._header_digest = _digest_of(self._last_line)
      return
    _refuse_other_run(
      self._path, contents.header, json.loads(json.dumps(header))
    )
    if run_id not in (None, contents.run_id):
      raise _validate.InputError(
        f'{self._path} is the ledger of another run ({contents.run_id} there, '
        f'{run_id} in this folder); restore the file of this run or choose '
        'another output_dir'
      )
    self._run_id = contents.run_id
    self._header_digest = contents.header_digest
    for entry in contents.entries:
      self._keep(entry)


def _open_regular(path: pathlib.Path) -> Any:
  """Opens the ledger to read and append; creates it if it is missing."""
  # Opening a FIFO must not wait for whoever would write into it.
  flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
  try:
    descriptor = os.open(path, flags, 0o666)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
      raise
    raise _validate.InputError(
      f'{path} cannot be opened ({error.strerror}); put the ledger itself '
      'there or choose another output_dir'
    ) from None
  try:
    _files.check_regular(path, descriptor)
  except BaseException:
    os.close(descriptor)
    raise
  # Unbuffered: a failed write must not be tried again when the file closes.
  return os.fdopen(descriptor, 'a+b', buffering=0)


def _parse(path: pathlib.Path, content: bytes) -> Contents:
  """Returns what the bytes of a ledger say."""
  lines = content.splitlines(keepends=True)
  if lines and lines[-1].startswith(b'{') and not lines[-1].endswith(b'\n'):
    lines.pop()
  header: dict[str, Any] = {}
  entries: list[Entry] = []
  header_digest = digest = ''
  for number, line in enumerate(lines, start=1):
    record = _check(path, number, line, digest)
    digest = _digest_of(line)
    if number == 1:
      _check_format(path, record)
      header, header_digest = record, digest
      continue
    try:
      entries.append(_follows(Entry.of(record, digest), entries))
    except (KeyError, TypeError, ValueError) as error:
      raise _validate.InputError(
        f'{path} line {number} is not a ledger entry ({error}); restore the '
        'file or choose another output_dir'
      ) from None
  return Contents(
    header=header,
    run_id=str(header.pop('run_id', '')),
    header_digest=header_digest,
    entries=tuple(entries),
    size=sum(map(len, lines)),
    last_line=lines[-1] if lines else b'',
  )


def _check_format(path: pathlib.Path, header: Mapping[str, Any]) -> None:
  if header.get('format') != _FORMAT:
    raise _validate.InputError(
      f'{path} is of format {header.get("format")!r}, this version writes '
      f'{_FORMAT}; go on with the version that it was started with or choose '
      'another output_dir'
    )


def _follows(entry: Entry, before: list[Entry]) -> Entry:
  """Returns the entry if it may stand after those before it."""
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


def _check(
  path: pathlib.Path, number: int, line: bytes, previous_digest: str
) -> dict[str, Any]:
  """Returns a line's record; its digest must follow from the one before."""
  try:
    record = json.loads(line)
    record.pop('digest')
    sealed = _seal(record, previous_digest)
  except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
    raise _validate.InputError(
      f'{path} line {number} is not a ledger entry; restore the file '
      'or choose another output_dir'
    ) from None
  if sealed != line:
    raise _validate.InputError(
      f'{path} was changed at or before line {number}: its digest '
      'does not match; restore the file or choose another output_dir'
    )
  return record


def _seal(record: Mapping[str, Any], previous_digest: str) -> bytes:
  """Returns the record as a line with the digest of it and all before it."""
  body = json.dumps(record, sort_keys=True, ensure_ascii=False)
  digest = hashlib.sha256((previous_digest + body).encode()).hexdigest()
  sealed = json.dumps(
    {**record, 'digest': digest}, sort_keys=True, ensure_ascii=False
  )
  return sealed.encode() + b'\n'


def _digest_of(line: bytes) -> str:
  return json.loads(line)['digest'] if line else ''


def _whole(value: Any) -> int:
  if isinstance(value, bool) or not isinstance(value, int):
    raise ValueError(f'{value!r} is not a whole number')
  return value


def _refuse_other_run(
  path: pathlib.Path, there: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
  changed = [
    f'{key} ({there.get(key)!r} there, {now.get(key)!r} now)'
    for key in sorted({*there, *now})
    if there.get(key) != now.get(key)
  ]
  if changed:
    raise _validate.InputError(
      f'{path} belongs to a run with another {", ".join(changed)}; choose '
      'another output_dir'
    )
