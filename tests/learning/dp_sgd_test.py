"""Tests of DP-SGD across sites against one example at a time."""

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
from tff_medical.learning import augmentation
from tff_medical.privacy import aggregators
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_EXPECTED = 8.0
_SIZES = (5, 0, 3)


def _mechanism(clipping, noise_multiplier=0.0, unit='record'):
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(1000, _EXPECTED),
    clipping=clipping,
    noise_multiplier=noise_multiplier,
    privacy_unit=unit,
  )


def _sites(data, sizes=_SIZES, microbatch=4):
  """Returns the units of `data` spread over sites, some without any."""
  ends = np.cumsum((0, *sizes))
  return [
    runtime.tensor_dataset(
      collections.OrderedDict((k, v[start:end]) for k, v in data.items()),
      batch_size=microbatch,
    )
    for start, end in zip(ends, ends[1:])
  ]


def _weights(process, state):
  return unit_models.flat(process.get_model_weights(state).trainable)


def _step(process, sites, state=None):
  """Returns what a round with server learning rate 1 subtracts."""
  state = state or process.initialize()
  after = process.next(state, sites).state
  return _weights(process, state) - _weights(process, after)


def _clipped(gradients, clip_norm):
  norms = np.linalg.norm(gradients, axis=1, keepdims=True)
  return gradients * np.minimum(1, clip_norm / np.maximum(norms, 1e-30))


def _no_units(sites, size=2000):
  empty = collections.OrderedDict(
    x=np.zeros((0, 1, size), np.float32),
    y=np.zeros((0, 1), np.float32),
    mask=np.zeros((0, 1), np.float32),
  )
  return _sites(empty, (0,) * sites)


class BuildDpSgdTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    context = runtime.create_local_context(client_threads=1)
    self.enter_context(tff.framework.get_context_stack().install(context))

  @parameterized.parameters(
    (0.5, 1, False), (0.5, 3, True), (1e3, 3, False), (None, 3, False)
  )
  def test_sites_together_are_central_dp_sgd(
    self, clip_norm, images, multi_label
  ):
    data = unit_models.units(1, 8, images, multi_label)
    gradients = unit_models.gradients_one_by_one(unit_models.weights(), data)
    clipping = None
    if clip_norm is not None:
      clipping = mechanisms.FixedClipping(clip_norm)
      gradients = _clipped(gradients, clip_norm)
    unit = 'record' if images == 1 else 'patient'
    process = learning.build_dp_sgd(
      unit_models.model(multi_label), _mechanism(clipping, unit=unit)
    )
    np.testing.assert_allclose(
      _step(process, _sites(data)),
      gradients.sum(axis=0) / _EXPECTED,
      atol=1e-5,
    )

  def test_clips_as_computed_by_hand(self):
    """One weight w = 0, loss (w x - y)^2: the gradient of a unit is -2 x y."""
    process = learning.build_dp_sgd(
      unit_models.line(), _mechanism(mechanisms.FixedClipping(1.0))
    )
    data = unit_models.points([0.25, 3.0, -5.0], [1.0, 1.0, 1.0])
    step = _step(process, _sites(data, (1, 2)))
    np.testing.assert_allclose(step, (-0.5 - 1.0 + 1.0) / _EXPECTED, rtol=1e-6)

  def test_images_of_a_patient_are_clipped_together(self):
    process = learning.build_dp_sgd(
      unit_models.line(),
      _mechanism(mechanisms.FixedClipping(1.0), unit='patient'),
    )
    data = unit_models.points([[3.0, 2.0]], [[1.0, 1.0]])
    step = _step(process, _sites(data, (1,)))
    np.testing.assert_allclose(step, -1.0 / _EXPECTED, rtol=1e-6)

  def test_microbatches_only_bound_memory(self):
    process = learning.build_dp_sgd(
      unit_models.model(), _mechanism(mechanisms.FixedClipping(0.5))
    )
    data = unit_models.units(2, 8, images=2)
    steps = [_step(process, _sites(data, microbatch=n)) for n in (1, 3, 8)]
    # A site's units may stand beside those of another site, as in `UnitFeed`.
    steps += [_step(process, _sites(data, n)) for n in ((8,), (1, 7), (3, 5))]
    for step in steps[1:]:
      np.testing.assert_allclose(step, steps[0], atol=1e-6)

  @parameterized.parameters(
    (None,),
    (mechanisms.FixedClipping(0.5),),
    (mechanisms.AdaptiveClipping(0.5),),
  )
  def test_a_unit_that_is_not_finite_counts_as_gradient_zero(self, clipping):
    process = learning.build_dp_sgd(unit_models.line(), _mechanism(clipping))
    state = process.initialize()
    results = [
      process.next(state, _sites(unit_models.points(x, [1.0] * 3), (3,))).state
      for x in ([0.1, np.nan, 0.2], [0.1, np.inf, 0.2], [0.1, 1e30, 0.2])
    ]
    expected = process.next(
      state, _sites(unit_models.points([0.1, 0.0, 0.2], [1.0] * 3), (3,))
    ).state
    for result in results:
      np.testing.assert_array_equal(
        _weights(process, result), _weights(process, expected)
      )
      self.assertEqual(
        aggregators.clip_norm(result.aggregator),
        aggregators.clip_norm(expected.aggregator),
      )

  @parameterized.parameters((None,), (mechanisms.AdaptiveClipping(0.5),))
  def test_counts_units_that_are_not_finite_if_asked(self, clipping):
    mechanism = _mechanism(clipping)
    process = learning.build_dp_sgd(
      unit_models.line(), mechanism, count_broken=True
    )
    plain = learning.build_dp_sgd(unit_models.line(), mechanism)
    data = unit_models.points([np.nan, 1.0, np.inf, np.nan, 1e30], [1.0] * 5)
    data['mask'][3] = 0  # Padding, and so no unit.
    state = process.initialize()
    output = process.next(state, _sites(data, (2, 3)))
    self.assertEqual(aggregators.broken_units(output.metrics), 3)
    expected = plain.next(state, _sites(data, (2, 3))).state
    np.testing.assert_array_equal(
      _weights(process, output.state), _weights(plain, expected)
    )
    output = process.next(output.state, [])
    self.assertEqual(aggregators.broken_units(output.metrics), 0)

  @parameterized.parameters(
    (mechanisms.FixedClipping(0.5),), (mechanisms.AdaptiveClipping(0.5),)
  )
  def test_padding_is_neither_summed_nor_counted(self, clipping):
    process = learning.build_dp_sgd(unit_models.line(), _mechanism(clipping))
    state = process.initialize()
    alone = process.next(
      state, _sites(unit_models.points([3.0], [1.0]), (1,))
    ).state
    padded_data = unit_models.points([3.0, np.nan, 4.0], [1.0, 1.0, 1.0])
    padded_data['mask'][1:] = 0
    padded = process.next(state, _sites(padded_data, (3,))).state
    tf.nest.map_structure(np.testing.assert_array_equal, padded, alone)

  def test_clip_norm_follows_the_quantile(self):
    """Andrew et al. 2021: C exp(-0.2 (b - 0.5)), b over the expected units."""
    process = learning.build_dp_sgd(
      unit_models.line(), _mechanism(mechanisms.AdaptiveClipping(1.0))
    )
    state, clip_norm = process.initialize(), 1.0
    x = np.array([0.1, 0.2, 0.45, 0.48, 0.6, 3.0, 4.0, 5.0])
    for _ in range(4):
      # The gradient at the weight w is 2 x (w x - y).
      norms = np.abs(2 * x * (_weights(process, state) * x - 1))
      unclipped = np.mean(norms <= clip_norm)
      state = process.next(
        state, _sites(unit_models.points(x, [1.0] * 8))
      ).state
      clip_norm *= np.exp(-0.2 * (unclipped - 0.5))
      self.assertAlmostEqual(
        aggregators.clip_norm(state.aggregator), clip_norm, places=5
      )

  def test_equals_dp_fed_avg_with_a_client_for_each_record(self):
    """Two implementations of one query, with the adaptive clip, on 3 rounds."""
    clipping = mechanisms.AdaptiveClipping(1.0)
    data = unit_models.units(3, 8)
    ours = learning.build_dp_sgd(unit_models.model(), _mechanism(clipping))
    theirs = learning.build_dp_fed_avg(
      unit_models.model(),
      _mechanism(clipping, unit='client'),
      client_optimizer=tff.learning.optimizers.build_sgdm(1.0),
    )
    clients = [
      tf.data.Dataset.from_tensors(
        collections.OrderedDict(x=data['x'][i], y=data['y'][i])
      )
      for i in range(8)
    ]
    state, expected = ours.initialize(), theirs.initialize()
    for _ in range(3):
      state = ours.next(state, _sites(data)).state
      expected = theirs.next(expected, clients).state
      self.assertAlmostEqual(
        aggregators.clip_norm(state.aggregator),
        aggregators.clip_norm(expected.aggregator),
        places=5,
      )
    np.testing.assert_allclose(
      _weights(ours, state), _weights(theirs, expected), atol=1e-5
    )

  @parameterized.parameters(
    (mechanisms.FixedClipping(0.5),), (mechanisms.AdaptiveClipping(0.5),)
  )
  def test_noise_has_the_stated_deviation_without_units_too(self, clipping):
    mechanism = _mechanism(clipping, noise_multiplier=0.7)
    process = learning.build_dp_sgd(unit_models.line(2000), mechanism)
    state = process.initialize()
    drawn = [_step(process, sites, state) for sites in ([], [], _no_units(2))]
    expected = 0.5 * mechanism.value_noise_multiplier / _EXPECTED
    if isinstance(clipping, mechanisms.FixedClipping):
      self.assertAlmostEqual(mechanism.mean_stddev, expected)
    else:
      self.assertIsNone(mechanism.mean_stddev)
    self.assertAlmostEqual(np.std(drawn) / expected, 1.0, delta=0.05)
    self.assertAlmostEqual(np.mean(drawn) / expected, 0.0, delta=0.05)
    self.assertLess(np.abs(np.corrcoef(drawn) - np.eye(3)).max(), 0.1)

  def test_noise_of_the_count_has_the_stated_deviation(self):
    """Without units b is 0.5 of nothing, so the count's noise moves the clip."""
    mechanism = _mechanism(mechanisms.AdaptiveClipping(1.0), 0.5)
    process = learning.build_dp_sgd(unit_models.line(), mechanism)
    state = process.initialize()
    clips = [
      aggregators.clip_norm(process.next(state, []).state.aggregator)
      for _ in range(600)
    ]
    below = 0.5 - np.log(clips) / 0.2
    expected = mechanism.count_stddev / _EXPECTED
    self.assertAlmostEqual(np.std(below) / expected, 1.0, delta=0.12)

  def test_publishes_nothing_of_the_units(self):
    process = learning.build_dp_sgd(
      unit_models.model(), _mechanism(mechanisms.AdaptiveClipping(), 0.1)
    )
    self.assertIsInstance(process, tff.learning.templates.LearningProcess)
    output = process.next(process.initialize(), _sites(unit_models.units(0, 8)))
    self.assertEqual(
      output.metrics,
      collections.OrderedDict(
        finalizer=collections.OrderedDict(update_non_finite=0)
      ),
    )

  def test_augmented_constant_images_take_the_same_step(self):
    data = unit_models.units(1, 8)
    data['x'][:] = np.arange(8)[:, None, None, None, None] / 8
    mechanism = _mechanism(mechanisms.FixedClipping(0.5))
    plain = learning.build_dp_sgd(unit_models.model(), mechanism)
    augmented = learning.build_dp_sgd(
      unit_models.model(),
      mechanism,
      augmentation=learning.Augmentation(
        ('flip', 'rotate', 'crop', 'shift'), views=4
      ),
    )
    np.testing.assert_allclose(
      _step(augmented, _sites(data)), _step(plain, _sites(data)), atol=1e-5
    )

  def test_augmented_units_keep_the_clip_norm(self):
    process = learning.build_dp_sgd(
      unit_models.model(),
      _mechanism(mechanisms.FixedClipping(0.01)),
      augmentation=learning.Augmentation(augmentation.NAMES, views=3),
    )
    unclipped = learning.build_dp_sgd(unit_models.model(), _mechanism(None))
    for seed in range(5):
      data = unit_models.units(seed, 1)
      data['x'][:] = np.abs(data['x']) / 4
      norms = [np.linalg.norm(_step(process, _sites(data))) for _ in range(2)]
      scale = np.linalg.norm(_step(unclipped, _sites(data)))
      self.assertGreater(scale, 10 * norms[0])
      # The same for all views: the mean of the views was clipped, not each.
      np.testing.assert_allclose(norms[0], norms[1], rtol=1e-4)

  def test_weights_can_be_set(self):
    process = learning.build_dp_sgd(unit_models.line(), _mechanism(None))
    weights = tff.learning.models.ModelWeights(([np.float32(3)],), ())
    state = process.set_model_weights(process.initialize(), weights)
    np.testing.assert_array_equal(_weights(process, state), 3)

  def test_refuses_client_level(self):
    with self.assertRaisesRegex(_validate.InputError, 'privacy_unit'):
      learning.build_dp_sgd(
        unit_models.model(),
        _mechanism(mechanisms.FixedClipping(1.0), unit='client'),
      )


class RuntimesTest(absltest.TestCase):
  def test_tff_runs_the_same(self):
    process = learning.build_dp_sgd(
      unit_models.model(), _mechanism(mechanisms.AdaptiveClipping(0.5))
    )
    sites = _sites(unit_models.units(1, 8, images=2))
    states = []
    for context in (
      runtime.create_local_context(client_threads=1),
      tff.backends.native.create_sync_local_cpp_execution_context(),
    ):
      with tff.framework.get_context_stack().install(context):
        state = process.initialize()
        for data in (sites, sites, []):
          state = process.next(state, data).state
        states.append(state)
    tf.nest.map_structure(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *states
    )


if __name__ == '__main__':
  absltest.main()
