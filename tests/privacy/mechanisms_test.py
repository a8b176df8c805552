"""Tests of the mechanism: arithmetic, event and refusals."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting

from tff_medical import _validate
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling


def _mechanism(clipping, noise_multiplier, cohort=100):
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(1000, cohort),
    clipping=clipping,
    noise_multiplier=noise_multiplier,
  )


class GaussianMechanismTest(parameterized.TestCase):
  def test_adaptive_noise_pays_for_the_count(self):
    mechanism = _mechanism(mechanisms.AdaptiveClipping(), 1.2)
    count_multiplier = 2 * mechanism.count_stddev  # Sensitivity 1/2.
    total = (
      mechanism.value_noise_multiplier**-2 + count_multiplier**-2
    ) ** -0.5
    self.assertAlmostEqual(total, 1.2, places=12)
    self.assertEqual(mechanism.count_stddev, 100 / 20)

  def test_two_releases_cost_what_the_total_says(self):
    """Composing both Gaussians by RDP gives the one with the total z."""
    mechanism = _mechanism(mechanisms.AdaptiveClipping(), 1.2)
    both = dp_accounting.ComposedDpEvent(
      [
        dp_accounting.GaussianDpEvent(mechanism.value_noise_multiplier),
        dp_accounting.GaussianDpEvent(2 * mechanism.count_stddev),
      ]
    )
    one = dp_accounting.GaussianDpEvent(1.2)
    epsilons = [
      dp_accounting.rdp.RdpAccountant().compose(e, 50).get_epsilon(1e-3)
      for e in (both, one)
    ]
    self.assertAlmostEqual(epsilons[0], epsilons[1], places=9)

  def test_fixed_noise_is_the_total(self):
    mechanism = _mechanism(mechanisms.FixedClipping(2.0), 1.2)
    self.assertEqual(mechanism.value_noise_multiplier, 1.2)
    self.assertEqual(mechanism.max_noise_multiplier, math.inf)

  def test_event(self):
    self.assertEqual(
      _mechanism(mechanisms.AdaptiveClipping(), 1.2).charge_event(),
      dp_accounting.PoissonSampledDpEvent(
        0.1, dp_accounting.GaussianDpEvent(1.2)
      ),
    )

  @parameterized.parameters(
    (None,), (mechanisms.FixedClipping(),), (mechanisms.AdaptiveClipping(),)
  )
  def test_without_noise_there_is_no_guarantee(self, clipping):
    mechanism = _mechanism(clipping, 0.0)
    self.assertFalse(mechanism.is_private)
    self.assertEqual(
      mechanism.charge_event(), dp_accounting.NonPrivateDpEvent()
    )

  def test_refuses_noise_without_clipping(self):
    with self.assertRaisesRegex(_validate.InputError, 'clipping'):
      _mechanism(None, 1.0)

  def test_refuses_noise_that_the_count_cannot_pay(self):
    clipping = mechanisms.AdaptiveClipping()
    _mechanism(clipping, 0.99, cohort=10)
    with self.assertRaisesRegex(_validate.InputError, 'expected cohort'):
      _mechanism(clipping, 1.0, cohort=10)

  @parameterized.parameters(-1.0, math.nan, math.inf, True, 'x')
  def test_refuses_values(self, value):
    with self.assertRaisesRegex(_validate.InputError, 'noise_multiplier'):
      _mechanism(mechanisms.FixedClipping(), value)
    with self.assertRaisesRegex(_validate.InputError, 'clip_norm'):
      mechanisms.FixedClipping(value if value is not True else 0)
    with self.assertRaisesRegex(_validate.InputError, 'quantile'):
      mechanisms.AdaptiveClipping(target_unclipped_quantile=value)

  def test_description_is_complete(self):
    described = _mechanism(mechanisms.AdaptiveClipping(), 1.2).describe()
    self.assertEqual(
      described,
      {
        'mechanism': 'dp_fed_avg',
        'privacy_unit': 'client',
        'neighboring_relation': 'add_or_remove_one',
        'noise_multiplier': 1.2,
        'value_noise_multiplier': described['value_noise_multiplier'],
        'clipping': 'adaptive',
        'clip_norm': 0.1,
        'target_unclipped_quantile': 0.5,
        'clip_learning_rate': 0.2,
        'sampling': 'poisson',
        'population': 1000,
        'expected_cohort': 100,
        'sampling_rate': 0.1,
      },
    )


if __name__ == '__main__':
  absltest.main()
