"""Tests of .npz files with MedMNIST's keys and images of any size."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical import _validate
from tff_medical.data import loading
from tff_medical.data.decoders import resizing


def _arrays(shape=(28, 28), counts=(60, 10, 20), num_classes=3):
  rng = np.random.default_rng(0)
  arrays = {}
  for part, count in zip(('train', 'val', 'test'), counts):
    arrays[f'{part}_images'] = rng.integers(0, 256, (count, *shape), np.uint8)
    arrays[f'{part}_labels'] = np.arange(count)[:, None] % num_classes
  return arrays


class NpzFilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)

  def _load(self, arrays, image_size=28, **options):
    kept = {k: v for k, v in arrays.items() if v is not None}
    np.savez_compressed(self.temp / 'mine.npz', **kept)
    return loading.load(
      'npz:mine.npz',
      image_size=image_size,
      data_dir=str(self.temp),
      **options,
    )

  @parameterized.parameters(((28, 28),), ((28, 28, 1),), ((28, 28, 3),))
  def test_keeps_images_of_the_size(self, shape):
    arrays = _arrays(shape)
    data = self._load(arrays)
    self.assertEqual(data.name, 'npz:mine.npz')
    self.assertEqual(data.class_names, ('0', '1', '2'))
    self.assertEqual(data.split_rule, 'given')
    self.assertFalse(data.is_public)
    for part, (_, split) in zip(('train', 'val', 'test'), data.splits()):
      expected = arrays[f'{part}_images'].reshape(split.images.shape)
      np.testing.assert_array_equal(split.images, expected)
      np.testing.assert_array_equal(
        split.labels, arrays[f'{part}_labels'][:, 0]
      )

  def test_resizes_others_as_own_images_are(self):
    arrays = _arrays((30, 50, 3))
    data = self._load(arrays, image_size=24)
    self.assertEqual(data.image_shape, (24, 24, 3))
    np.testing.assert_array_equal(
      data.test.images[4],
      resizing.to_uint8(
        arrays['test_images'][4].astype(np.float32) / 255, 24, 3
      ),
    )

  def test_makes_splits_that_are_missing(self):
    arrays = {k: v for k, v in _arrays().items() if 'train' in k}
    # Equal images stay in one split.
    arrays['train_images'][1::2] = arrays['train_images'][::2]
    data = self._load(arrays)
    self.assertEqual(
      data.split_rule, 'validation and test made from train by image'
    )
    self.assertEqual(sum(len(s) for _, s in data.splits()), 60)
    self.assertFalse(any(data.duplicates.across.values()))
    known = {image.tobytes() for image in data.test.images}
    more = {
      'train_images': np.concatenate([arrays['train_images'], np.zeros_like(
        arrays['train_images'][:2])]),
      'train_labels': np.concatenate([arrays['train_labels'], [[0], [1]]]),
    }  # fmt: skip
    again = {image.tobytes() for image in self._load(more).train.images}
    self.assertEmpty(known & again)

  def test_takes_names_and_findings(self):
    data = self._load(_arrays(), class_names=('a', 'b', 'c', 'rare'))
    self.assertEqual(data.class_names, ('a', 'b', 'c', 'rare'))
    arrays = _arrays()
    for part in ('train', 'val', 'test'):
      labels = arrays[f'{part}_labels'][:, 0]
      arrays[f'{part}_labels'] = np.stack([labels == 1, labels > 0], axis=1)
    data = self._load(arrays)
    self.assertTrue(data.multi_label)
    self.assertEqual(data.train.labels[:3].tolist(), [[0, 0], [1, 1], [0, 1]])

  @parameterized.named_parameters(
    ('key', {'train_labels': None}, {}, 'train_labels missing'),
    ('half', {'val_labels': None}, {}, 'val_labels missing'),
    ('dtype', {'train_images': np.zeros((60, 8, 8))}, {}, 'uint8.*float64'),
    (
      'channels',
      {'train_images': np.zeros((60, 8, 8, 2), np.uint8)},
      {},
      'must be uint8.*60, 8, 8, 2',
    ),
    (
      'mixed',
      {'test_images': np.zeros((20, 8, 8, 3), np.uint8)},
      {},
      'the same channels and labels',
    ),
    ('rows', {'test_labels': np.zeros(3, int)}, {}, 'must be 20 rows'),
    (
      'negative',
      {'test_labels': np.full(20, -1)},
      {},
      'test: labels must be 0',
    ),
    ('large', {'test_labels': np.full(20, 2**16)}, {}, 'test_labels .*65536'),
    ('text', {'test_labels': np.array(['a'] * 20)}, {}, 'must be 20 rows'),
    ('pickle', {'test_labels': np.array([{}] * 20)}, {}, 'pickle'),
    ('names', {}, {'class_names': ('a', 'b')}, 'class_names must name the 3'),
    ('findings', {'test_labels': np.full((20, 1), 2)}, {}, None),
  )
  def test_refuses(self, changed, options, message):
    arrays = {**_arrays(), **changed}
    if message is None:
      self._load(arrays, **options)
      return
    with self.assertRaisesRegex(_validate.InputError, message):
      self._load(arrays, **options)

  def test_refuses_what_is_not_there_or_too_small(self):
    with self.assertRaisesRegex(
      _validate.InputError, 'cannot be read: No such'
    ):
      loading.load('npz:none.npz', data_dir=str(self.temp))
    with self.assertRaisesRegex(_validate.InputError, 'must be npz:FILE'):
      loading.source('npz:')
    with self.assertRaisesRegex(_validate.InputError, 'too few images'):
      self._load({
        'train_images': np.zeros((1, 8, 8), np.uint8),
        'train_labels': np.zeros(1, int),
      })  # fmt: skip


if __name__ == '__main__':
  absltest.main()
