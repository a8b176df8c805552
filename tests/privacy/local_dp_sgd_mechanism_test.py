"""Tests of local DP-SGD's mechanism and sampling."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
from dp_accounting import pld
import numpy as np

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import calibration
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.privacy import mechanisms


def _mechanism(**changes):
  arguments = {
    'sampling': local_dp_sgd_mechanism.LocalDpSgdSampling(
      500, rate=0.1, steps=4
    ),
    'clipping': mechanisms.FixedClipping(1.0),
    'noise_multiplier': 1.0,
    **changes,
  }
  return local_dp_sgd_mechanism.LocalDpSgdMechanism(**arguments)


class LocalPoissonSamplingTest(parameterized.TestCase):
  def test_draws_each_unit_in_each_step_at_the_rate(self):
    sampling = local_dp_sgd_mechanism.LocalDpSgdSampling(
      1000, rate=0.2, steps=3
    )
    drawn = [sampling.by_step(sampling.draw(1, 1, n)) for n in range(1, 101)]
    sizes = np.array([[len(units) for units in steps] for steps in drawn])
    self.assertEqual(sizes.shape, (100, 3))
    np.testing.assert_allclose(sizes.mean(axis=0), 200, atol=5)
    np.testing.assert_allclose(sizes.var(axis=0), 160, rtol=0.5)
    together = np.intersect1d(drawn[0][0], drawn[0][1])
    self.assertAlmostEqual(len(together), 40, delta=25)
    for units in drawn[0]:
      self.assertTrue(np.all(np.diff(units) > 0))
      self.assertLess(units.max(), 1000)

  def test_draws_the_same_again_for_the_same_attempt_only(self):
    sampling = local_dp_sgd_mechanism.LocalDpSgdSampling(50, rate=0.2, steps=3)
    first = sampling.draw(3, 7, 9)
    np.testing.assert_array_equal(sampling.draw(3, 7, 9), first)
    self.assertNotEqual(sampling.draw(3, 7, 10).tolist(), first.tolist())

  def test_rate_one_is_every_unit_in_every_step_without_amplification(self):
    everybody = local_dp_sgd_mechanism.LocalDpSgdSampling(7, rate=1.0, steps=3)
    steps = everybody.by_step(everybody.draw(3, 1, 1))
    self.assertLen(steps, 3)
    for units in steps:
      np.testing.assert_array_equal(units, np.arange(7))
    self.assertEqual(everybody.expected_cohort, 7)
    self.assertEqual(everybody.name, 'local_all')
    inner = dp_accounting.GaussianDpEvent(1.5)
    self.assertEqual(everybody.event(inner), inner)
    caveats = ' '.join(_mechanism(sampling=everybody).caveats)
    self.assertNotIn('who took part', caveats)
    self.assertIn('number of units of each site', caveats)
    self.assertIn('who took part', ' '.join(_mechanism().caveats))

  @parameterized.parameters(
    ({'rate': 0.0},), ({'rate': 1.1},), ({'steps': 0},), ({'population': 0},)
  )
  def test_refuses(self, change):
    arguments = {'population': 10, 'rate': 0.1, 'steps': 2, **change}
    with self.assertRaises(_validate.InputError):
      local_dp_sgd_mechanism.LocalDpSgdSampling(**arguments)


class LocalGaussianMechanismTest(parameterized.TestCase):
  def test_epsilon_is_that_of_all_steps(self):
    mechanism = _mechanism()
    accountant = pld.PLDAccountant()
    step = dp_accounting.PoissonSampledDpEvent(
      0.1, dp_accounting.GaussianDpEvent(1.0)
    )
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, 4 * 25))
    self.assertAlmostEqual(
      accounting.epsilon(
        mechanism.charge_event(), rounds=mechanism.charges_for(25), delta=1e-3
      ),
      accountant.get_epsilon(1e-3),
      delta=1e-2,
    )

  def test_epsilon_of_whole_sites_is_that_of_one_gaussian(self):
    mechanism = _mechanism(
      sampling=local_dp_sgd_mechanism.LocalDpSgdSampling(500, 1.0, steps=4),
      noise_multiplier=20.0,
    )
    # 25 rounds of 4 steps: a hundred Gaussians are one with z / 10.
    self.assertAlmostEqual(
      accounting.epsilon(
        mechanism.charge_event(), rounds=mechanism.charges_for(25), delta=1e-3
      ),
      dp_accounting.get_epsilon_gaussian(2.0, 1e-3),
      delta=1e-3,
    )

  def test_calibrates(self):
    private = calibration.calibrate(
      _mechanism(), target_epsilon=3.0, delta=1e-3, rounds=25
    )
    spent = accounting.epsilon(private.charge_event(), rounds=100, delta=1e-3)
    self.assertBetween(spent, 2.95, 3.0)

  def test_describes_itself_in_plain_values(self):
    described = json.loads(json.dumps(_mechanism().describe()))
    self.assertEqual(described['steps'], 4)
    self.assertEqual(described['sampling_rate'], 0.1)

  @parameterized.parameters(
    ({'clipping': mechanisms.AdaptiveClipping()},),
    ({'clipping': None},),
    ({'privacy_unit': 'client'},),
    ({'noise_multiplier': -1.0},),
  )
  def test_refuses(self, change):
    with self.assertRaises(_validate.InputError):
      _mechanism(**change)

  def test_without_noise_nothing_is_promised(self):
    mechanism = _mechanism(clipping=None, noise_multiplier=0.0)
    self.assertFalse(mechanism.is_private)
    self.assertEqual(
      mechanism.charge_event(), dp_accounting.NonPrivateDpEvent()
    )


if __name__ == '__main__':
  absltest.main()
