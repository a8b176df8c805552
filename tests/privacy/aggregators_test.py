"""Tests of the TFF aggregators against closed forms."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow_federated as tff

from tff_medical.privacy import aggregators
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_TYPE = tff.types.to_type(
  collections.OrderedDict(a=(np.float32, (3,)), b=np.float32)
)


def _value(*numbers):
  array = np.array(numbers, np.float32)
  return collections.OrderedDict(a=array[:3], b=array[3])


def _flat(result):
  return np.concatenate([result['a'], [result['b']]])


def _process(clipping, noise_multiplier=0.0, cohort=4):
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(1000, cohort),
    clipping=clipping,
    noise_multiplier=noise_multiplier,
  )
  factory = aggregators.build_aggregator(mechanism)
  return mechanism, factory.create(_TYPE)


class BuildAggregatorTest(parameterized.TestCase):
  def test_fixed_clips_and_divides_by_the_expected_cohort(self):
    _, process = _process(mechanisms.FixedClipping(1.0))
    small = _value(0.1, 0.2, 0.3, 0.4)
    large = _value(3.0, 0.0, 0.0, 4.0)  # Norm 5.
    output = process.next(process.initialize(), [small, large])
    expected = (_flat(small) + _flat(large) / 5) / 4
    np.testing.assert_allclose(_flat(output.result), expected, rtol=1e-5)

  @parameterized.parameters(
    (mechanisms.FixedClipping(2.5),),
    (mechanisms.AdaptiveClipping(clip_norm=2.5),),
  )
  def test_noise_has_the_stated_standard_deviation(self, clipping):
    mechanism, _ = _process(clipping, noise_multiplier=3.0, cohort=40)
    process = aggregators.build_aggregator(mechanism).create(
      tff.TensorType(np.float32, (1000,))
    )
    state = process.initialize()
    zero = np.zeros(1000, np.float32)
    draws = np.concatenate(
      [process.next(state, [zero] * 2).result for _ in range(10)]
    )
    stated = mechanism.value_noise_multiplier * 2.5 / 40
    # 10,000 draws: a standard deviation within 5 % is 7 sigma of the estimate.
    self.assertAlmostEqual(draws.std() / stated, 1.0, delta=0.05)
    self.assertLess(abs(draws.mean()), 4 * stated / np.sqrt(draws.size))

  def test_adaptive_clip_follows_andrew_et_al(self):
    clipping = mechanisms.AdaptiveClipping(
      clip_norm=1.0, target_unclipped_quantile=0.5, clip_learning_rate=0.2
    )
    _, process = _process(clipping)
    state = process.initialize()
    self.assertEqual(aggregators.clip_norm(state), 1.0)
    norms = [0.5, 2.0, 3.0, 4.0]
    clip = 1.0
    for _ in range(5):
      unclipped = np.mean([norm <= clip for norm in norms])
      clip *= np.exp(-0.2 * (unclipped - 0.5))
      state = process.next(state, [_value(n, 0, 0, 0) for n in norms]).state
      self.assertAlmostEqual(aggregators.clip_norm(state), clip, places=5)

  def test_adaptive_clip_is_noised(self):
    """The count that moves the clip norm carries noise of cohort / 20."""
    clipping = mechanisms.AdaptiveClipping(clip_norm=1.0)
    mechanism, process = _process(clipping, noise_multiplier=0.1, cohort=100)
    state = process.initialize()
    values = [_value(0, 0, 0, 0)] * 50 + [_value(9, 0, 0, 0)] * 50
    fractions = []
    for _ in range(300):
      output = process.next(state, values)
      moved = np.log(aggregators.clip_norm(output.state))
      fractions.append(0.5 - moved / 0.2)
    self.assertAlmostEqual(np.mean(fractions), 0.5, delta=0.02)
    self.assertAlmostEqual(
      np.std(fractions) * 100 / mechanism.count_stddev, 1.0, delta=0.2
    )

  def test_no_clipping_is_the_mean(self):
    _, process = _process(None)
    values = [_value(1, 2, 3, 4), _value(3, 4, 5, 600)]
    output = process.next(process.initialize(), values)
    np.testing.assert_allclose(_flat(output.result), [2, 3, 4, 302], rtol=1e-6)
    self.assertIsNone(aggregators.clip_norm(output.state))

  @parameterized.parameters(np.nan, np.inf, -np.inf, 1e30)
  def test_broken_client_counts_as_the_zero_update(self, broken):
    _, process = _process(mechanisms.FixedClipping(100.0))
    values = [_value(1, 2, 3, 4), _value(5, broken, 5, 5), _value(1, 1, 1, 1)]
    output = process.next(process.initialize(), values)
    np.testing.assert_allclose(
      _flat(output.result), np.array([2, 3, 4, 5]) / 4, rtol=1e-6
    )

  @parameterized.parameters(
    (mechanisms.FixedClipping(1.0),), (mechanisms.AdaptiveClipping(),), (None,)
  )
  def test_counts_broken_clients_only_if_asked(self, clipping):
    mechanism, plain = _process(clipping)
    counting = aggregators.BrokenCountFactory(
      aggregators.build_aggregator(mechanism)
    ).create(_TYPE, tff.TensorType(np.float32))
    values = [_value(1, 2, 3, 4), _value(5, np.nan, 5, 5), _value(1, 1, 1, 1)]
    values += [_value(1e30, 1, 1, 1), _value(0, 0, 0, 0), _value(0, 0, 0, 0)]
    weights = [3.0, 1.0, 1.0, 1.0, 0.0, 1.0]  # The last but one is empty.
    without = plain.next(plain.initialize(), values)
    output = counting.next(counting.initialize(), values, weights)
    metrics = collections.OrderedDict(aggregator=output.measurements)
    self.assertEqual(aggregators.broken_units(metrics), 3)
    self.assertEqual(output.measurements['inner'], without.measurements)
    np.testing.assert_array_equal(_flat(output.result), _flat(without.result))
    output = counting.next(output.state, [], [])
    self.assertEqual(output.measurements['broken_units'], 0)

  @parameterized.parameters(
    (mechanisms.FixedClipping(1.0),), (mechanisms.AdaptiveClipping(),)
  )
  def test_empty_cohort_releases_noise_alone(self, clipping):
    _, process = _process(clipping, noise_multiplier=0.3)
    output = process.next(process.initialize(), [])
    self.assertTrue(np.all(np.isfinite(_flat(output.result))))
    self.assertTrue(np.all(_flat(output.result) != 0))

  def test_releases_no_other_statistic_of_client_data(self):
    for clipping in (mechanisms.FixedClipping(), mechanisms.AdaptiveClipping()):
      _, process = _process(clipping, noise_multiplier=0.3)
      output = process.next(process.initialize(), [_value(1, 2, 3, 4)])
      self.assertLessEqual(set(output.measurements), {'dp_query_metrics', 'dp'})
      self.assertLessEqual(
        set(output.measurements['dp_query_metrics']), {'clip'}
      )
      self.assertEqual(output.measurements['dp'], ())


if __name__ == '__main__':
  absltest.main()
