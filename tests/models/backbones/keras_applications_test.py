"""Networks of keras.applications, with weights of a file: no internet here."""

import functools
import os
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical.models import backbones
from tff_medical.models.backbones import backbone as backbone_lib

_NAME = 'keras:MobileNet'
_SHAPE = (32, 32, 3)


def _network(seed):
  tf.keras.utils.set_random_seed(seed)
  network = tf.keras.applications.MobileNet(
    include_top=False, weights=None, input_shape=_SHAPE
  )
  rng = np.random.default_rng(seed)
  # The statistics of batch norm are none of the initial ones.
  network.set_weights(
    [w + rng.uniform(0, 0.1, w.shape) for w in network.get_weights()]
  )
  return network


@functools.lru_cache(maxsize=1)
def _file():
  """Returns a network, and the file of its weights."""
  network = _network(1)
  path = os.path.join(tempfile.mkdtemp(), 'mobilenet.h5')
  network.save_weights(path)
  return network, path


def _load(name=_NAME, **options):
  return backbones.load(name, **{'image_shape': _SHAPE, **options})


class KerasApplicationsTest(parameterized.TestCase):
  def test_gives_the_features_of_keras(self):
    network, path = _file()
    layers = ('conv_pw_5_relu', 'conv_pw_13_relu')
    backbone = _load(weights=path, image_size=32, layers=layers[::-1])
    images = np.random.default_rng(0).random((3, *_SHAPE)).astype(np.float32)
    pixels = tf.keras.applications.mobilenet.preprocess_input(255 * images)
    maps = tf.keras.Model(
      network.input, [network.get_layer(layer).output for layer in layers]
    )(pixels, training=False)
    means = [m.numpy().mean((1, 2)) for m in maps]
    parts = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in means]
    features = backbone.model(images, training=True).numpy()
    np.testing.assert_allclose(
      features, np.concatenate(parts, axis=1) / 2**0.5, atol=1e-6
    )
    self.assertEqual(backbone.layers, layers)
    self.assertEmpty(backbone.model.trainable_weights)
    self.assertEqual(
      (backbone.origin.source, backbone.origin.trained_on),
      ('mobilenet.h5', 'unknown'),
    )
    self.assertEqual(
      backbone.origin.sha256, backbone_lib.digest_of(network.get_weights())
    )

  def test_takes_the_last_two_resolutions_by_default(self):
    backbone = _load(weights=_file()[1], image_shape=(28, 28, 1))
    self.assertEqual(backbone.layers, ('conv_pw_11_relu', 'conv_pw_13_relu'))
    self.assertEqual(backbone.image_size, (96, 96))
    self.assertEqual(backbone.num_features, 512 + 1024)

  def test_says_what_to_do_without_internet(self):
    build = tf.keras.applications.MobileNet
    with (
      mock.patch.object(
        tf.keras.applications, 'MobileNet', autospec=True
      ) as broken,
      self.assertRaisesRegex(
        _validate.InputError, r'URL fetch failure.*--backbone_weights=FILE'
      ),
    ):
      broken.side_effect = lambda include_top, weights, input_shape: (
        _raise(Exception('URL fetch failure'))
        if weights == 'imagenet'
        else build(
          include_top=include_top, weights=None, input_shape=input_shape
        )
      )
      _load(image_size=32)

  @parameterized.parameters(
    ('keras:MobileNt', {}, 'did you mean keras:MobileNet'),
    ('keras:models', {}, 'must name one of'),
    ('keras:', {}, 'backbone must be one of'),
    (_NAME, {'layers': ['conv_pw_5_rel']}, "did you mean 'conv_pw_5_relu'"),
    (_NAME, {'image_size': 31}, 'at least 32'),
    ('keras:InceptionV3', {'image_size': 64}, 'no images of 64 x 64'),
    (_NAME, {'weights': '/no/such.h5'}, 'No such file'),
    (_NAME, {'weights': __file__}, 'without its top'),
  )
  def test_refuses(self, name, options, message):
    # No case reaches a download.
    with (
      mock.patch.object(tf.keras.utils, 'get_file', side_effect=AssertionError),
      self.assertRaisesRegex(_validate.InputError, message),
    ):
      _load(name, **options)

  def test_refuses_weights_of_another_network(self):
    with self.assertRaisesRegex(_validate.InputError, 'without its top'):
      _load('keras:MobileNetV2', weights=_file()[1], image_size=32)


def _raise(error):
  raise error


if __name__ == '__main__':
  absltest.main()
