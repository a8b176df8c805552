"""Tests of the ledger: durable charges, refusals, tampering and crashes."""

import errno
import json
import math
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from tests.privacy import sealing
from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import class_counts
from tff_medical.privacy import dp_ftrl_mechanism
from tff_medical.privacy import ledger
from tff_medical.privacy import ledger_contents
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling


def _mechanism(noise_multiplier=1.0):
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(1000, 100),
    clipping=mechanisms.FixedClipping(1.0),
    noise_multiplier=noise_multiplier,
  )


def _restored(book):
  return book.restore(round_num=9, attempt=9, charges=9, evidence='test')


class PrivacyLedgerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.create_tempdir().full_path
    self.path = pathlib.Path(folder, 'privacy_ledger.jsonl')

  def _open(self, noise_multiplier=1.0, budget=None, delta=1e-3):
    return ledger.PrivacyLedger(
      self.path,
      _mechanism(noise_multiplier),
      delta=delta,
      epsilon_budget=budget,
    )

  def _records(self):
    return [json.loads(line) for line in self.path.read_text().splitlines()]

  def test_states_what_dp_accounting_says(self):
    with self._open() as book:
      for round_num in range(1, 11):
        epsilon = book.charge(round_num)
      expected = accounting.pld_epsilon(
        _mechanism().charge_event(), rounds=10, delta=1e-3
      )
      self.assertEqual(epsilon, expected)
      self.assertEqual(book.epsilon, expected)
      self.assertGreater(book.rdp_epsilon(), expected)
    self.assertEqual(self._records()[-1]['epsilon'], expected)

  def test_class_counts_are_charged_in_the_line_that_states_them(self):
    release = class_counts.ClassCountRelease(3.0)
    counts = class_counts.ClassCounts(release, (40, 60))
    arguments = {'delta': 1e-3, 'counts': counts}
    with ledger.PrivacyLedger(self.path, _mechanism(), **arguments) as book:
      (header,) = self._records()
      self.assertEqual(header['class_counts'], [40, 60])
      self.assertEqual(
        header['event_before'], 'GaussianDpEvent(noise_multiplier=3.0)'
      )
      alone = accounting.pld_epsilon(release.event(), rounds=1, delta=1e-3)
      self.assertEqual(book.epsilon, alone)
      event = _mechanism().charge_event()
      for round_num in (1, 2):
        self.assertEqual(
          book.charge(round_num),
          accounting.pld_epsilon(
            event, rounds=round_num, delta=1e-3, before=release.event()
          ),
        )
      self.assertGreater(book.rdp_epsilon(), book.epsilon)
    with ledger.PrivacyLedger(self.path, _mechanism(), **arguments) as book:
      self.assertEqual(book.counts, counts)
    # Other counts are another release, for which nothing was paid.
    for other in (None, class_counts.ClassCounts(release, (41, 60))):
      with self.assertRaisesRegex(_validate.InputError, 'another .*counts'):
        ledger.PrivacyLedger(self.path, _mechanism(), delta=1e-3, counts=other)

  def test_class_counts_are_part_of_the_budget(self):
    counts = class_counts.ClassCounts(class_counts.ClassCountRelease(3.0), (9,))
    one_round = accounting.pld_epsilon(
      _mechanism().charge_event(), rounds=1, delta=1e-3
    )
    with ledger.PrivacyLedger(
      self.path,
      _mechanism(),
      delta=1e-3,
      epsilon_budget=one_round + 1e-6,
      counts=counts,
    ) as book:
      with self.assertRaises(ledger.BudgetExceededError):
        book.charge(1)

  def test_a_charge_outlives_a_process_that_is_killed_right_after_it(self):
    script = (
      'import os, signal, sys\n'
      'from tests.privacy import ledger_test\n'
      'from tff_medical.privacy import ledger\n'
      'book = ledger.PrivacyLedger(sys.argv[1], ledger_test._mechanism(),'
      ' delta=1e-3)\n'
      'os.fsync = lambda _: None\n'
      'book.charge(1, wait=False); book.charge(2, wait=False)\n'
      'os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    done = subprocess.run(
      [sys.executable, '-c', script, str(self.path)],
      check=False,
      cwd=pathlib.Path(__file__).parents[2],
    )
    self.assertEqual(done.returncode, -signal.SIGKILL)
    with self._open() as book:
      self.assertEqual(book.charges, 2)

  @parameterized.parameters(True, False)
  def test_line_is_written_then_synced_and_then_somebody_waits(self, wait):
    events = []
    sync = os.fsync

    def record_sync(descriptor):
      content = os.pread(descriptor, 2**20, 0)
      lines = [json.loads(line) for line in content.splitlines()]
      self.assertEqual(content[-1:], b'\n')
      sync(descriptor)
      events.append(('sync', os.fstat(descriptor).st_ino, lines[-1]['charges']))

    with self._open() as book:
      inode = os.stat(self.path).st_ino
      with mock.patch.object(os, 'fsync', record_sync):
        for number in (1, 2, 3):
          book.charge(number, wait=wait)
          if not wait:
            book.flush()
          events.append(('returned', number))
        _restored(book)  # What has been released is on disk at once.
        events.append(('returned', 9))
    self.assertEqual(
      events,
      [
        event
        for number in (1, 2, 3, 9)
        for event in (('sync', inode, number), ('returned', number))
      ],
    )

  @parameterized.parameters(
    ('flush', lambda book: book.flush()),
    ('the digest', lambda book: book.digest),
    ('the next charge', lambda book: book.charge(2)),
    ('restored charges', lambda book: _restored(book)),
    ('close', lambda book: book.close()),
  )
  def test_a_charge_returns_while_the_disk_works_and_others_wait(
    self, what, call
  ):
    """The disk is done only when the test lets it go."""
    let_go, done, returned = (threading.Event() for _ in range(3))
    self.addCleanup(let_go.set)
    sync = os.fsync

    def blocked(descriptor):
      let_go.wait(timeout=5)  # Not for ever, should the charge wait.
      sync(descriptor)
      done.set()

    book = self._open()
    with mock.patch.object(os, 'fsync', blocked):
      book.charge(1, wait=False)
      self.assertFalse(done.is_set())
      self.assertLen(self._records(), 2)  # Another process sees the charge.

      def wait():
        self.was_done = False
        call(book)
        self.was_done = done.is_set()
        returned.set()

      waiting = threading.Thread(target=wait)
      waiting.start()
      was_early = returned.wait(0.2)
      let_go.set()
      waiting.join()
    book.close()
    self.assertFalse(was_early, what)
    self.assertTrue(self.was_done)

  def test_nobody_else_has_the_file_before_the_charge_is_on_disk(self):
    """A ledger that is closed gives up its lock last."""
    refusals = []
    sync = os.fsync

    def sync_and_open(descriptor):
      with self.assertRaisesRegex(_validate.InputError, 'in use') as caught:
        self._open()
      refusals.append(caught.exception)
      sync(descriptor)

    book = self._open()
    with mock.patch.object(os, 'fsync', sync_and_open):
      book.charge(1, wait=False)
      book.close()
    self.assertLen(refusals, 1)
    with self._open() as book:
      self.assertEqual(book.charges, 1)

  @parameterized.product(number=(errno.EIO, errno.ENOSPC), wait=(True, False))
  def test_a_charge_that_is_not_synced_is_none(self, number, wait):
    """What the disk does not confirm is taken back, for nobody to release."""
    book = self._open()
    book.charge(1)
    before = self.path.read_bytes()
    fault = OSError(number, os.strerror(number))
    with mock.patch.object(os, 'fsync', side_effect=fault):
      if wait:
        with self.assertRaises(OSError):
          book.charge(2)
      else:
        book.charge(2, wait=False)
        with self.assertRaises(OSError):
          book.flush()
    self.assertEqual(self.path.read_bytes(), before)
    # The disk works again, but it may have dropped what it could not write.
    for call in (
      book.flush,
      lambda: book.digest,
      lambda: book.charge(3),
      lambda: _restored(book),
      book.close,
    ):
      with self.assertRaises(OSError) as caught:
        call()
      self.assertEqual(caught.exception.errno, number)
    self.assertEqual(self.path.read_bytes(), before)
    with self._open() as book:
      self.assertEqual((book.charges, book.rounds_charged), (1, 1))
      book.charge(2)
      self.assertEqual((book.charges, book.rounds_charged), (2, 2))

  def test_a_charge_that_is_not_written_is_none(self):
    """A full disk is noticed by the charge itself, before the round runs."""
    script = (
      'import resource, sys\n'
      'from tests.privacy import ledger_test\n'
      'from tff_medical.privacy import ledger\n'
      'book = ledger.PrivacyLedger(sys.argv[1], ledger_test._mechanism(),'
      ' delta=1e-3)\n'
      'book.charge(1)\n'
      'size = int(sys.argv[2]) + 100\n'
      'resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n'
      'try:\n'
      '  book.charge(2, wait=False)\n'
      'except OSError:\n'
      '  print(book.charges)\n'
    )
    with self._open() as book:
      book.charge(1)
    size = self.path.stat().st_size
    self.path.unlink()
    done = subprocess.run(
      [sys.executable, '-c', script, str(self.path), str(size)],
      check=True,
      cwd=pathlib.Path(__file__).parents[2],
      stdout=subprocess.PIPE,
      text=True,
    )
    self.assertEqual(done.stdout, '1\n')
    with self._open() as book:
      self.assertEqual(book.charges, 1)

  def test_a_new_ledger_s_name_is_on_disk_before_the_first_charge(self):
    """Else a loss of power could take the file away with all its charges."""
    synced = []
    sync = os.fsync

    def record(descriptor):
      synced.append(os.fstat(descriptor).st_ino)
      sync(descriptor)

    with mock.patch.object(os, 'fsync', record):
      with self._open():
        self.assertContainsSubset(
          {os.stat(self.path).st_ino, os.stat(self.path.parent).st_ino},
          set(synced),
        )

  def _replace_by_rename(self):
    copy = self.path.with_suffix('.new')
    copy.write_bytes(self.path.read_bytes())
    os.replace(copy, self.path)

  def _replace_by_another(self):
    self.path.unlink()
    self.path.write_text('')

  def _rename(self):
    os.replace(self.path, self.path.with_suffix('.old'))

  def _change_first_line(self):
    self._write_in_place(self.path.read_bytes().replace(b'1000', b'1001'))

  def _change_second_line(self):
    self._write_in_place(
      self.path.read_bytes().replace(b'"round": 1', b'"round": 7')
    )

  def _change_last_line(self):
    content = self.path.read_bytes()
    self._write_in_place(content[:-3] + b'0' + content[-2:])

  def _write_in_place(self, content):
    self.assertNotEqual(content, self.path.read_bytes())
    with open(self.path, 'r+b') as file:
      file.write(content)

  def _append_text(self):
    with open(self.path, 'ab') as file:
      file.write(b'\n')

  def _cut(self):
    os.truncate(self.path, self.path.stat().st_size - 10)

  def _empty(self):
    os.truncate(self.path, 0)

  @parameterized.parameters(
    ('_replace_by_rename', 'was replaced'),
    ('_replace_by_another', 'was replaced'),
    ('_rename', 'was removed'),
    ('_change_first_line', 'was changed'),
    ('_change_second_line', 'was changed'),
    ('_change_last_line', 'was changed'),
    ('_append_text', 'was changed'),
    ('_cut', 'was changed'),
    ('_empty', 'was changed'),
  )
  def test_a_file_changed_while_it_is_open_is_not_charged(self, fault, message):
    with self._open() as book:
      book.charge(1)
      book.charge(2)
      getattr(self, fault)()
      there = self.path.read_bytes() if self.path.exists() else None
      for pay in (
        lambda: book.charge(3),
        lambda: _restored(book),
      ):
        with self.assertRaisesRegex(_validate.InputError, message) as caught:
          pay()
        self.assertNotIn('\n', str(caught.exception))
        self.assertEqual(book.charges, 2)
        after = self.path.read_bytes() if self.path.exists() else None
        self.assertEqual(after, there)

  def test_a_file_that_was_only_touched_is_the_same(self):
    with self._open() as book:
      book.charge(1)
      os.utime(self.path, (1, 1))
      book.charge(2)
      os.utime(self.path, (2, 2))
      book.charge(3)
    with self._open() as book:
      self.assertEqual(book.charges, 3)

  def test_attempts_never_repeat_over_restarts(self):
    """Cohorts are drawn for them."""
    attempts = []
    for round_nums in ((1, 2), (2, 3), (1,), (1, 2, 3)):
      with self._open() as book:
        for round_num in round_nums:
          book.charge(round_num)
          attempts.append(book.rounds_charged)
    self.assertEqual(attempts, list(range(1, 9)))
    self.assertEqual([r['attempt'] for r in self._records()[1:]], attempts)
    with self._open() as book:
      self.assertEqual([e.attempt for e in book.entries], attempts)

  def test_attempts_go_on_after_those_that_are_put_back(self):
    with self._open() as book:
      book.charge(1)
      book.restore(round_num=3, attempt=5, charges=4, evidence='test')
      book.charge(4)
      self.assertEqual((book.charges, book.rounds_charged), (5, 6))
    with self._open() as book:
      self.assertEqual((book.charges, book.rounds_charged), (5, 6))
      self.assertIsNone(book.entry_of(5))
      self.assertEqual(book.entry_of(6).round_num, 4)

  def test_restore_puts_back_what_is_known_and_never_less(self):
    with self._open(budget=1e-6) as book:  # What was spent, was spent.
      self.assertTrue(
        book.restore(round_num=3, attempt=0, charges=0, evidence='a')
      )
      self.assertEqual((book.charges, book.rounds_charged), (3, 3))
      self.assertFalse(
        book.restore(round_num=2, attempt=2, charges=3, evidence='b')
      )
      self.assertTrue(
        book.restore(round_num=3, attempt=5, charges=5, evidence='c')
      )
      self.assertEqual((book.charges, book.rounds_charged), (5, 5))
      self.assertFalse(
        book.restore(round_num=0, attempt=0, charges=0, evidence='d')
      )
      expected = accounting.pld_epsilon(
        _mechanism().charge_event(), rounds=5, delta=1e-3
      )
      self.assertEqual(book.epsilon, expected)
      with self.assertRaises(ledger.BudgetExceededError):
        book.charge(4)
    self.assertEqual(
      [r['restored_from'] for r in self._records()[1:]], ['a', 'c']
    )

  def test_an_attempt_alone_is_a_charge(self):
    with self._open() as book:
      book.restore(round_num=0, attempt=1, charges=0, evidence='test')
      self.assertEqual(book.charges, 1)

  def test_restored_rounds_are_charged_again_when_they_are_run_again(self):
    with self._open() as book:
      book.restore(round_num=3, attempt=3, charges=3, evidence='test')
      book.charge(3)
      self.assertEqual(book.charges, 4)
      book.charge(4)
      self.assertEqual(book.charges, 5)

  def test_draws_after_a_loss_are_of_another_seed(self):
    """Attempts that the file has lost have drawn cohorts that were released."""
    seeds = []
    with self._open() as book:
      book.charge(1)
      seeds.append(book.seed_of_draws(5))
      self.assertEqual(seeds, [5])
    content = self.path.read_bytes()
    for _ in range(2):  # The same loss twice.
      self.path.write_bytes(content)
      with self._open() as book:
        book.restore(round_num=3, attempt=3, charges=3, evidence='test')
        book.charge(4)
        seeds.append(book.seed_of_draws(5))
        self.assertNotEqual(book.seed_of_draws(6), seeds[-1])
      with self._open() as book:
        self.assertEqual(book.seed_of_draws(5), seeds[-1])
    self.assertLen(set(seeds), 3)

  @parameterized.parameters('round_num', 'attempt', 'charges')
  def test_counts_that_no_run_has_are_refused(self, name):
    shown = dict(round_num=1, attempt=1, charges=1)
    with self._open() as book:
      with self.assertRaisesRegex(_validate.InputError, 'summary.json'):
        book.restore(**{**shown, name: 10**9}, evidence='summary.json')
      self.assertEmpty(book.entries)

  @parameterized.parameters('a FIFO', 'a folder', 'a loop', 'nothing', 'huge')
  def test_something_else_in_place_of_the_file_is_refused(self, what):
    if what == 'a FIFO':
      os.mkfifo(self.path)
    elif what == 'a folder':
      self.path.mkdir()
    elif what == 'a loop':
      self.path.symlink_to(self.path.name)
    elif what == 'nothing':
      self.path.symlink_to('no/such/file')
    else:
      with open(self.path, 'wb') as file:
        file.truncate(2**40)
    with self.assertRaisesRegex(_validate.InputError, self.path.name):
      self._open()

  def test_a_ledger_that_went_on_or_was_cut_is_the_same_one(self):
    with self._open() as book:
      known = [book.last_digests()]
      for round_num in range(1, 6):
        book.charge(round_num)
        known.append(book.last_digests())
    lines = self.path.read_bytes().splitlines(keepends=True)
    for kept in range(6):
      self.path.write_bytes(b''.join(lines[: kept + 1]))
      with self._open() as book:
        self.assertEqual(book.last_digests(), known[kept])
        for digests in known:
          self.assertTrue(book.is_one_history(digests))

  @parameterized.parameters(0, 1, 3)
  def test_a_ledger_that_took_another_way_is_another_one(self, shared):
    with self._open() as book:
      for round_num in range(1, shared + 1):
        book.charge(round_num)
    start = self.path.read_bytes()
    known = []
    for _ in range(2):
      self.path.write_bytes(start)
      with self._open() as book:
        for round_num in range(shared + 1, shared + 4):
          book.charge(round_num)
          known.append(book.last_digests())
    with self._open() as book:
      self.assertEqual(
        [book.is_one_history(digests) for digests in known],
        [False] * 3 + [True] * 3,
      )

  def test_what_is_kept_of_a_long_ledger_is_bounded(self):
    """One that was cut by more is taken for another one."""
    count = 300
    with self._open() as book:
      with mock.patch.object(os, 'fsync'):
        for round_num in range(1, count + 1):
          book.charge(round_num)
      known = book.last_digests()
    self.assertLen(known, 256)
    self.assertLess(sum(map(len, known)), 5000)
    lines = self.path.read_bytes().splitlines(keepends=True)
    for kept, is_same in (
      (count, 1),
      (200, 1),
      (46, 1),
      (45, 0),
      (1, 0),
      (0, 1),
    ):
      self.path.write_bytes(b''.join(lines[: kept + 1]))
      with self._open() as book:
        self.assertEqual(book.is_one_history(known), bool(is_same), kept)

  def test_repeated_round_is_charged_again(self):
    with self._open() as book:
      first = book.charge(1)
      self.assertGreater(book.charge(1), first)
    with self._open() as book:
      self.assertEqual(book.charges, 2)
      book.charge(1)
    self.assertEqual(
      [(r['round'], r['charges']) for r in self._records()[1:]],
      [(1, 1), (1, 2), (1, 3)],
    )

  def test_refuses_the_round_that_would_exceed_the_budget(self):
    event = _mechanism().charge_event()
    budget = accounting.pld_epsilon(event, rounds=3, delta=1e-3)
    with self._open(budget=budget) as book:
      for round_num in (1, 2, 3):
        book.charge(round_num)
      before = self.path.read_bytes()
      with self.assertRaisesRegex(
        ledger.BudgetExceededError, r'round 4 .* above the budget'
      ):
        book.charge(4)
      self.assertEqual(book.charges, 3)
      self.assertEqual(self.path.read_bytes(), before)
    with self._open(budget=budget) as book:
      with self.assertRaises(ledger.BudgetExceededError):
        book.charge(4)

  def _charge_up_to(self, budget, rounds=4):
    with self._open(budget=budget) as book:
      for round_num in range(1, rounds + 1):
        epsilon = book.charge(round_num)
    return epsilon

  def test_the_budget_is_exact(self):
    """The least double below what round 4 costs refuses it."""
    event = _mechanism().charge_event()
    limit = accounting.pld_epsilon(event, rounds=4, delta=1e-3)
    self.assertEqual(self._charge_up_to(limit), limit)
    self.path.unlink()
    with self.assertRaisesRegex(ledger.BudgetExceededError, 'round 4 '):
      self._charge_up_to(math.nextafter(limit, 0))
    self.assertLen(self._records(), 1 + 3)

  def _with_charges(self, charges, epsilon=None, budget=None):
    """Writes a ledger with many charges, whose last line states `epsilon`."""
    with self._open(budget=budget) as book:
      book.restore(
        round_num=charges, attempt=charges, charges=charges, evidence='test'
      )
    if epsilon is not None:
      *others, last = self._records()
      self.path.write_text(
        sealing.resealed([*others, {**last, 'epsilon': epsilon}])
      )

  def _tight(self, charges):
    event = _mechanism().charge_event()
    return accounting.composed_epsilon(
      [(event, charges)], delta=1e-3, tight=True
    )

  @parameterized.parameters(
    (1.0, True), (1.5, True), (0.999_999_5, True), (0.999_998, False)
  )
  def test_the_stated_epsilon_is_kept_unless_charges_cost_more(
    self, factor, is_kept
  ):
    """An earlier version counted each of 1,025 rounds."""
    stated = factor * self._tight(1025)
    self._with_charges(1025, stated)
    with self._open() as book:
      computed = accounting.epsilon(book.event, rounds=1025, delta=book.delta)
      self.assertGreater(computed, 1.0005 * self._tight(1025))
      self.assertEqual(book.epsilon, stated if is_kept else computed)

  def test_a_budget_that_an_earlier_version_has_used_up_exactly(self):
    budget = self._tight(1025)
    self._with_charges(1024, budget=budget)
    with self._open(budget=budget) as book:
      self.assertEqual(book.charge(1025), budget)
      self.assertEqual(book.epsilon, budget)
      with self.assertRaisesRegex(ledger.BudgetExceededError, 'round 1026 '):
        book.charge(1026)
    self.path.unlink()
    self._with_charges(1024, budget=math.nextafter(budget, 0))
    with self._open(budget=math.nextafter(budget, 0)) as book:
      with self.assertRaisesRegex(ledger.BudgetExceededError, 'round 1025 '):
        book.charge(1025)

  def test_no_noise_is_inf_and_exceeds_any_budget(self):
    with self._open(noise_multiplier=0.0) as book:
      self.assertEqual(book.charge(1), math.inf)
    self.assertEqual(self._records()[-1]['epsilon'], 'inf')

  @parameterized.parameters(
    ({'noise_multiplier': 1.1}, 'noise_multiplier'),
    ({'delta': 1e-4}, 'delta'),
    ({'budget': 5.0}, 'epsilon_budget'),
  )
  def test_refuses_another_run(self, changed, name):
    with self._open() as book:
      book.charge(1)
    with self.assertRaisesRegex(_validate.InputError, name):
      self._open(**changed)

  def test_refuses_a_second_run_at_once(self):
    with self._open():
      with self.assertRaisesRegex(_validate.InputError, 'in use'):
        self._open()

  def test_drops_a_line_torn_by_a_crash(self):
    with self._open() as book:
      book.charge(1)
    whole = self.path.read_bytes()
    self.path.write_bytes(whole + b'{"round": 2, "char')
    with self._open() as book:
      self.assertEqual(book.charges, 1)
    self.assertEqual(self.path.read_bytes(), whole)

  def test_refuses_the_ledger_of_another_run(self):
    self._charge_up_to(None, 1)
    with self.assertRaisesRegex(_validate.InputError, 'of another run'):
      ledger.PrivacyLedger(self.path, _mechanism(), delta=1e-3, run_id='0f')

  def test_a_new_ledger_has_the_run_s_identity(self):
    for _ in range(2):
      with ledger.PrivacyLedger(
        self.path, _mechanism(), delta=1e-3, run_id='0f'
      ) as book:
        self.assertEqual(book.run_id, '0f')
    self.assertEqual(ledger_contents.read(self.path).run_id, '0f')

  def test_disk_full_charges_nothing(self):
    """The file-size limit of the process makes a real write fail half way."""
    with self._open() as book:
      book.charge(1)
      before = self.path.read_bytes()
      soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
      handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
      resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
      try:
        with self.assertRaises(OSError):
          book.charge(2)
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
      self.assertEqual(self.path.read_bytes(), before)
      self.assertEqual(book.charges, 1)
      book.charge(2)
    with self._open() as book:
      self.assertEqual(book.charges, 2)

  def test_digest_commits_to_the_file(self):
    with self._open() as book:
      book.charge(1)
      digest = book.digest
      self.assertEqual(self._records()[-1]['digest'], digest)
      book.charge(2)
      self.assertNotEqual(book.digest, digest)

  def test_runs_with_the_same_settings_have_other_digests(self):
    with self._open() as book:
      first = book.digest
    self.path.unlink()
    with self._open() as book:
      self.assertNotEqual(book.digest, first)

  def test_close_gives_up_the_lock(self):
    self._open().close()
    self._open().close()
    self.assertTrue(os.path.getsize(self.path))

  def test_a_lost_file_is_charged_for_with_the_next_round(self):
    with self._open() as book:
      epsilon = book.charge(7)
      self.assertEqual(book.charges, 7)
      self.assertEqual(book.rounds_charged, 1)
      self.assertEqual(epsilon, book.epsilon)
      book.charge(8)
      self.assertEqual(book.charges, 8)


