"""Tests that calibrated noise keeps the promise, and hardly more than that."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
from dp_accounting import pld

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import calibration
from tff_medical.privacy import limits
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling


def _mechanism(clipping, num_clients=1000, cohort=100):
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(num_clients, cohort), clipping=clipping
  )


class CalibrateTest(parameterized.TestCase):
  @parameterized.product(target_epsilon=(0.5, 8.0, 30.0), rounds=(1, 100))
  def test_never_exceeds_the_target_and_wastes_little(
    self, target_epsilon, rounds
  ):
    mechanism = calibration.calibrate(
      _mechanism(mechanisms.AdaptiveClipping()),
      target_epsilon=target_epsilon,
      delta=1e-4,
      rounds=rounds,
    )
    # Checked by the library's own accountant at its finest setting.
    accountant = pld.PLDAccountant().compose(mechanism.charge_event(), rounds)
    epsilon = accountant.get_epsilon(1e-4)
    self.assertLessEqual(epsilon, target_epsilon)
    self.assertGreater(epsilon, 0.98 * target_epsilon)

  def test_known_figure(self):
    mechanism = calibration.calibrate(
      _mechanism(mechanisms.FixedClipping(1.0)),
      target_epsilon=4.0,
      delta=1e-3,
      rounds=200,
    )
    self.assertAlmostEqual(mechanism.noise_multiplier, 1.385, delta=2e-3)

  @parameterized.parameters(
    (1e3, mechanisms.FixedClipping(1.0), 1000),
    (1e3, mechanisms.AdaptiveClipping(), 1),
    (1e4, mechanisms.AdaptiveClipping(), 100),
  )
  def test_large_targets_end_too(self, target_epsilon, clipping, rounds):
    lines = []
    mechanism = calibration.calibrate(
      _mechanism(clipping),
      target_epsilon=target_epsilon,
      delta=1e-4,
      rounds=rounds,
      progress=lines.append,
    )
    self.assertLess(len(lines), 40)
    spent = accounting.epsilon(
      mechanism.charge_event(), rounds=rounds, delta=1e-4
    )
    self.assertBetween(spent, 0.98 * target_epsilon, target_epsilon)

  def test_the_least_noise_is_enough_for_a_huge_target(self):
    mechanism = calibration.calibrate(
      _mechanism(mechanisms.FixedClipping(1.0)),
      target_epsilon=1e12,
      delta=1e-4,
      rounds=1,
    )
    self.assertEqual(mechanism.noise_multiplier, limits.MIN_NOISE_MULTIPLIER)

  def test_reports_progress(self):
    lines = []
    calibration.calibrate(
      _mechanism(mechanisms.FixedClipping(1.0)),
      target_epsilon=4.0,
      delta=1e-3,
      rounds=10,
      progress=lines.append,
    )
    self.assertGreater(len(lines), 3)
    self.assertRegex(lines[0], r'noise multiplier .*ε')

  @parameterized.product(target_epsilon=(0.3, 1.0, 8.0), rounds=(10, 1000))
  def test_a_few_steps_end_the_search(self, target_epsilon, rounds):
    """A bisection of the same bracket takes 10 steps more than it began with."""
    noises = []
    mechanism = calibration.calibrate(
      _mechanism(mechanisms.FixedClipping(1.0)),
      target_epsilon=target_epsilon,
      delta=1e-4,
      rounds=rounds,
      progress=lambda line: noises.append(float(line.split()[2][:-1])),
    )
    doublings = abs(math.log2(mechanism.noise_multiplier)) + 2
    self.assertLess(len(noises), doublings + 6)

  @parameterized.parameters('step', 'infinite', 'flat', 'high', 'low')
  def test_the_search_ends_for_any_falling_price(self, shape):
    """Where a line is no help, the bracket is halved."""

    def price(event, charges):
      del charges
      noise = event.event.noise_multiplier
      if shape == 'step':
        return 100.0 if noise < 1.2345 else 0.1
      if shape == 'high':  # A line always ends beside the upper end.
        return 1e6 if noise < 1.2345 else 0.999
      if shape == 'low':
        return 1.001 if noise < 1.2345 else 1e-6
      if shape == 'infinite':
        return math.inf if noise < 1.2345 else 0.0
      return 1.0 + 1e-9 * (1.2345 - noise)

    calls = []
    mechanism = calibration.calibrate(
      _mechanism(mechanisms.FixedClipping(1.0)),
      target_epsilon=1.0,
      delta=1e-4,
      rounds=10,
      price=price,
      progress=calls.append,
    )
    self.assertBetween(mechanism.noise_multiplier, 1.2345, 1.2345 * 1.00101)
    self.assertLess(len(calls), 40)

  def test_refuses_what_no_noise_reaches(self):
    with self.assertRaisesRegex(
      _validate.InputError, 'target_epsilon 0.1 .* 500 rounds.*fixed clipping'
    ):
      calibration.calibrate(
        _mechanism(mechanisms.AdaptiveClipping(), 100, 20),
        target_epsilon=0.1,
        delta=1e-3,
        rounds=500,
      )

  @parameterized.parameters(0.0, -1.0, float('nan'))
  def test_refuses_target(self, target_epsilon):
    with self.assertRaisesRegex(_validate.InputError, 'target_epsilon'):
      calibration.calibrate(
        _mechanism(mechanisms.FixedClipping(1.0)),
        target_epsilon=target_epsilon,
        delta=1e-3,
        rounds=10,
      )

  def test_a_release_before_the_first_round_is_part_of_the_target(self):
    before = dp_accounting.GaussianDpEvent(10.0)
    mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.FullParticipation(1000),
      clipping=mechanisms.FixedClipping(1.0),
    )
    plan = {'target_epsilon': 1.0, 'delta': 1e-3, 'rounds': 20}
    private = calibration.calibrate(mechanism, before=before, **plan)
    spent = accounting.epsilon(
      private.charge_event(), rounds=20, delta=1e-3, before=before
    )
    self.assertBetween(spent, 0.995, 1.0)
    without = calibration.calibrate(mechanism, **plan)
    self.assertGreater(private.noise_multiplier, without.noise_multiplier)
    with self.assertRaisesRegex(
      _validate.InputError, 'before the first round costs .*class_count_noise'
    ):
      calibration.calibrate(
        mechanism, before=dp_accounting.GaussianDpEvent(1.0), **plan
      )


if __name__ == '__main__':
  absltest.main()
