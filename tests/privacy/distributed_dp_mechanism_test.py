"""Tests of distributed DP: its epsilon, its noise and its secure sum."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
import numpy as np
from scipy import special
from scipy import stats
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical import runtime
from tff_medical.privacy import accounting
from tff_medical.privacy import aggregators
from tff_medical.privacy import calibration
from tff_medical.privacy import distributed_dp_mechanism
from tff_medical.privacy import mechanisms
from tff_medical.privacy import noise
from tff_medical.privacy import sampling


def _mechanism(noise_multiplier=2.0, clients=20, clip_norm=0.5):
  return distributed_dp_mechanism.DistributedDpMechanism(
    sampling=sampling.FullParticipation(clients),
    clipping=mechanisms.FixedClipping(clip_norm),
    noise_multiplier=noise_multiplier,
  )


class SkellamEventTest(parameterized.TestCase):
  @parameterized.parameters((1, 4.0), (1, 50.0), (3, 50.0), (20, 1000.0))
  def test_bounds_the_renyi_divergence(self, sensitivity, variance):
    """Summed up exactly, for one entry that differs by `sensitivity`."""
    event = distributed_dp_mechanism.skellam_event(
      l1=sensitivity, l2=sensitivity, variance=variance
    )
    x = np.arange(-40, 61) if variance < 100 else np.arange(-600, 800)
    p = np.log(special.ive(np.abs(x), variance))
    q = np.log(special.ive(np.abs(x - sensitivity), variance))
    for order in (2, 3, 5, 8):
      exact = np.log(np.exp(order * p - (order - 1) * q).sum()) / (order - 1)
      bound = event.rho * order + event.xi
      self.assertLessEqual(exact, bound * (1 + 1e-6))
      if variance >= 50:  # The excess falls with the variance; used are 1e8.
        self.assertLess(bound, 1.08 * exact)


class DistributedMechanismTest(parameterized.TestCase):
  def test_costs_what_a_gaussian_costs_by_rdp(self):
    ours = _mechanism().charge_event()
    gaussian = dp_accounting.GaussianDpEvent(2.0)
    epsilon = accounting.epsilon(ours, rounds=10, delta=1e-4)
    by_rdp = accounting.rdp_epsilon(gaussian, rounds=10, delta=1e-4)
    self.assertAlmostEqual(epsilon / by_rdp, 1, delta=2e-2)
    self.assertGreater(
      epsilon, accounting.pld_epsilon(gaussian, rounds=10, delta=1e-4)
    )
    self.assertEqual(accounting.accountant_of(ours), 'RDP')

  def test_can_be_calibrated(self):
    mechanism = calibration.calibrate(
      _mechanism(0.0, 100), target_epsilon=8.0, delta=1e-4, rounds=20
    )
    epsilon = accounting.epsilon(
      mechanism.charge_event(), rounds=20, delta=1e-4
    )
    self.assertLessEqual(epsilon, 8.0)
    self.assertGreater(epsilon, 7.9)

  def test_noise_is_z_times_the_clip_norm(self):
    for z in (0.01, 1.0, 10.0):
      mechanism = _mechanism(z)
      stddev = np.sqrt(20 * mechanism.local_variance) / mechanism.clip_steps
      self.assertAlmostEqual(stddev / z, 1)
      self.assertAlmostEqual(
        mechanism.mean_stddev / (mechanism.clipping.clip_norm * stddev / 20), 1
      )
      self.assertLessEqual(mechanism.local_variance, 2e8)

  def test_refuses_cohorts_that_may_be_smaller(self):
    with self.assertRaisesRegex(
      _validate.InputError, 'sampling must be of all'
    ):
      distributed_dp_mechanism.DistributedDpMechanism(
        sampling=sampling.PoissonSampling(20, 5),
        clipping=mechanisms.FixedClipping(1.0),
      )

  def test_refuses_adaptive_clipping_and_too_much_noise(self):
    with self.assertRaisesRegex(_validate.InputError, 'clipping must be fixed'):
      distributed_dp_mechanism.DistributedDpMechanism(
        sampling=sampling.FullParticipation(20),
        clipping=mechanisms.AdaptiveClipping(),
      )
    with self.assertRaisesRegex(_validate.InputError, 'must be below 15.4'):
      _mechanism(16.0)

  def test_says_that_the_secure_sum_was_simulated(self):
    self.assertEqual(_mechanism().describe()['secure_summation'], 'simulated')
    caveats = ' '.join(_mechanism().caveats)
    self.assertIn('plain sum', caveats)
    self.assertNotIn('trusted', caveats)


class SkellamNoiseTest(absltest.TestCase):
  def test_is_drawn_on_the_cpu(self):
    # TensorFlow has no Poisson kernel for GPUs.
    function = tf.function(lambda: noise.SecretNoise().skellam([3], 8.0))
    operations = function.get_concrete_function().graph.get_operations()
    (draw,) = [o for o in operations if o.type == 'StatelessRandomPoisson']
    self.assertEqual(draw.device, '/device:CPU:0')

  def test_is_skellam(self):
    draws = noise.SecretNoise().skellam([50_000], 8.0).numpy()
    edges = np.arange(-8, 9)
    counts = np.array([(draws == k).sum() for k in edges])
    expected = 50_000 * stats.skellam.pmf(edges, 4, 4)
    self.assertLess(np.sum((counts - expected) ** 2 / expected), 60)

  def test_is_normal_at_the_largest_variance(self):
    draws = noise.SecretNoise().skellam([50_000], 2e8).numpy() / np.sqrt(2e8)
    self.assertGreater(stats.kstest(draws, 'norm').pvalue, 1e-4)


class DistributedFactoryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    context = runtime.create_local_context()
    installed = tff.framework.get_context_stack().install(context)
    self.enter_context(installed)

  def _process(self, mechanism):
    value_type = tff.types.to_type(
      collections.OrderedDict(a=(np.float32, (50,)), b=np.float32)
    )
    return aggregators.build_aggregator(mechanism).create(value_type)

  def _value(self, number):
    return collections.OrderedDict(
      a=np.full(50, number, np.float32), b=np.float32(0)
    )

  def test_clips_and_divides_by_all_clients(self):
    process = self._process(_mechanism(0.0))
    state = process.initialize()
    self.assertEqual(aggregators.clip_norm(state), 0.5)
    values = [self._value(0.01), self._value(-7.0), self._value(np.nan)]
    output = process.next(state, values)
    expected = (0.01 - 0.5 / np.sqrt(50)) / 20
    np.testing.assert_allclose(output.result['a'], expected, atol=2e-7)

  def test_noise_of_all_clients_has_the_stated_standard_deviation(self):
    process = self._process(_mechanism(3.0))
    state = process.initialize()
    draws = []
    for _ in range(40):
      result = process.next(state, [self._value(0.0)] * 20).result
      draws.append([*result['a'], result['b']])
    stated = 3.0 * 0.5 / 20
    deviation = 5 / np.sqrt(2 * np.size(draws))
    self.assertAlmostEqual(np.std(draws) / stated, 1, delta=deviation)
    self.assertLess(abs(np.mean(draws)), 5 * stated / np.sqrt(np.size(draws)))

  def test_no_two_clients_draw_the_same_noise(self):
    query = _mechanism().sum_query()
    record = tff.tensorflow.computation(
      lambda: query.preprocess_record((), tf.zeros([50]))
    )
    draws = np.concatenate([record() for _ in range(20)])
    self.assertGreater(len(set(draws)), 900)

  @parameterized.parameters(0.3, 1.0, 17.7)
  def test_rounding_never_lengthens(self, clip_norm):
    mechanism = _mechanism(0.0, clip_norm=clip_norm)
    query = mechanism.sum_query()
    rng = np.random.default_rng(0)
    for size in (1, 3, 1000, 100_000):
      record = tf.constant(rng.normal(size=size) * 1e4, tf.float32)
      whole = query.preprocess_record((), record).numpy()
      norm = np.linalg.norm(whole.astype(np.float64))
      self.assertLessEqual(norm, mechanism.clip_steps)
      self.assertGreater(norm, 0.99 * mechanism.clip_steps)


if __name__ == '__main__':
  absltest.main()
