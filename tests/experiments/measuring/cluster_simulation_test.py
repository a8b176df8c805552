"""Tests of the simulated rounds: closed forms, and an independent schedule."""

import dataclasses
import math
import statistics

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.measuring import cluster_simulation as simulation
from tff_medical import _validate

# A cluster on which clients alone take time.
_FREE = simulation.Costs(
  client_sigma=0.0,
  cohort_micros=0.0,
  dispatch_millis=0.0,
  dispatch_micros_per_worker=0.0,
  megabytes_per_second=1e30,
  latency_millis=0.0,
  merge_nanos_per_parameter=0.0,
  server_nanos_per_parameter=0.0,
  state_copies=0.0,
  charge_millis=0.0,
  slow_share=0.0,
  failures_per_worker_hour=0.0,
  notice_seconds=0.0,
)


def _costs(**changed):
  return dataclasses.replace(_FREE, **changed)


def _round(**changed):
  values = dict(
    cohort=96,
    parameters=10**6,
    client_millis=1000.0,
    workers=4,
    portions_per_worker=4,
  )
  return simulation.Round(**{**values, **changed})


def _longest_first(durations, workers):
  """Returns the end of a schedule that gives work to the least busy worker."""
  ends = [0.0] * workers
  for duration in sorted(durations, reverse=True):
    ends[ends.index(min(ends))] += duration
  return max(ends)


class WorkTest(parameterized.TestCase):
  @parameterized.parameters((1, 4), (4, 4), (7, 3), (5, 1))
  def test_equal_portions(self, workers, portions_per_worker):
    work = _round(
      cohort=4 * workers * portions_per_worker,
      workers=workers,
      portions_per_worker=portions_per_worker,
    )
    outcome = simulation.simulate(work, _FREE)
    self.assertAlmostEqual(outcome.seconds, 4.0 * portions_per_worker)
    self.assertAlmostEqual(outcome.efficiency, 1.0)
    self.assertEqual(outcome.bottleneck, 'compute')
    self.assertEqual(outcome.rerun_share, 0.0)

  @parameterized.parameters(1, 2)
  def test_fewer_clients_than_workers(self, depth):
    work = _round(cohort=3, workers=10)
    outcome = simulation.simulate(work, _costs(depth=depth))
    self.assertAlmostEqual(outcome.seconds, 1.0)
    self.assertAlmostEqual(outcome.efficiency, 0.3)

  def test_a_rest_of_portions_takes_another_turn(self):
    work = _round(cohort=9, workers=2)  # 8 portions, of which one has 2.
    self.assertEqual(work.portions, 8)
    outcome = simulation.simulate(work, _costs(depth=1))
    self.assertAlmostEqual(outcome.seconds, 5.0)

  @parameterized.parameters(*range(5))
  def test_unequal_portions_go_longest_first(self, workers_less_2):
    work = _round(cohort=200, workers=workers_less_2 + 2)
    costs = _costs(client_sigma=1.0, depth=1)
    durations = simulation.portion_seconds(
      work, costs, np.random.default_rng(0)
    )
    outcome = simulation.simulate(work, costs, repeats=1)
    expected = _longest_first(durations.tolist(), work.workers)
    self.assertAlmostEqual(outcome.seconds, expected)

  def test_durations_have_their_mean_and_spread(self):
    work = _round(cohort=200_000, workers=12_500, client_millis=500.0)
    durations = simulation.portion_seconds(
      work, _costs(client_sigma=0.5), np.random.default_rng(0)
    )
    self.assertAlmostEqual(durations.sum() / work.cohort, 0.5, delta=0.005)
    # Four clients a portion; a lognormal's variance is mean² (exp(s²) - 1).
    self.assertAlmostEqual(
      durations.var(), 4 * 0.25 * (math.exp(0.25) - 1), delta=0.01
    )

  def test_a_slow_worker_takes_fewer_portions(self):
    # Of two workers one is slow in half of the draws, or both are, or none is.
    costs = _costs(slow_share=0.5, slow_factor=3.0, depth=1)
    work = _round(workers=2, cohort=4_000, portions_per_worker=2_000)
    ends = {
      round(simulation._round(work, costs, np.ones(4_000), seed)[0] / 4_000, 2)
      for seed in range(20)
    }
    # Rates of 1 + 1, 1 + 1/3 and 1/3 + 1/3 portions a second.
    self.assertEqual(ends, {0.5, 0.75, 1.5})


