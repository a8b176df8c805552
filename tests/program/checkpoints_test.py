"""Tests of checkpoints: exact round trips, atomic writes, real disk failures."""

import collections
import dataclasses
import math
import os
import pathlib
import resource
import shutil
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
    ledger_digests=('ab', 'cd'),
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

  def test_round_trip_of_the_record(self):
    values = {
      'epsilon': math.inf,
      'auc': math.nan,
      'loss': -math.inf,
      'clip_norm': 0.1 + 0.2,
      'tiny': 5e-324,
    }
    record = _record(3, values=values, evaluates=True)
    digest = self.checkpoints.save(_state(7), record)
    saved = self.checkpoints.load_latest(_state(0))
    self.assertEqual(saved.digest, digest)
    self.assertEqual(saved.newer_rounds, ())
    there = dict(saved.record.values)
    self.assertTrue(math.isnan(there.pop('auc')))
    del values['auc']
    self.assertEqual(there, values)
    self.assertTrue(saved.record.evaluates)
    for name in ('run_id', 'round_num', 'attempt', 'charges', 'ledger_digests'):
      self.assertEqual(getattr(saved.record, name), getattr(record, name))

  def test_digest_is_of_state_and_record(self):
    digests = {
      self.checkpoints.save(_state(value), _record(1, charges=charges))
      for value in (1, 2)
      for charges in (1, 2)
    }
    self.assertLen(digests, 4)
    again = self.checkpoints.save(_state(2), _record(1, charges=2))
    self.assertIn(again, digests)

  def test_none_yet(self):
    self.assertIsNone(self.checkpoints.load_latest(_state(0)))

  def test_keeps_the_newest_two(self):
    for round_num in range(12):
      self.checkpoints.save(_state(round_num), _record(round_num))
    self.assertEqual(self.checkpoints.rounds(), [10, 11])
    self.assertEqual(self._files(), ['round_000010.npz', 'round_000011.npz'])

  def _refuses(self, message):
    before = self._content()
    with self.assertRaisesRegex(_validate.InputError, message) as caught:
      self.checkpoints.load_latest(_state(0))
    self.assertNotIn('\n', str(caught.exception))
    self.assertIn('restore the file', str(caught.exception))
    with self.assertRaisesRegex(_validate.InputError, message):
      self.checkpoints.latest_round()
    self.assertEqual(self._content(), before)

  def _content(self):
    return {p.name: p.read_bytes() for p in self.folder.iterdir()}

  def test_refuses_what_was_renamed(self):
    """An older one under the newest name is not the newest one."""
    self.checkpoints.save(_state(1), _record(1))
    self.checkpoints.save(_state(2), _record(2))
    shutil.copy(
      self.folder / 'round_000001.npz', self.folder / 'round_000005.npz'
    )
    self._refuses('round_000005.npz was renamed: .* of round 1;')
    (self.folder / 'round_000005.npz').unlink()
    os.replace(
      self.folder / 'round_000001.npz', self.folder / 'round_000002.npz'
    )
    self._refuses('round_000002.npz was renamed')

  def _save_again(self, change):
    """Changes arrays of the file and writes it as NumPy does."""
    path = self.folder / 'round_000001.npz'
    with np.load(path) as file:
      arrays = {name: file[name] for name in file.files}
    change(arrays)
    np.savez(path, **arrays)

  def test_what_numpy_writes_again_unchanged_is_the_same(self):
    self.checkpoints.save(_state(1), _record(1))
    self._save_again(lambda arrays: None)
    self.assertEqual(self.checkpoints.load_latest(_state(0)).record, _record(1))

  @parameterized.parameters('weights', 'type', 'shape', 'order', 'record')
  def test_refuses_what_was_changed(self, what):
    self.checkpoints.save(_state(1), _record(1))

    def change(arrays):
      if what == 'weights':
        arrays['leaf_0000'][0, 0] += 1e-7
      elif what == 'type':
        arrays['leaf_0000'] = arrays['leaf_0000'].astype(np.float64)
      elif what == 'shape':
        arrays['leaf_0000'] = arrays['leaf_0000'].reshape(3, 2)
      elif what == 'order':
        first, second = arrays['leaf_0000'], arrays['leaf_0001']
        arrays['leaf_0000'], arrays['leaf_0001'] = second, first
      else:
        text = (
          arrays['record'].tobytes().replace(b'"charges": 3', b'"charges": 1')
        )
        self.assertNotEqual(text, arrays['record'].tobytes())
        arrays['record'] = np.frombuffer(text, np.uint8)

    self._save_again(change)
    self._refuses('round_000001.npz was changed: its digest does not match')

  def test_refuses_what_an_older_version_wrote(self):
    self.checkpoints.save(_state(1), _record(1))
    self._save_again(lambda arrays: arrays.pop('record'))
    self._refuses('is no checkpoint of this version')

  @parameterized.parameters('fifo', 'device', 'folder')
  def test_what_is_no_file_ends_in_a_line_and_at_once(self, kind):
    """A folder could not be saved over; the others can."""
    self.checkpoints.save(_state(0), _record(0))
    path = self.folder / 'round_000001.npz'
    if kind == 'folder':
      path.mkdir()
      with self.assertRaisesRegex(
        _validate.InputError, f'{path.name} is a fol'
      ):
        self.checkpoints.load_latest(_state(0))
      return
    if kind == 'fifo':
      os.mkfifo(path)
    else:
      path.symlink_to('/dev/zero')
    with self.assertLogs('absl', 'WARNING') as logs:
      saved = self.checkpoints.load_latest(_state(0))
    self.assertIn('not a regular file', logs.output[0])
    self.assertEqual(saved.record.round_num, 0)
    self.checkpoints.save(_state(1), _record(1))
    self.assertEqual(self.checkpoints.load_latest(_state(0)).record, _record(1))

  @parameterized.parameters(b'', b'PK\x03\x04 cut', b'not a zip at all')
  def test_falls_back_to_the_one_before(self, content):
    self.checkpoints.save(_state(1), _record(1))
    self.checkpoints.save(_state(2), _record(2))
    (self.folder / 'round_000002.npz').write_bytes(content)
    with self.assertLogs('absl', 'WARNING') as logs:
      saved = self.checkpoints.load_latest(_state(0))
    self.assertIn('going on from the checkpoint of round 1', logs.output[0])
    self.assertEqual(saved.record, _record(1))
    self.assertEqual(saved.state.weights[1], [1])
    self.assertEqual(saved.newer_rounds, (2,))
    self.assertEqual(self.checkpoints.latest_round(), 1)

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

  @parameterized.parameters(None, b'', b'words', b'\xff\xfe', b'-5\n')
  def test_a_seed_that_was_lost_is_a_new_one_and_said(self, content):
    self.checkpoints.save(_state(1), _record(1))
    seed = self.checkpoints.cohort_seed()
    path = self.folder / 'cohort_seed.secret'
    if content is None:
      path.unlink()
    else:
      path.write_bytes(content)
    with self.assertLogs('absl', 'WARNING') as logs:
      again = self.checkpoints.cohort_seed()
    self.assertIn('a new seed was drawn', logs.output[0])
    self.assertNotEqual(again, seed)
    self.assertGreater(again.bit_length(), 64)
    self.assertEqual(self.checkpoints.cohort_seed(), again)

  def test_a_seed_that_is_no_file_is_refused(self):
    os.mkfifo(self.folder / 'cohort_seed.secret')
    with self.assertRaisesRegex(_validate.InputError, 'not a regular file'):
      self.checkpoints.cohort_seed()

  def test_nobody_else_can_read_a_checkpoint(self):
    """They hold what a tree's noise is made of."""
    self.checkpoints.save(_state(1), _record(1))
    mode = os.stat(self.folder / 'round_000001.npz').st_mode
    self.assertEqual(stat.S_IMODE(mode), 0o600)

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
    dict(ledger_digests='ab'),
    dict(ledger_digests=[1]),
    dict(values={'epsilon': 'much'}),
    dict(evaluates='no'),
    dict(more=1),
  )
  def test_record_of_other_types_is_refused(self, **changed):
    values = {**dataclasses.asdict(_record(1)), 'ledger_digests': ['ab']}
    checkpoints.Record.of(values)
    values.update(changed)
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
