"""Tests of what is published by round: appended, whole and repaired."""

import asyncio
import math
import os
import pathlib
import resource
import shutil
import signal
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from tensorboard.backend.event_processing import event_accumulator
import tensorflow as tf

from tff_medical import _validate
from tff_medical.privacy import ledger_contents
from tff_medical.program import metrics_table
from tff_medical.program import published


def _values(round_num):
  """Returns what a round publishes; every second one evaluates."""
  values = {'epsilon': round_num / 3, 'clip_norm': 1 / round_num}
  if round_num % 2 == 0:
    values['auc'] = math.nan if round_num == 4 else round_num / 7
  return values


def _entries(rounds):
  return [
    ledger_contents.Entry(round_num=n, attempt=n, charges=n, epsilon=n / 3)
    for n in rounds
  ]


class PublishedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.table = self.folder / 'metrics.csv'
    self.events = self.folder / 'tensorboard'

  def _managers(self):
    return (
      published.MetricsTable(self.table),
      published.EventFiles(self.events),
    )

  def _publish(self, rounds, managers=None, values=_values):
    for manager in managers or self._managers():
      for round_num in rounds:
        asyncio.run(manager.release(values(round_num), round_num))

  def _repair(self, done, rounds=None):
    published.repair(
      self.table,
      self.events,
      done=done,
      entries=_entries(rounds or range(1, done + 1)),
    )

  def _assert_rows(self, rows, expected, places=12):
    """Of float64; TensorBoard has float32."""
    self.assertEqual(list(rows), list(expected))
    for round_num, values in expected.items():
      self.assertEqual(set(rows[round_num]), set(values), round_num)
      for name, value in values.items():
        np.testing.assert_allclose(
          rows[round_num][name], value, rtol=10.0**-places, err_msg=name
        )

  def _assert_complete(self, done):
    expected = {n: _values(n) for n in range(1, done + 1)}
    self._assert_rows(metrics_table.read(self.table), expected)
    self._assert_rows(self._shown(), expected, places=6)

  def _shown(self):
    """Returns what TensorBoard itself shows; each step once."""
    accumulator = event_accumulator.EventAccumulator(
      str(self.events), size_guidance={event_accumulator.TENSORS: 0}
    )
    accumulator.Reload()
    rows = {}
    for tag in accumulator.Tags()['tensors']:
      events = accumulator.Tensors(tag)
      steps = [event.step for event in events]
      self.assertLen(set(steps), len(steps), tag)
      for event in events:
        value = float(tf.make_ndarray(event.tensor_proto))
        rows.setdefault(event.step, {})[tag] = value
    return dict(sorted(rows.items()))

  def test_both_hold_what_was_published(self):
    self._publish(range(1, 7))
    self._assert_complete(6)
    rows = published.read_events(self.events)
    self._assert_rows(rows, {n: _values(n) for n in range(1, 7)}, places=6)

  def test_a_round_is_one_event_for_tensorboard(self):
    self._publish(range(1, 4))
    (path,) = self.events.iterdir()
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    events = [tf.compat.v1.Event.FromString(record) for record in records]
    steps = [event.step for event in events if event.HasField('summary')]
    self.assertEqual(steps, [1, 2, 3])

  def test_the_table_is_appended_to(self):
    """The same file, with the same bytes before the new line."""
    manager = published.MetricsTable(self.table)
    self._publish((1, 2), [manager])
    for round_num in range(3, 9):
      before, inode = self.table.read_bytes(), self.table.stat().st_ino
      self._publish((round_num,), [manager])
      after = self.table.read_bytes()
      self.assertEqual(self.table.stat().st_ino, inode)
      self.assertEqual(after[: len(before)], before)
      self.assertEqual(after.count(b'\n'), before.count(b'\n') + 1)

  def test_a_line_is_on_disk_when_the_round_is_published(self):
    """Whoever reads the file then, or after a crash, finds it."""
    manager = published.MetricsTable(self.table)
    synced = []
    sync = os.fsync

    def record(descriptor):
      if os.fstat(descriptor).st_ino == self.table.stat().st_ino:
        synced.append(self.table.read_bytes())
      sync(descriptor)

    self._publish((1, 2), [manager])
    with mock.patch.object(os, 'fsync', record):
      self._publish((3,), [manager])
    self.assertEqual(synced[-1], self.table.read_bytes())

  def test_a_limit_on_files_is_an_error_of_the_disk(self):
    """TensorFlow's errors would pass by those who wait for an OSError."""
    manager = published.EventFiles(self.events)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
      with self.assertRaisesRegex(OSError, 'tensorboard'):
        asyncio.run(manager.release(_values(1), 1))
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
      signal.signal(signal.SIGXFSZ, handler)

  def test_new_columns_in_mid_run_change_no_value(self):
    manager = published.MetricsTable(self.table)
    self._publish((1,), [manager])
    before = self.table.read_text().splitlines()
    self._publish((2, 3), [manager])
    lines = self.table.read_text().splitlines()
    self.assertEqual(lines[0], before[0] + ',auc')
    self.assertEqual(lines[1], before[1] + ',')
    self._assert_rows(
      metrics_table.read(self.table), {n: _values(n) for n in (1, 2, 3)}
    )

  def test_a_round_published_twice_is_there_once(self):
    self._publish((1, 2, 2, 3))
    self._publish((3, 4))
    self._assert_complete(4)

  def test_whatever_byte_the_table_is_cut_at_it_is_repaired(self):
    self._publish(range(1, 6))
    whole = self.table.read_bytes()
    for size in range(0, len(whole), 7):
      self.table.write_bytes(whole[:size])
      self._repair(5)
      self._publish((5,))
      self._assert_rows(
        metrics_table.read(self.table),
        {n: _values(n) for n in range(1, 6)},
        places=6,
      )

  def test_a_torn_last_line_is_no_line(self):
    self._publish(range(1, 4))
    with open(self.table, 'ab') as file:
      file.write(b'4,0.3333')
    self._repair(3)
    self._publish((4,))
    self._assert_complete(4)

  def test_a_torn_last_line_is_cut_without_a_repair_too(self):
    self._publish(range(1, 4))
    with open(self.table, 'ab') as file:
      file.write(b'4,0.3333')
    self._publish((4,), [published.MetricsTable(self.table)])
    self._assert_rows(
      metrics_table.read(self.table), {n: _values(n) for n in range(1, 5)}
    )

  @parameterized.parameters('missing', 'empty', 'rows', 'first', 'last')
  def test_lost_rows_are_put_back_and_that_is_said(self, what):
    self._publish(range(1, 6))
    lines = self.table.read_bytes().splitlines(keepends=True)
    if what == 'missing':
      self.table.unlink()
    else:
      kept = {
        'empty': [],
        'rows': lines[:2] + lines[4:],
        'first': lines[:1] + lines[2:],
        'last': lines[:4],
      }[what]
      self.table.write_bytes(b''.join(kept))
    with self.assertLogs('absl', 'WARNING') as logs:
      self._repair(5)
    self.assertIn('lacked', logs.output[0])
    self._publish((5,))
    self._assert_rows(
      metrics_table.read(self.table),
      {n: _values(n) for n in range(1, 6)},
      places=6,
    )
    # What the ledger knows is exact.
    for round_num, row in metrics_table.read(self.table).items():
      self.assertEqual(row['epsilon'], _values(round_num)['epsilon'])

  def test_where_both_are_lost_the_ledger_gives_epsilon(self):
    self._publish(range(1, 5))
    self.table.unlink()
    shutil.rmtree(self.events)
    self._repair(4)
    self._publish((4,))
    expected = {n: {'epsilon': n / 3} for n in range(1, 4)}
    expected[4] = _values(4)
    self._assert_rows(metrics_table.read(self.table), expected)
    self._assert_rows(self._shown(), expected, places=6)

  def test_rounds_that_will_be_run_again_are_left_out(self):
    """Beyond the checkpoint: it has been lost, and they are charged again."""
    self._publish(range(1, 7))
    self._repair(3, rounds=range(1, 7))
    self._assert_complete(3)

    def again(round_num):
      return {**_values(round_num), 'epsilon': round_num / 3 + 1}

    self._publish((4, 5), values=again)
    expected = {n: _values(n) for n in range(1, 4)}
    expected.update({n: again(n) for n in (4, 5)})
    self._assert_rows(metrics_table.read(self.table), expected)
    self._assert_rows(self._shown(), expected, places=6)

  @parameterized.parameters('gone', 'empty folder', 'empty', 'cut', 'garbage')
  def test_lost_files_for_tensorboard_are_written_again(self, what):
    self._publish(range(1, 6))
    (path,) = self.events.iterdir()
    if what == 'gone':
      shutil.rmtree(self.events)
    elif what == 'empty folder':
      path.unlink()
    else:
      content = path.read_bytes()
      path.write_bytes(
        {
          'empty': b'',
          'cut': content[: len(content) // 2],
          'garbage': b'\xff' * len(content),
        }[what]
      )
    with self.assertLogs('absl', 'WARNING') as logs:
      self._repair(5)
    self.assertIn('lacked values', logs.output[0])
    self._publish((5, 6))
    self._assert_rows(
      published.read_events(self.events),
      {n: _values(n) for n in range(1, 7)},
      places=6,
    )

  def test_nothing_is_done_where_nothing_is_wrong(self):
    self._publish(range(1, 6))
    before = {
      p: (p.read_bytes(), p.stat().st_mtime_ns)
      for p in (self.table, *self.events.iterdir())
    }
    with self.assertNoLogs('absl', 'WARNING'):
      self._repair(5)
    after = {
      p: (p.read_bytes(), p.stat().st_mtime_ns)
      for p in (self.table, *self.events.iterdir())
    }
    self.assertEqual(after, before)

  def test_a_damaged_table_is_refused_and_left(self):
    self._publish(range(1, 4))
    self.table.write_text('round,epsilon\n1,much\n')
    for call in (lambda: self._repair(3), self._managers):
      with self.assertRaisesRegex(_validate.InputError, 'is damaged'):
        call()
    self.assertEqual(self.table.read_text(), 'round,epsilon\n1,much\n')

  def test_a_file_in_place_of_tensorboard_s_folder_is_refused(self):
    self.events.write_text('precious')
    with self.assertRaisesRegex(_validate.InputError, 'not a folder'):
      self._repair(0)
    self.assertEqual(self.events.read_text(), 'precious')


if __name__ == '__main__':
  absltest.main()
