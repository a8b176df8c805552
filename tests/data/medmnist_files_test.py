"""Tests on the real MedMNIST files, if they are at hand.

They are looked for in ../shared/medmnist beside the repository and go into no
repository; without them every test here is skipped.
"""

import hashlib
import pathlib
import socket
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow_datasets as tfds

from tff_medical.data import loading
from tff_medical.data import medmnist
from tff_medical.data import medmnist_info

_FOLDER = pathlib.Path(__file__).parents[2] / '../shared/medmnist'
_NAMES = ('pneumoniamnist', 'breastmnist', 'retinamnist')
_MISSING = f'The real files are not in {_FOLDER}'


def _here():
  return all((_FOLDER / f'{name}.npz').exists() for name in _NAMES)


@absltest.skipUnless(_here(), _MISSING)
class RealFilesTest(parameterized.TestCase):
  def _load(self, name):
    # No test may use the network.
    no_network = mock.Mock(side_effect=AssertionError('network was used'))
    with mock.patch.object(socket.socket, 'connect', no_network):
      return loading.load(
        f'medmnist/{name}',
        data_dir=str(_FOLDER),
        tfds_dir=self.create_tempdir().full_path,
      )

  @parameterized.parameters(
    (
      'pneumoniamnist',
      [1214, 3494],
      '18 extra in train, 3 extra in test, 8 in both train and validation',
    ),
    ('breastmnist', [147, 399], '1 in both train and test'),
    ('retinamnist', None, 'none'),
  )
  def test_is_the_official_data(self, name, train_counts, duplicates):
    with self.assertNoLogs(level='WARNING'):
      data = self._load(name)
    info = medmnist_info.BY_NAME[name]
    counts = tuple(len(split) for _, split in data.splits())
    self.assertEqual(counts, info.counts)
    self.assertEqual(data.image_shape, (28, 28, info.channels))
    self.assertEqual(data.source_digest, f'md5:{info.md5[0]}')
    self.assertTrue(data.is_public)
    self.assertEqual(str(data.duplicates), duplicates)
    if train_counts:
      self.assertEqual(list(np.bincount(data.train.labels)), train_counts)

  @parameterized.parameters(*_NAMES)
  def test_checksums_are_those_of_the_files(self, name):
    url = medmnist_info.BY_NAME[name].url(28)
    expected = medmnist.MedMnist.url_infos[url]
    content = (_FOLDER / f'{name}.npz').read_bytes()
    self.assertEqual(expected.size, len(content))
    self.assertEqual(expected.checksum, hashlib.sha256(content).hexdigest())


@absltest.skipUnless(_here(), _MISSING)
class OfficialBuilderTest(tfds.testing.DatasetBuilderTestCase):
  """Runs TFDS's own checks on the official file, as if downloaded."""

  DATASET_CLASS = medmnist.MedMnist
  BUILDER_CONFIG_NAMES_TO_TEST = ['breastmnist_28']
  SPLITS = {'train': 546, 'validation': 78, 'test': 156}
  OVERLAPPING_SPLITS = ['train']  # One training image is also a test image.
  EXAMPLE_DIR = str(_FOLDER)
  DL_DOWNLOAD_RESULT = 'breastmnist.npz'


if __name__ == '__main__':
  absltest.main()
