"""The ledger of a data set: one budget over all runs on the same data.

Each run has an epsilon of its own, and the runs on the same data add up. This
ledger holds what every run was allowed to charge, and composes all of it by the
accountant of `privacy.accounting`. A run that would bring the total above the
budget is refused before it trains.

A run reserves all of its charges at its start, under the lock of the file, so
that two runs side by side cannot both take the last of the budget. When it ends
it settles: what its own ledger did not charge is given back. A run that was
killed keeps its reservation, and goes on with it under the same run id.
`PrivacyLedger.limit` holds the run to its reservation.

All runs must protect the same units, as the epsilon of a record and that of a
patient do not add up. Clients are the same units only in the same partition.
The header binds the file to the data by a digest that is keyed by a secret in
the file, which only its owner may read.

Limits. The total holds for runs whose noise, sampling and number of rounds were
not chosen by results of earlier runs of this ledger: what a fully adaptive
analyst may spend is another theorem (Rogers et al. 2016, arXiv 1605.08294;
Feldman and Zrnic 2021, arXiv 2008.11193). Whoever may write the file can start
a new one; the chain of digests shows that to those who hold an earlier digest.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import math
import pathlib
import secrets
import time
from typing import Any

import dp_accounting

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import calibration
from tff_medical.privacy import data_ledger_contents as contents
from tff_medical.privacy import events
from tff_medical.privacy import interface
from tff_medical.privacy import keyed_digests
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import ledger_file

_CHANGE_REMEDY = (
  'while it was open, and nothing was reserved; start the same command again'
)
# Seconds for which a run waits while others reserve or settle.
_PATIENCE_SECS = 120.0
_POLL_SECS = 0.05


@dataclasses.dataclass(frozen=True)
class Units:
  """Whom and what the runs of a data ledger have in common.

  Attributes:
    data_digest: Digest that identifies the data, as it is not published.
    data_is_public: Whether the digest may be stored without a key.
    dataset: Name of the data set, for readers of the file.
    privacy_unit: Unit that the runs protect.
    neighboring_relation: Name of the neighbouring relation.
    clients_digest: Digest of the partition where clients are protected; ''
      where the partition does not change the unit.
  """

  data_digest: str
  data_is_public: bool
  dataset: str
  privacy_unit: str
  neighboring_relation: str
  clients_digest: str = ''

  def header(self, key: bytes) -> dict[str, Any]:
    """Returns the values that identify the units in a header.

    Args:
      key: Secret of the file.
    """
    return {
      'data': self.data_digest
      if self.data_is_public
      else keyed_digests.keyed(self.data_digest, key),
      'dataset': self.dataset,
      'privacy_unit': self.privacy_unit,
      'neighboring_relation': self.neighboring_relation,
      'clients': self.clients_digest
      and keyed_digests.keyed(self.clients_digest, key),
    }


@dataclasses.dataclass(frozen=True)
class Request:
  """What a run asks for.

  Attributes:
    run_id: Identity of the run, in hexadecimal; '' before it has one.
    purpose: Command of the run: train, audit or tune.
    rounds: Number of planned rounds.
    spent: Number of charges in the run's own ledger, which cannot be refused.
    remaining: Number of charges of the rounds that are still to be run, which
      exceeds those that were planned if rounds are run again.
    before: Event that is paid for once before the first round, if any.
  """

  run_id: str
  purpose: str
  rounds: int
  spent: int = 0
  remaining: int = 0
  before: dp_accounting.DpEvent | None = None


@dataclasses.dataclass(frozen=True)
class DataLedger:
  """A data ledger, which is locked only while a run reserves or settles.

  Attributes:
    path: File of the ledger, in an existing folder.
    budget: Largest epsilon of all runs together, by which a new file is
      started. It is fixed then: with an existing file it must be the same, or
      None.
  """

  path: pathlib.Path
  budget: float | None = None

  def __post_init__(self) -> None:
    if self.budget is not None:
      _validate.positive(data_budget=self.budget)

  def check(
    self,
    units: Units,
    mechanism: interface.Priced,
    request: Request,
    *,
    delta: float,
  ) -> float:
    """Returns the total epsilon with a run that asks; writes nothing.

    Args:
      units: Units of the run.
      mechanism: Mechanism of the run.
      request: Charges of the run.
      delta: Delta of the run, at which a new file states its total.

    Raises:
      InputError: The file is of other data, units or budget, or the run does
        not fit the budget.
    """
    if not self.path.parent.is_dir():
      raise _validate.InputError(
        f'data_ledger {self.path} must be in a folder that exists; make '
        f'{self.path.parent} first'
      )
    try:
      book = contents.read(self.path)
    except FileNotFoundError:
      book = contents.Book({})
    if not book.header:
      book = contents.Book(self._new_header(units, delta))
    self._check_terms(book, units)
    return self._granted(book, mechanism, request)[1]

  def reserve(
    self,
    units: Units,
    mechanism: interface.Priced,
    request: Request,
    *,
    delta: float,
    ledger: ledger_lib.PrivacyLedger | None = None,
  ) -> int:
    """Reserves the charges of a run; call it before the first of them.

    Charges that the run has reserved or settled before are not reserved twice.
    Charges in the run's own ledger that this file lacks are entered even if the
    run is then refused: they were spent.

    Args:
      units: Units of the run.
      mechanism: Mechanism of the run.
      request: Charges of the run.
      delta: Delta of the run, at which a new file states its total.
      ledger: The run's own ledger, once it is open.

    Returns:
      Number of charges that the run may have, for `PrivacyLedger.limit`.

    Raises:
      InputError: As `check` says, another process held the file for too long,
        or the run's own ledger does not continue the one that was settled.
      OSError: The reservation could not be written; the run must not start.
    """
    with self._locked() as file:
      book = self._load(file, units, delta)

      def enter(charges: int) -> contents.Book:
        if charges <= book.charges(request.run_id):
          return book
        return _append(
          file,
          book,
          kind=contents.RESERVED,
          run_id=request.run_id,
          purpose=request.purpose,
          event=mechanism.charge_event(),
          charges=charges,
          before=request.before,
        )

      self._check_event(book, mechanism, request)
      settled = book.settled(request.run_id)
      if (
        ledger is not None
        and settled is not None
        and ledger.charges_at(settled.ledger_digest) is None
      ):
        raise _validate.InputError(
          f'data_ledger {self.path} was settled for run {request.run_id} with '
          'another ledger than the one in this folder, which is an older copy '
          'or has lost its end; restore the folder that went on, or choose '
          'another output_dir'
        )
      book = enter(request.spent)
      granted, _ = self._granted(book, mechanism, request)
      enter(granted)
      return granted

  def settle(self, ledger: ledger_lib.PrivacyLedger) -> contents.Book:
    """Gives back what a run that has ended did not charge.

    Args:
      ledger: The run's own ledger, open and hence locked. It is the witness of
        what was charged.

    Returns:
      Contents of the file afterwards.

    Raises:
      InputError: The run has no reservation, or one of another event.
      OSError: The file could not be written; the reservation stays.
    """
    with self._locked() as file:
      book = contents.of(self.path, file.load())
      entry = book.runs.get(ledger.run_id)
      if entry is None or (entry.event, entry.before) != (
        repr(ledger.event),
        _text(ledger.before),
      ):
        raise _validate.InputError(
          f'{self.path} has no reservation of run {ledger.run_id} for its '
          'mechanism; restore the file'
        )
      if (
        entry.kind == contents.SETTLED and entry.ledger_digest == ledger.digest
      ):
        return book
      charges, settled = ledger.charges, book.settled(ledger.run_id)
      if settled is not None:
        # What was charged since then adds to it. Of two copies of a run that
        # both went on, and of a ledger that lost charges, all of it counts.
        shared = ledger.charges_at(settled.ledger_digest) or 0
        charges += settled.charges - shared
      return _append(
        file,
        book,
        kind=contents.SETTLED,
        run_id=ledger.run_id,
        purpose=entry.purpose,
        event=ledger.event,
        charges=charges,
        before=ledger.before,
        ledger_digest=ledger.digest,
      )

  def _granted(
    self,
    book: contents.Book,
    mechanism: interface.Priced,
    request: Request,
  ) -> tuple[int, float]:
    """Returns the charges that a run gets, and the total epsilon with them.

    Raises:
      InputError: Its planned charges do not fit the budget.
    """
    self._check_event(book, mechanism, request)
    event, run_id = mechanism.charge_event(), request.run_id
    known = book.charges(run_id)
    least = max(mechanism.charges_for(request.rounds), request.spent)
    total = math.inf
    # Rounds that are run again are paid for if there is room for them.
    for charges in sorted({least, request.spent + request.remaining, known})[
      ::-1
    ]:
      if charges < least:
        break
      total = book.epsilon_with(
        {run_id: events.with_before(event, charges, request.before)}
      )
      if charges <= known or total <= book.budget:
        return charges, total
    raise _validate.InputError(
      f'data_ledger {self.path} has a budget of ε {book.budget:g} at δ '
      f'{book.delta:.3g}, of which its {len(book.runs)} runs hold ε '
      f'{book.epsilon:.4f}; this run would bring it to ε {total:.4f}. '
      f'{_advice(book, mechanism, request)}'
    )

  def _check_event(
    self,
    book: contents.Book,
    mechanism: interface.Priced,
    request: Request,
  ) -> None:
    """Raises `InputError` if a run has an entry with another event."""
    event, entry = repr(mechanism.charge_event()), book.runs.get(request.run_id)
    if entry is not None and (entry.event, entry.before) != (
      event,
      _text(request.before),
    ):
      raise _validate.InputError(
        f'data_ledger {self.path} has an entry of run {request.run_id} with '
        f'another event ({entry.event} there, {event} now); choose another '
        'output_dir'
      )

  def _check_terms(self, book: contents.Book, units: Units) -> None:
    """Raises `InputError` if the file is of another budget, data or unit."""
    if self.budget is not None and self.budget != book.budget:
      raise _validate.InputError(
        f'data_budget must be {book.budget:g}, with which {self.path} was '
        f'started, got {self.budget:g}; a budget is fixed: leave data_budget '
        'out'
      )
    asked = units.header(contents.key_of(book.header))
    differing = [n for n, v in asked.items() if book.header.get(n) != v]
    if not differing:
      return
    name = differing[0]
    if 'data' in differing or 'dataset' in differing:
      what = (
        f'is the ledger of other data ({book.header.get("dataset")!r} there, '
        f'{units.dataset!r} now; other contents, splits or sizes are other '
        'data)'
      )
    elif name == 'clients':
      what = (
        'counts clients of another partition, and the ε of different clients '
        'do not add up; use its partition, num_clients and seed, protect '
        'records'
      )
    else:
      what = (
        f'has the {name} {book.header.get(name)!r}, and this run has '
        f'{asked[name]!r}: their ε do not add up; use the same'
      )
    raise _validate.InputError(
      f'data_ledger {self.path} {what}; or {contents.REMEDY}'
    )

  def _new_header(self, units: Units, delta: float) -> dict[str, Any]:
    if self.budget is None:
      raise _validate.InputError(
        f'data_budget must be given to start the data_ledger {self.path}: the '
        'largest ε of all runs on the data together'
      )
    _validate.in_range(0, 1, delta=delta)
    key = secrets.token_hex(32)
    return {
      'format': contents.FORMAT,
      'kind': contents.KIND,
      'budget': self.budget,
      'delta': delta,
      'key': key,
      **units.header(bytes.fromhex(key)),
    }

  def _load(
    self, file: ledger_file.LedgerFile, units: Units, delta: float
  ) -> contents.Book:
    """Returns the contents of the locked file; starts it if it is empty."""
    book = contents.of(self.path, file.load())
    if not book.header:
      header = self._new_header(units, delta)
      return contents.Book(header, (), file.append(header))
    self._check_terms(book, units)
    return book

  @contextlib.contextmanager
  def _locked(self) -> Iterator[ledger_file.LedgerFile]:
    """Opens and locks the file; waits while another run holds it."""
    until = time.monotonic() + _PATIENCE_SECS
    while True:
      try:
        file = ledger_file.LedgerFile(
          self.path,
          remedy=contents.REMEDY,
          change_remedy=_CHANGE_REMEDY,
          private=True,
        )
        break
      except BlockingIOError:
        if time.monotonic() > until:
          raise _validate.InputError(
            f'data_ledger {self.path} is held by another process for more than '
            f'{_PATIENCE_SECS:g} s; wait for it and start again'
          ) from None
        time.sleep(_POLL_SECS)
    with file:
      yield file


def _append(
  file: ledger_file.LedgerFile,
  book: contents.Book,
  *,
  event: dp_accounting.DpEvent,
  charges: int,
  before: dp_accounting.DpEvent | None,
  run_id: str,
  **values: Any,
) -> contents.Book:
  """Writes an entry with its total epsilon; returns the contents with it."""
  entry = contents.Entry(
    event=repr(event),
    charges=charges,
    before=_text(before),
    run_id=run_id,
    epsilon=book.epsilon_with(
      {run_id: events.with_before(event, charges, before)}
    ),
    **values,
  )
  digest = file.append(entry.record())
  entries = (*book.entries, dataclasses.replace(entry, digest=digest))
  return contents.Book(book.header, entries, digest)


def _advice(
  book: contents.Book, mechanism: interface.Priced, request: Request
) -> str:
  """Returns the sentence on the largest target that would fit the budget."""

  def price(event: dp_accounting.DpEvent, charges: int) -> float:
    return book.epsilon_with(
      {request.run_id: events.with_before(event, charges, request.before)}
    )

  try:
    fitting = calibration.calibrate(
      mechanism,
      target_epsilon=book.budget,
      delta=book.delta,
      rounds=request.rounds,
      price=price,
    )
  except _validate.InputError:
    return 'No noise would fit; end here, as the budget is spent'
  epsilon = accounting.epsilon(
    fitting.charge_event(),
    rounds=fitting.charges_for(request.rounds),
    delta=book.delta,
    before=request.before,
  )
  return (
    f'A target_epsilon of at most {math.floor(1e4 * epsilon) / 1e4:g} would fit '
    f'(noise_multiplier {fitting.noise_multiplier:.4f})'
  )


def _text(event: dp_accounting.DpEvent | None) -> str:
  return '' if event is None else repr(event)
