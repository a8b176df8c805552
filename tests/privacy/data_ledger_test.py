"""Tests of the ledger of a data set: one budget over runs side by side."""

import concurrent.futures
import dataclasses
import pathlib
import re
import stat
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import calibration
from tff_medical.privacy import class_counts
from tff_medical.privacy import data_ledger
from tff_medical.privacy import data_ledger_contents
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import ledger_file
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_DELTA = 1e-3
_UNITS = data_ledger.Units(
  data_digest='sha256:of_all_images',
  data_is_public=False,
  dataset='my images',
  privacy_unit='record',
  neighboring_relation='add_or_remove_one',
)


def _mechanism(noise_multiplier=1.0, rate=0.1):
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(1000, 1000 * rate),
    clipping=mechanisms.FixedClipping(1.0),
    noise_multiplier=noise_multiplier,
    privacy_unit='record',
  )


def _epsilon(*runs):
  """Returns the epsilon of runs, each a mechanism and a number of charges."""
  return accounting.composed_epsilon(
    [(mechanism.charge_event(), charges) for mechanism, charges in runs],
    delta=_DELTA,
  )


class DataLedgerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / 'data_ledger.jsonl'

  def _book(self, budget=None):
    return data_ledger.DataLedger(self.path, budget)

  def _reserve(
    self, run_id, rounds=50, mechanism=None, budget=None, units=_UNITS, **spent
  ):
    return self._book(budget).reserve(
      units,
      mechanism or _mechanism(),
      data_ledger.Request(run_id, 'train', rounds, **spent),
      delta=_DELTA,
    )

  def _run(self, run_id, rounds, mechanism=None):
    """Charges rounds in the ledger of a run, which it returns open."""
    ledger = ledger_lib.PrivacyLedger(
      self.folder / f'{run_id}.jsonl',
      mechanism or _mechanism(),
      delta=_DELTA,
      run_id=run_id,
    )
    self.addCleanup(ledger.close)
    for round_num in range(ledger.rounds_charged + 1, rounds + 1):
      ledger.charge(round_num)
    return ledger

  def test_runs_add_up_by_the_accountant(self):
    other = _mechanism(0.8, rate=0.05)
    self.assertEqual(self._reserve('a', budget=20.0), 50)
    self.assertEqual(self._reserve('b', 20, other), 20)
    book = data_ledger_contents.read(self.path)
    self.assertEqual(list(book.runs), ['a', 'b'])
    self.assertEqual(book.epsilon, _epsilon((_mechanism(), 50), (other, 20)))
    self.assertEqual(book.entries[0].epsilon, _epsilon((_mechanism(), 50)))
    self.assertEqual(book.entries[1].epsilon, book.epsilon)
    self.assertEqual(book.describe()['runs'], 2)

  def test_refuses_the_run_that_would_exceed_the_budget(self):
    budget = _epsilon((_mechanism(), 110))
    self._reserve('a', budget=budget)
    self._reserve('b')
    before = self.path.read_bytes()
    for ask in (self._reserve, self._check):
      with self.assertRaisesRegex(
        _validate.InputError, r'its 2 runs hold ε .*target_epsilon of at most'
      ) as caught:
        ask('c', 11)
      self.assertNotIn('\n', str(caught.exception))
    self.assertEqual(self.path.read_bytes(), before)
    self.assertEqual(self._reserve('c', 10), 10)

  def _check(self, run_id, rounds):
    return self._book().check(
      _UNITS,
      _mechanism(),
      data_ledger.Request(run_id, 'train', rounds),
      delta=_DELTA,
    )

  def test_the_target_that_the_refusal_names_fits_and_a_larger_one_does_not(
    self,
  ):
    self._reserve('a', budget=3.0, rounds=10)
    with self.assertRaises(_validate.InputError) as caught:
      self._reserve('b', 100)
    named = re.search(r'at most ([\d.]+) would', str(caught.exception))
    target = float(named[1])
    for factor, fits in ((1.0, True), (1.02, False)):
      mechanism = calibration.calibrate(
        _mechanism(),
        target_epsilon=target * factor,
        delta=_DELTA,
        rounds=100,
      )
      request = data_ledger.Request('b', 'train', 100)
      if fits:
        self._book().check(_UNITS, mechanism, request, delta=_DELTA)
      else:
        with self.assertRaisesRegex(_validate.InputError, 'has a budget'):
          self._book().check(_UNITS, mechanism, request, delta=_DELTA)

  def test_a_spent_budget_is_said(self):
    self._reserve('a', 50, budget=_epsilon((_mechanism(), 50)))
    with self.assertRaisesRegex(
      _validate.InputError, 'No noise would fit|at most'
    ):
      self._reserve('b', 50)

  def test_two_runs_side_by_side_cannot_both_take_the_last_of_the_budget(self):
    self._reserve('a', 50, budget=_epsilon((_mechanism(), 100)))
    append = ledger_file.LedgerFile.append
    checked = []

    def slow(file, record):
      checked.append(record['run_id'])
      return append(file, record)

    def reserve(run_id):
      try:
        return self._reserve(run_id, 50)
      except _validate.InputError as error:
        return str(error)

    with mock.patch.object(ledger_file.LedgerFile, 'append', slow):
      with concurrent.futures.ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(reserve, 'bcde'))
    self.assertEqual(ends.count(50), 1, ends)
    self.assertLen(checked, 1)
    self.assertLen(data_ledger_contents.read(self.path).runs, 2)

  def test_a_run_waits_for_the_lock_and_gives_up_at_last(self):
    self._reserve('a', budget=9.0)
    held = ledger_file.LedgerFile(self.path, remedy='', change_remedy='')
    with held, mock.patch.object(data_ledger, '_PATIENCE_SECS', 0.1):
      with self.assertRaisesRegex(_validate.InputError, 'held by another'):
        self._reserve('b')
    self._reserve('b', 1)

  def test_a_run_that_goes_on_does_not_reserve_twice(self):
    budget = _epsilon((_mechanism(), 50))
    self._reserve('a', budget=budget)
    before = self.path.read_bytes()
    # It was killed after 20 rounds.
    self.assertEqual(self._reserve('a', spent=20, remaining=30), 50)
    self.assertEqual(self.path.read_bytes(), before)
    with self.assertRaises(_validate.InputError):
      self._reserve('b', 1)

  def test_a_round_that_is_run_again_is_paid_for_if_there_is_room(self):
    self._reserve('a', budget=_epsilon((_mechanism(), 51)))
    self.assertEqual(self._reserve('a', spent=21, remaining=30), 51)
    # A second one does not fit: the run ends a round early.
    self.assertEqual(self._reserve('a', spent=22, remaining=30), 51)

  def test_a_run_without_its_reservation_is_charged_for_what_it_spent(self):
    """Its own ledger shows charges that this file does not hold."""
    self._reserve('a', 10, budget=_epsilon((_mechanism(), 30)))
    with self.assertRaisesRegex(_validate.InputError, 'has a budget'):
      self._reserve('b', 50, spent=40, remaining=10)
    book = data_ledger_contents.read(self.path)
    self.assertEqual(book.charges('b'), 40)
    self.assertGreater(book.epsilon, book.budget)

  def test_a_run_that_ends_early_gives_back_the_rest(self):
    self._reserve('a', 50, budget=_epsilon((_mechanism(), 60)))
    with self.assertRaises(_validate.InputError):
      self._reserve('b', 40)
    ledger = self._run('a', 20)
    book = self._book().settle(ledger)
    self.assertEqual(book.charges('a'), 20)
    self.assertEqual(book.entries[-1].ledger_digest, ledger.digest)
    self.assertEqual(self._reserve('b', 40), 40)
    # To go on it asks again, and there is nothing left.
    with self.assertRaises(_validate.InputError):
      self._reserve('a', 50, spent=20, remaining=30)

  def test_settling_again_changes_nothing(self):
    self._reserve('a', budget=9.0)
    ledger = self._run('a', 20)
    self._book().settle(ledger)
    before = self.path.read_bytes()
    self._book().settle(ledger)
    self.assertEqual(self.path.read_bytes(), before)

  def test_a_ledger_that_lost_charges_gives_nothing_back(self):
    self._reserve('a', budget=9.0)
    self._book().settle(self._run('a', 20))
    (self.folder / 'a.jsonl').rename(self.folder / 'lost.jsonl')
    # The round that was charged since then adds to those that were lost.
    book = self._book().settle(self._run('a', 1))
    self.assertEqual(book.charges('a'), 21)

  def test_both_copies_of_a_run_are_paid_for(self):
    """A folder is copied after 5 rounds, and both copies go on to 20."""
    self._reserve('a', 20, budget=9.0)
    self._run('a', 5).close()
    before = (self.folder / 'a.jsonl').read_bytes()
    first = self._run('a', 20)
    self._book().settle(first)
    first.close()
    (self.folder / 'a.jsonl').write_bytes(before)
    second = self._run('a', 5)
    request = data_ledger.Request('a', 'train', 20, spent=5, remaining=15)
    with self.assertRaisesRegex(_validate.InputError, 'is an older copy'):
      self._book().reserve(
        _UNITS, _mechanism(), request, delta=_DELTA, ledger=second
      )
    second.close()
    # If it was under way already, no charge of it is lost.
    second = self._run('a', 20)
    book = self._book().settle(second)
    self.assertGreaterEqual(book.charges('a'), 35)
    # It goes on, and only what is new is added.
    before = book.charges('a')
    self._book().reserve(
      _UNITS,
      _mechanism(),
      data_ledger.Request('a', 'train', 22, spent=20, remaining=2),
      delta=_DELTA,
      ledger=second,
    )
    second.close()
    book = self._book().settle(self._run('a', 22))
    self.assertEqual(book.charges('a'), before + 2)

  @parameterized.parameters(('b', 1.0), ('a', 1.5))
  def test_only_the_ledger_of_the_run_is_its_witness(self, run_id, noise):
    self._reserve('a', budget=9.0)
    ledger = self._run(run_id, 1, _mechanism(noise))
    with self.assertRaisesRegex(_validate.InputError, 'no reservation'):
      self._book().settle(ledger)

  def test_refuses_a_run_with_another_event_than_before(self):
    self._reserve('a', budget=9.0)
    before = self.path.read_bytes()
    with self.assertRaisesRegex(_validate.InputError, 'another event'):
      self._reserve('a', 50, _mechanism(0.9), spent=60)
    self.assertEqual(self.path.read_bytes(), before)

  @parameterized.parameters(
    ({'data_digest': 'sha256:of_others'}, 'of other data'),
    ({'dataset': 'your images'}, 'of other data'),
    ({'privacy_unit': 'patient'}, "'record', and this run has 'patient'"),
    ({'neighboring_relation': 'replace_special'}, 'do not add up'),
    ({'clients_digest': 'sha256:of_rows'}, 'another partition'),
  )
  def test_refuses_runs_whose_epsilons_do_not_add_up(self, changed, message):
    self._reserve('a', budget=9.0)
    before = self.path.read_bytes()
    with self.assertRaisesRegex(_validate.InputError, message):
      self._reserve('b', units=dataclasses.replace(_UNITS, **changed))
    self.assertEqual(self.path.read_bytes(), before)

  def test_the_same_clients_add_up(self):
    units = dataclasses.replace(
      _UNITS, privacy_unit='client', clients_digest='sha256:of_rows'
    )
    self._reserve('a', budget=9.0, units=units)
    self._reserve('b', units=units)
    self.assertNotIn('of_rows', self.path.read_text())

  def test_a_budget_is_needed_once_and_fixed(self):
    with self.assertRaisesRegex(_validate.InputError, 'data_budget must be'):
      self._reserve('a')
    self._reserve('a', budget=9.0)
    self._reserve('b', budget=9.0, rounds=1)
    for other in (8.0, 10.0):
      with self.assertRaisesRegex(_validate.InputError, 'a budget is fixed'):
        self._reserve('c', budget=other, rounds=1)

  def test_a_check_writes_no_file(self):
    request = data_ledger.Request('', 'train', 50)
    total = self._book(9.0).check(_UNITS, _mechanism(), request, delta=_DELTA)
    self.assertEqual(total, _epsilon((_mechanism(), 50)))
    self.assertFalse(self.path.exists())
    with self.assertRaisesRegex(_validate.InputError, 'has a budget'):
      self._book(0.5).check(_UNITS, _mechanism(), request, delta=_DELTA)
    self.path = self.folder / 'nowhere' / 'ledger'
    with self.assertRaisesRegex(_validate.InputError, 'folder that exists'):
      self._book(9.0).check(_UNITS, _mechanism(), request, delta=_DELTA)

  def test_the_digest_of_private_data_is_keyed_and_the_file_private(self):
    self._reserve('a', budget=9.0)
    self.assertNotIn(_UNITS.data_digest, self.path.read_text())
    self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
    first = data_ledger_contents.read(self.path).header['data']
    self.path.unlink()
    self._reserve('a', budget=9.0)
    self.assertNotEqual(
      data_ledger_contents.read(self.path).header['data'], first
    )

  def test_the_digest_of_public_data_may_be_read(self):
    units = dataclasses.replace(_UNITS, data_is_public=True)
    self._reserve('a', budget=9.0, units=units)
    header = data_ledger_contents.read(self.path).header
    self.assertEqual(header['data'], units.data_digest)

  @parameterized.parameters(0, 1, 2)
  def test_an_entry_that_was_removed_is_found(self, index):
    for run_id in 'abc':
      self._reserve(run_id, 5, budget=9.0)
    lines = self.path.read_bytes().splitlines(keepends=True)
    del lines[index]
    self.path.write_bytes(b''.join(lines))
    with self.assertRaisesRegex(_validate.InputError, 'was changed at'):
      self._reserve('d', 1)

  def test_a_torn_line_never_came_to_pass(self):
    self._reserve('a', 5, budget=9.0)
    whole = self.path.read_bytes()
    self.path.write_bytes(whole + b'{"charges": 5, "run')
    self._reserve('a', 5)
    self.assertEqual(self.path.read_bytes(), whole)

  def test_a_run_is_held_to_its_reservation(self):
    ledger = self._run('a', 0)
    ledger.limit(2)
    ledger.charge(1)
    ledger.charge(2)
    with self.assertRaisesRegex(ledger_lib.BudgetExceededError, 'reserved 2'):
      ledger.charge(3)
    self.assertEqual(ledger.charges, 2)

  def test_what_is_paid_before_the_first_round_counts_once(self):
    before = dp_accounting.GaussianDpEvent(3.0)
    event = _mechanism().charge_event()
    both = accounting.composed_epsilon([(event, 50), (before, 1)], delta=_DELTA)
    with self.assertRaisesRegex(_validate.InputError, 'has a budget'):
      self._reserve('a', budget=both - 1e-3, before=before)
    self.path.unlink(missing_ok=True)
    self._reserve('a', budget=both, before=before)
    self._reserve('a', budget=both, before=before)
    self.assertEqual(data_ledger_contents.read(self.path).epsilon, both)
    with self.assertRaisesRegex(_validate.InputError, 'another event'):
      self._reserve('a')
    ledger = self._run('a', 10)
    with self.assertRaisesRegex(_validate.InputError, 'no reservation'):
      self._book().settle(ledger)
    counted = class_counts.ClassCounts(
      class_counts.ClassCountRelease(3.0), (1, 2)
    )
    with ledger_lib.PrivacyLedger(
      self.folder / 'counted.jsonl',
      _mechanism(),
      delta=_DELTA,
      run_id='a',
      counts=counted,
    ) as ledger:
      ledger.charge(10)
      epsilon = self._book().settle(ledger).epsilon
      self.assertAlmostEqual(epsilon, ledger.epsilon)

  def test_a_gaussian_for_each_run_has_a_closed_form(self):
    mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.FullParticipation(100),
      clipping=mechanisms.FixedClipping(1.0),
      noise_multiplier=20.0,
      privacy_unit='record',
    )
    for run_id in 'abcd':
      self._reserve(run_id, 100, mechanism, budget=9.0)
    exact = dp_accounting.get_epsilon_gaussian(20.0 / 400**0.5, _DELTA)
    epsilon = data_ledger_contents.read(self.path).epsilon
    self.assertBetween(epsilon, exact - 1e-9, exact + 1e-3)


if __name__ == '__main__':
  absltest.main()
