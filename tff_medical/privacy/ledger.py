"""The privacy ledger: an append-only file of every round that was paid for.

A round is charged before it runs, and the charge is on disk (fsync) before
anything of the round is released. So no release is missing from the file,
whatever crashes. `charge` waits for the disk, or lets it work while the round
runs; `flush` then waits for it. Some mechanisms charge several rounds at once,
with the first of them. A repeated round is charged again, and rounds that the
file lacks are charged with the next one. A round that would exceed the budget
is refused.

The file has one JSON object per line. The first line is the header: mechanism,
event of one charge, delta, budget and the run's id. A noised count of the
classes, which is released before the first round, is charged and stated there,
in one line. Each further line is an
entry: round, number of the attempt, charges so far, and their total epsilon.
Each line carries the SHA-256 of all lines before it. An auditor who holds the
last digest can therefore detect any change of the file. `ledger_contents` reads
and checks a file without knowledge of the mechanism.

A run without noise has the same file, with the epsilon "inf".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
import types
from typing import Any

import dp_accounting

from tff_medical import _files
from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import class_counts
from tff_medical.privacy import events
from tff_medical.privacy import interface
from tff_medical.privacy import ledger_contents
from tff_medical.privacy import ledger_file
from tff_medical.privacy import stated_epsilon

_CHANGE_REMEDY = (
  'while the run went on; no further round is run. Leave the file alone and '
  'start the same command again: what it has lost is charged again from the '
  'checkpoint'
)


class BudgetExceededError(Exception):
  """A round was refused because epsilon would exceed the budget."""


class PrivacyLedger:
  """Charges of a run, in a file that this object keeps locked.

  Use the ledger as a context manager, or call `close`.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    mechanism: interface.Mechanism,
    *,
    delta: float,
    epsilon_budget: float | None = None,
    run_id: str | None = None,
    counts: class_counts.ClassCounts | None = None,
  ):
    """Opens the ledger at `path`, or starts it.

    Args:
      path: File of the ledger, in an existing folder.
      mechanism: Mechanism of the run, which defines event and charges.
      delta: Delta, in (0, 1), at which epsilon is stated.
      epsilon_budget: Largest epsilon that a round may reach; None is no limit.
      run_id: Identity of the run, which an existing file must have. By default
        the identity in the file, or a new one.
      counts: Noised class counts that are released before the first round, if
        any. They are charged when the file is started.

    Raises:
      InputError: The file is a ledger of another mechanism, delta, budget or
        run, is not a ledger, was changed, or is in use by another run.
    """
    _validate.in_range(0, 1, delta=delta)
    if epsilon_budget is not None:
      _validate.positive(epsilon_budget=epsilon_budget)
    self._path = pathlib.Path(path)
    self._event = mechanism.charge_event()
    self._counts = counts
    self._before = counts.release.event() if counts else None
    self._charges_for = mechanism.charges_for
    self._sampling = mechanism.sampling
    self._delta = delta
    self._budget = epsilon_budget
    self._max_charges: int | None = None
    self._entries: list[ledger_contents.Entry] = []
    self._last_round = 0
    self._run_id = self._header_digest = ''
    try:
      self._file = ledger_file.LedgerFile(
        self._path, remedy=ledger_contents.REMEDY, change_remedy=_CHANGE_REMEDY
      )
    except BlockingIOError:
      raise _validate.InputError(
        f'{self._path} is in use by another run; wait for it or '
        f'{ledger_contents.REMEDY}'
      ) from None
    try:
      header = {
        'format': ledger_contents.FORMAT,
        'delta': delta,
        'epsilon_budget': _files.plain_json(epsilon_budget),
        'event': repr(self._event),
        **mechanism.describe(),
        **(counts.describe() if counts else {}),
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
    """Flushes and closes the file, and gives up its lock.

    Raises:
      OSError: As `flush` says; the file is closed nevertheless.
    """
    self._file.close()

  def flush(self) -> None:
    """Returns when all charges are on disk.

    Raises:
      OSError: The last charge could not be put on disk. Nothing of its round
        may be released, and this object charges no further round. The file has
        what it had before that charge.
    """
    self._file.flush()

  @property
  def run_id(self) -> str:
    """Identity of the run, in hexadecimal."""
    return self._run_id

  @property
  def entries(self) -> tuple[ledger_contents.Entry, ...]:
    """All entries of the file so far."""
    return tuple(self._entries)

  @property
  def counts(self) -> class_counts.ClassCounts | None:
    """Noised class counts that are charged before the first round, if any."""
    return self._counts

  @property
  def sampling(self) -> interface.Sampler:
    """Sampler of the cohorts that the charges pay for."""
    return self._sampling

  @property
  def charges(self) -> int:
    """Number of charges, each of one `charge_event` of the mechanism."""
    return self._entries[-1].charges if self._entries else 0

  @property
  def rounds_charged(self) -> int:
    """Number of the last attempt at a round: repeated rounds count again.

    Right after `charge` the round's cohort is drawn for this number.
    """
    return self._entries[-1].attempt if self._entries else 0

  @property
  def delta(self) -> float:
    """Delta at which every epsilon of this ledger is stated."""
    return self._delta

  @property
  def digest(self) -> str:
    """SHA-256, in hexadecimal, that commits to the whole file, on disk.

    Raises:
      OSError: As `flush` says.
    """
    self.flush()
    return self._entries[-1].digest if self._entries else self._header_digest

  @property
  def epsilon(self) -> float:
    """Epsilon of all charges, as the file states it.

    If the charges cost more than the file states, it is what they cost.
    """
    stated, computed = self._last_epsilon, self._epsilon_of(self.charges)
    if stated >= computed:
      return stated
    costs = self._costs(self.charges)
    is_true = stated_epsilon.agrees(stated, costs, delta=self._delta)
    return stated if is_true else computed

  @property
  def event(self) -> dp_accounting.DpEvent:
    """Event of one charge."""
    return self._event

  @property
  def before(self) -> dp_accounting.DpEvent | None:
    """Event that is paid for once before the first round, if any."""
    return self._before

  def charges_at(self, digest: str) -> int | None:
    """Returns the charges when `digest` was that of the file.

    It is None if the file never had this digest, or has lost its lines.
    """
    if digest == self._header_digest:
      return 0
    for entry in reversed(self._entries):
      if entry.digest == digest:
        return entry.charges
    return None

  def limit(self, max_charges: int) -> None:
    """Refuses from now on to charge more than a data ledger has reserved."""
    self._max_charges = max_charges

  def rdp_epsilon(self) -> float:
    """Returns the epsilon of all charges by RDP."""
    return accounting.rdp_epsilon(
      self._event,
      rounds=self.charges,
      delta=self._delta,
      before=self._before,
    )

  def seed_of_draws(self, cohort_seed: int) -> int:
    """Returns the seed for draws that each charge pays for.

    It is the run's own seed until charges are restored. From then on the
    attempts after the last surviving line are unknown. Their cohorts must not
    be drawn again as if they were new, so the seed changes.

    Args:
      cohort_seed: Secret seed of the run, a non-negative integer.
    """
    for entry in reversed(self._entries):
      if entry.restored_from:
        text = f'{cohort_seed} {entry.digest}'
        return int.from_bytes(hashlib.sha256(text.encode()).digest(), 'big')
    return cohort_seed

  def cost_between(self, first: int, last: int) -> int:
    """Returns the charges of rounds `first` + 1 to `last`, each run once."""
    return self._charges_for(last) - self._charges_for(first)

  def last_digests(self) -> tuple[str, ...]:
    """Returns the digests for `is_one_history`, newest first.

    The newest may be on disk only after `flush`.
    """
    return ledger_contents.last_digests(self._header_digest, self._entries)

  def is_one_history(self, digests: Sequence[str]) -> bool:
    """Returns whether this ledger continues the one of `digests`."""
    return ledger_contents.is_one_history(
      self._header_digest, self._entries, digests
    )

  def entry_of(self, attempt: int) -> ledger_contents.Entry | None:
    """Returns the entry of an attempt; None if the file has lost it."""
    for entry in reversed(self._entries):
      if entry.attempt == attempt and not entry.restored_from:
        return entry
    return None

  def charge(
    self, round_num: int, *, state_digest: str = '', wait: bool = True
  ) -> float:
    """Charges a round; call it before anything of the round is released.

    Args:
      round_num: Number of the round, 1 for the first; a repeated round is
        charged again.
      state_digest: Digest of the state that the round starts from, to bind that
        state to this ledger.
      wait: Whether to return only when the charge is on disk. Otherwise it
        outlives this process alone, not a loss of power: call `flush` before
        anything of the round is released.

    Returns:
      Epsilon including this round.

    Raises:
      BudgetExceededError: The round must not run; nothing was charged.
      InputError: Another process replaced or changed the file; the round must
        not run.
      OSError: The charge, or the one before it, could not be written; the round
        must not run.
    """
    _validate.positive_int(round_num=round_num)
    charges = self.charges + self._due(round_num)
    epsilon = self._epsilon_of(charges)
    if self._budget is not None and epsilon > self._budget:
      # The noise may have been calibrated by a tighter epsilon.
      epsilon = max(self._epsilon_of(charges, tight=True), self._last_epsilon)
    if self._budget is not None and epsilon > self._budget:
      raise BudgetExceededError(
        f'round {round_num} would bring ε to {epsilon:.4f}, above the budget '
        f'of {self._budget:g} at δ {self._delta:.3g}'
      )
    if self._max_charges is not None and charges > self._max_charges:
      raise BudgetExceededError(
        f'round {round_num} would be charge {charges} of this run, and its data '
        f'ledger has reserved {self._max_charges}'
      )
    entry = ledger_contents.Entry(
      round_num=round_num,
      attempt=self.rounds_charged + 1,
      charges=charges,
      epsilon=epsilon,
      state_digest=state_digest,
      nonce=secrets.token_hex(16),
    )
    self._keep(entry, self._file.write(entry.record()))
    if wait:
      self.flush()
    return epsilon

  def restore(
    self,
    *,
    round_num: int,
    attempt: int,
    charges: int,
    evidence: str,
  ) -> bool:
    """Restores charges that the file has lost, on other evidence.

    The budget is not checked: restored charges were already spent.

    Args:
      round_num: Number of the last round that is known to have been released.
      attempt: Known number of attempts at rounds.
      charges: Known number of charges. The ledger never restores fewer than
        `round_num` rounds cost.
      evidence: Source of these numbers, for readers of the file.

    Returns:
      Whether anything was missing.

    Raises:
      InputError: Another process replaced or changed the file, or the evidence
        cannot be true.
      OSError: The entry could not be written.
    """
    if max(round_num, attempt, charges) > events.MAX_COUNT:
      raise _validate.InputError(
        f'{evidence} states more than {events.MAX_COUNT:,} rounds or '
        'charges, which no run has; restore or remove it, or choose another '
        'output_dir'
      )
    charges = max(
      charges, self._charges_for(round_num), min(attempt, 1), self.charges
    )
    attempt = max(attempt, round_num, self.rounds_charged)
    if (charges, attempt) == (self.charges, self.rounds_charged):
      return False
    entry = ledger_contents.Entry(
      round_num=max(round_num, self._last_round, 1),
      attempt=attempt,
      charges=charges,
      epsilon=self._epsilon_of(charges),
      restored_from=evidence,
      nonce=secrets.token_hex(16),
    )
    self._keep(entry, self._file.append(entry.record()))
    return True

  def _due(self, round_num: int) -> int:
    """Returns the number of charges of a round; at least 1 if repeated."""
    if round_num > self._last_round:
      return self._charges_for(round_num) - self._charges_for(self._last_round)
    first_cost = self._charges_for(round_num) - self._charges_for(round_num - 1)
    return max(1, first_cost)

  @property
  def _last_epsilon(self) -> float:
    return self._entries[-1].epsilon if self._entries else 0.0

  def _costs(self, charges: int) -> events.Charges:
    return events.with_before(self._event, charges, self._before)

  def _epsilon_of(self, charges: int, *, tight: bool = False) -> float:
    return accounting.composed_epsilon(
      self._costs(charges), delta=self._delta, tight=tight
    )

  def _keep(self, entry: ledger_contents.Entry, digest: str) -> None:
    self._entries.append(dataclasses.replace(entry, digest=digest))
    self._last_round = max(self._last_round, entry.round_num)

  def _start_or_resume(
    self, header: Mapping[str, Any], run_id: str | None
  ) -> None:
    contents = ledger_contents.of(self._path, self._file.load())
    if not contents.header:
      # Two runs with the same settings must not have the same digests.
      self._run_id = run_id or secrets.token_hex(16)
      self._header_digest = self._file.append(
        {**header, 'run_id': self._run_id}
      )
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
      self._keep(entry, entry.digest)


def _refuse_other_run(
  path: pathlib.Path, filed: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
  """Raises `InputError` if the header in the file is not this run's."""
  changed = [
    f'{key} ({filed.get(key)!r} there, {now.get(key)!r} now)'
    for key in sorted({*filed, *now})
    if filed.get(key) != now.get(key)
  ]
  if changed:
    raise _validate.InputError(
      f'{path} belongs to a run with another {", ".join(changed)}; choose '
      'another output_dir'
    )
