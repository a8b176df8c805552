"""Tests of the ledger: durable charges, refusals, tampering and crashes."""

import json
import math
import os
import pathlib
import resource
import signal
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import ledger
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.privacy import tree_mechanism


def _mechanism(noise_multiplier=1.0):
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(1000, 100),
    clipping=mechanisms.FixedClipping(1.0),
    noise_multiplier=noise_multiplier,
  )


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

  def test_charge_is_on_disk_before_it_returns(self):
    """A process that is killed right after a charge has paid for it."""
    script = (
      'import os, signal, sys\n'
      'from tests.privacy import ledger_test\n'
      'from tff_medical.privacy import ledger\n'
      'book = ledger.PrivacyLedger(sys.argv[1], ledger_test._mechanism(),'
      ' delta=1e-3)\n'
      'book.charge(1); book.charge(2)\n'
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

  def test_finds_a_changed_charge(self):
    with self._open() as book:
      book.charge(1)
      book.charge(2)
    text = self.path.read_text().replace('"round": 1', '"round": 7')
    self.path.write_text(text)
    with self.assertRaisesRegex(_validate.InputError, 'line 2'):
      self._open()

  def test_finds_a_removed_charge(self):
    with self._open() as book:
      book.charge(1)
      book.charge(2)
    lines = self.path.read_text().splitlines(keepends=True)
    self.path.write_text(lines[0] + lines[2])
    with self.assertRaisesRegex(_validate.InputError, 'line 2'):
      self._open()

  @parameterized.parameters(
    b'not json\n', b'notes', b'[1]\n', b'{}\n', b'\xff\xfe\n'
  )
  def test_refuses_what_is_no_ledger(self, content):
    self.path.write_bytes(content)
    with self.assertRaisesRegex(_validate.InputError, 'not a ledger'):
      self._open()
    self.assertEqual(self.path.read_bytes(), content)

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
    self.mechanism = tree_mechanism.TreeMechanism(
      sampling=tree_mechanism.TreeSampling(40, 10, 4),
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

  def test_refuses_the_tree_that_would_exceed_the_budget(self):
    with self._open(budget=self._epsilon(2)) as book:
      for round_num in range(1, 9):
        book.charge(round_num)
      with self.assertRaisesRegex(ledger.BudgetExceededError, 'round 9 '):
        book.charge(9)
      with self.assertRaisesRegex(ledger.BudgetExceededError, 'round 8 '):
        book.charge(8)
      self.assertEqual(book.charges, 2)


if __name__ == '__main__':
  absltest.main()
