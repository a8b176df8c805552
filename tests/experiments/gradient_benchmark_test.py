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
from experiments.measuring import opacus_steps
from tests.learning import unit_models
from tff_medical import _validate


class GradientBenchmarkTest(parameterized.TestCase):
  @parameterized.parameters('cnn_small', 'cnn_dense')
  def test_contenders_compute_the_same_sum(self, name):
    with mock.patch.object(
      gradient_benchmark.unit_gradients, 'microbatch_size', lambda model: 2
    ):
      contenders = gradient_benchmark.contenders(
        ('plain', 'rules', 'vectorized'), name, 5
      )
    sums = {way: unit_models.flat(run()) for way, run in contenders.items()}
    plain = sums.pop('plain')
    self.assertCountEqual(sums, ['rules', 'vectorized'])
    self.assertGreater(np.linalg.norm(plain), 0.1)
    for values in sums.values():
      np.testing.assert_allclose(values, plain, rtol=1e-3, atol=1e-4)

  def test_whole_command(self):
    path = self.create_tempfile().full_path
    with (
      mock.patch.object(gradient_benchmark, 'WORKLOADS', [('cnn_small', 32)]),
      mock.patch.object(
        gradient_benchmark.record_rounds, 'peak_mib', lambda *_: 7.0
      ),
      contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
      gradient_benchmark.main(steps=3, warm_up=1, json=path)
    with open(path, encoding='utf-8') as file:
      report = json.load(file)
    step = report['results']['step of cnn_small, batches of 32']
    self.assertGreater(step['rules_to_plain'], 0)
    one_round = report['results']['round of cnn_small, batches of 32']
    self.assertGreater(one_round['round_to_plain'], 0)
    self.assertGreater(one_round['round_to_by_site'], 0)
    self.assertIn('peak_mib', printed.getvalue())
    self.assertEqual(report['steps'], 3)

  def test_a_million_parameters_and_1024_records_in_2_gib(self):
    """The gradients of all records, written down, would take 3.7 GiB."""
    model = gradient_benchmark.record_rounds.functional_model('cnn_million')
    parameters = sum(np.size(w) for w in model.initial_weights[0])
    self.assertBetween(parameters, 950_000, 1_050_000)
    peak = gradient_benchmark.record_rounds.peak_mib('cnn_million', 1024)
    self.assertBetween(peak, 200, 2048)

  @parameterized.parameters(
    ({'steps': 0, 'warm_up': 1}, 'steps'),
    ({'steps': 1, 'warm_up': 1, 'names': ['rule']}, 'contenders'),
    ({'steps': 1, 'warm_up': 1, 'names': ['opacus_ghost']}, 'opacus_python'),
    (
      {
        'steps': 1,
        'warm_up': 1,
        'names': ['opacus_hooks'],
        'opacus_python': '/no/python',
      },
      "opacus_python must .* got '/no/python': .*No such file",
    ),
  )
  def test_arguments(self, arguments, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      gradient_benchmark.main(**arguments)

  def test_a_python_without_opacus(self):
    with self.assertRaisesRegex(
      _validate.InputError, "No module named 'torch'; install opacus"
    ):
      opacus_steps.OpacusProcess(sys.executable, 'cnn_small', 4, 'opacus_ghost')

  def test_flags(self):
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
