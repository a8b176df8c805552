"""Tests of what agrees with the epsilon that a file states."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
from dp_accounting.pld import privacy_loss_distribution

from tff_medical.privacy import accounting
from tff_medical.privacy import stated_epsilon


def _poisson(rate, noise_multiplier):
  return dp_accounting.PoissonSampledDpEvent(
    rate, dp_accounting.GaussianDpEvent(noise_multiplier)
  )


class AgreesTest(parameterized.TestCase):
  """Statements of earlier versions, which took one grid of 1e-3."""

  def _earlier(self, event, rounds, delta):
    return (
      privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=event.event.noise_multiplier,
        sampling_prob=event.sampling_probability,
        value_discretization_interval=1e-3,
      )
      .self_compose(rounds, 1e-15)
      .get_epsilon_for_delta(delta)
    )

  @parameterized.parameters(
    # This version counts 1,026 rounds, and 10,000.
    (0.1, 5.0, 1025, 1e-3),
    (0.01, 0.6, 9999, 1e-6),
    # It has a coarser grid.
    (0.001, 0.3, 30, 1e-3),
    # It has a finer grid.
    (1e-4, 1.04, 10_000, 1e-6),
    (0.001, 0.6, 1025, 1e-6),
    # It has the same grid.
    (0.1, 1.0, 200, 1e-3),
  )
  def test_what_earlier_versions_stated_agrees_and_nothing_beyond_it(
    self, rate, noise_multiplier, rounds, delta
  ):
    event = _poisson(rate, noise_multiplier)
    charges = [(event, rounds)]
    earlier = self._earlier(event, rounds, delta)
    self.assertTrue(stated_epsilon.agrees(earlier, charges, delta=delta))
    least = accounting.composed_epsilon(charges, delta=delta, tight=True)
    self.assertLessEqual(least, earlier * (1 + 1e-6))
    most = max(accounting.composed_epsilon(charges, delta=delta), earlier)
    for stated, agrees in (
      ((1 - 2e-6) * least, False),
      ((1 - 5e-7) * least, True),
      ((least + most) / 2, True),
      ((1 + 5e-7) * most, True),
      ((1 + 3e-6) * most, False),
    ):
      self.assertEqual(
        stated_epsilon.agrees(stated, charges, delta=delta), agrees, stated
      )

  @parameterized.parameters((math.nan, False), (math.inf, False), (-1.0, False))
  def test_any_number_that_a_file_may_state(self, stated, agrees):
    charges = [(_poisson(0.1, 1.0), 5)]
    self.assertEqual(stated_epsilon.agrees(stated, charges, delta=1e-3), agrees)

  @parameterized.parameters((2.0, 1, 1e-5), (20.0, 30, 1e-3), (0.5, 9, 1e-6))
  def test_gaussian_rounds_had_a_grid(self, noise_multiplier, rounds, delta):
    event = dp_accounting.GaussianDpEvent(noise_multiplier)
    earlier = (
      privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        value_discretization_interval=1e-3,
      )
      .self_compose(rounds, 1e-15)
      .get_epsilon_for_delta(delta)
    )
    exact = dp_accounting.get_epsilon_gaussian(
      noise_multiplier / rounds**0.5, delta
    )
    self.assertGreater(earlier, exact)
    for stated, agrees in (
      (exact, True),
      (earlier, True),
      ((1 - 2e-6) * exact, False),
      ((1 + 3e-6) * earlier, False),
    ):
      self.assertEqual(
        stated_epsilon.agrees(stated, [(event, rounds)], delta=delta), agrees
      )

  def test_without_noise_no_number_is_enough(self):
    charges = [(dp_accounting.NonPrivateDpEvent(), 1)]
    self.assertFalse(stated_epsilon.agrees(1e9, charges, delta=1e-3))
    self.assertTrue(stated_epsilon.agrees(math.inf, charges, delta=1e-3))


if __name__ == '__main__':
  absltest.main()
