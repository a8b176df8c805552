"""Tests of the benchmark of growth with clients and parameters."""

import contextlib
import io
import json
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments import benchmark
from experiments import growth_benchmark
from experiments.measuring import growth
from experiments.measuring import networks
from tff_medical import _validate


def _values(**changed):
  """Returns the values of the flags."""
  values = dict(
    rounds=1, warm_up=0, growth=['clients', 'parameters', 'memory'], json=None
  )
  return types.SimpleNamespace(**{**values, **changed})


class GrowthBenchmarkTest(parameterized.TestCase):
  def test_whole_command(self):
    path = self.create_tempfile().full_path
    work = {
      'CLIENTS': {'6 clients': benchmark.Workload(6, 4, 4)},
      'PARAMETERS': {'9 hidden': benchmark.Workload(6, 4, 4, hidden=9)},
      'COHORTS': (1, 3),
    }
    with mock.patch.multiple(growth_benchmark, **work):
      with contextlib.redirect_stdout(io.StringIO()):
        growth_benchmark.main(_values(json=path))
    with open(path, encoding='utf-8') as file:
      results = json.load(file)['results']
    self.assertCountEqual(results, ['6 clients', '9 hidden', 'memory'])
    for name in ('6 clients', '9 hidden'):
      figures = results[name]
      self.assertAlmostEqual(
        figures['millis_a_client'], 1000 * figures['local_secs'] / 6
      )
      self.assertGreater(figures['local_to_floor'], 0)
    peaks = [results['memory'][f'{n}_clients_peak_mib'] for n in (1, 3)]
    self.assertBetween(peaks[0], 100, peaks[1])

  def test_models_have_the_parameters_that_their_rows_name(self):
    for title, work in growth_benchmark.PARAMETERS.items():
      count = networks.cnn(work.hidden).count_params()
      self.assertEqual(title, f'{count:,} parameters')

  def test_cohorts_of_rows_and_of_memory_are_the_same(self):
    self.assertEqual(
      tuple(work.clients for work in growth_benchmark.CLIENTS.values()),
      growth_benchmark.COHORTS,
    )

  def test_memory_is_that_of_a_new_process(self):
    with mock.patch.object(growth.subprocess, 'run') as run:
      run.return_value.stdout = 'a line of TensorFlow\n700.5\n701.0\n'
      self.assertEqual(
        growth.peaks((20, 200)),
        {'20_clients_peak_mib': 700.5, '200_clients_peak_mib': 701.0},
      )

  @parameterized.parameters(
    ({'rounds': 0}, 'rounds'),
    ({'warm_up': -1}, 'warm_up'),
    ({'growth': ['client']}, "did you mean 'clients'"),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      growth_benchmark.main(_values(**changed))


if __name__ == '__main__':
  absltest.main()
