"""Tests of DP-FedAvg as a TFF learning process."""

import collections
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tests.learning import unit_models
from tff_medical import learning
from tff_medical.learning import augmentation
from tff_medical.learning import schedules
from tff_medical.privacy import aggregators
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_SPEC = collections.OrderedDict(
  x=tf.TensorSpec((None, 3), tf.float32), y=tf.TensorSpec((None,), tf.int64)
)


def _loss():
  return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _functional_model():
  initializer = tf.keras.initializers.GlorotUniform(seed=1)
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.InputLayer((3,)),
      tf.keras.layers.Dense(2, kernel_initializer=initializer),
    ]
  )
  return tff.learning.models.functional_model_from_keras(
    keras_model, _loss(), _SPEC
  )


def _variable_model():
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.InputLayer((3,)),
      tf.keras.layers.Dense(2, kernel_initializer='zeros'),
    ]
  )
  return tff.learning.models.from_keras_model(
    keras_model, loss=_loss(), input_spec=_SPEC
  )


def _client(seed, count=7, broken=False):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, 3)).astype(np.float32)
  if broken:
    x[0, 0] = np.nan
  y = rng.integers(2, size=count)
  return tf.data.Dataset.from_tensor_slices(
    collections.OrderedDict(x=x, y=y)
  ).batch(4)


def _mechanism(clipping, noise_multiplier=0.0, num_clients=3):
  return mechanisms.GaussianMechanism(
    sampling=sampling.FullParticipation(num_clients),
    clipping=clipping,
    noise_multiplier=noise_multiplier,
  )


def _sgd(learning_rate=0.5):
  return tff.learning.optimizers.build_sgdm(learning_rate)


def _weights(process, state):
  weights = process.get_model_weights(state).trainable
  return np.concatenate([np.ravel(w) for w in weights])


