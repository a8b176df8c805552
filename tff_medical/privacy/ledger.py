"""The ledger: an append-only file of every round that was paid for.

A round is charged, and the charge is on disk (fsync), before the round runs,
so that nothing that was ever released is missing from the file, whatever
crashes. Some mechanisms are paid for several rounds at once, with the first of
them. A repeated round is charged again, and rounds that the file does not know
of, as it was lost, are charged with the next one. A round that would pass the
budget is refused. Each line carries the SHA-256 of the line before it, so that an
auditor who holds the last digest can tell whether the file was changed.

The file has one JSON object a line: first a header with the mechanism, δ and
the budget, then one line a round with its number, the number of charges so far
and the epsilon that they add up to. A run without noise is kept in the
same file, with the epsilon "inf".
"""

from __future__ import annotations

from collections.abc import Mapping
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

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import interface

_FORMAT = 1


class BudgetExceededError(Exception):
  """The round was refused: with it, epsilon would exceed the budget."""


def _to_json(epsilon: float | None) -> Any:
  return 'inf' if epsilon is not None and math.isinf(epsilon) else epsilon


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
  ):
    """Opens the ledger at `path`, or starts it.

    Args:
      path: The file; its folder exists.
      mechanism: What the rounds of the run release, and what they cost.
      delta: The delta, in (0, 1), at which epsilon is stated.
      epsilon_budget: No round may bring epsilon above it; None is no limit.

    Raises:
      InputError: The file is a ledger of another mechanism, delta or budget, is
        not a ledger, was changed, or is in use by another run.
    """
    _validate.in_range(0, 1, delta=delta)
    if epsilon_budget is not None:
      _validate.positive(epsilon_budget=epsilon_budget)
    self._path = pathlib.Path(path)
    self._event = mechanism.charge_event()
    self._charges_for = mechanism.charges_for
    self._delta = delta
    self._budget = epsilon_budget
    self._rounds_charged = 0
    self._last_round = 0
    self._charges = 0
    self._digest = ''
    # Unbuffered: a failed write must not be tried again when the file closes.
    self._file = open(self._path, 'a+b', buffering=0)
    try:
      self._lock()
      header = {
        'format': _FORMAT,
        'delta': delta,
        'epsilon_budget': _to_json(epsilon_budget),
        'event': repr(self._event),
        **mechanism.describe(),
      }
      self._start_or_resume(header)
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
  def charges(self) -> int:
    """How often the mechanism's `charge_event` was paid for."""
    return self._charges

  @property
  def rounds_charged(self) -> int:
    """How many rounds were allowed to run, repeated ones each time."""
    return self._rounds_charged

  @property
  def delta(self) -> float:
    """The delta at which every epsilon of this ledger is stated."""
    return self._delta

  @property
  def digest(self) -> str:
    """SHA-256, in hexadecimal, that commits to the whole file."""
    return self._digest

  @property
  def epsilon(self) -> float:
    """Epsilon of all that was paid for."""
    return self._epsilon_of(self._charges)

  def rdp_epsilon(self) -> float:
    """Epsilon, by RDP, of all that was paid for."""
    return accounting.rdp_epsilon(
      self._event, rounds=self._charges, delta=self._delta
    )

  def charge(self, round_num: int) -> float:
    """Pays for a round; call it before anything of the round is released.

    Args:
      round_num: The round, 1 for the first; the same one again costs again.

    Returns:
      Epsilon including this round.

    Raises:
      BudgetExceededError: The round must not run; nothing was charged.
      OSError: The charge could not be written; the round must not run.
    """
    charges = self._charges + self._due(round_num)
    epsilon = self._epsilon_of(charges)
    if self._budget is not None and epsilon > self._budget:
      raise BudgetExceededError(
        f'round {round_num} would bring ε to {epsilon:.4f}, above the budget '
        f'of {self._budget:g} at δ {self._delta:.3g}'
      )
    self._append(
      {
        'round': round_num,
        'charges': charges,
        'epsilon': _to_json(epsilon),
      }
    )
    self._count(round_num, charges)
    return epsilon

  def _due(self, round_num: int) -> int:
    """Returns how many charges the round costs; a repeated one at least one."""
    if round_num > self._last_round:
      return self._charges_for(round_num) - self._charges_for(self._last_round)
    own = self._charges_for(round_num) - self._charges_for(round_num - 1)
    return max(1, own)

  def _count(self, round_num: int, charges: int) -> None:
    self._rounds_charged += 1
    self._last_round = max(self._last_round, round_num)
    self._charges = charges

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

  def _append(self, record: Mapping[str, Any]) -> None:
    line = _seal(record, self._digest)
    end = self._file.seek(0, os.SEEK_END)
    try:
      if self._file.write(line) != len(line):
        raise OSError(errno.ENOSPC, 'No space left on device', self._path)
      os.fsync(self._file.fileno())
    except OSError:
      self._file.truncate(end)
      raise
    self._digest = json.loads(line)['digest']

  def _start_or_resume(self, header: Mapping[str, Any]) -> None:
    self._file.seek(0)
    lines = self._file.read().splitlines(keepends=True)
    torn = b''
    if lines and lines[-1].startswith(b'{') and not lines[-1].endswith(b'\n'):
      torn = lines.pop()
    records = [self._check(n, line) for n, line in enumerate(lines, start=1)]
    if torn:
      # A crash while writing: its round never ran, so nothing was released.
      self._file.truncate(sum(map(len, lines)))
    if not records:
      # Two runs with the same settings must not have the same digests.
      self._append({**header, 'run_id': secrets.token_hex(16)})
      return
    records[0].pop('run_id', None)
    _refuse_other_run(self._path, records[0], json.loads(json.dumps(header)))
    for record in records[1:]:
      self._count(record['round'], record['charges'])

  def _check(self, number: int, line: bytes) -> dict[str, Any]:
    """Returns a line's record; its digest must follow from the one before."""
    try:
      record = json.loads(line)
      claimed = record.pop('digest')
    except (ValueError, KeyError, AttributeError, TypeError):
      raise _validate.InputError(
        f'{self._path} line {number} is not a ledger entry; restore the file '
        'or choose another output_dir'
      ) from None
    if _seal(record, self._digest) != line:
      raise _validate.InputError(
        f'{self._path} was changed at or before line {number}: its digest '
        'does not match; restore the file or choose another output_dir'
      )
    self._digest = claimed
    return record


def _seal(record: Mapping[str, Any], previous_digest: str) -> bytes:
  """Returns the record as a line with the digest of it and all before it."""
  body = json.dumps(record, sort_keys=True, ensure_ascii=False)
  digest = hashlib.sha256((previous_digest + body).encode()).hexdigest()
  sealed = json.dumps(
    {**record, 'digest': digest}, sort_keys=True, ensure_ascii=False
  )
  return sealed.encode() + b'\n'


def _refuse_other_run(
  path: pathlib.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  changed = [
    f'{key} ({found.get(key)!r} there, {wanted.get(key)!r} now)'
    for key in sorted({*found, *wanted})
    if found.get(key) != wanted.get(key)
  ]
  if changed:
    raise _validate.InputError(
      f'{path} belongs to a run with another {", ".join(changed)}; choose '
      'another output_dir'
    )
