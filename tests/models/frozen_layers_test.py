"""Frozen layers compute as Keras's do, and TFF takes their weights as constants."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import models
from tff_medical.models import frozen_layers


class FrozenLayersTest(parameterized.TestCase):
  @parameterized.parameters(
    (frozen_layers.FrozenConv2D, tf.keras.layers.Conv2D, {'filters': 4}),
    (
      frozen_layers.FrozenDepthwiseConv2D,
      tf.keras.layers.DepthwiseConv2D,
      {},
    ),
  )
  def test_computes_as_keras_does(self, frozen_class, keras_class, options):
    options = {'kernel_size': 3, 'padding': 'same', 'strides': 2, **options}
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    frozen, layer = frozen_class(**options), keras_class(**options)
    expected = layer(images)
    frozen(images)
    frozen.set_weights(layer.get_weights())
    np.testing.assert_array_equal(frozen(images), expected)
    self.assertLen(frozen.non_trainable_weights, 2)
    self.assertEmpty(frozen.trainable_weights)
    self.assertFalse(any(w.trainable for w in frozen.weights))

  def test_affine_is_batch_norm_with_constant_statistics(self):
    rng = np.random.default_rng(0)
    images = rng.random((2, 8, 8, 3), np.float32)
    norm = tf.keras.layers.BatchNormalization(epsilon=0.25)
    norm.build(images.shape)
    gamma, beta, mean, variance = rng.random((4, 3), np.float32)
    norm.set_weights([gamma, beta, mean, variance])
    affine = frozen_layers.Affine()
    affine.build(images.shape)
    scale = gamma / np.sqrt(variance + 0.25)
    affine.set_weights([scale, beta - mean * scale])
    np.testing.assert_allclose(
      affine(images), norm(images, training=False), rtol=1e-5, atol=1e-6
    )

  def test_only_these_layers_may_hold_constants(self):
    def model(layer):
      inputs = tf.keras.Input((8, 8, 3))
      x = tf.keras.layers.Flatten()(layer(inputs))
      return tf.keras.Model(inputs, tf.keras.layers.Dense(2)(x))

    models.check_federated(model(frozen_layers.FrozenConv2D(4, 3)))
    with self.assertRaisesRegex(_validate.InputError, 'not trained'):
      models.check_federated(
        model(tf.keras.layers.Conv2D(4, 3, trainable=False))
      )


if __name__ == '__main__':
  absltest.main()