class LateTest(parameterized.TestCase):
  @parameterized.parameters(
    # A portion of 1 s each on ten workers, of which one takes ten times as long.
    # An idle worker begins with it after 1.5 s, and needs 1 s.
    (10.0, 1.5, 2.5),
    (10.0, 2.5, 3.5),
    (10.0, 1e9, 10.0),
    # It comes too late to be of use.
    (2.0, 1.5, 2.0),
  )
  def test_an_idle_worker_runs_the_portion_of_a_late_one(
    self, slow_factor, late_factor, seconds
  ):
    work = _round(workers=10, cohort=10, portions_per_worker=1)
    costs = _costs(
      slow_share=0.1, slow_factor=slow_factor, late_factor=late_factor
    )
    one_slow = [
      seed
      for seed in range(40)
      if (np.random.default_rng((seed, 1)).random(10) < 0.1).sum() == 1
    ]
    self.assertNotEmpty(one_slow)
    for seed in one_slow:
      took, reruns = simulation._round(work, costs, np.ones(10), seed)
      self.assertAlmostEqual(took, seconds)
      self.assertEqual(reruns, 0)

  def test_a_second_run_goes_on_when_the_first_dies_with_its_worker(self):
    work = _round(workers=4, cohort=40, portions_per_worker=4)
    for seed in range(30):
      costs = _costs(
        slow_share=0.5,
        slow_factor=8.0,
        failures_per_worker_hour=40.0,
        restart_seconds=5.0,
      )
      took, _ = simulation._round(work, costs, np.ones(16), seed)
      self.assertGreaterEqual(took, 4.0)
      self.assertLess(took, 200.0)


class DriverTest(absltest.TestCase):
  def test_portions_wait_for_a_slow_driver(self):
    costs = _costs(dispatch_millis=500.0)
    work = _round(cohort=40, workers=10, client_millis=1.0)
    outcome = simulation.simulate(work, costs)
    # 40 portions one after the other, the last one's work, and the handling of
    # 5 + 2 + 1 + 1 totals.
    self.assertAlmostEqual(outcome.seconds, 0.5 * (40 + 9) + 0.001)
    self.assertEqual(outcome.bottleneck, 'dispatch')

  def test_a_worker_with_a_portion_at_hand_does_not_wait(self):
    work = _round(cohort=8, workers=1, portions_per_worker=8)
    # The driver hands out the last portion only when the worker has none.
    for depth, seconds in ((1, 8 * 1.25), (2, 8 + 2 * 0.25)):
      costs = _costs(dispatch_millis=250.0, depth=depth)
      outcome = simulation.simulate(work, costs)
      self.assertAlmostEqual(outcome.seconds, seconds)

  def test_many_workers_slow_the_driver(self):
    costs = _costs(dispatch_micros_per_worker=100.0)
    work = _round(cohort=4_000, workers=1_000, client_millis=0.0)
    outcome = simulation.simulate(work, costs)
    self.assertAlmostEqual(outcome.seconds, 0.1 * (4_000 + 999))

  def test_steps_of_the_driver_add_up(self):
    costs = _costs(
      cohort_micros=10_000.0,
      server_nanos_per_parameter=100.0,
      state_copies=2.0,
      save_megabytes_per_second=16.0,
      charge_millis=40.0,
    )
    outcome = simulation.simulate(_round(client_millis=0.0), costs)
    self.assertAlmostEqual(outcome.seconds, 0.96 + 0.1 + 8 / 16 + 0.04)
    self.assertAlmostEqual(outcome.saved_secs['cohort'], 0.96)
    self.assertAlmostEqual(outcome.saved_secs['server step'], 0.1)
    self.assertAlmostEqual(outcome.saved_secs['checkpoint'], 0.54)
    self.assertEqual(outcome.bottleneck, 'cohort')


