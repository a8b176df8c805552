"""Tests of the benchmark of what a round costs the driver."""

import contextlib
import io
import os
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments import cluster_scaling
from experiments import driver_benchmark
from experiments.measuring import cluster_costs
from experiments.measuring import cluster_hosts
from experiments.measuring import cluster_simulation
from tff_medical import _validate


def _values(**changed):
  values = dict(parameters=2_000, turns=1, cluster_workers=0, json=None)
  return types.SimpleNamespace(**{**values, **changed})


class DriverBenchmarkTest(parameterized.TestCase):
  def test_writes_costs_for_the_simulation(self):
    path = self.create_tempfile().full_path
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      driver_benchmark.main(_values(json=path))
    costs = cluster_scaling.read_costs(path)
    defaults = cluster_simulation.Costs()
    # Weights and momentum.
    self.assertAlmostEqual(costs.state_copies, 2.0, delta=0.05)
    for name in ('server_nanos_per_parameter', 'save_megabytes_per_second'):
      self.assertNotEqual(getattr(costs, name), getattr(defaults, name))
    self.assertGreater(costs.merge_nanos_per_parameter, 0)
    self.assertGreater(costs.charge_millis, 0)
    self.assertIn('2,000 parameters', printed.getvalue())

  def test_adds_the_costs_of_a_cluster(self):
    path = self.create_tempfile().full_path
    measured = {'dispatch_millis': 0.25, 'notice_seconds': 0.5}
    with (
      mock.patch.object(cluster_hosts, 'check'),
      mock.patch.object(cluster_costs, 'measure', return_value=measured) as run,
      contextlib.redirect_stdout(io.StringIO()),
    ):
      driver_benchmark.main(_values(cluster_workers=3, json=path))
    run.assert_called_once_with(3, 1)
    costs = cluster_scaling.read_costs(path)
    self.assertEqual((costs.dispatch_millis, costs.notice_seconds), (0.25, 0.5))
    self.assertAlmostEqual(costs.state_copies, 2.0, delta=0.05)

  @parameterized.parameters(
    ({'parameters': 1_999}, 'parameters'),
    ({'turns': 0}, 'turns'),
    ({'cluster_workers': 65}, 'cluster_workers'),
    ({'cluster_workers': -1}, 'cluster_workers'),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      driver_benchmark.main(_values(**changed))

  def test_refuses_a_cluster_without_root_at_once(self):
    with (
      mock.patch.object(os, 'geteuid', return_value=1000),
      mock.patch.object(driver_benchmark.driver_costs, 'measure') as run,
      self.assertRaisesRegex(_validate.InputError, 'need root'),
    ):
      driver_benchmark.main(_values(cluster_workers=1))
    run.assert_not_called()


if __name__ == '__main__':
  absltest.main()
