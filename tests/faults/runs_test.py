"""The short forms of the faults of runs: kills, tampering, folders, length."""

import random

from absl.testing import absltest

from tests.faults import cases
from tests.faults import folder_faults
from tests.faults import forks
from tests.faults import kill_faults
from tests.faults import long_run
from tests.faults import tamper_faults

_KILLS = (
  ('fsync data_digest_key.secret.partial', 1, 'after'),
  ('write ledger', 3, 'before'),
  ('fsync privacy_ledger.jsonl', 4, 'torn'),
  ('next', 4, 'after'),
  ('fsync round.npz.partial', 3, 'torn'),
  ('replace round.npz', 3, 'after'),
  ('append metrics.csv', 2, 'before'),
  ('appended metrics.csv', 2, 'torn'),
  ('flush events', 2, 'before'),
  ('save model saved_model.new', 1, 'after'),
  ('rename saved_model', 1, 'before'),
  ('replace summary.json', 1, 'before'),
)
_TAMPERINGS = (
  'privacy_ledger.jsonl: missing',
  'privacy_ledger.jsonl: empty',
  'ledger, sealed anew: fewer',
  'checkpoint: other weights',
  "checkpoint, sealed anew: {'charges': 'many'}",
  'ledger and checkpoints missing',
  'metrics.csv of another run',
)


def _server():
  return forks.shared(
    *kill_faults.PRELOAD, 'tests.faults.folder_faults', 'tests.faults.long_run'
  )


class RunsTest(absltest.TestCase):
  def test_killed_anywhere_a_run_comes_to_its_end_with_all_it_has_to_state(
    self,
  ):
    """Each start of a case does less, so that they take seconds together."""
    tally = cases.Tally('kills')
    faults = [kill_faults.Fault('aimed', aim) for aim in _KILLS]
    for case in (faults[0::3], faults[1::3], faults[2::3]):
      kill_faults.run_case(_server(), case, tally, whole_secs=1.0)
    self.assertEmpty(tally.lost)
    self.assertEqual(tally.tried, len(_KILLS))

  def test_full_disks_end_a_run_in_one_line(self):
    tally = cases.Tally('full disks')
    faults = [
      kill_faults.Fault('full disk', max_file_bytes=n) for n in (300, 3000)
    ]
    kill_faults.run_case(_server(), faults, tally, whole_secs=1.0)
    self.assertEmpty(tally.lost)
    self.assertEqual(tally.tried, 2)

  def test_tampered_folders_are_refused_or_state_what_was_released(self):
    tally = cases.Tally('tamperings')
    chosen = [
      t
      for t in tamper_faults.tamperings()
      if t.name in _TAMPERINGS and t.finished
    ]
    self.assertLen(chosen, len(_TAMPERINGS))
    tamper_faults.run(_server(), chosen, tally)
    self.assertEmpty(tally.lost)

  def test_damaged_folders_end_commands_in_one_line(self):
    tally = cases.Tally('folders')
    folder_faults.run(_server(), tally, every=20)
    self.assertEmpty(tally.lost)
    self.assertGreater(tally.tried, 25)

  def test_a_round_costs_the_same_however_many_there_were(self):
    tally = cases.Tally('long run')
    # A checkpoint holds the digests of the last 255 charges.
    long_run.run(_server(), tally, rounds=400, settled=280, span=50)
    self.assertEmpty(tally.lost)


class HarnessTest(absltest.TestCase):
  """What the harnesses would not see, they could not report."""

  def test_cases_are_many_and_differ(self):
    names = [(t.name, t.finished) for t in tamper_faults.tamperings()]
    self.assertLen(set(names), len(names))
    self.assertGreater(len(names), 400)
    seen = {'next': 7, 'fsync privacy_ledger.jsonl': 7, 'replace a': 1}
    groups = kill_faults.groups(seen, random.Random(0))
    kinds = [fault.kind for case in groups for fault in case]
    self.assertEqual(kinds.count('random'), kill_faults.RANDOM_KILLS)

  def test_a_kill_that_was_aimed_at_is_met(self):
    tally = cases.Tally('kills')
    never = kill_faults.Fault('aimed', ('next', 99, 'before'))
    kill_faults.run_case(_server(), [never], tally, whole_secs=1.0)
    self.assertEqual((tally.tried, tally.lost), (0, []))

  def test_growth_is_seen(self):
    flat = [float(n) for n in range(100)]
    found = {
      'memory': [100.0] * 100,
      'written': flat,
      'calls': flat,
      'rewritten': 2,
    }
    arguments = dict(settled=20, span=30)
    self.assertEmpty(long_run.problems(found, **arguments))
    for changed in (
      {'memory': [100.0 + n for n in range(100)]},
      {'written': [float(n * n) for n in range(100)]},
      {'rewritten': 100},
    ):
      self.assertLen(long_run.problems({**found, **changed}, **arguments), 1)


if __name__ == '__main__':
  absltest.main()
