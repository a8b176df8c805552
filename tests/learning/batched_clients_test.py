"""Tests of clients in one batch, held against TFF's client work."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tests.learning import unit_models
from tff_medical import _validate
from tff_medical import learning
from tff_medical import models
from tff_medical import runtime
from tff_medical.learning import augmentation
from tff_medical.learning import batched_clients
from tff_medical.learning import batched_steps
from tff_medical.learning import client_training
from tff_medical.learning import schedules
from tff_medical.privacy import aggregators
from tff_medical.privacy import dp_ftrl_mechanism
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import client_groups

# The last client has no image.
_SIZES = (3, 1, 6, 4, 6, 2, 0)
_CLIPPINGS = (
  None,
  mechanisms.FixedClipping(0.05),
  mechanisms.AdaptiveClipping(0.05),
)


def _mechanism(clipping, noise_multiplier=0.0, clients=7, **changed):
  return mechanisms.GaussianMechanism(
    sampling=sampling.FullParticipation(clients),
    clipping=clipping,
    noise_multiplier=noise_multiplier,
    **changed,
  )


def _sgd(learning_rate=0.1):
  return tff.learning.optimizers.build_sgdm(learning_rate)


def _clients(seed=0, shape=unit_models.SHAPE, batch_size=6, epochs=1):
  """Returns the datasets of clients with labels 0 to 2."""
  rng = np.random.default_rng(seed)
  return [
    runtime.tensor_dataset(
      collections.OrderedDict(
        x=rng.random((size, *shape), np.float32),
        y=rng.integers(3, size=size),
      ),
      batch_size=batch_size,
      epochs=epochs,
    )
    for size in _SIZES
  ]


def _changed(client, name, value, example=0):
  """Returns the client with `value` in an example."""
  _, _, batch_size, epochs, _ = client.batches.options.numpy()
  arrays = collections.OrderedDict(
    (k, v.numpy()) for k, v in zip(('x', 'y'), client.batches.components)
  )
  arrays[name][example] = value
  return runtime.tensor_dataset(arrays, batch_size=batch_size, epochs=epochs)


def _groups(clients, images=8):
  """Returns the clients in groups of at most three."""
  limit = batched_clients.GroupSize(clients=3, images=images)
  return client_groups.in_groups(clients, limit)


def _predict(weights, x, training=True):
  """A smooth network: kinks would turn rounding into other gradients."""
  del training
  kernel, scale, wide, matrix, bias = (*weights[1], *weights[0])
  x = tf.nn.conv2d(x, kernel, 2, 'SAME') * scale
  x = tf.nn.conv2d(tf.tanh(x), wide, 1, 'VALID')
  return tf.reduce_mean(x, axis=(1, 2)) @ matrix + bias


def _model(frozen=0, loss=unit_models.loss):
  """Returns a model whose first weights are frozen."""
  weights = tuple(w / 2 for w in unit_models.weights())
  return tff.learning.models.FunctionalModel(
    initial_weights=(weights[frozen:], weights[:frozen]),
    predict_on_batch_fn=tf.function(_predict),
    loss_fn=loss,
    input_spec=unit_models.model().input_spec,
  )


def _head(features):
  """Returns a dense layer on features, as TFF makes it of a Keras model."""
  return tff.learning.models.functional_model_from_keras(
    tf.keras.Sequential(
      [
        tf.keras.layers.Input((features,)),
        tf.keras.layers.Dense(3, kernel_initializer='zeros'),
      ]
    ),
    models.loss(False, label_smoothing=0.2, class_weights=[3.0, 1, 2]),
    collections.OrderedDict(
      x=tf.TensorSpec((None, features)), y=tf.TensorSpec((None,), tf.int64)
    ),
  )


def _perceptron():
  """Returns a smooth network of two dense layers on 7 features."""
  rng = np.random.default_rng(5)

  def predict(weights, x, training=True):
    del training
    first, bias, second = weights[0]
    return tf.tanh(x @ first + bias) @ second

  return tff.learning.models.FunctionalModel(
    initial_weights=(
      tuple(
        rng.normal(size=s).astype(np.float32) for s in ((7, 5), (5,), (5, 3))
      ),
      (),
    ),
    predict_on_batch_fn=tf.function(predict),
    loss_fn=unit_models.loss,
    input_spec=_head(7).input_spec,
  )


def _weights(state):
  return unit_models.flat(state.global_model_weights.trainable)


class EqualityTest(parameterized.TestCase):
  """The same rounds as those of `build_dp_fed_avg`, which is TFF's own."""

  def setUp(self):
    super().setUp()
    runtime.set_local_context()

  def _assert_equal(
    self,
    model,
    clipping,
    rounds=None,
    *,
    broken_units=None,
    client_optimizer=None,
    client_learning_rate=None,
    client_steps=None,
    server_optimizer=None,
  ):
    shared = {'server_optimizer': server_optimizer, 'count_broken': True}
    one_by_one = learning.build_dp_fed_avg(
      model,
      _mechanism(clipping),
      client_optimizer=client_optimizer or _sgd(),
      client_learning_rate=client_learning_rate,
      **shared,
    )
    batched = learning.build_batched_dp_fed_avg(
      model,
      _mechanism(clipping),
      client_learning_rate=client_learning_rate or 0.1,
      client_steps=client_steps,
      **shared,
    )
    expected, state = one_by_one.initialize(), batched.initialize()
    start = _weights(state)
    counts = []
    for clients in rounds or [_clients(r) for r in range(3)]:
      wanted = one_by_one.next(expected, clients)
      output = batched.next(state, _groups(clients))
      expected, state = wanted.state, output.state
      counts.append(aggregators.broken_units(output.metrics))
      self.assertEqual(counts[-1], aggregators.broken_units(wanted.metrics))
      np.testing.assert_allclose(
        _weights(state), _weights(expected), atol=1e-6, rtol=0
      )
    self.assertGreater(np.abs(_weights(expected) - start).max(), 1e-3)
    if broken_units is not None:
      self.assertEqual(counts, broken_units)
    self.assertEqual(
      aggregators.clip_norm(state.aggregator),
      aggregators.clip_norm(expected.aggregator),
    )
    self.assertEqual(state.client_work, expected.client_work)

  @parameterized.parameters(*_CLIPPINGS)
  def test_uneven_broken_and_empty_clients(self, clipping):
    broken = _clients()
    broken[0] = _changed(broken[0], 'x', np.nan)
    broken[2] = _changed(broken[2], 'y', 3)  # There is no such class.
    broken[3] = _changed(broken[3], 'x', np.inf)
    rounds = [_clients(1), broken, _clients(2)]
    self._assert_equal(_model(), clipping, rounds, broken_units=[1, 4, 1])

  def test_frozen_layers(self):
    self._assert_equal(_model(frozen=2), _CLIPPINGS[2])

  def test_a_head_on_fixed_features_with_a_weighted_loss(self):
    rounds = [_clients(r, shape=(7,)) for r in range(3)]
    self._assert_equal(_head(7), _CLIPPINGS[1], rounds)

  def test_schedule_server_momentum_and_fed_prox(self):
    """FedProx pulls nowhere from the start, where the only step is taken."""
    schedule = schedules.build_schedule('cosine', learning_rate=0.2, rounds=3)
    self._assert_equal(
      _model(),
      _CLIPPINGS[1],
      client_optimizer=lambda rate: client_training.with_proximal_term(
        _sgd(rate), 3.0
      ),
      client_learning_rate=schedule,
      server_optimizer=learning.build_server_optimizer(
        'sgd', learning_rate=1.0, momentum=0.9
      ),
    )

  @parameterized.parameters(*_CLIPPINGS)
  def test_many_steps_of_uneven_broken_and_empty_clients(self, clipping):
    """Batches of 4 images: clients of 6 have a full and a partial one."""
    layout = {'shape': (7,), 'batch_size': 4, 'epochs': 3}
    broken = _clients(**layout)
    broken[0] = _changed(broken[0], 'x', np.nan)
    broken[2] = _changed(broken[2], 'y', 3, example=5)  # In its second batch.
    broken[3] = _changed(broken[3], 'x', np.inf)
    rounds = [_clients(1, **layout), broken, _clients(2, **layout)]
    self._assert_equal(
      _perceptron(),
      clipping,
      rounds,
      broken_units=[1, 4, 1],
      client_steps=batched_steps.LocalSteps(4, epochs=3),
    )

  def test_many_steps_of_a_head_with_a_weighted_loss(self):
    rounds = [_clients(r, (7,), batch_size=2) for r in range(3)]
    steps = batched_steps.LocalSteps(2)
    self._assert_equal(_head(7), _CLIPPINGS[1], rounds, client_steps=steps)

  def test_many_steps_with_schedule_server_momentum_and_fed_prox(self):
    schedule = schedules.build_schedule('cosine', learning_rate=0.2, rounds=3)
    self._assert_equal(
      _perceptron(),
      _CLIPPINGS[1],
      [_clients(r, (7,), batch_size=4, epochs=2) for r in range(3)],
      client_optimizer=lambda rate: client_training.with_proximal_term(
        _sgd(rate), 3.0
      ),
      client_learning_rate=schedule,
      client_steps=batched_steps.LocalSteps(4, 2, proximal_strength=3.0),
      server_optimizer=learning.build_server_optimizer(
        'sgd', learning_rate=1.0, momentum=0.9
      ),
    )

  def test_an_empty_cohort_adds_nothing_but_noise(self):
    for clipping, noise in ((None, 0.0), (_CLIPPINGS[1], 0.3)):
      process = learning.build_batched_dp_fed_avg(
        _model(),
        _mechanism(clipping, noise),
        client_learning_rate=0.1,
      )
      state = process.initialize()
      after = _weights(process.next(state, []).state)
      self.assertTrue(np.isfinite(after).all())
      self.assertEqual(np.array_equal(after, _weights(state)), noise == 0)

  def test_either_form_continues_the_state_of_the_other(self):
    model, mechanism = _model(), _mechanism(_CLIPPINGS[2])
    one_by_one = learning.build_dp_fed_avg(
      model, mechanism, client_optimizer=_sgd()
    )
    batched = learning.build_batched_dp_fed_avg(
      model, mechanism, client_learning_rate=0.1
    )
    self.assertTrue(
      batched.initialize.type_signature.is_equivalent_to(
        one_by_one.initialize.type_signature
      )
    )
    clients = _clients()
    plain = mixed = one_by_one.initialize()
    for n in range(4):
      plain = one_by_one.next(plain, clients).state
      if n % 2:
        mixed = one_by_one.next(mixed, clients).state
      else:
        mixed = batched.next(mixed, _groups(clients)).state
    np.testing.assert_allclose(_weights(mixed), _weights(plain), atol=1e-6)

  def test_augmented_clients_train_and_keep_the_clip_norm(self):
    process = learning.build_batched_dp_fed_avg(
      _model(),
      _mechanism(mechanisms.FixedClipping(0.01), clients=1),
      client_learning_rate=0.5,
      augmentation=augmentation.Augmentation(('flip', 'brightness')),
    )
    state = process.initialize()
    clients = _groups(_clients()[:1])
    steps = [
      _weights(process.next(state, clients).state) - _weights(state)
      for _ in range(2)
    ]
    for step in steps:
      np.testing.assert_allclose(np.linalg.norm(step), 0.01, rtol=1e-3)
    self.assertGreater(np.abs(steps[0] - steps[1]).max(), 1e-6)

  def test_noise_has_the_stated_deviation(self):
    mechanism = _mechanism(_CLIPPINGS[1], 2.0)
    process = learning.build_batched_dp_fed_avg(
      _model(), mechanism, client_learning_rate=0.1
    )
    state = process.initialize()
    noise = [
      _weights(process.next(state, []).state) - _weights(state)
      for _ in range(20)
    ]
    self.assertAlmostEqual(
      np.std(noise) / mechanism.mean_stddev, 1.0, delta=0.05
    )

  def test_the_size_of_groups_does_not_matter(self):
    process = learning.build_batched_dp_fed_avg(
      _model(), _mechanism(_CLIPPINGS[1]), client_learning_rate=0.1
    )
    state, clients = process.initialize(), _clients()
    results = [
      _weights(process.next(state, _groups(clients, images)).state)
      for images in (1, 7, 100)
    ]
    for other in results[1:]:
      np.testing.assert_allclose(results[0], other, atol=1e-7)

  @parameterized.parameters(None, batched_steps.LocalSteps(4, 2))
  def test_runs_in_tffs_own_context(self, steps):
    process = learning.build_batched_dp_fed_avg(
      _head(7),
      _mechanism(_CLIPPINGS[1]),
      client_learning_rate=0.1,
      client_steps=steps,
    )
    groups = _groups(_clients(shape=(7,)))
    expected = _weights(process.next(process.initialize(), groups).state)
    context = tff.backends.native.create_sync_local_cpp_execution_context()
    with tff.framework.get_context_stack().install(context):
      state = process.next(process.initialize(), groups).state
    np.testing.assert_allclose(_weights(state), expected, atol=1e-6)


class RefusalTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      {'mechanism': _mechanism(None, privacy_unit='record')},
      "privacy_unit must be 'client'.*build_dp_sgd",
    ),
    (
      {
        'mechanism': dp_ftrl_mechanism.DpFtrlMechanism(
          sampling=dp_ftrl_mechanism.DpFtrlSampling(30, 10, 3),
          clipping=mechanisms.FixedClipping(0.5),
        )
      },
      'mechanism must be a GaussianMechanism.*build_dp_fed_avg',
    ),
    ({'model': lambda: None}, 'model must be a FunctionalModel'),
    (
      {'client_steps': batched_steps.LocalSteps(2)},
      'model must have an exact gradient',
    ),
  )
  def test_refuses(self, changed, message):
    arguments = {
      'model': unit_models.model(),
      'mechanism': _mechanism(None),
      'client_learning_rate': 0.1,
    }
    with self.assertRaisesRegex(_validate.InputError, message):
      learning.build_batched_dp_fed_avg(**{**arguments, **changed})

  def test_refuses_a_loss_that_is_no_mean(self):
    def loss(output, label, sample_weight=None):
      """A weighted mean, in which an image's share depends on the others."""
      del sample_weight
      weights = tf.cast(1 + label, tf.float32)
      losses = tf.nn.sparse_softmax_cross_entropy_with_logits(label, output)
      return tf.reduce_sum(weights * losses) / tf.reduce_sum(weights)

    with self.assertRaisesRegex(_validate.InputError, 'the mean over the imag'):
      learning.build_batched_dp_fed_avg(
        _model(loss=loss), _mechanism(None), client_learning_rate=0.1
      )