class NetworkTest(parameterized.TestCase):
  @parameterized.parameters(
    ('star', [1, 2, 3, 4, 5, 6, 7]), ('tree', [1, 2, 2, 3, 3, 3, 3])
  )
  def test_weights_reach_the_nodes(self, topology, steps):
    work = _round(workers=14, workers_per_node=2)  # 4 MB of weights.
    costs = _costs(
      megabytes_per_second=2.0, latency_millis=500.0, topology=topology
    )
    np.testing.assert_allclose(
      simulation.broadcast_seconds(work, costs),
      0.5 + 2.0 * np.repeat(steps, 2),
    )

  def test_one_node_needs_no_network(self):
    work = _round(workers=8, workers_per_node=8)
    costs = _costs(megabytes_per_second=1e-9, latency_millis=1e9)
    outcome = simulation.simulate(work, costs)
    self.assertAlmostEqual(outcome.seconds, 12.0)
    self.assertEqual((outcome.megabytes_down, outcome.megabytes_up), (0, 0))

  @parameterized.parameters((2, 1), (8, 3), (9, 4), (1000, 10))
  def test_totals_are_merged_in_levels(self, workers, levels):
    costs = _costs(
      megabytes_per_second=4.0,
      latency_millis=100.0,
      merge_nanos_per_parameter=50.0,
    )
    work = _round(workers=workers)
    # A level takes latency, transfer and addition; then one more transfer.
    self.assertAlmostEqual(
      simulation.merge_seconds(work, costs), levels * 1.15 + 1.1
    )

  def test_workers_of_a_node_merge_without_the_network(self):
    costs = _costs(megabytes_per_second=4.0, merge_nanos_per_parameter=50.0)
    work = _round(workers=32, workers_per_node=8)
    self.assertAlmostEqual(
      simulation.merge_seconds(work, costs), 5 * 0.05 + 2 * 1.0 + 1.0
    )

  def test_bytes_are_those_of_nodes_not_of_workers_or_clients(self):
    work = _round(cohort=10_000, workers=80, workers_per_node=8)
    outcome = simulation.simulate(work, _FREE)
    self.assertEqual(outcome.megabytes_down, 10 * 4.0)
    self.assertEqual(outcome.megabytes_up, 10 * 4.0)

  def test_a_large_model_on_a_slow_network(self):
    work = _round(parameters=10**9, workers=10)
    outcome = simulation.simulate(work, _costs(megabytes_per_second=100.0))
    self.assertEqual(outcome.bottleneck, 'network')


