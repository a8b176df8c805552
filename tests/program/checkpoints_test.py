"""Tests of checkpoints: exact round trips, atomic writes, real disk failures."""

import collections
import dataclasses
import os
import pathlib
import resource
import signal
import stat

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical.program import checkpoints

_State = collections.namedtuple('_State', ['weights', 'extra'])


def _state(value):
  return _State(
    weights=(np.full((2, 3), value, np.float32), [np.int64(value)]),
    extra=collections.OrderedDict(flag=True, name=b'event', rate=0.5),
  )


def _record(round_num, **changed):
  values = dict(
    run_id='0f',
    round_num=round_num,
    attempt=round_num + 1,
    charges=round_num + 2,
    ledger_digest='ab',
    weights_digest='cd',
  )
  return checkpoints.Record(**{**values, **changed})


class CheckpointsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path, 'checkpoints')
    self.checkpoints = checkpoints.Checkpoints(self.folder)

  def _files(self):
    return sorted(p.name for p in self.folder.iterdir())

  def test_round_trip_keeps_structure_types_and_values(self):
    self.checkpoints.save(_state(7), _record(3))
    saved = self.checkpoints.load_latest(_state(0))
    self.assertEqual(saved.record.round_num, 3)
    state = saved.state
    self.assertIsInstance(state, _State)
    tf.nest.assert_same_structure(state, _state(7))
    np.testing.assert_array_equal(state.weights[0], _state(7).weights[0])
    self.assertEqual(state.weights[0].dtype, np.float32)
    self.assertEqual(state.weights[1], [7])
    self.assertEqual(state.extra['name'], b'event')
    self.assertEqual(state.extra['flag'], True)
    self.assertEqual(state.extra['rate'], 0.5)

  def test_none_yet(self):
    self.assertIsNone(self.checkpoints.load_latest(_state(0)))

  def test_keeps_the_newest_two(self):
    for round_num in range(12):
      self.checkpoints.save(_state(round_num), _record(round_num))
    self.assertEqual(self.checkpoints.rounds(), [10, 11])
    self.assertEqual(self._files(), ['round_000010.npz', 'round_000011.npz'])

  @parameterized.parameters(b'', b'PK\x03\x04 cut', b'not a zip at all')
  def test_falls_back_to_the_one_before(self, content):
    self.checkpoints.save(_state(1), _record(1))
    self.checkpoints.save(_state(2), _record(2))
    (self.folder / 'round_000002.npz').write_bytes(content)
    saved = self.checkpoints.load_latest(_state(0))
    self.assertEqual(saved.record, _record(1))
    self.assertEqual(saved.state.weights[1], [1])
    self.assertEqual(saved.newer_rounds, (2,))

  def test_refuses_when_none_can_be_read(self):
    self.checkpoints.save(_state(1), _record(1))
    (self.folder / 'round_000001.npz').write_bytes(b'gone')
    with self.assertRaisesRegex(_validate.InputError, 'round_000001.*output'):
      self.checkpoints.load_latest(_state(0))

  @parameterized.parameters(
    (_State(weights=(np.zeros((2, 2), np.float32), [1]), extra=()),),
    (_State(weights=(np.zeros((9,), np.float32), [1]), extra={'a': b'x'}),),
  )
  def test_refuses_another_process_state(self, other):
    self.checkpoints.save(_state(1), _record(1))
    with self.assertRaises(_validate.InputError):
      self.checkpoints.load_latest(other)

  def test_disk_full_leaves_the_last_one_loadable(self):
    """The file-size limit of the process makes a real write fail half way."""
    self.checkpoints.save(_state(1), _record(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
      with self.assertRaises(OSError):
        self.checkpoints.save(_state(2), _record(2))
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
      signal.signal(signal.SIGXFSZ, handler)
    self.assertEqual(self._files(), ['round_000001.npz'])
    saved = self.checkpoints.load_latest(_state(0))
    self.assertEqual(saved.record.round_num, 1)

  def test_cohort_seed_is_secret_fresh_and_kept(self):
    seed = self.checkpoints.cohort_seed()
    self.assertGreater(seed.bit_length(), 64)
    self.assertEqual(checkpoints.Checkpoints(self.folder).cohort_seed(), seed)
    mode = os.stat(self.folder / 'cohort_seed.secret').st_mode
    self.assertEqual(stat.S_IMODE(mode), 0o600)
    other = checkpoints.Checkpoints(self.create_tempdir().full_path)
    self.assertNotEqual(other.cohort_seed(), seed)

  def test_cohort_seed_given(self):
    self.assertEqual(self.checkpoints.cohort_seed(5), 5)
    self.assertEqual(self.checkpoints.cohort_seed(), 5)
    with self.assertRaisesRegex(_validate.InputError, 'cohort_seed'):
      self.checkpoints.cohort_seed(6)

  def test_lost_cohort_seed_is_renewed_unless_rounds_depend_on_it(self):
    for damage in (
      lambda path: path.unlink(),
      lambda path: path.write_text('not a number'),
      lambda path: path.write_text('-1'),
    ):
      seed = self.checkpoints.cohort_seed()
      damage(self.folder / 'cohort_seed.secret')
      with self.assertRaisesRegex(_validate.InputError, 'missing or damaged'):
        self.checkpoints.cohort_seed(must_be_there=True)
      self.assertNotEqual(self.checkpoints.cohort_seed(), seed)
    seed = self.checkpoints.cohort_seed()
    self.assertEqual(self.checkpoints.cohort_seed(must_be_there=True), seed)

  @parameterized.parameters(
    dict(charges='many'),
    dict(attempt=None),
    dict(round_num=-1),
    dict(round_num=True),
    dict(run_id=7),
    dict(values=[1]),
    dict(values={'epsilon': 'much'}),
    dict(evaluates='no'),
    dict(more=1),
  )
  def test_record_of_other_types_is_refused(self, **changed):
    values = {**dataclasses.asdict(_record(1)), **changed}
    with self.assertRaisesRegex(checkpoints.AlteredError, 'no record'):
      checkpoints.Record.of(values)

  def test_nothing_is_read_of_a_file_that_claims_more_than_it_has(self):
    """A terabyte of zeros at its end, as a copy that was broken off may have."""
    self.checkpoints.save(_state(1), _record(1))
    self.checkpoints.save(_state(2), _record(2))
    os.truncate(self.folder / 'round_000002.npz', 2**40)
    saved = self.checkpoints.load_latest(_state(0))
    self.assertEqual(saved.record.round_num, 1)
    self.assertEqual(saved.newer_rounds, (2,))


if __name__ == '__main__':
  absltest.main()
