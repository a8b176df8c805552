"""Tests of the benchmark of what a training waits for besides its rounds."""

import contextlib
import io
import json
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments import start_benchmark
from experiments.measuring import starting
from tff_medical import _validate


def _values(**changed):
  """Returns the values of the flags."""
  values = dict(
    workloads=['charge', 'draw'], turns=1, charges=3, preset='demo', json=None
  )
  return types.SimpleNamespace(**{**values, **changed})


class StartBenchmarkTest(parameterized.TestCase):
  def test_whole_command(self):
    path = self.create_tempfile().full_path
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      start_benchmark.main(_values(json=path))
    with open(path, encoding='utf-8') as file:
      report = json.load(file)
    self.assertEqual(report['charges'], 3)
    self.assertCountEqual(
      report['results']['charge'],
      [
        *(
          f'{sampler}_{part}millis'
          for sampler in ('poisson', 'all')
          for part in ('', 'median_', 'charge_', 'flush_')
        ),
        'fsync_millis',
      ],
    )
    self.assertGreater(min(report['results']['charge'].values()), 0)
    self.assertLen(report['results']['draw'], 3)
    self.assertIn('100_of_100000000_millis', printed.getvalue())

  def test_runs_the_commands_that_it_names(self):
    with mock.patch.object(starting, '_python') as run:
      seconds = starting.commands('demo', turns=2)
    self.assertCountEqual(
      seconds, ['help_secs', 'refused_flag_secs', 'imports_secs', 'demo_secs']
    )
    self.assertEqual(run.call_count, 8)
    run.assert_any_call('-m', 'experiments.train', '--help')
    run.assert_any_call('-c', 'import experiments.train')

  @parameterized.parameters(
    ({'turns': 0}, 'turns'),
    ({'charges': -1}, 'charges'),
    ({'workloads': ['draws']}, "did you mean 'draw'"),
    ({'workloads': ['commands'], 'preset': 'dmo'}, "did you mean 'demo'"),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      start_benchmark.main(_values(**changed))


if __name__ == '__main__':
  absltest.main()