class ChoiceTest(parameterized.TestCase):
  @parameterized.parameters(
    ((4, 4), True),
    ((5, 4), False),
    ((4, 4, 2), False),
    ((32, 64), True),
    ((33, 64), False),
    ((1, 1, 2), False),
  )
  def test_by_the_work_of_a_convolution_on_a_cpu(self, work, expected):
    work = batched_clients.ClientWork(*work)
    self.assertEqual(
      batched_clients.is_faster(unit_models.model(), work, on_gpu=False),
      expected,
    )

  def test_large_clients_on_a_gpu_or_of_a_dense_model(self):
    work = batched_clients.ClientWork(1_000, 1_000)
    dense = _head(7)
    self.assertTrue(batched_clients.is_faster(dense, work, on_gpu=False))
    self.assertTrue(
      batched_clients.is_faster(unit_models.model(), work, on_gpu=True)
    )

  @parameterized.parameters(
    (7, (10, 4), True),
    (7, (10, 10, 3), True),
    (4096, (64, 16, 3), True),
    (4096, (65, 16, 3), False),
    (50_000, (1, 1, 3), False),
  )
  def test_several_steps_of_small_dense_models(self, features, work, expected):
    """The largest of the heads has 150,003 parameters."""
    head, work = _head(features), batched_clients.ClientWork(*work)
    for on_gpu in (False, True):
      self.assertEqual(
        batched_clients.is_faster(head, work, on_gpu), expected or on_gpu
      )

  def test_several_steps_on_a_gpu_behind_frozen_convolutions(self):
    work = batched_clients.ClientWork(4, 2, 3)
    for frozen, expected in ((2, False), (3, True)):
      model = _model(frozen)
      self.assertEqual(
        batched_clients.is_faster(model, work, on_gpu=True), expected
      )
      self.assertFalse(batched_clients.is_faster(model, work, on_gpu=False))

  def test_a_model_without_rules_trains_one_by_one(self):
    work = batched_clients.ClientWork(1, 1)

    def predict(weights, x, training=True):
      del training
      return tf.gather(weights[0][0], tf.cast(x[:, 0], tf.int32))

    embedding = tff.learning.models.FunctionalModel(
      initial_weights=((np.ones((4, 3), np.float32),), ()),
      predict_on_batch_fn=tf.function(predict),
      loss_fn=unit_models.loss,
      input_spec=collections.OrderedDict(
        x=tf.TensorSpec((None, 2)), y=tf.TensorSpec((None,), tf.int64)
      ),
    )
    self.assertFalse(batched_clients.is_faster(embedding, work, on_gpu=True))

  def test_groups_bound_gradients_and_images(self):
    self.assertEqual(
      batched_clients.group_size(_head(1024)),
      batched_clients.GroupSize(clients=2**24 // 3075, images=4096),
    )
    self.assertEqual(
      batched_clients.group_size(_head(1024), is_one_step=False),
      batched_clients.GroupSize(clients=2**22 // 3075, images=4096),
    )
    convolutional = batched_clients.group_size(_model())
    self.assertEqual(convolutional.images, 128 * 28**2 // 30)


if __name__ == '__main__':
  absltest.main()
