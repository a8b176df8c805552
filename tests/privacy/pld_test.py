"""Tests of the grids of PLD: never too fine for memory, never below the truth."""

import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
from dp_accounting import pld as pld_lib

from tff_medical.privacy import accounting
from tff_medical.privacy import loss_grids
from tff_medical.privacy import pld


def _poisson(rate, noise_multiplier):
  return dp_accounting.PoissonSampledDpEvent(
    rate, dp_accounting.GaussianDpEvent(noise_multiplier)
  )


class GridTest(parameterized.TestCase):
  """The grid follows the losses: figures of a grid of 1e-5 to 3e-6."""

  @parameterized.parameters(
    (1e-4, 1.04, 10_000, 1e-6, 0.04377),
    (1e-4, 2.0, 10_000, 1e-6, 0.01722),
    (0.01, 1.0, 10_000, 1e-6, 6.9074),
    (0.1, 5.0, 100, 1e-4, 0.62551),
    (0.5, 20.0, 10, 1e-4, 0.21425),
    (0.1, 1.5, 10_000, 1e-5, 57.92),
  )
  def test_overstates_no_epsilon_by_much(
    self, rate, noise_multiplier, rounds, delta, expected
  ):
    stated = accounting.pld_epsilon(
      _poisson(rate, noise_multiplier), rounds=rounds, delta=delta
    )
    self.assertBetween(stated, expected * 0.9997, expected * 1.006)

  @parameterized.parameters((1e-4, 1.04), (0.001, 3.0), (0.02, 0.8), (0.3, 2.0))
  def test_epsilon_never_falls_with_the_rounds(self, rate, noise_multiplier):
    """Whatever grid they have: grids become coarser with more rounds alone."""
    event = _poisson(rate, noise_multiplier)
    rounds = [1, 2, 3, 10, 100, 1000, 1023, 1024, 1025, 1026, 1027, 2047, 2049]
    rounds += [4000, 10_000, 10_001, 30_000, 100_000]
    spent = [
      accounting.pld_epsilon(event, rounds=n, delta=1e-6) for n in rounds
    ]
    self.assertEqual(spent, sorted(spent))
    intervals = [pld._interval(event, n, False) for n in rounds]
    self.assertEqual(intervals, sorted(intervals))

  def test_many_rounds_are_counted_in_steps_that_are_rounded_up(self):
    event = _poisson(0.05, 2.0)
    for rounds in (1000, 1025, 5000, 9999):
      counted = pld._counted(rounds)
      self.assertBetween(counted, rounds, rounds * (1 + 1 / 512))
      self.assertEqual(
        accounting.pld_epsilon(event, rounds=rounds, delta=1e-6),
        accounting.pld_epsilon(event, rounds=counted, delta=1e-6),
      )
    self.assertEqual(pld._counted(1000), 1000)

  def test_a_run_of_many_rounds_composes_few_times(self):
    with mock.patch.object(
      loss_grids, 'epsilon_of', wraps=loss_grids.epsilon_of
    ) as compose:
      event = _poisson(0.05, 2.0)
      for rounds in range(4000, 4200):
        accounting.pld_epsilon(event, rounds=rounds, delta=1e-7)
    self.assertLess(compose.call_count, 60)


class BoundedTest(parameterized.TestCase):
  """What asked for gigabytes, or for hours, is answered with an upper bound."""

  @parameterized.product(
    noise_multiplier=(1e-4, 1e-3, 0.03),
    rounds=(1, 100, 1_000_000),
    rate=(None, 0.1),
  )
  def test_hardly_any_noise(self, noise_multiplier, rounds, rate):
    event = dp_accounting.GaussianDpEvent(noise_multiplier)
    # That of the Gaussian has a closed form; sampling lowers it.
    whole = dp_accounting.get_epsilon_gaussian(
      noise_multiplier / math.sqrt(rounds), 1e-5
    )
    if rate is None:
      epsilon = accounting.pld_epsilon(event, rounds=rounds, delta=1e-5)
      self.assertAlmostEqual(epsilon / whole, 1, delta=2e-3)
      self.assertGreaterEqual(epsilon, whole * (1 - 1e-9))
      return
    event = dp_accounting.PoissonSampledDpEvent(rate, event)
    epsilon = accounting.pld_epsilon(event, rounds=rounds, delta=1e-5)
    self.assertLessEqual(epsilon, whole * (1 + 1e-9))
    # About so many rounds have the unit in them, and they alone cost this much.
    few = max(1, rounds * rate - 5 * math.sqrt(rounds * rate))
    few = dp_accounting.get_epsilon_gaussian(
      noise_multiplier / math.sqrt(few), 1e-3
    )
    self.assertGreater(epsilon, 0.9 * few)

  @parameterized.parameters((0.1, 1.0), (0.001, 0.7))
  def test_very_many_rounds(self, rate, noise_multiplier):
    event = _poisson(rate, noise_multiplier)
    epsilons = [
      accounting.pld_epsilon(event, rounds=rounds, delta=1e-5)
      for rounds in (10_000, 100_000, 1_000_000)
    ]
    self.assertEqual(epsilons, sorted(epsilons))
    # RDP bounds it from the other side where it is tight.
    for epsilon, rounds in zip(epsilons, (10_000, 100_000, 1_000_000)):
      by_rdp = accounting.rdp_epsilon(event, rounds=rounds, delta=1e-5)
      self.assertLess(epsilon, 1.01 * by_rdp)

  def test_a_coarse_grid_never_states_less(self):
    event = _poisson(0.1, 0.2)
    finer = pld_lib.PLDAccountant(value_discretization_interval=1e-3).compose(
      event, 10
    )
    epsilon = accounting.pld_epsilon(event, rounds=10, delta=1e-5)
    self.assertGreaterEqual(epsilon, finer.get_epsilon(1e-5) - 1e-9)
    self.assertLess(epsilon, 1.001 * finer.get_epsilon(1e-5))


if __name__ == '__main__':
  absltest.main()
