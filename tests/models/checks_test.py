"""Models go through TFF and take a step; others are refused by name."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical import models


def _functional(model, multi_label):
  labels = (
    tf.TensorSpec([None, model.output_shape[-1]], tf.int64)
    if multi_label
    else tf.TensorSpec([None], tf.int64)
  )
  spec = (tf.TensorSpec(model.input.shape, tf.float32), labels)
  return tff.learning.models.functional_model_from_keras(
    model, models.loss(multi_label), spec
  )


def _losses_of_two_steps(functional, images, labels, rate):
  """The loss before and after one gradient step, as TFF would take it."""
  with tf.Graph().as_default() as graph:
    weights = [tf.constant(w) for w in functional.initial_weights[0]]
    before = functional.loss(
      functional.predict_on_batch((tuple(weights), ()), images, True), labels
    )
    gradients = tf.gradients(before, weights)
    stepped = tuple(w - rate * g for w, g in zip(weights, gradients))
    after = functional.loss(
      functional.predict_on_batch((stepped, ()), images, True), labels
    )
  with tf.compat.v1.Session(graph=graph) as session:
    return session.run((before, after, gradients))


class FederatedTest(parameterized.TestCase):
  @parameterized.product(name=models.MODELS, multi_label=(False, True))
  def test_a_step_through_tff_lowers_the_loss(self, name, multi_label):
    rng = np.random.default_rng(0)
    images = rng.random((8, 32, 32, 1), dtype=np.float32)
    labels = rng.integers(0, 2, (8, 3) if multi_label else 8)
    model = models.build(name, input_shape=(32, 32, 1), num_outputs=3, seed=0)
    models.check_federated(model)
    functional = _functional(model, multi_label)
    before, after, gradients = _losses_of_two_steps(
      functional, images, labels, rate=0.01
    )
    self.assertLess(after, before)
    self.assertLen(gradients, len(model.trainable_variables))
    for gradient in gradients:
      self.assertGreater(np.abs(gradient).max(), 0.0)


class RestoreEagerTest(parameterized.TestCase):
  @parameterized.parameters(*models.MODELS)
  def test_a_model_works_again_after_tff_cloned_it(self, name):
    model = models.build(name, input_shape=(32, 32, 1), num_outputs=2, seed=0)
    images = np.random.default_rng(0).random((2, 32, 32, 1), np.float32)
    expected = model(images).numpy()
    _functional(model, multi_label=False)
    with self.assertRaisesRegex(ValueError, 'invalid state'):
      model(images)
    models.restore_eager(model)
    np.testing.assert_array_equal(model(images), expected)


def _dense(**kwargs):
  return tf.keras.layers.Dense(2, name='wrong', **kwargs)


class _Transposed(tf.keras.layers.Layer):
  """Multiplies by the kernel of another layer, as tied autoencoders do."""

  def __init__(self, other, **kwargs):
    super().__init__(**kwargs)
    self.other = other

  def call(self, x):
    return tf.matmul(x, self.other.kernel, transpose_b=True)


class _Scaled(tf.keras.layers.Layer):
  """Tells nobody its factor."""

  def __init__(self, factor, **kwargs):
    super().__init__(**kwargs)
    self.factor = factor

  def call(self, x):
    return self.factor * x


class _Misnamed(_Scaled):
  """Gives its factor another name than its argument has."""

  def get_config(self):
    return {**super().get_config(), 'scale': self.factor}


class _Subclass(tf.keras.Model):
  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.dense = tf.keras.layers.Dense(2)

  def call(self, x):
    return self.dense(x)


_OUTSIDE = tf.Variable(1.0)


def _tied():
  first = tf.keras.layers.Dense(4, name='first')
  return tf.keras.Sequential([first, _Transposed(first, name='wrong')])


class CheckFederatedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      'batch_norm',
      lambda: tf.keras.layers.BatchNormalization(name='wrong'),
      "'wrong' is a BatchNormalization",
    ),
    (
      'nested_batch_norm',
      lambda: tf.keras.Sequential(
        [tf.keras.layers.BatchNormalization(name='wrong')]
      ),
      "'wrong' is a BatchNormalization",
    ),
    (
      'stateful',
      lambda: tf.keras.Sequential(
        [
          tf.keras.layers.Reshape((4, 1)),
          tf.keras.layers.GRU(2, stateful=True, name='wrong'),
        ]
      ),
      r"'wrong' \(GRU\) keeps state",
    ),
    (
      'frozen',
      lambda: _dense(trainable=False),
      r"'wrong' \(Dense\) has weights that are not trained",
    ),
    (
      'regularizer',
      lambda: _dense(kernel_regularizer='l2'),
      'losses of its own',
    ),
    (
      'mixed_precision',
      lambda: _dense(dtype=tf.keras.mixed_precision.Policy('mixed_bfloat16')),
      r"'wrong' \(Dense\) computes in mixed_bfloat16",
    ),
    (
      'double_precision',
      lambda: _dense(dtype='float64'),
      r"'wrong' \(Dense\) computes in float64",
    ),
    (
      'shared_weight',
      _tied,
      r"'wrong' \(_Transposed\) shares the weight 'first/kernel.* 'first'",
    ),
    (
      'variable_from_outside',
      lambda: tf.keras.layers.Lambda(lambda x: x * _OUTSIDE, name='wrong'),
      r"'wrong' \(Lambda\) reads the variable of _OUTSIDE",
    ),
    (
      'no_config',
      lambda: tf.keras.Sequential([_dense(), _Scaled(2.0)]),
      r'_Scaled\) cannot be built again .* \(no factor\)',
    ),
    (
      'wrong_config',
      lambda: tf.keras.Sequential([_dense(), _Misnamed(2.0)]),
      r'_Misnamed\) cannot be built again .* \(TypeError\)',
    ),
    ('subclass', lambda: _Subclass(name='wrong'), "'wrong' is a subclass"),
    ('no_weights', tf.keras.layers.Flatten, 'has no weights to train'),
  )
  def test_refuses(self, layer, message):
    inputs = tf.keras.Input(batch_shape=(2, 4))
    model = tf.keras.Model(inputs, layer()(inputs))
    with self.assertRaisesRegex(_validate.InputError, message):
      models.check_federated(model)

  def test_refuses_a_sequential_model_of_unknown_shape(self):
    model = tf.keras.Sequential([tf.keras.layers.Dense(2)])
    with self.assertRaisesRegex(_validate.InputError, 'known input shape'):
      models.check_federated(model)

  def test_a_layer_may_be_called_twice(self):
    inputs = tf.keras.Input((4,))
    dense = tf.keras.layers.Dense(4)
    models.check_federated(tf.keras.Model(inputs, dense(dense(inputs))))

  def test_a_compiled_and_fitted_model_passes(self):
    model = models.build('cnn_small', input_shape=(8, 8, 1), num_outputs=2)
    model.compile('sgd', models.loss(False), metrics=['accuracy'])
    model.fit(np.zeros((4, 8, 8, 1)), np.zeros(4), verbose=0)
    models.check_federated(model)


if __name__ == '__main__':
  absltest.main()
