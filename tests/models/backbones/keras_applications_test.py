"""Networks of keras.applications, with weights of a file: no internet here."""

import collections
import functools
import os
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical import models
from tff_medical.learning import exact_gradients
from tff_medical.learning import unit_gradients
from tff_medical.models import backbones
from tff_medical.models.backbones import backbone as backbone_lib
from tff_medical.models.backbones import keras_applications

_NAME = 'keras:MobileNet'
_SHAPE = (32, 32, 3)


@functools.cache
def _file(name='MobileNet'):
  """Returns a network, and the file of its weights."""
  tf.keras.utils.set_random_seed(1)
  network = getattr(tf.keras.applications, name)(
    include_top=False, weights=None, input_shape=_SHAPE
  )
  rng = np.random.default_rng(1)
  # The statistics of batch norm are none of the initial ones.
  network.set_weights(
    [w + rng.uniform(0, 0.1, w.shape) for w in network.get_weights()]
  )
  path = os.path.join(tempfile.mkdtemp(), f'{name.lower()}.h5')
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

  def test_drops_nothing_while_a_head_is_trained(self):
    def build(include_top, weights, input_shape):
      del include_top, weights
      inputs = tf.keras.Input(input_shape)
      x = tf.keras.layers.Conv2D(8, 3, name='conv')(inputs)
      x = tf.keras.layers.Dropout(0.5, name='dropped')(x)
      return tf.keras.Model(inputs, x)

    with mock.patch.object(keras_applications, '_find', lambda _: build):
      backbone = _load(layers=['dropped'], image_size=32)
    images = np.random.default_rng(0).random((3, *_SHAPE)).astype(np.float32)
    np.testing.assert_array_equal(
      backbone.model(images, training=True), backbone.model(images)
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


class FineTuningTest(parameterized.TestCase):
  def _split(self, name, part, **options):
    options = {
      'image_shape': (28, 28, 1),
      'num_outputs': 3,
      'seed': 4,
      'image_size': 32,
      'weights': _file(name)[1],
      **options,
    }
    return backbones.trainable(f'keras:{name}', part, **options)

  @parameterized.parameters(
    ('MobileNetV2', 'last_block', 'block_2_add'),
    ('MobileNetV2', 'norms', 'block_2_add'),
    ('MobileNetV2', 'all', 'block_2_add'),
  )
  def test_starts_as_the_head_on_the_frozen_network(self, name, part, end):
    head = self._split(name, 'head', layers=[end])
    split = self._split(name, part, layers=[end])
    images = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)
    expected = head.trained(head.frozen(images)).numpy()
    self.assertGreater(np.ptp(expected, axis=0).max(), 1e-4)
    inputs = images if split.frozen is None else split.frozen(images)
    np.testing.assert_allclose(
      split.trained(inputs, training=True), expected, rtol=1e-3, atol=1e-5
    )
    models.check_federated(split.trained)
    if split.frozen is not None:
      self.assertEmpty(split.frozen.trainable_weights)
    names = {w.name for w in split.trained.trainable_weights}
    self.assertEqual(
      any('depthwise_kernel' in name for name in names), part != 'norms'
    )
    self.assertEqual(bool(split.trained.non_trainable_weights), part == 'norms')

  @parameterized.parameters(
    ('MobileNetV2', 'block_2_add', 'block_1_project_BN'),
    ('MobileNetV2', 'block_3_expand_relu', 'block_2_add'),
    ('MobileNetV2', 'out_relu', 'block_15_add'),
    ('ResNet50', 'conv5_block3_out', 'conv5_block2_out'),
    ('VGG16', 'block5_conv2', 'block4_pool'),
  )
  def test_cuts_before_the_last_block(self, name, end, before):
    request = backbone_lib.request(f'keras:{name}', (64, 64, 3), None, None, 64)
    network = keras_applications._bare(request)
    self.assertEqual(
      keras_applications._before_last_block(request, network, end), before
    )

  @parameterized.parameters('last_block', 'norms', 'all')
  def test_gradients_follow_by_rules(self, part):
    layer = 'block_2_add' if part == 'last_block' else 'expanded_conv_project'
    split = self._split('MobileNetV2', part, layers=[layer])
    model = tff.learning.models.functional_model_from_keras(
      split.trained,
      models.loss(multi_label=False),
      collections.OrderedDict(
        x=tf.TensorSpec(split.trained.input.shape, tf.float32),
        y=tf.TensorSpec((None,), tf.int64),
      ),
    )
    self.assertIs(exact_gradients.find_way(model), unit_gradients.by_rules)
    for weight, variable in zip(
      model.initial_weights[0], split.trained.trainable_variables
    ):
      np.testing.assert_array_equal(weight, variable)

  @parameterized.parameters(
    ('VGG16', 'norms', 'has no norms to train'),
    ('MobileNet', 'last_block', 'has no layer that begins its last block'),
    ('Xception', 'norms', 'is a SeparableConv2D'),
  )
  def test_refuses(self, name, part, message):
    with (
      mock.patch.object(
        keras_applications, '_with_weights', lambda _, network: (network, None)
      ),
      self.assertRaisesRegex(_validate.InputError, message),
    ):
      backbones.trainable(
        f'keras:{name}', part, image_shape=(28, 28, 1), num_outputs=3
      )

  def test_names_do_not_depend_on_what_was_built_before(self):
    request = backbone_lib.request(
      'keras:MobileNetV3Small', (28, 28, 1), None, None, 32
    )
    first, second = (keras_applications._bare(request) for _ in range(2))
    self.assertNotEqual(first.layers[-1].name, second.layers[-1].name)
    names = keras_applications._layer_names(first)
    self.assertEqual(names, keras_applications._layer_names(second))
    self.assertIn('expanded_conv_10/project', names)


def _raise(error):
  raise error


if __name__ == '__main__':
  absltest.main()
