"""Tests of the tree's aggregation against closed forms and TF Privacy's tree."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_privacy.privacy.dp_query import tree_aggregation

from tff_medical.privacy import aggregators
from tff_medical.privacy import dp_ftrl_mechanism
from tff_medical.privacy import mechanisms

_SIZE = 40_000


def _mechanism(rounds_per_tree, noise_multiplier=2.0, clip_norm=0.5):
  return dp_ftrl_mechanism.DpFtrlMechanism(
    sampling=dp_ftrl_mechanism.DpFtrlSampling(200, 4, rounds_per_tree),
    clipping=mechanisms.FixedClipping(clip_norm),
    noise_multiplier=noise_multiplier,
  )


def _noise_of_prefixes(rounds_per_tree, rounds, size=_SIZE):
  """Returns the noise of the first 1, 2 ... rounds' sums, [rounds, size]."""
  spec = tf.TensorSpec([size], tf.float32)
  query = _mechanism(rounds_per_tree).sum_query(spec)
  step = tf.function(query.get_noised_result)
  state = query.initial_global_state()
  residuals = []
  for _ in range(rounds):
    result, state, _ = step(tf.zeros([size]), state)
    residuals.append(result.numpy())
  return np.cumsum(residuals, axis=0)


def _tf_privacy_covariance(rounds):
  """Returns the covariance of TF Privacy's prefix noises for unit nodes.

  Every node gets a coordinate of its own for a noise, so what comes out are the
  coefficients of the nodes in each prefix.
  """
  nodes = tf.Variable(0)

  def next_node():
    nodes.assign_add(1)
    return tf.one_hot(nodes, 4 * rounds)

  tree = tree_aggregation.EfficientTreeAggregator(next_node)
  state = tree.init_state()
  prefixes = []
  for _ in range(rounds):
    prefix, state = tree.get_cumsum_and_update(state)
    prefixes.append(prefix.numpy())
  return np.array(prefixes) @ np.array(prefixes).T


class TreeSumQueryTest(parameterized.TestCase):
  def test_noise_is_distributed_as_tf_privacys_tree(self):
    """All variances and covariances of 11 prefixes, the last tree cut short."""
    prefixes = _noise_of_prefixes(16, 11)
    covariance = prefixes @ prefixes.T / _SIZE
    # A covariance of unit variables has a standard error of 1 / sqrt(_SIZE).
    np.testing.assert_allclose(
      covariance, _tf_privacy_covariance(11), atol=6 * 3 / np.sqrt(_SIZE)
    )
    self.assertLess(np.abs(prefixes.mean(axis=1)).max(), 6 * 2 / _SIZE**0.5)

  def test_variance_is_the_closed_form(self):
    """The sum over the binary digits k of t of 1 / (2 - 2**-k)."""
    variances = _noise_of_prefixes(16, 16).var(axis=1)
    for t, variance in enumerate(variances, start=1):
      expected = sum(1 / (2 - 2.0**-k) for k in range(5) if t >> k & 1)
      self.assertAlmostEqual(
        variance / expected, 1, delta=6 * (2 / _SIZE) ** 0.5
      )

  def test_a_restarted_tree_is_a_new_one(self):
    prefixes = _noise_of_prefixes(3, 9)
    ends = [0 * prefixes[2], prefixes[2], prefixes[5], prefixes[8]]
    trees = np.concatenate(
      [prefixes[3 * n : 3 * n + 3] - ends[n] for n in range(3)]
    )
    one = _tf_privacy_covariance(3)
    np.testing.assert_allclose(
      trees @ trees.T / _SIZE,
      np.kron(np.eye(3), one),
      atol=6 * 2 / np.sqrt(_SIZE),
    )

  def test_a_round_run_again_draws_other_noise_on_the_same_tree(self):
    """Else two attempts would differ by what clients sent, without noise."""
    spec = tf.TensorSpec([_SIZE], tf.float32)
    query = _mechanism(16).sum_query(spec)
    state = query.initial_global_state()
    for _ in range(5):
      _, state, _ = query.get_noised_result(tf.zeros([_SIZE]), state)
    first, _, _ = query.get_noised_result(tf.zeros([_SIZE]), state)
    again, _, _ = query.get_noised_result(tf.zeros([_SIZE]), state)
    self.assertFalse(np.any(first.numpy() == again.numpy()))
    # Both take back what the tree still owes: the noise of round 5's leaf.
    self.assertGreater(np.corrcoef(first, again)[0, 1], 0.3)


class TreeAggregationFactoryTest(absltest.TestCase):
  def _process(self, **changed):
    value_type = tff.types.to_type(
      collections.OrderedDict(a=(np.float32, (2, 3)), b=np.float32)
    )
    factory = aggregators.build_aggregator(_mechanism(3, **changed))
    return factory.create(value_type)

  def _value(self, number):
    return collections.OrderedDict(
      a=np.full((2, 3), number, np.float32), b=np.float32(0)
    )

  def test_clips_and_divides_by_the_cohort(self):
    process = self._process(noise_multiplier=0.0)
    state = process.initialize()
    self.assertEqual(aggregators.clip_norm(state), 0.5)
    for _ in range(4):
      values = [self._value(0.01), self._value(7.0), self._value(np.nan)]
      output = process.next(state, values)
      state = output.state
      expected = (0.01 + 0.5 / np.sqrt(6)) / 4
      np.testing.assert_allclose(
        output.result['a'], np.full((2, 3), expected), rtol=1e-5
      )

  def test_noise_of_prefixes_has_the_stated_standard_deviation(self):
    """As TFF runs it: two trees of 3 rounds, of which the second is new."""
    process = self._process(noise_multiplier=3.0)
    prefixes = []
    for _ in range(60):
      state = process.initialize()
      results = []
      for _ in range(4):
        output = process.next(state, [])
        state = output.state
        results.append([*output.result['a'].ravel(), output.result['b']])
      prefixes.append(np.cumsum(results, axis=0))
    measured = np.std(prefixes, axis=(0, 2)) / (3.0 * 0.5 / 4)
    # Rounds 1, 2 and 3 of a tree have 1, 2/3 and 5/3; a new tree adds 1.
    stated = np.sqrt([1, 2 / 3, 5 / 3, 8 / 3])
    np.testing.assert_allclose(measured / stated, 1, atol=5 / np.sqrt(2 * 420))

  def test_releases_no_other_statistic_of_client_data(self):
    process = self._process()
    output = process.next(process.initialize(), [self._value(1)])
    self.assertEqual(output.measurements['dp'], ())
    self.assertEmpty(output.measurements['dp_query_metrics'])


if __name__ == '__main__':
  absltest.main()
