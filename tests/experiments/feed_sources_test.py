"""Tests of the feed that the workers of a cluster open themselves."""

import dataclasses
import pathlib
import pickle
from unittest import mock

from absl.testing import absltest
import numpy as np
import tensorflow as tf

from experiments.config import assembly
from experiments.config import feed_sources
from experiments.config import settings as settings_lib
from tests.experiments import npz
from tff_medical import _validate

_SEED = 2**97 + 12345


class FeedSourceTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def _parts(self, **changed):
    flags = settings_lib.Flags.of(
      **{
        'dataset': 'medmnist/breastmnist',
        'data_dir': npz.write(self.folder),
        'num_clients': 5,
        'privacy_unit': 'record',
        'expected_batch_size': 20.0,
        'noise_multiplier': 1.0,
        'rounds': 2,
        'cohort_seed': _SEED,
        'output_dir': str(self.folder / 'run'),
        **changed,
      }
    )
    return assembly.assemble(flags.resolve())

  def test_another_process_makes_the_same_datasets(self):
    parts = self._parts()
    source = pickle.loads(pickle.dumps(feed_sources.FeedSource.of(parts)))
    units = np.array([3, 1, 9])
    expected = list(parts.feed.dataset(units))
    actual = list(source.open()(units))
    self.assertLen(actual, len(expected))
    for a, b in zip(actual, expected):
      tf.nest.map_structure(np.testing.assert_array_equal, a, b)

  def test_the_seed_of_cohorts_does_not_leave_the_driver(self):
    source = feed_sources.FeedSource.of(self._parts())
    self.assertIsNone(source.settings.run.cohort_seed)
    self.assertNotIn(str(_SEED), repr(source))
    seed = _SEED.to_bytes(13, 'little')
    self.assertNotIn(seed, pickle.dumps(source))
    self.assertIn(seed, pickle.dumps(self._parts().settings))

  def test_paths_do_not_depend_on_the_working_directory(self):
    with mock.patch.object(pathlib.Path, 'cwd', return_value=self.folder):
      parts = self._parts()
      relative = dataclasses.replace(
        parts.settings,
        data=dataclasses.replace(parts.settings.data, data_dir='images'),
      )
      source = feed_sources.FeedSource.of(
        dataclasses.replace(parts, settings=relative)
      )
    self.assertTrue(pathlib.Path(source.settings.data.data_dir).is_absolute())

  def test_refuses_other_images(self):
    source = feed_sources.FeedSource.of(self._parts())
    other = dataclasses.replace(source, data_digest='sha256:0')
    self.assertNotEqual(other.digest, source.digest)
    with self.assertRaisesRegex(_validate.InputError, 'other images'):
      other.open()

  def test_refuses_a_feed_of_another_kind(self):
    source = feed_sources.FeedSource.of(self._parts())
    with self.assertRaisesRegex(_validate.InputError, 'nodes of one kind'):
      dataclasses.replace(source, kind='ClientGroupFeed').open()

  def test_without_a_cluster_the_feed_stays(self):
    parts = self._parts()
    self.assertIs(feed_sources.for_runtime(parts), parts)


if __name__ == '__main__':
  absltest.main()
