"""Tests of several backbones beside each other."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical.models import backbones
from tff_medical.models.backbones import backbone
from tff_medical.models.backbones import joined


class JoinedTest(parameterized.TestCase):
  def test_features_are_those_of_each_part(self):
    shape = (28, 28, 1)
    images = np.random.default_rng(0).random((3, *shape), np.float32)
    name = 'scattering+efficientnet-lite0'
    both = backbones.load(name, image_shape=shape)
    parts = [
      backbones.load(part, image_shape=shape).model(images).numpy()
      for part in name.split('+')
    ]
    found = both.model(images).numpy()
    np.testing.assert_allclose(
      found, np.concatenate(parts, axis=1) / np.sqrt(2), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    self.assertEmpty(both.model.trainable_weights)
    tf.keras.models.clone_model(both.model)  # As TFF does.
    np.testing.assert_array_equal(both.model(images), found)
    self.assertEqual(both.provenance['name'], name)
    self.assertEqual(both.provenance['trained_on'], 'ImageNet-1k (ILSVRC 2012)')

  @parameterized.parameters(
    ('scattering+scattering', {}, 'must join different ones'),
    ('scattering+scatering', {}, "did you mean 'scattering'"),
    (
      'scattering+efficientnet-lite0',
      {'image_size': 96},
      'image_size must not',
    ),
    ('scattering+efficientnet-lite0', {'layers': ('a',)}, 'layers must not'),
  )
  def test_refuses(self, name, options, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      backbones.load(name, image_shape=(28, 28, 1), **options)

  def test_all_that_was_learned_is_stated(self):
    first, second = (
      backbone.Origin(f'file {i}', f'{i}', 'MIT', f'set {i}', (f'set {i}',))
      for i in range(2)
    )
    nothing = backbone.Origin('none', '', 'none', 'nothing')
    found = joined._origin([first, nothing, second])
    self.assertEqual(found.trained_on, 'set 0, set 1')
    self.assertEqual(found.datasets, ('set 0', 'set 1'))
    self.assertEqual(found.license, 'MIT')
    self.assertNotEqual(
      found.sha256, joined._origin([second, nothing, first]).sha256
    )
    self.assertEqual(joined._origin([nothing, nothing]).trained_on, 'nothing')


if __name__ == '__main__':
  absltest.main()