class FailuresTest(parameterized.TestCase):
  @parameterized.parameters((60.0, 30.0), (20.0, 0.0))
  def test_one_worker_starts_again_until_it_lives_long_enough(
    self, per_hour, restart
  ):
    """All totals of a round die with a worker, however small its portions.

    Work of length D under deaths of rate r then takes (exp(r D) - 1) (1 / r +
    restart) in the mean.
    """
    work = _round(cohort=60, workers=1, portions_per_worker=6)
    costs = _costs(failures_per_worker_hour=per_hour, restart_seconds=restart)
    seconds = [
      simulation._round(work, costs, np.full(6, 10.0), seed)[0]
      for seed in range(1_000)
    ]
    rate = per_hour / 3600
    expected = (math.exp(rate * 60) - 1) * (1 / rate + restart)
    error = statistics.stdev(seconds) / len(seconds) ** 0.5
    self.assertLess(abs(statistics.mean(seconds) - expected), 4 * error)

  def test_lost_portions_run_again(self):
    # Two workers with one portion each: the rerun of a portion is counted.
    work = _round(cohort=2, workers=2, portions_per_worker=1)
    costs = _costs(failures_per_worker_hour=36.0, restart_seconds=5.0)
    reruns = [
      simulation._round(work, costs, np.full(2, 1.0), seed)
      for seed in range(2_000)
    ]
    lost = [seconds for seconds, number in reruns if number]
    # Without a death both end after a second. P = 1 - exp(-2 x .01).
    self.assertTrue(all(s == 1.0 for s, number in reruns if not number))
    share = len(lost) / len(reruns)
    expected = 1 - math.exp(-0.02)
    error = (expected * (1 - expected) / len(reruns)) ** 0.5
    self.assertLess(abs(share - expected), 4 * error)
    # The other worker takes the portion over, once it has ended its own.
    self.assertTrue(all(1.0 < s <= 2.0 for s in lost if s < 5.0))

  def test_lost_portions_wait_until_the_death_is_noticed(self):
    # Two workers with a second of work each, and a death after T < 1 seconds.
    work = _round(cohort=2, workers=2, portions_per_worker=1)
    late = 0
    for seed in range(500):
      costs = _costs(failures_per_worker_hour=36.0, restart_seconds=1e6)
      at_once, number = simulation._round(work, costs, np.full(2, 1.0), seed)
      noticed, again = simulation._round(
        work,
        dataclasses.replace(costs, notice_seconds=7.0),
        np.full(2, 1.0),
        seed,
      )
      if number == again == 1:
        # At once the other worker takes it over after a second; else at T + 7.
        self.assertAlmostEqual(at_once, 2.0)
        self.assertBetween(noticed, 8.0, 9.0)
        late += 1
      elif not number:
        self.assertEqual((at_once, noticed), (1.0, 1.0))
    self.assertGreater(late, 2)

  def test_no_worker_starts_before_the_death_is_noticed(self):
    work = _round(cohort=10, workers=1, portions_per_worker=1)
    costs = _costs(
      failures_per_worker_hour=60.0, restart_seconds=5.0, notice_seconds=30.0
    )
    seconds = [
      simulation._round(work, costs, np.full(1, 10.0), seed)[0]
      for seed in range(200)
    ]
    # A round that lost its worker once began again at least 30 s later.
    self.assertTrue(all(s == 10.0 or s >= 40.0 for s in seconds))
    self.assertTrue(any(s >= 40.0 for s in seconds))

  def test_failures_are_named(self):
    work = _round(cohort=4_000, workers=4)
    costs = _costs(failures_per_worker_hour=2.0)
    outcome = simulation.simulate(work, costs, repeats=20)
    self.assertGreater(outcome.rerun_share, 0)
    self.assertGreater(outcome.saved_secs['failures'], 0)
    self.assertAlmostEqual(
      outcome.seconds - outcome.saved_secs['failures'], 1_000.0
    )

  def test_portions_that_outlast_the_time_between_deaths(self):
    # A death every 36 s loses 4 portions, and to run one again takes 100 s.
    costs = _costs(failures_per_worker_hour=1.0)
    work = _round(cohort=400, workers=100, client_millis=100_000.0)
    outcome = simulation.simulate(work, costs)
    self.assertEqual(outcome.bottleneck, 'failures')
    self.assertAlmostEqual(outcome.saved_secs['compute'], 400.0)
    # Small portions end between two deaths.
    smaller = dataclasses.replace(
      work, cohort=40_000, client_millis=1_000.0, portions_per_worker=100
    )
    self.assertEqual(simulation.simulate(smaller, costs).bottleneck, 'compute')

  def test_refuses_a_round_that_does_not_end(self):
    with self.assertRaisesRegex(_validate.InputError, 'lower it'):
      simulation.simulate(_round(), _costs(failures_per_worker_hour=1e6))


class ValuesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'topology': 'ring'}, 'topology'),
    ({'depth': 0}, 'depth'),
    ({'slow_share': 1.5}, 'slow_share'),
    ({'megabytes_per_second': 0.0}, 'megabytes_per_second'),
    ({'client_sigma': -1.0}, 'client_sigma'),
    ({'restart_seconds': float('nan')}, 'restart_seconds'),
    ({'notice_seconds': -1.0}, 'notice_seconds'),
  )
  def test_refuses_costs(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      _costs(**changed)

  @parameterized.parameters('cohort', 'parameters', 'workers')
  def test_refuses_rounds(self, name):
    with self.assertRaisesRegex(_validate.InputError, name):
      _round(**{name: 0})


if __name__ == '__main__':
  absltest.main()
