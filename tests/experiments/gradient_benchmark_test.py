"""Tests of the benchmark of per-example gradients."""

import contextlib
import io
import json
import os
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments import gradient_benchmark
from tests.learning import unit_models
from tff_medical import _validate


class GradientBenchmarkTest(parameterized.TestCase):
  @parameterized.parameters('cnn_small', 'cnn')
  def test_contenders_compute_the_same_sum(self, name):
    model = gradient_benchmark.model(name)
    sums = {
      way: unit_models.flat(run())
      for way, run in gradient_benchmark.contenders(model, 5).items()
    }
    plain = sums.pop('plain')
    self.assertCountEqual(sums, ['rules', 'vectorized'])
    self.assertGreater(np.linalg.norm(plain), 0.1)
    for values in sums.values():
      np.testing.assert_allclose(values, plain, rtol=1e-3, atol=1e-4)

  def test_whole_command(self):
    path = self.create_tempfile().full_path
    with (
      mock.patch.object(gradient_benchmark, 'WORKLOADS', [('cnn_small', 4)]),
      contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
      gradient_benchmark.main(steps=3, warm_up=1, json=path)
    with open(path, encoding='utf-8') as file:
      report = json.load(file)
    figures = report['results']['cnn_small, batches of 4']
    self.assertGreater(figures['rules_to_plain'], 0)
    self.assertIn('vectorized_to_plain', printed.getvalue())
    self.assertEqual(report['steps'], 3)

  def test_flags(self):
    with self.assertRaisesRegex(_validate.InputError, 'steps'):
      gradient_benchmark.main(steps=0, warm_up=1, json=None)
    ended = subprocess.run(
      [sys.executable, '-m', 'experiments.gradient_benchmark', '--warm_up=-1'],
      capture_output=True,
      text=True,
      env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
    )
    self.assertEqual(ended.returncode, 2)
    self.assertIn('warm_up', ended.stderr)


if __name__ == '__main__':
  absltest.main()