class BuildDpFedAvgTest(parameterized.TestCase):
  @parameterized.parameters(
    (mechanisms.FixedClipping(1e6),),
    (mechanisms.AdaptiveClipping(clip_norm=1e6),),
    (None,),
  )
  def test_zero_noise_and_a_huge_clip_are_plain_fed_avg(self, clipping):
    ours = learning.build_dp_fed_avg(
      _functional_model(), _mechanism(clipping), client_optimizer=_sgd()
    )
    plain = tff.learning.algorithms.build_unweighted_fed_avg(
      _functional_model(), client_optimizer_fn=_sgd()
    )
    state, expected = ours.initialize(), plain.initialize()
    for round_num in range(3):
      clients = [_client(10 * round_num + k, count=4 + k) for k in range(3)]
      state = ours.next(state, clients).state
      expected = plain.next(expected, clients).state
    np.testing.assert_allclose(
      _weights(ours, state), _weights(plain, expected), rtol=1e-5
    )

  def test_is_a_learning_process_for_variable_models_too(self):
    process = learning.build_dp_fed_avg(
      _variable_model,
      _mechanism(mechanisms.FixedClipping(1.0)),
      client_optimizer=_sgd(),
    )
    self.assertIsInstance(process, tff.learning.templates.LearningProcess)
    state = process.initialize()
    moved = process.next(state, [_client(0), _client(1)]).state
    self.assertFalse(
      np.allclose(_weights(process, state), _weights(process, moved))
    )

  def test_augmented_clients_train_and_keep_the_clip_norm(self):
    data = unit_models.units(0, 8)
    client = tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(x=np.abs(data['x'][:, 0]) / 4, y=data['y'][:, 0])
    ).batch(4)
    steps = []
    for names in (None, augmentation.NAMES, augmentation.NAMES):
      process = learning.build_dp_fed_avg(
        unit_models.model(),
        _mechanism(mechanisms.FixedClipping(0.01), num_clients=1),
        client_optimizer=_sgd(),
        augmentation=names and augmentation.Augmentation(names),
      )
      state = process.initialize()
      moved = _weights(process, process.next(state, [client]).state)
      steps.append(moved - _weights(process, state))
    for step in steps:
      np.testing.assert_allclose(np.linalg.norm(step), 0.01, rtol=1e-3)
    # Other images than the client's, and other views each time.
    for first, second in ((0, 1), (1, 2)):
      self.assertGreater(np.abs(steps[first] - steps[second]).max(), 1e-5)

  def test_clips_each_client(self):
    """Two clients, clip 0.01: the step is the mean of two clipped updates."""
    clients = [_client(0), _client(1)]
    initial, updates = None, []
    for client in clients:
      alone = learning.build_dp_fed_avg(
        _functional_model(), _mechanism(None), client_optimizer=_sgd()
      )
      state = alone.initialize()
      initial = _weights(alone, state)
      updates.append(
        _weights(alone, alone.next(state, [client]).state) - initial
      )
    process = learning.build_dp_fed_avg(
      _functional_model(),
      _mechanism(mechanisms.FixedClipping(0.01), num_clients=2),
      client_optimizer=_sgd(),
    )
    state = process.next(process.initialize(), clients).state
    expected = sum(u * 0.01 / np.linalg.norm(u) for u in updates) / 2
    np.testing.assert_allclose(
      _weights(process, state) - initial, expected, atol=1e-7
    )

  def test_one_broken_client_does_not_poison_the_round(self):
    process = learning.build_dp_fed_avg(
      _functional_model(),
      _mechanism(mechanisms.FixedClipping(1.0)),
      client_optimizer=_sgd(),
    )
    state = process.initialize()
    with_broken = process.next(
      state, [_client(0), _client(1, broken=True), _client(2)]
    ).state
    without = process.next(state, [_client(0), _client(2)]).state
    np.testing.assert_allclose(
      _weights(process, with_broken), _weights(process, without), rtol=1e-6
    )

  @parameterized.parameters((None,), ('cosine',))
  def test_counts_broken_clients_if_asked(self, schedule):
    process = learning.build_dp_fed_avg(
      _functional_model(),
      _mechanism(mechanisms.FixedClipping(1.0)),
      client_optimizer=_sgd if schedule else _sgd(),
      client_learning_rate=schedules.build_schedule(
        schedule, learning_rate=0.5, rounds=3
      )
      if schedule
      else None,
      count_broken=True,
    )
    clients = [_client(0), _client(1, broken=True), _client(2, count=0)]
    output = process.next(process.initialize(), clients)
    self.assertEqual(aggregators.broken_units(output.metrics), 2)
    output = process.next(output.state, clients[:1])
    self.assertEqual(aggregators.broken_units(output.metrics), 0)

  def test_a_client_without_data_sends_the_zero_update(self):
    process = learning.build_dp_fed_avg(
      _functional_model(),
      _mechanism(mechanisms.FixedClipping(1.0)),
      client_optimizer=_sgd(),
    )
    state = process.initialize()
    clients = [_client(0), _client(1)]
    with_empty = process.next(state, [*clients, _client(2, count=0)]).state
    np.testing.assert_array_equal(
      _weights(process, with_empty),
      _weights(process, process.next(state, clients).state),
    )

  @parameterized.parameters((mechanisms.AdaptiveClipping(), 0.1), (None, 0.0))
  def test_empty_cohort(self, clipping, noise_multiplier):
    process = learning.build_dp_fed_avg(
      _functional_model(),
      _mechanism(clipping, noise_multiplier),
      client_optimizer=_sgd(),
    )
    state = process.initialize()
    after = process.next(state, []).state
    self.assertTrue(np.all(np.isfinite(_weights(process, after))))
    changed = not np.allclose(
      _weights(process, state), _weights(process, after)
    )
    self.assertEqual(changed, noise_multiplier > 0)

  def test_publishes_nothing_that_carries_no_noise(self):
    process = learning.build_dp_fed_avg(
      _functional_model(),
      _mechanism(mechanisms.AdaptiveClipping(), 0.1),
      client_optimizer=_sgd(),
    )
    metrics = process.next(process.initialize(), [_client(0)]).metrics
    self.assertEqual(metrics['client_work'], collections.OrderedDict(train=()))
    self.assertEqual(metrics['aggregator'].keys(), {'dp_query_metrics', 'dp'})
    self.assertEqual(list(metrics['aggregator']['dp_query_metrics']), ['clip'])

  def test_a_global_seed_does_not_repeat_the_noise(self):
    """Two processes that call tf.random.set_seed draw different noise."""
    script = (
      'import os, sys; import tensorflow as tf; import numpy as np\n'
      'tf.random.set_seed(1); tf.keras.utils.set_random_seed(1)\n'
      'from tests.learning import dp_fed_avg_test as t\n'
      'process = t.learning.build_dp_fed_avg(t._functional_model(),'
      ' t._mechanism(t.mechanisms.FixedClipping(1.0), 1.0),'
      ' client_optimizer=t._sgd())\n'
      'state = process.next(process.initialize(), []).state\n'
      'np.save(sys.argv[1], t._weights(process, state))\n'
    )
    drawn = []
    for n in range(2):
      path = pathlib.Path(self.create_tempdir().full_path, f'{n}.npy')
      subprocess.run(
        [sys.executable, '-c', script, str(path)],
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
      )
      drawn.append(np.load(path))
    self.assertFalse(np.any(drawn[0] == drawn[1]))


if __name__ == '__main__':
  absltest.main()
