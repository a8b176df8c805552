"""Tests of the benchmark of stored pixels."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments import pixels_benchmark
from tff_medical import _validate

_WORK = pixels_benchmark.Workload(images=40, image_size=8, channels=3, drawn=10)


class PixelsBenchmarkTest(parameterized.TestCase):
  def test_contenders_read_the_same_images(self):
    with pixels_benchmark.stored_file(_WORK, None) as path:
      warm = pixels_benchmark.readers(_WORK, path)
      cold = pixels_benchmark.cold_readers(_WORK, path)
      first = [run() for run in warm.values()]
      first += [rows for run in cold.values() if (rows := run()) is not None]
      second = warm['stored']()
    self.assertLen(first, 5)
    self.assertEqual(first[0].shape, (10, 8, 8, 3))
    for rows in first:
      np.testing.assert_array_equal(rows, first[0])
    self.assertFalse(np.array_equal(second, first[0]))

  def test_whole_command(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    path = self.create_tempfile().full_path
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      pixels_benchmark.main(
        _WORK, turns=2, warm_up=1, folder=str(folder), json=path
      )
    self.assertEmpty(list(folder.iterdir()))
    with open(path, encoding='utf-8') as file:
      report = json.load(file)
    self.assertGreater(report['results']['round']['stored_to_memory'], 0)
    self.assertCountEqual(
      report['results']['read_cold'],
      ['stored_millis', 'memory_map_millis', 'memory_map_to_stored'],
    )
    self.assertIn('stored_to_memory', printed.getvalue())
    self.assertEqual((report['drawn'], report['turns']), (10, 2))

  @parameterized.parameters(
    (dict(images=0), 'images'),
    (dict(images=10, drawn=10), 'drawn'),
    (dict(drawn=0), 'drawn'),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      pixels_benchmark.Workload(**changed)

  def test_flags(self):
    ended = subprocess.run(
      [sys.executable, '-m', 'experiments.pixels_benchmark', '--turns=0'],
      capture_output=True,
      text=True,
      env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
    )
    self.assertEqual(ended.returncode, 2)
    self.assertIn('turns', ended.stderr)


if __name__ == '__main__':
  absltest.main()
