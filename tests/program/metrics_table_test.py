"""Tests of the table metrics.csv: exact values, torn and damaged files."""

import math
import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical import _validate
from tff_medical.program import metrics_table


class MetricsTableTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.create_tempdir().full_path
    self.path = pathlib.Path(folder, 'metrics.csv')

  def test_round_trip_is_exact(self):
    rows = {
      1: {'epsilon': 0.1 + 0.2, 'clip_norm': 5e-324},
      2: {'epsilon': math.inf, 'auc': -1.5e300},
      3: {'epsilon': 2.0, 'sensitivity/a, "b"': 0.25},
      7: {},
    }
    metrics_table.write(self.path, rows)
    content = metrics_table.read_content(self.path)
    self.assertEqual(content.rows, rows)
    self.assertEqual(
      content.columns, ('epsilon', 'clip_norm', 'auc', 'sensitivity/a, "b"')
    )
    self.assertTrue(content.is_whole)

  def test_nan_is_not_an_empty_cell(self):
    metrics_table.write(self.path, {1: {'auc': math.nan}, 2: {'loss': 1.0}})
    rows = metrics_table.read(self.path)
    self.assertTrue(math.isnan(rows[1]['auc']))
    self.assertNotIn('loss', rows[1])
    self.assertNotIn('auc', rows[2])

  @parameterized.parameters(
    (3, b'3'),
    (3.0, b'3'),
    (np.float32(3), b'3'),
    (np.int64(3), b'3'),
    (True, b'1'),
    (0.1, b'0.1'),
    (-0.5, b'-0.5'),
    (1e300, b'1e+300'),
    (math.inf, b'inf'),
    (math.nan, b'nan'),
    ('', b'""'),
  )
  def test_a_number_looks_the_same_whatever_its_type(self, value, text):
    self.assertEqual(metrics_table.line([value]), text + b'\n')

  def test_what_was_read_is_written_anew_without_a_difference(self):
    rows = {1: {'n': 3, 'x': 0.1}, 2: {'x': math.nan}, 3: {'n': 0}}
    metrics_table.write(self.path, rows)
    before = self.path.read_bytes()
    content = metrics_table.read_content(self.path)
    metrics_table.write(self.path, content.rows, content.columns)
    self.assertEqual(self.path.read_bytes(), before)

  def test_a_missing_file_has_no_rows(self):
    content = metrics_table.read_content(self.path)
    self.assertEqual((content.rows, content.columns), ({}, ()))
    self.assertTrue(content.is_whole)

  def test_a_file_cut_at_any_byte_has_the_lines_that_are_whole(self):
    rows = {n: {'epsilon': n / 3, 'auc': n / 7} for n in range(1, 4)}
    metrics_table.write(self.path, rows)
    whole = self.path.read_bytes()
    for size in range(len(whole) + 1):
      self.path.write_bytes(whole[:size])
      content = metrics_table.read_content(self.path)
      lines = whole[:size].count(b'\n')
      self.assertEqual(
        content.rows, {n: rows[n] for n in range(1, lines)}, size
      )
      self.assertEqual(content.is_whole, whole[:size][-1:] in (b'\n', b''))

  @parameterized.parameters(
    (b'epsilon,round\n0.1,1\n', 'first column'),
    (b'\n', 'first column'),
    (b'round,a,a\n1,2,3\n', 'first column'),
    (b'round,a\n1,2,3\n', 'line 2 is not of its columns'),
    (b'round,a\n1\n', 'line 2 is not of its columns'),
    (b'round,a\n\n', 'line 2 holds no numbers'),
    (b'round,a\nfirst,1\n', 'line 2 holds no numbers'),
    (b'round,a\n1,much\n', 'line 2 holds no numbers'),
    (b'round,a\n0,1\n', 'line 2 is not of its columns'),
    (b'round,a\n-1,1\n', 'line 2 is not of its columns'),
    (b'round,a\n1,\xff\n', 'utf-8'),
    (b'round,a\n1,\0\n', 'line 2|NUL'),
    (bytes(range(256)), 'damaged'),
  )
  def test_a_damaged_file_is_one_line(self, content, message):
    self.path.write_bytes(content)
    with self.assertRaisesRegex(_validate.InputError, message) as caught:
      metrics_table.read(self.path)
    self.assertIn(str(self.path), str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters('fifo', 'folder', 'device', 'loop')
  def test_what_is_no_file_is_refused_at_once(self, kind):
    if kind == 'fifo':
      os.mkfifo(self.path)
    elif kind == 'folder':
      self.path.mkdir()
    else:
      self.path.symlink_to('/dev/zero' if kind == 'device' else self.path.name)
    with self.assertRaisesRegex(_validate.InputError, 'metrics.csv'):
      metrics_table.read(self.path)


if __name__ == '__main__':
  absltest.main()
