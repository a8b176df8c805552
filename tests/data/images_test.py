import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical import _validate
from tff_medical.data import equal_images
from tff_medical.data import images
from tff_medical.data import label_values
from tff_medical.data import pixels


def _split(n=4, labels=None, shape=(8, 8, 1), first=0, **kwargs):
  pixels = np.arange(n * np.prod(shape)) % 251 + first
  return images.Split(
    images=pixels.reshape(n, *shape).astype(np.uint8),
    labels=np.arange(n) % 2 if labels is None else np.array(labels),
    **kwargs,
  )


def _data(**kwargs):
  settings = dict(
    name='toy',
    train=_split(first=0),
    validation=_split(first=1),
    test=_split(first=2),
    class_names=('a', 'b'),
  )
  return images.ImageData(**{**settings, **kwargs})


class SplitTest(parameterized.TestCase):
  def test_holds_arrays(self):
    split = _split(3, sites=np.array([0, 1, 1]), patients=np.array([5, 5, 7]))
    self.assertLen(split, 3)
    self.assertEqual(split.image_shape, (8, 8, 1))

  def test_take_selects_every_array(self):
    split = _split(3, sites=np.array([0, 1, 2]), patients=np.array([5, 6, 7]))
    part = split.take(np.array([2, 0]))
    np.testing.assert_array_equal(part.images, split.images[[2, 0]])
    np.testing.assert_array_equal(part.labels, split.labels[[2, 0]])
    np.testing.assert_array_equal(part.sites, [2, 0])
    np.testing.assert_array_equal(part.patients, [7, 5])
    self.assertIsNone(_split().take(np.array([0])).sites)

  @parameterized.named_parameters(
    ('float', np.zeros([2, 8, 8, 1]), 'uint8 array.*got float64'),
    ('list', [[0]], 'uint8 array.*got list'),
    ('no_channels', np.zeros([2, 8, 8], np.uint8), r'\[N, H, W, C\]'),
    ('four_channels', np.zeros([2, 8, 8, 4], np.uint8), r'got \[2, 8, 8, 4\]'),
  )
  def test_rejects_images(self, pixels, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      images.Split(images=pixels, labels=np.zeros(2, np.int64))

  @parameterized.named_parameters(
    ('float', dict(labels=[0.0] * 4), 'labels must be an int64 array'),
    ('rows', dict(labels=[0, 1]), 'labels has 2 rows but images has 4'),
    ('negative', dict(labels=[0, 0, -1, 0]), '0 or more, got -1'),
    ('dims', dict(labels=[[[0]]] * 4), 'labels must have 1 or 2 dimensions'),
    ('multi', dict(labels=[[0, 2]] * 4), 'must be 0 or 1, .* got 2'),
    ('below', dict(labels=[[0, -2]] * 4), '-1 where unknown, got -2'),
    ('sites', dict(sites=np.zeros(3, np.int64)), 'sites has 3 rows'),
    ('patients', dict(patients=np.zeros(4)), 'patients must be an int64'),
    ('shape', dict(sites=np.zeros([4, 1], np.int64)), 'sites must have 1 dim'),
  )
  def test_rejects(self, arguments, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      _split(**arguments)


class StoredSplitTest(absltest.TestCase):
  def _stored(self, split, **kwargs):
    path = pathlib.Path(self.create_tempdir().full_path, 'images.raw')
    split.images.tofile(path)
    return images.Split(
      images=pixels.StoredPixels(path, split.images.shape, **kwargs),
      labels=split.labels,
      sites=split.sites,
      patients=split.patients,
    )

  def test_is_like_one_in_memory(self):
    split = _split(9, patients=np.arange(9))
    stored = self._stored(split)
    self.assertLen(stored, 9)
    self.assertEqual(stored.image_shape, split.image_shape)
    self.assertEqual(stored.nbytes, split.images.nbytes)
    indices = np.array([[4, 0], [4, 8]])
    for part in (split, stored):
      np.testing.assert_array_equal(part.rows(indices), split.images[indices])
      np.testing.assert_array_equal(
        np.concatenate(list(part.batches(4))), split.images
      )

  def test_take_reads_nothing(self):
    split = _split(9, sites=np.arange(9))
    stored = self._stored(split)
    with absltest.mock.patch.object(pixels.os, 'preadv') as preadv:
      part = stored.take(np.array([7, 2]))
    preadv.assert_not_called()
    self.assertIsInstance(part.images, pixels.Pixels)
    np.testing.assert_array_equal(part.sites, [7, 2])
    np.testing.assert_array_equal(part.rows(np.arange(2)), split.images[[7, 2]])

  def test_content_digest_is_that_of_the_split_in_memory(self):
    split = _split(9, patients=np.arange(9))
    digest = images.content_digest({'train': split})
    self.assertRegex(digest, '^sha256:[0-9a-f]{64}$')
    known = pixels.digest(split.images)
    stored = self._stored(split, digest=known)
    with absltest.mock.patch.object(pixels.os, 'preadv') as preadv:
      self.assertEqual(images.content_digest({'train': stored}), digest)
    preadv.assert_not_called()

  def test_content_digest_covers_everything(self):
    split = _split(4)
    others = (
      {'test': split},
      {'train': _split(4, first=1)},
      {'train': _split(4, labels=[0, 1, 0, 0])},
      {'train': _split(4, shape=(4, 16, 1))},
      {'train': _split(4, sites=np.array([0, 1, 0, 1]))},
      {'train': _split(4, patients=np.array([0, 1, 0, 1]))},
      {'train': split, 'test': split},
    )
    digests = {images.content_digest(o) for o in ({'train': split}, *others)}
    self.assertLen(digests, len(others) + 1)

  def test_duplicates_are_those_in_memory(self):
    splits = {'train': _split(300), 'test': _split(30)}
    stored = {name: self._stored(s).images for name, s in splits.items()}
    with absltest.mock.patch.object(pixels, '_BATCH_BYTES', 1000):
      report = equal_images.find_duplicates(stored)
    in_memory = {name: split.images for name, split in splits.items()}
    self.assertEqual(report, equal_images.find_duplicates(in_memory))
    self.assertEqual(report.across, {('train', 'test'): 30})


class ImageDataTest(parameterized.TestCase):
  def test_holds_splits(self):
    data = _data()
    self.assertEqual(
      [name for name, _ in data.splits()], list(images.SPLIT_NAMES)
    )
    self.assertEqual(data.num_classes, 2)
    self.assertEqual(data.image_shape, (8, 8, 1))
    self.assertFalse(data.duplicates)

  def test_there_may_be_no_validation(self):
    data = _data(validation=_split(0, labels=np.zeros(0, np.int64)))
    self.assertEmpty(data.validation)

  def test_duplicates_may_be_known_before(self):
    known = equal_images.Duplicates({'train': 3}, {})
    self.assertIs(_data(counted_duplicates=known).duplicates, known)

  def test_accepts_multi_label(self):
    split = _split(labels=[[0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]])
    data = _data(
      train=split,
      validation=split,
      test=split,
      class_names=('a', 'b', 'c'),
      multi_label=True,
    )
    self.assertEqual(data.num_classes, 3)

  def test_findings_may_be_unknown_in_some_images(self):
    known = _split(labels=[[1, -1], [-1, 0], [-1, -1], [0, 1]])
    nothing = _split(labels=[[-1, -1]] * 4)
    splits = dict(train=known, validation=nothing, test=known)
    data = _data(multi_label=True, **splits)
    self.assertEqual(
      label_values.has_label(data.train.labels).tolist(),
      [True, True, False, True],
    )
    self.assertTrue(label_values.has_label(np.zeros(2, np.int64)).all())
    self.assertEmpty(label_values.has_label(np.zeros([0, 2], np.int64)))
    for name in ('train', 'test'):
      with self.assertRaisesRegex(
        _validate.InputError, f'toy: {name} has 4 images but no known label'
      ):
        _data(multi_label=True, **{**splits, name: nothing})

  @parameterized.named_parameters(
    ('one_class', dict(class_names=('a',)), 'at least 2 classes'),
    (
      'labels',
      dict(test=_split(labels=[0, 1, 9, 7])),
      r'toy: test labels must lie in 0..1, got 9 in row 2 \(and 1 more',
    ),
    (
      'empty',
      dict(test=_split(0, labels=np.zeros(0, np.int64))),
      'test has no images',
    ),
    ('size', dict(test=_split(shape=(9, 9, 1))), 'make all images the same'),
    (
      'site',
      dict(train=_split(sites=np.array([0, 1, 2, 0])), site_names=('x', 'y')),
      r'sites must lie in 0..1.*got 0..2',
    ),
    ('not_multi', dict(multi_label=True), r'must have shape \[N, 2\]'),
    (
      'columns',
      dict(train=_split(labels=[[0, 1, 0]] * 4), multi_label=True),
      'must have 2 columns.*got 3',
    ),
    ('is_multi', dict(train=_split(labels=[[0, 1]] * 4)), r'shape \[N\]'),
  )
  def test_rejects(self, arguments, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      _data(**arguments)

  def test_rejects_patient_in_two_splits(self):
    with self.assertRaisesRegex(
      _validate.InputError,
      '1 patients are in both train and test; keep each',
    ) as raised:
      _data(
        train=_split(patients=np.array([10, 20, 30, 4711])),
        test=_split(patients=np.array([4711, 50, 60, 60])),
      )
    # A number may identify a patient.
    self.assertNotIn('4711', str(raised.exception))

  def test_only_what_is_known_of_the_origin_is_claimed(self):
    for origin, described, is_public in (
      (images.OFFICIAL, 'toy', True),
      (images.GENERATED, 'toy', True),
      (images.OTHER_FILE, 'toy (not the official file)', False),
      (images.UNSTATED, 'toy', False),
    ):
      data = _data(origin=origin)
      self.assertEqual((data.described, data.is_public), (described, is_public))
    self.assertEqual(_data().origin, images.UNSTATED)
    with self.assertRaisesRegex(_validate.InputError, 'origin must be one of'):
      _data(origin='the cellar')


class DuplicatesTest(absltest.TestCase):
  def test_are_counted_at_first_use_unless_given(self):
    given = equal_images.Duplicates(within={'train': 3}, across={})
    with absltest.mock.patch.object(equal_images, 'find_duplicates') as count:
      self.assertIs(_data(counted_duplicates=given).duplicates, given)
      count.assert_not_called()
      self.assertIs(_data().duplicates, count.return_value)


if __name__ == '__main__':
  absltest.main()
