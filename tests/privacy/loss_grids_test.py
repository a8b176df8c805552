"""Tests of composed losses against dp-accounting and closed forms."""

import math

from absl.testing import absltest
from absl.testing import parameterized
from dp_accounting.pld import common
from dp_accounting.pld import privacy_loss_distribution
import numpy as np
from scipy import stats

from tff_medical.privacy import loss_grids


def _gaussian(noise, rate=1.0, interval=1e-2):
  return privacy_loss_distribution.from_gaussian_mechanism(
    noise, sampling_prob=rate, value_discretization_interval=interval
  )


def _epsilon(rounds, delta):
  return loss_grids.epsilon_of(
    [(loss_grids.RoundLoss.of(loss), count) for loss, count in rounds],
    delta=delta,
  )


class EpsilonOfTest(parameterized.TestCase):
  @parameterized.product(
    setting=((1.0, 0.1), (0.7, 0.01), (5.0, 1.0), (2.0, 0.5)),
    rounds=(1, 2, 37, 3000),
    delta=(0.1, 1e-3, 1e-9),
  )
  def test_is_that_of_the_library(self, setting, rounds, delta):
    loss = _gaussian(*setting)
    library = loss.self_compose(rounds).get_epsilon_for_delta(delta)
    self.assertAlmostEqual(
      _epsilon([(loss, rounds)], delta) / max(library, 1e-9),
      1 if library else 0,
      # Rounding errors of the transforms, in both.
      delta=1e-5,
    )

  @parameterized.parameters(1e-2, 1e-6)
  def test_different_rounds_are_composed_as_by_the_library(self, delta):
    first, second, third = (
      _gaussian(1.0, 0.1),
      _gaussian(4.0),
      _gaussian(0.8, 0.02),
    )
    library = (
      first.self_compose(20).compose(second).compose(third.self_compose(50))
    ).get_epsilon_for_delta(delta)
    ours = _epsilon([(first, 20), (second, 1), (third, 50)], delta)
    self.assertAlmostEqual(ours / library, 1, delta=1e-6)

  def test_an_infinite_loss_above_delta_has_no_epsilon(self):
    loss = privacy_loss_distribution.from_privacy_parameters(
      common.DifferentialPrivacyParameters(1.0, 0.1),
      value_discretization_interval=1e-2,
    )
    self.assertEqual(_epsilon([(loss, 1)], 0.09), math.inf)
    self.assertEqual(_epsilon([(loss, 2)], 0.18), math.inf)
    self.assertAlmostEqual(_epsilon([(loss, 1)], 0.1001), 1.0, delta=0.02)
    self.assertAlmostEqual(_epsilon([(loss, 2)], 0.1901), 2.0, delta=0.02)

  @parameterized.parameters(*np.geomspace(1e-6, 0.5, 7))
  def test_any_masses_give_the_smallest_epsilon_of_the_definition(self, delta):
    """δ(ε) = E max(0, 1 - exp(ε - loss)), for random masses on a grid."""
    rng = np.random.default_rng(0)
    for lower in (-30, 0, 1, 5, 900):
      mass = rng.dirichlet(np.full(60, 0.3)) * 0.9
      losses = (lower + np.arange(60)) * 0.1
      epsilon = loss_grids._epsilon_at(lower, mass, 1e-7, 0.1, delta)

      def delta_of(e, losses=losses, mass=mass):
        return 1e-7 + mass @ np.maximum(0, -np.expm1(e - losses))

      self.assertLessEqual(delta_of(epsilon), delta * (1 + 1e-9))
      if epsilon > 0:
        self.assertGreater(delta_of(epsilon - 1e-6), delta)

  def test_losses_whose_weight_underflows_state_no_smaller_epsilon(self):
    """exp(-loss) is 0 in doubles above 745."""
    mass = np.array([0.4, 0.3, 0.2, 0.1])
    epsilon = loss_grids._epsilon_at(800, mass, 0.0, 1.0, 0.25)
    self.assertBetween(epsilon, 801.0, 803.0)


class NumPointsTest(parameterized.TestCase):
  @parameterized.parameters((1.0, 0.1, 50), (2.0, 1.0, 500), (0.8, 0.001, 900))
  def test_less_than_the_tail_mass_is_outside(self, noise, rate, rounds):
    """Against the composition without any truncation."""
    loss = _gaussian(noise, rate, interval=0.1)
    (first, *_) = loss_grids.RoundLoss.of(loss).sides
    low, high = loss_grids._range_of([(first, rounds)])
    size = rounds * (len(first) - 1) + 1
    whole = np.fft.irfft(
      np.fft.rfft(first.probabilities, 2 * size) ** rounds, 2 * size
    )[:size]
    inside = whole[low : high + 1].sum()
    self.assertAlmostEqual(inside, whole.sum(), delta=1e-11)
    # The range is hardly larger than that of a normal distribution.
    if rate > 0.01:
      spread = (rounds * first.variance) ** 0.5
      self.assertLess(high - low, 3 * 2 * stats.norm.isf(1e-15) * spread)

  def test_what_rounds_share_is_kept(self):
    loss = loss_grids.RoundLoss.of(_gaussian(1.0, 0.1))
    loss_grids.epsilon_of([(loss, 1000)], delta=1e-5)
    (spectrum,) = (side._spectra for side in loss.sides[:1])
    before = dict(spectrum)
    self.assertNotEmpty(before)
    loss_grids.epsilon_of([(loss, 1001)], delta=1e-5)
    self.assertEqual(before.keys(), spectrum.keys())
    for length, values in before.items():
      self.assertIs(spectrum[length], values)


if __name__ == '__main__':
  absltest.main()
