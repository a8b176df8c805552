"""A copy has the output of inference, and trains what it should."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import models
from tff_medical.models.backbones import constant_norms

layers = tf.keras.layers


def _network():
  inputs = tf.keras.Input((8, 8, 3))
  x = layers.Normalization(name='pixels')(inputs)
  x = layers.Conv2D(4, 3, name='conv')(x)
  x = layers.BatchNormalization(name='whole_norm')(x)
  x = layers.Dropout(0.5)(x)
  x = layers.DepthwiseConv2D(3, name='depthwise', padding='same')(x)
  y = layers.BatchNormalization(name='plain_norm', scale=False, center=False)(x)
  network = tf.keras.Model(inputs, layers.Add()([x, y]))
  rng = np.random.default_rng(0)
  network.set_weights(
    [rng.uniform(0.1, 1, w.shape) for w in network.get_weights()]
  )
  # Keras computes what this layer uses from its weights when it is built.
  network.get_layer('pixels').finalize_state()
  return network


class ConstantNormsTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_has_the_output_of_inference(self, norms_alone):
    network = _network()
    copied = constant_norms.copy('x', network, norms_alone=norms_alone)
    images = np.random.default_rng(1).random((3, 8, 8, 3), np.float32)
    expected = network(images, training=False).numpy()
    for training in (False, True):
      np.testing.assert_allclose(
        copied(images, training=training), expected, rtol=1e-5, atol=1e-5
      )

  @parameterized.parameters(
    (False, ['conv', 'depthwise', 'plain_norm', 'whole_norm'], []),
    (True, ['plain_norm', 'whole_norm'], ['conv', 'depthwise']),
  )
  def test_trains_what_it_should(self, norms_alone, trained, constant):
    copied = constant_norms.copy('x', _network(), norms_alone=norms_alone)
    models.check_federated(copied)
    for names, weights in (
      (trained, copied.trainable_weights),
      (constant, copied.non_trainable_weights),
    ):
      self.assertEqual(sorted({w.name.split('/')[0] for w in weights}), names)

  def test_a_frozen_network_is_trained_in_its_copy(self):
    network = _network()
    network.trainable = False
    copied = constant_norms.copy('x', network, norms_alone=False)
    self.assertLen(copied.trainable_weights, 8)

  def test_refuses_networks_without_such_norms(self):
    inputs = tf.keras.Input((8, 8, 3))
    for layer, message in (
      (layers.Conv2D(4, 3), 'has no norms to train'),
      (layers.Dense(4, name='dense'), "layer 'dense' is a Dense"),
    ):
      network = tf.keras.Model(inputs, layer(inputs))
      with self.assertRaisesRegex(_validate.InputError, message):
        constant_norms.copy('x', network, norms_alone=True)


if __name__ == '__main__':
  absltest.main()
