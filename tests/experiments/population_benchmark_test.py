"""Tests of the benchmark of large populations of clients."""

import contextlib
import io
import json
import types

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments import population_benchmark
from tff_medical import _validate
from tff_medical.data import partition


def _values(**changed):
  values = dict(
    clients=50, images_per_client=2, cohort=10, alpha=0.3, json=None
  )
  return types.SimpleNamespace(**{**values, **changed})


class PopulationBenchmarkTest(parameterized.TestCase):
  def test_whole_command(self):
    path = self.create_tempfile().full_path
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      population_benchmark.main(_values(json=path))
    with open(path, encoding='utf-8') as file:
      report = json.load(file)
    self.assertEqual(report['clients'], 50)
    steps = {
      'partitions': partition.KINDS,
      'rounds': ('feed', 'draw', 'data_of_cohort', 'digest', 'units'),
    }
    for workload, names in steps.items():
      self.assertCountEqual(
        report['results'][workload],
        [
          f'{name}_{figure}'
          for name in names
          for figure in ('cpu_secs', 'kept_mib', 'peak_mib')
        ],
      )
    self.assertIn('dirichlet_peak_mib', printed.getvalue())

  def test_memory_is_that_of_the_step(self):
    figures = population_benchmark.measured('x', lambda: np.zeros(2**20))
    self.assertBetween(figures['x_kept_mib'], 8, 8.1)
    self.assertGreaterEqual(figures['x_peak_mib'], figures['x_kept_mib'])

  @parameterized.parameters(
    ({'clients': 0}, 'clients must be positive'),
    ({'cohort': 50}, 'cohort must lie between 1 and 49'),
    ({'alpha': 0.0}, 'alpha must be positive'),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      population_benchmark.main(_values(**changed))


if __name__ == '__main__':
  absltest.main()
