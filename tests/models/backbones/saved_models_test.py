"""SavedModels as backbones: what they hold, refuse and state."""

import json
import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical.models import backbones
from tff_medical.privacy import card_format

_CARD = {
  **dict.fromkeys(card_format.REQUIRED_KEYS, ''),
  'epsilon': 3.0,
  'delta': 1e-4,
  'unit': 'record',
  'rounds': 5,
  'dataset': 'pneumonia',
  'initial_model': {'dataset': 'phantoms', 'epsilon': 'inf'},
}


class _Network(tf.Module):
  """Maps and features by a trained weight, and other outputs."""

  def __init__(self):
    super().__init__()
    self.kernel = tf.Variable(tf.random.stateless_normal((3, 3, 3, 5), (1, 2)))

  def __call__(self, images):
    maps = tf.nn.conv2d(images, self.kernel, 2, 'SAME')
    return {
      'maps': maps,
      'features': tf.reduce_max(maps, (1, 2)),
      'class_index': tf.argmax(tf.reduce_mean(maps, (1, 2)), axis=-1),
    }


def _one_map(images):
  return {'maps': images}


class SavedModelsTest(parameterized.TestCase):
  def _saved(self, function=None, spec=None, card=None):
    folder = self.create_tempdir().full_path
    module = _Network()
    if spec is None:
      spec = tf.TensorSpec((None, None, None, 3), tf.float32)
    module.function = tf.function(function or module.__call__)
    tf.saved_model.save(
      module,
      folder,
      signatures=module.function.get_concrete_function(spec),
    )
    if card is not None:
      path = pathlib.Path(folder, 'assets', card_format.FILE)
      path.parent.mkdir(exist_ok=True)
      path.write_text(json.dumps(card))
    return folder, module

  def _load(self, folder, image_shape=(28, 28, 1), **options):
    return backbones.load(
      f'savedmodel:{folder}', image_shape=image_shape, **options
    )

  def test_pools_maps_and_joins_outputs(self):
    folder, module = self._saved()
    backbone = self._load(folder, image_size=32)
    self.assertEqual(backbone.layer_names, ('features', 'maps'))
    self.assertEqual(backbone.layers, ('features', 'maps'))
    images = np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
    grown = tf.image.resize(np.repeat(images, 3, axis=-1), (32, 32))
    outputs = module(grown)
    parts = [
      outputs['features'].numpy(),
      outputs['maps'].numpy().mean((1, 2)),
    ]
    parts = [p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts]
    expected = np.concatenate(parts, axis=1) / 2**0.5
    np.testing.assert_allclose(backbone.model(images), expected, atol=1e-6)
    self.assertEmpty(backbone.model.trainable_weights)
    one = self._load(folder, image_size=32, layers=['maps'])
    np.testing.assert_allclose(one.model(images), parts[1], atol=1e-6)

  def test_can_be_exported_again(self):
    folder, _ = self._saved()
    backbone = self._load(folder, image_size=32)
    images = np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
    expected = backbone.model(images)
    again = self.create_tempdir().full_path
    tf.saved_model.save(backbone.model, again)
    np.testing.assert_allclose(
      tf.saved_model.load(again)(images), expected, atol=1e-6
    )

  def test_takes_the_size_of_the_signature(self):
    spec = tf.TensorSpec((None, 20, 24, 1), tf.float32)
    folder, _ = self._saved(_one_map, spec)
    self.assertEqual(self._load(folder).image_size, (20, 24))
    with self.assertRaisesRegex(_validate.InputError, 'leave it out'):
      self._load(folder, image_size=32)
    with self.assertRaisesRegex(_validate.InputError, 'takes grey images'):
      self._load(folder, image_shape=(28, 28, 3))

  def test_states_what_its_card_states(self):
    folder, _ = self._saved(card=_CARD)
    origin = self._load(folder).origin
    self.assertEqual(origin.datasets, ('pneumonia', 'phantoms'))
    self.assertEqual(origin.trained_on, 'pneumonia')
    self.assertEqual(origin.card['epsilon'], 3.0)
    self.assertNotIn('mechanism', origin.card)
    without, _ = self._saved()
    self.assertEqual(self._load(without).origin.trained_on, 'unknown')
    self.assertEmpty(self._load(without).origin.datasets)

  def test_knows_the_data_of_backbones_behind_backbones(self):
    of_images = {'name': 'savedmodel:b', 'card': {'dataset': 'retina'}}
    joined = {'name': 'a+b', 'card': {'parts': [{'dataset': 'chest'}]}}
    card = {
      **_CARD,
      'backbone': of_images,
      'initial_model': {'dataset': 'phantoms', 'backbone': joined},
    }
    folder, _ = self._saved(card=card)
    origin = self._load(folder).origin
    self.assertEqual(
      set(origin.datasets), {'pneumonia', 'phantoms', 'retina', 'chest'}
    )
    # The next card states it as well, so that no data set is forgotten.
    again, _ = self._saved(
      card={**_CARD, 'dataset': 'breast', 'backbone': {'card': origin.card}}
    )
    self.assertIn('retina', self._load(again).origin.datasets)

  def test_states_no_path(self):
    folder, _ = self._saved()
    name = pathlib.Path(folder).name
    self.assertEqual(
      self._load(folder).provenance['name'], f'savedmodel:{name}'
    )
    joined = backbones.load(
      f'scattering+savedmodel:{folder}', image_shape=(28, 28, 1)
    )
    self.assertEqual(joined.provenance['name'], f'scattering+savedmodel:{name}')

  def test_refuses_a_card_that_states_no_guarantee(self):
    folder, _ = self._saved(card={'dataset': 'pneumonia'})
    with self.assertRaisesRegex(_validate.InputError, 'privacy_card lacks'):
      self._load(folder)

  def test_the_digest_is_of_graph_and_weights(self):
    folder, module = self._saved()
    digest = self._load(folder).origin.sha256
    self.assertEqual(self._load(folder).origin.sha256, digest)
    module.kernel.assign(module.kernel + 1)
    other = self.create_tempdir().full_path
    tf.saved_model.save(
      module,
      other,
      signatures=next(iter(module.function._list_all_concrete_functions())),
    )
    self.assertNotEqual(self._load(other).origin.sha256, digest)

  @parameterized.parameters(
    (lambda x: {'a': tf.argmax(x, -1)}, None, 'must return float32 features'),
    (
      lambda x: {'a': tf.cast(x, tf.float32)},
      tf.TensorSpec((None, 8, 8, 3), tf.uint8),
      'float32 images',
    ),
    (_one_map, tf.TensorSpec((None, 8), tf.float32), 'float32 images'),
    (_one_map, tf.TensorSpec((1, 8, 8, 3), tf.float32), 'float32 images'),
  )
  def test_refuses_another_signature(self, function, spec, message):
    folder, _ = self._saved(function, spec)
    with self.assertRaisesRegex(_validate.InputError, message):
      self._load(folder)

  def test_refuses_folders_without_a_network(self):
    empty = self.create_tempdir().full_path
    with self.assertRaisesRegex(_validate.InputError, 'without saved_model.pb'):
      self._load(empty)
    pathlib.Path(empty, 'saved_model.pb').write_bytes(b'no graph')
    with self.assertRaisesRegex(_validate.InputError, 'cannot be loaded'):
      self._load(empty)
    tf.saved_model.save(tf.Module(), empty)
    with self.assertRaisesRegex(_validate.InputError, 'got none'):
      self._load(empty)

  def test_refuses_other_options(self):
    folder, _ = self._saved()
    with self.assertRaisesRegex(_validate.InputError, 'leave them out'):
      self._load(folder, weights='x.h5')
    with self.assertRaisesRegex(_validate.InputError, "did you mean 'maps'"):
      self._load(folder, layers=['map'])
    with self.assertRaisesRegex(_validate.InputError, 'check the path'):
      self._load(os.path.join(folder, 'nothing'))


if __name__ == '__main__':
  absltest.main()
