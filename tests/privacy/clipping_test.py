"""Tests that clipping holds at the ends of float32, in every aggregation."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tests.learning import unit_models
from tff_medical import _validate
from tff_medical import learning
from tff_medical import runtime
from tff_medical.privacy import aggregators
from tff_medical.privacy import clipping
from tff_medical.privacy import distributed_dp_mechanism
from tff_medical.privacy import dp_ftrl_mechanism
from tff_medical.privacy import limits
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_SIZE = 2000
_CLIP_NORMS = (limits.MIN_CLIP_NORM, 1e-3, 1.0, limits.MAX_CLIP_NORM)
# From denormal numbers to the largest; 1e-19 and 1e19 are where squares end.
_ENTRIES = (
  0.0, 1e-45, 1e-38, 1e-25, 1e-20, 9e-20, 1.1e-19, 1e-15, 1e-10, 1.0, 1e10,
  1e17, 4e17, 1e18, 1.8e19, 1e20, 1e30, 3e38, np.inf, -np.inf, np.nan,
)  # fmt: skip
# What rounding in float32 may add.
_SLACK = 1 + 1e-5


def _records():
  """Yields float32 [_SIZE] of one magnitude, of two, and of one entry alone."""
  rng = np.random.default_rng(0)
  for entry in _ENTRIES:
    yield np.full(_SIZE, entry, np.float32)
    alone = np.zeros(_SIZE, np.float32)
    alone[7] = entry
    yield alone
    mixed = rng.choice([-1.0, 1e-19, 1e-30, 3.0], _SIZE)
    mixed[0] = entry
    yield mixed.astype(np.float32)


def _norm(values):
  return np.linalg.norm(np.asarray(values, np.float64))


def _poisson(clip, noise_multiplier=0.0):
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(1000, 1.0),
    clipping=clip,
    noise_multiplier=noise_multiplier,
  )


def _tree(clip_norm):
  return dp_ftrl_mechanism.DpFtrlMechanism(
    sampling=dp_ftrl_mechanism.DpFtrlSampling(8, 1, 8),
    clipping=mechanisms.FixedClipping(clip_norm),
  )


class ClipTest(parameterized.TestCase):
  @parameterized.parameters(*_CLIP_NORMS)
  def test_holds_for_any_record(self, clip_norm):
    clip = tf.function(lambda x: clipping.clip([x[:5], x[5:]], clip_norm)[0])
    for record in _records():
      released = np.concatenate(clip(tf.constant(record)))
      self.assertLessEqual(_norm(released), clip_norm * _SLACK)

  def test_of_many_entries(self):
    record = tf.fill([20_000_000], np.float32(0.1234567))
    self.assertLess(_norm(clipping.clip([record], 1.0)[0][0]), _SLACK)

  def test_a_clip_norm_below_the_limit_would_not_bind(self):
    """Why there is a limit: 1e-20, with entries that have no square."""
    released = clipping.clip([tf.fill([_SIZE], 9e-20)], 1e-20)[0][0]
    self.assertGreater(_norm(released), 100 * 1e-20)
    for clip_norm in (1e-20, 9e-11, 1.1e10, 1e308, 0.0, np.inf, np.nan):
      for kind in (mechanisms.FixedClipping, mechanisms.AdaptiveClipping):
        with self.assertRaisesRegex(_validate.InputError, 'clip_norm'):
          kind(clip_norm)


class AggregatorsTest(parameterized.TestCase):
  @parameterized.product(
    clip_norm=(limits.MIN_CLIP_NORM, limits.MAX_CLIP_NORM),
    build=(
      lambda c: _poisson(mechanisms.FixedClipping(c)),
      lambda c: _poisson(mechanisms.AdaptiveClipping(c)),
      _tree,
    ),
  )
  def test_one_client_moves_no_more_than_the_clip_norm(self, clip_norm, build):
    process = aggregators.build_aggregator(build(clip_norm)).create(
      tff.types.to_type(
        collections.OrderedDict(
          a=(np.float32, (5,)), b=(np.float32, (_SIZE - 5,))
        )
      )
    )
    context = runtime.create_local_context(client_threads=1)
    with tff.framework.get_context_stack().install(context):
      state = process.initialize()
      for record in _records():
        value = collections.OrderedDict(a=record[:5], b=record[5:])
        released = process.next(state, [value]).result
        released = np.concatenate([released['a'], released['b']])
        self.assertLessEqual(_norm(released), clip_norm * _SLACK)

  @parameterized.parameters(*_CLIP_NORMS)
  def test_distributed(self, clip_norm):
    mechanism = distributed_dp_mechanism.DistributedDpMechanism(
      sampling=sampling.FullParticipation(3),
      clipping=mechanisms.FixedClipping(clip_norm),
    )
    query = mechanism.sum_query()
    for record in _records():
      steps = query.preprocess_record((), tf.constant(record))
      self.assertLessEqual(_norm(steps), mechanism.clip_steps)

  @parameterized.parameters(
    (limits.MIN_CLIP_NORM, 5.0, limits.MIN_CLIP_NORM),
    (limits.MAX_CLIP_NORM, -5.0, limits.MAX_CLIP_NORM),
  )
  def test_the_adaptive_clip_norm_stays_within(self, start, counted, end):
    mechanism = _poisson(mechanisms.AdaptiveClipping(start))
    query = mechanism.sum_query()
    state = query.initial_global_state()
    template = tf.TensorSpec([3], tf.float32)
    for _ in range(3):
      total = query.initial_sample_state(template)
      total = total._replace(quantile_estimator_state=tf.constant(counted))
      _, state, _ = query.get_noised_result(total, state)
      for kept in (
        state.sum_state.l2_norm_clip,
        state.quantile_estimator_state.current_estimate,
      ):
        np.testing.assert_allclose(kept, end, rtol=1e-6)


class UnitsTest(parameterized.TestCase):
  """The gradient of a unit x of a line at 0 with y = -.5 is x."""

  def setUp(self):
    super().setUp()
    context = runtime.create_local_context(client_threads=1)
    self.enter_context(tff.framework.get_context_stack().install(context))

  def _data(self, **more):
    x = np.stack(list(_records()))
    for row in x:
      data = collections.OrderedDict(
        x=row[np.newaxis, np.newaxis],
        y=np.full((1, 1), -0.5, np.float32),
        mask=np.ones((1, 1), np.float32),
      )
      data.update({k: np.full(1, v, np.float32) for k, v in more.items()})
      yield runtime.tensor_dataset(data, batch_size=1)

  def _assert_bound(self, process, datasets, clip_norm):
    state = process.initialize()
    for data in datasets:
      after = process.next(state, [data]).state
      moved = process.get_model_weights(after).trainable[0]
      self.assertLessEqual(_norm(moved), clip_norm * _SLACK)

  @parameterized.product(
    clip_norm=(limits.MIN_CLIP_NORM, limits.MAX_CLIP_NORM),
    kind=(mechanisms.FixedClipping, mechanisms.AdaptiveClipping),
  )
  def test_dp_sgd(self, clip_norm, kind):
    mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.PoissonSampling(1000, 1.0),
      clipping=kind(clip_norm),
      privacy_unit='record',
    )
    process = learning.build_dp_sgd(unit_models.line(_SIZE), mechanism)
    self._assert_bound(process, self._data(), clip_norm)

  @parameterized.parameters(limits.MIN_CLIP_NORM, limits.MAX_CLIP_NORM)
  def test_local_dp_sgd(self, clip_norm):
    mechanism = local_dp_sgd_mechanism.LocalDpSgdMechanism(
      sampling=local_dp_sgd_mechanism.LocalDpSgdSampling(1000, 0.1, 1),
      clipping=mechanisms.FixedClipping(clip_norm),
    )
    process = learning.build_local_dp_sgd(
      unit_models.line(_SIZE),
      mechanism,
      client_optimizer=tff.learning.optimizers.build_sgdm(1.0),
    )
    self._assert_bound(process, self._data(expected_units=1.0), clip_norm)


class NoiseTest(parameterized.TestCase):
  @parameterized.product(
    clip_norm=(limits.MIN_CLIP_NORM, limits.MAX_CLIP_NORM),
    noise_multiplier=(
      limits.MIN_NOISE_MULTIPLIER,
      limits.MAX_NOISE_MULTIPLIER,
    ),
  )
  def test_is_what_it_should_be_at_the_limits(
    self, clip_norm, noise_multiplier
  ):
    mechanism = _poisson(mechanisms.FixedClipping(clip_norm), noise_multiplier)
    query = mechanism.sum_query()
    total, _, _ = query.get_noised_result(
      tf.zeros([20_000]), query.initial_global_state()
    )
    stated = clip_norm * noise_multiplier
    self.assertAlmostEqual(np.std(total / stated), 1, delta=0.03)

  @parameterized.parameters(1e-5, 1e-320, 1e7, 1e308, np.inf, np.nan, -1.0)
  def test_refuses_multipliers_beyond(self, noise_multiplier):
    clip = mechanisms.FixedClipping()
    with self.assertRaisesRegex(_validate.InputError, 'noise_multiplier'):
      _poisson(clip, noise_multiplier)
    with self.assertRaisesRegex(_validate.InputError, 'noise_multiplier'):
      dp_ftrl_mechanism.DpFtrlMechanism(
        dp_ftrl_mechanism.DpFtrlSampling(8, 1, 8), clip, noise_multiplier
      )
    with self.assertRaisesRegex(_validate.InputError, 'noise_multiplier'):
      local_dp_sgd_mechanism.LocalDpSgdMechanism(
        local_dp_sgd_mechanism.LocalDpSgdSampling(1000, 0.1, 1),
        clip,
        noise_multiplier,
      )
    with self.assertRaisesRegex(_validate.InputError, 'noise_multiplier'):
      distributed_dp_mechanism.DistributedDpMechanism(
        sampling.FullParticipation(3), clip, noise_multiplier
      )

  def test_adaptive_noise_at_its_limit(self):
    """A total that the count alone uses up leaves the values no finite noise."""
    for noise_multiplier in (np.nextafter(0.1, 0), 0.1 * (1 - 1e-15)):
      with self.assertRaisesRegex(_validate.InputError, 'noise_multiplier'):
        _poisson(mechanisms.AdaptiveClipping(), noise_multiplier)


if __name__ == '__main__':
  absltest.main()
