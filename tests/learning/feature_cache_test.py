"""Tests of the features that are computed once and kept."""

import os
import pathlib
import signal
import stat
import subprocess
import sys
import textwrap
from unittest import mock

from absl.testing import absltest
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import models
from tff_medical.data import examples
from tff_medical.data import images
from tff_medical.data import partition
from tff_medical.learning import feature_cache
from tff_medical.learning import tasks
from tff_medical.models import transfer

_SIZE = 6


def _split(count, seed=0):
  rng = np.random.default_rng(seed)
  return images.Split(
    images=rng.integers(0, 256, (count, _SIZE, _SIZE, 1), np.uint8),
    labels=np.arange(count) % 2,
  )


def _data(seed=0):
  return images.ImageData(
    name='small',
    train=_split(700, seed),
    validation=_split(0),
    test=_split(30, seed + 1),
    class_names=('a', 'b'),
  )


def _features(factor=1.0, **identity):
  inputs = tf.keras.Input((_SIZE, _SIZE, 1))
  x = tf.keras.layers.Flatten()(inputs)
  x = tf.keras.layers.Rescaling(factor)(x[:, 3:10])
  model = tf.keras.Model(inputs, x)
  return models.Transfer(
    frozen=model,
    identity={'name': 'seven pixels', 'factor': factor, **identity},
    provenance={},
    build_trained=lambda n, seed: transfer.linear(model, n, seed),
  )


def _expected(split, factor=1.0):
  flat = split.images.reshape(len(split), -1)
  return (flat[:, 3:10] / np.float32(255)).astype(np.float32) * factor


class FeatureCacheTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path, 'features')

  def _files(self):
    return sorted(p.name for p in self.folder.iterdir())

  def test_the_features_of_every_split(self):
    data = _data()
    found = feature_cache.with_features(data, _features(2.0), self.folder)
    for name in ('train', 'test'):
      split = getattr(found, name)
      self.assertEqual(split.input_shape, (7,))
      np.testing.assert_allclose(
        split.features.rows(np.arange(len(split))),
        _expected(split, 2.0),
        rtol=1e-6,
      )
    self.assertIsNone(found.validation.features)
    np.testing.assert_array_equal(found.train.images, data.train.images)

  def test_models_take_features_in_place_of_pixels(self):
    split = feature_cache.with_features(
      _data(), _features(), self.folder
    ).train.take(np.array([5, 2, 9]))
    x = examples.of_images(split, np.array([2, 0]))['x']
    np.testing.assert_allclose(x, _expected(split)[[2, 0]], rtol=1e-6)
    units = examples.of_units(split, np.array([[1, -1]]))['x']
    self.assertEqual(units.shape, (1, 2, 7))
    np.testing.assert_allclose(units[0, 0], _expected(split)[1], rtol=1e-6)
    np.testing.assert_array_equal(units[0, 1], np.zeros(7))

  def test_are_computed_once(self):
    feature_cache.with_features(_data(), _features(), self.folder)
    features = _features()
    features.__dict__['compute'] = mock.Mock(side_effect=AssertionError)
    again = feature_cache.with_features(_data(), features, self.folder)
    self.assertLen(again.train.features, 700)

  def test_a_file_that_was_cut_is_made_again(self):
    data = _data()
    feature_cache.with_features(data, _features(), self.folder)
    for path in self.folder.iterdir():
      os.truncate(path, path.stat().st_size - 1)
    again = feature_cache.with_features(data, _features(), self.folder)
    np.testing.assert_allclose(
      again.train.features.rows(np.arange(700)),
      _expected(data.train),
      rtol=1e-6,
    )
    self.assertLen(self._files(), 2)

  def test_other_images_layers_or_identity_make_new_features(self):
    feature_cache.with_features(_data(), _features(), self.folder)
    self.assertLen(self._files(), 2)
    feature_cache.with_features(_data(), _features(3.0), self.folder)
    self.assertLen(self._files(), 4)
    feature_cache.with_features(_data(seed=5), _features(), self.folder)
    self.assertLen(self._files(), 6)
    feature_cache.with_features(_data(), _features(cut='b'), self.folder)
    self.assertLen(self._files(), 8)

  def test_are_private(self):
    feature_cache.with_features(_data(), _features(), self.folder)
    self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o700)
    for path in self.folder.iterdir():
      self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)

  def test_features_that_are_not_finite_are_refused(self):
    with self.assertRaisesRegex(_validate.InputError, 'not finite'):
      feature_cache.with_features(_data(), _features(float('inf')), self.folder)
    self.assertEmpty([n for n in self._files() if n.endswith('.f32')])

  def test_a_folder_that_cannot_be_made(self):
    self.folder.parent.joinpath('file').write_text('')
    with self.assertRaisesRegex(_validate.InputError, 'features_dir .*file/x'):
      feature_cache.with_features(
        _data(), _features(), self.folder.parent / 'file' / 'x'
      )

  def test_goes_on_after_a_kill(self):
    program = textwrap.dedent(f"""
      import os, signal
      from tests.learning import feature_cache_test as here
      from tff_medical.learning import feature_cache
      features, calls = here._features(), []
      compute = features.compute
      def dies(x):
        calls.append(len(x))
        if len(calls) == 3:
          os.kill(os.getpid(), signal.SIGKILL)
        return compute(x)
      features.__dict__['compute'] = dies
      feature_cache.with_features(here._data(), features, {str(self.folder)!r})
    """)
    died = subprocess.run([sys.executable, '-c', program], check=False)
    self.assertEqual(died.returncode, -signal.SIGKILL)
    (partial,) = self._files()
    # The third batch was half written when the process died.
    path = self.folder / partial
    size = path.stat().st_size
    self.assertEqual(size, 2 * 256 * 7 * 4)
    os.truncate(path, size - 10)
    features, seen = _features(), []
    compute = features.compute

    def counted(x):
      seen.append(len(x))
      return compute(x)

    features.__dict__['compute'] = counted
    found = feature_cache.with_features(_data(), features, self.folder)
    self.assertEqual(sum(seen), 700 - 511 + 30)
    np.testing.assert_allclose(
      found.train.features.rows(np.arange(700)),
      _expected(found.train),
      rtol=1e-6,
    )
    self.assertLen(self._files(), 2)


class FeatureTaskTest(absltest.TestCase):
  def test_features_and_data_must_go_together(self):
    data, features = _data(), _features()
    clients = partition.partition(
      'iid', data.train, num_clients=2, rng=np.random.default_rng(0)
    )
    with self.assertRaisesRegex(_validate.InputError, 'must go together'):
      tasks.Task(data, clients, 'cnn_small', transfer=features)
    folder = self.create_tempdir().full_path
    held = feature_cache.with_features(data, features, folder)
    with self.assertRaisesRegex(_validate.InputError, 'must go together'):
      tasks.Task(held, clients, 'cnn_small')
    task = tasks.Task(held, clients, 'unused', transfer=features)
    self.assertEqual(task.keras_model.input_shape, (None, 7))
    self.assertEqual(task.keras_model.count_params(), 16)


if __name__ == '__main__':
  absltest.main()
