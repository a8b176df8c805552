"""Tests of the FedProx term, also with learning rates by round."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical import learning
from tff_medical.learning import client_training
from tff_medical.learning import schedules
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_SPEC = collections.OrderedDict(
  x=tf.TensorSpec((None, 1), tf.float32),
  y=tf.TensorSpec((None, 1), tf.float32),
)
_NO_PRIVACY = mechanisms.GaussianMechanism(
  sampling=sampling.FullParticipation(1), clipping=None
)


def _keras_model():
  return tf.keras.Sequential(
    [
      tf.keras.layers.InputLayer((1,)),
      tf.keras.layers.Dense(1, use_bias=False, kernel_initializer='ones'),
    ]
  )


def _functional_model():
  return tff.learning.models.functional_model_from_keras(
    _keras_model(), tf.keras.losses.MeanSquaredError(), _SPEC
  )


def _variable_model():
  return tff.learning.models.from_keras_model(
    _keras_model(), loss=tf.keras.losses.MeanSquaredError(), input_spec=_SPEC
  )


def _client():
  """Three batches of one example, x 1 and y 3: the gradient is 2 (w - 3)."""
  x = np.ones((3, 1), np.float32)
  return tf.data.Dataset.from_tensor_slices(
    collections.OrderedDict(x=x, y=3 * x)
  ).batch(1)


def _by_hand(learning_rate, strength, weight=1.0):
  sent = weight
  for _ in range(3):
    gradient = 2 * (weight - 3) + strength * (weight - sent)
    weight -= learning_rate * gradient
  return weight


def _train(process, rounds=1):
  state = process.initialize()
  for _ in range(rounds):
    state = process.next(state, [_client()]).state
  return process.get_model_weights(state).trainable[0].item()


class WithProximalTermTest(parameterized.TestCase):
  @parameterized.parameters(_functional_model, lambda: _variable_model)
  def test_three_steps_by_hand(self, model):
    sgd = tff.learning.optimizers.build_sgdm(0.1)
    for strength in (0.0, 0.5, 4.0):
      process = learning.build_dp_fed_avg(
        model(),
        _NO_PRIVACY,
        client_optimizer=client_training.with_proximal_term(sgd, strength),
      )
      self.assertAlmostEqual(_train(process), _by_hand(0.1, strength), places=5)
    # The weights sent in the second round are those after the first.
    expected = _by_hand(0.1, 4.0, _by_hand(0.1, 4.0))
    self.assertAlmostEqual(_train(process, rounds=2), expected, places=5)

  def test_goes_with_momentum(self):
    optimizer = client_training.with_proximal_term(
      tff.learning.optimizers.build_sgdm(0.1, momentum=0.5), 2.0
    )
    state = optimizer.initialize(tf.TensorSpec([], tf.float32))
    state, first = optimizer.next(state, tf.constant(1.0), tf.constant(3.0))
    self.assertAlmostEqual(first.numpy(), 1 - 0.1 * 3, places=6)
    _, second = optimizer.next(state, first, tf.constant(3.0))
    velocity = 0.5 * 3 + 3 + 2 * (0.7 - 1)
    self.assertAlmostEqual(second.numpy(), 0.7 - 0.1 * velocity, places=6)

  def test_tffs_own_term_has_the_wrong_sign(self):
    """Why it is not used; should this fail, TFF was mended."""
    process = tff.learning.algorithms.build_unweighted_fed_prox(
      _functional_model(),
      proximal_strength=4.0,
      client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
    )
    self.assertAlmostEqual(_train(process), _by_hand(0.1, -4.0), places=5)

  def test_refuses_a_negative_strength(self):
    with self.assertRaisesRegex(_validate.InputError, 'proximal_strength'):
      client_training.with_proximal_term(
        tff.learning.optimizers.build_sgdm(0.1), -1.0
      )


class RoundTest(parameterized.TestCase):
  @parameterized.parameters(_functional_model, lambda: _variable_model)
  def test_each_round_trains_with_its_own_rate_and_the_term(self, model):
    process = learning.build_dp_fed_avg(
      model(),
      _NO_PRIVACY,
      client_optimizer=lambda rate: client_training.with_proximal_term(
        tff.learning.optimizers.build_sgdm(rate), 0.5
      ),
      client_learning_rate=schedules.build_schedule(
        'linear', learning_rate=0.2, rounds=4
      ),
    )
    weight = 1.0
    for rate in (0.2, 0.15, 0.1):
      weight = _by_hand(rate, 0.5, weight)
    self.assertAlmostEqual(_train(process, rounds=3), weight, places=5)


if __name__ == '__main__':
  absltest.main()
