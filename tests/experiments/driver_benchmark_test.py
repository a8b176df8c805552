"""Tests of the benchmark of what a round costs the driver."""

import contextlib
import io
import types

from absl.testing import absltest

from experiments import cluster_scaling
from experiments import driver_benchmark
from experiments.measuring import cluster_simulation
from tff_medical import _validate


class DriverBenchmarkTest(absltest.TestCase):
  def test_writes_costs_for_the_simulation(self):
    path = self.create_tempfile().full_path
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      driver_benchmark.main(
        types.SimpleNamespace(parameters=2_000, turns=1, json=path)
      )
    costs = cluster_scaling.read_costs(path)
    defaults = cluster_simulation.Costs()
    # Weights and momentum.
    self.assertAlmostEqual(costs.state_copies, 2.0, delta=0.05)
    for name in ('server_nanos_per_parameter', 'save_megabytes_per_second'):
      self.assertNotEqual(getattr(costs, name), getattr(defaults, name))
    self.assertGreater(costs.merge_nanos_per_parameter, 0)
    self.assertGreater(costs.charge_millis, 0)
    self.assertIn('2,000 parameters', printed.getvalue())

  def test_refuses(self):
    for parameters, turns in ((1_999, 1), (2_000, 0)):
      with self.assertRaises(_validate.InputError):
        driver_benchmark.main(
          types.SimpleNamespace(parameters=parameters, turns=turns, json=None)
        )


if __name__ == '__main__':
  absltest.main()