class TreeLedgerTest(parameterized.TestCase):
  """A tree of 4 rounds is paid for in its first; see also the training test."""

  def setUp(self):
    super().setUp()
    folder = self.create_tempdir().full_path
    self.path = pathlib.Path(folder, 'privacy_ledger.jsonl')
    self.mechanism = dp_ftrl_mechanism.DpFtrlMechanism(
      sampling=dp_ftrl_mechanism.DpFtrlSampling(40, 10, 4),
      clipping=mechanisms.FixedClipping(1.0),
      noise_multiplier=4.0,
    )

  def _open(self, budget=None):
    return ledger.PrivacyLedger(
      self.path, self.mechanism, delta=1e-3, epsilon_budget=budget
    )

  def _epsilon(self, trees):
    return accounting.pld_epsilon(
      self.mechanism.charge_event(), rounds=trees, delta=1e-3
    )

  def test_charges_trees_and_keeps_a_line_a_round(self):
    with self._open() as book:
      epsilons = [book.charge(n) for n in range(1, 10)]
    self.assertEqual(epsilons, [self._epsilon(1 + n // 4) for n in range(9)])
    lines = self.path.read_text().splitlines()
    records = [json.loads(line) for line in lines[1:]]
    self.assertEqual([r['round'] for r in records], list(range(1, 10)))
    self.assertEqual(
      [r['charges'] for r in records], [1, 1, 1, 1, 2, 2, 2, 2, 3]
    )

  @parameterized.parameters(
    ([1, 1], 2),  # The first round again: the tree is begun twice.
    ([1, 2, 3, 3, 4], 2),  # Within a tree.
    ([1, 2, 3, 3, 3, 3], 4),
    ([1, 2, 3, 2, 3, 4], 3),  # From an older checkpoint: each one again.
    ([1, 2, 3, 4, 5, 4, 5, 6], 4),  # Over the border of two trees.
    ([6], 2),  # The file was lost.
  )
  def test_repeated_rounds_cost_a_tree_each(self, rounds, trees):
    for round_num in rounds:
      with self._open() as book:
        epsilon = book.charge(round_num)
    with self._open() as book:
      self.assertEqual(book.charges, trees)
      self.assertEqual(book.rounds_charged, len(rounds))
      self.assertEqual(book.epsilon, epsilon)

  @parameterized.parameters((1, 1), (4, 1), (5, 2), (9, 3))
  def test_restores_the_trees_of_rounds(self, rounds, trees):
    with self._open() as book:
      book.restore(round_num=rounds, attempt=0, charges=0, evidence='test')
      self.assertEqual((book.charges, book.rounds_charged), (trees, rounds))
      self.assertEqual(book.epsilon, self._epsilon(trees))
      # A round run again is a tree more; one within the tree is paid for.
      book.charge(rounds)
      self.assertEqual(book.charges, trees + 1)
      book.charge(rounds + 1)
      self.assertEqual(book.charges, trees + 1 + (rounds % 4 == 0))

  def test_refuses_the_tree_that_would_exceed_the_budget(self):
    with self._open(budget=self._epsilon(2)) as book:
      for round_num in range(1, 9):
        book.charge(round_num)
      with self.assertRaisesRegex(ledger.BudgetExceededError, 'round 9 '):
        book.charge(9)
      with self.assertRaisesRegex(ledger.BudgetExceededError, 'round 8 '):
        book.charge(8)
      self.assertEqual(book.charges, 2)


class LocalLedgerTest(absltest.TestCase):
  """A round of 5 local steps is 5 charges."""

  def setUp(self):
    super().setUp()
    folder = self.create_tempdir().full_path
    self.path = pathlib.Path(folder, 'privacy_ledger.jsonl')
    self.mechanism = local_dp_sgd_mechanism.LocalDpSgdMechanism(
      sampling=local_dp_sgd_mechanism.LocalDpSgdSampling(
        500, rate=0.1, steps=5
      ),
      clipping=mechanisms.FixedClipping(1.0),
      noise_multiplier=1.0,
    )

  def _open(self):
    return ledger.PrivacyLedger(self.path, self.mechanism, delta=1e-3)

  def test_charges_and_restores_every_step(self):
    with self._open() as book:
      book.charge(1)
      self.assertEqual((book.charges, book.rounds_charged), (5, 1))
      book.charge(1)
      self.assertEqual((book.charges, book.rounds_charged), (10, 2))
      book.restore(round_num=4, attempt=0, charges=0, evidence='test')
      self.assertEqual((book.charges, book.rounds_charged), (20, 4))
      book.charge(3)
      self.assertEqual((book.charges, book.rounds_charged), (25, 5))
    self.path.unlink()
    with self._open() as book:
      book.restore(round_num=2, attempt=3, charges=15, evidence='test')
      self.assertEqual((book.charges, book.rounds_charged), (15, 3))
      expected = accounting.pld_epsilon(
        self.mechanism.charge_event(), rounds=15, delta=1e-3
      )
      self.assertEqual(book.epsilon, expected)


if __name__ == '__main__':
  absltest.main()
