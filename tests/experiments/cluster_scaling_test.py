"""Tests of the command that simulates rounds on clusters."""

import contextlib
import io
import json
import types

from absl.testing import absltest
from absl.testing import parameterized

from experiments import cluster_scaling
from experiments.measuring import cluster_simulation
from tff_medical import _validate


def _values(**changed):
  values = dict(
    models=['225e3:30', '1e9:4000'],
    cohorts=['100'],
    workers=['1', '10'],
    workers_per_node=1,
    portions_per_worker=4,
    repeats=1,
    costs=None,
    json=None,
  )
  return types.SimpleNamespace(**{**values, **changed})


class ClusterScalingTest(parameterized.TestCase):
  def _file(self, text):
    return self.create_tempfile(content=text).full_path

  def test_whole_command(self):
    path = self.create_tempfile().full_path
    costs = self._file('{"slow_share": 0, "client_sigma": 0.25}')
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      cluster_scaling.main(_values(json=path, costs=costs))
    with open(path, encoding='utf-8') as file:
      report = json.load(file)
    self.assertEqual(report['costs']['client_sigma'], 0.25)
    self.assertLen(report['rounds'], 4)
    row = report['rounds'][1]
    self.assertEqual((row['parameters'], row['workers']), (225_000, 10))
    self.assertEqual(row['bottleneck'], 'compute')
    expected = cluster_simulation.simulate(
      cluster_simulation.Round(100, 225_000, 30.0, 10, portions_per_worker=4),
      cluster_simulation.Costs(slow_share=0.0, client_sigma=0.25),
      repeats=1,
    )
    self.assertAlmostEqual(row['seconds'], expected.seconds)
    lines = printed.getvalue().splitlines()
    self.assertLen(lines, 2 + 2)
    self.assertEqual({line.count('|') for line in lines}, {5})
    self.assertRegex(lines[2], r'\| 0\.\d \(0\.\d\d\) compute \|$')

  def test_a_round_that_does_not_end_is_named(self):
    costs = self._file('{"failures_per_worker_hour": 1e6}')
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      cluster_scaling.main(_values(models=['1e6:4000'], costs=costs))
    self.assertIn('does not end: failures', printed.getvalue())

  @parameterized.parameters(
    ({'models': ['225e3']}, "PARAMETERS:MILLISECONDS, got '225e3'"),
    ({'models': ['inf:3']}, "got 'inf:3'"),
    ({'cohorts': ['1e3']}, "cohorts must be whole numbers, got '1e3'"),
    ({'workers': ['0']}, 'workers must be positive'),
    ({'repeats': 0}, 'repeats'),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      cluster_scaling.main(_values(**changed))

  @parameterized.parameters(
    ('{"slow_shares": 0}', "did you mean 'slow_share'"),
    ('{"slow_share": 2}', 'slow_share must lie between'),
    ('{"slow_share": "none"}', 'slow_share'),
    ('[1]', 'JSON object'),
    ('{', 'JSON file'),
  )
  def test_refuses_costs(self, text, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      cluster_scaling.read_costs(self._file(text))
    with self.assertRaisesRegex(_validate.InputError, 'nowhere'):
      cluster_scaling.read_costs('nowhere.json')


if __name__ == '__main__':
  absltest.main()
