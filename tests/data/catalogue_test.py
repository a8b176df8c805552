"""Tests of sets of TFDS's catalogue: keys of real ones, records of small ones."""

import os
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow_datasets as tfds

from tff_medical import _validate
from tff_medical.data import catalogue
from tff_medical.data import catalogue_records
from tff_medical.data import loading
from tff_medical.data import pixels
from tff_medical.data import record_pixels
from tff_medical.data.decoders import resizing

_COUNT = 60


def _image(number):
  """Returns a smooth image whose content depends on its number."""
  rows, columns = np.mgrid[:20, :30]
  return ((rows * (number + 1) + columns * 3) % 256).astype(np.uint8)[..., None]


class _SmallSet(tfds.core.GeneratorBasedBuilder):
  """A set of one feature form; subclasses say which and have their names."""

  VERSION = tfds.core.Version('1.0.0')
  SPLITS = {'train': _COUNT}
  skip_registration = True

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(self.features())
    )

  def _split_generators(self, dl_manager):
    return {
      name: self._generate_examples(name, count)
      for name, count in self.SPLITS.items()
    }

  def _generate_examples(self, split, count):
    for i in range(count):
      yield f'{split} {i}', self.example(i)


class CatalogueOneSplit(_SmallSet):
  """Nested features, patients in text, one split."""

  def features(self):
    return {
      'scan': {
        'pixels': tfds.features.Image(shape=(None, None, 1)),
        'patient_id': tfds.features.Text(),
      },
      'grade': tfds.features.ClassLabel(names=['low', 'high']),
    }

  def example(self, i):
    return {
      'scan': {'pixels': _image(i), 'patient_id': f'PATIENT{i // 2}'},
      'grade': i // 4 % 2,
    }


class CatalogueThreeSplits(_SmallSet):
  """Two labels, a test split without labels, a split of another name."""

  SPLITS = {'train': 30, 'dev': 6, 'test': 8, 'mini': 2}

  def features(self):
    return {
      'image': tfds.features.Image(shape=(12, 12, 3)),
      'coarse': tfds.features.ClassLabel(num_classes=2),
      'fine': np.int64,
    }

  def example(self, i):
    pixels_of = np.random.default_rng(i).integers(0, 256, (12, 12, 3), np.uint8)
    return {'image': pixels_of, 'coarse': i % 2, 'fine': i % 3}


class CatalogueFindings(_SmallSet):
  """A list of findings an image."""

  def features(self):
    return {
      'image': tfds.features.Image(shape=(20, 30, 1)),
      'found': tfds.features.Sequence(
        tfds.features.ClassLabel(names=['a', 'b', 'c'])
      ),
    }

  def example(self, i):
    return {'image': _image(i), 'found': [[], ['b'], ['a', 'c']][i % 3]}


class CatalogueStates(CatalogueFindings):
  """A state for each of several findings, which is no list of findings."""

  def example(self, i):
    return {'image': _image(i), 'found': ['a', 'a', 'b']}


class CatalogueTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tfds_dir = self.create_tempdir().full_path

  def _load(self, name, image_size=16, **options):
    return loading.load(
      f'tfds:{name}', image_size=image_size, tfds_dir=self.tfds_dir, **options
    )

  def test_one_split_is_divided_by_patient(self):
    data = self._load('catalogue_one_split')
    self.assertEqual(data.name, 'tfds:catalogue_one_split')
    self.assertEqual(data.class_names, ('low', 'high'))
    self.assertEqual(
      data.split_rule, 'validation and test made from train by patient'
    )
    self.assertEqual(sum(len(s) for _, s in data.splits()), _COUNT)
    self.assertGreater(len(data.test), 3)
    # No text of a patient is left, and the split is the same again.
    self.assertLess(data.train.patients.max(), _COUNT // 2)
    again = self._load('catalogue_one_split')
    np.testing.assert_array_equal(data.test.images, again.test.images)
    self.assertEqual(data.preparation.sizes, {
      'all': {'20 x 30': _COUNT}
    })  # fmt: skip

  def test_images_are_resized_as_own_images_are(self):
    data = self._load('catalogue_one_split')
    expected = {
      resizing.to_uint8(_image(i).astype(np.float32) / 255, 16, 1).tobytes()
      for i in range(_COUNT)
    }
    stored = {i.tobytes() for _, s in data.splits() for i in s.images}
    self.assertEqual(stored, expected)

  def test_splits_and_images_that_fit_are_kept(self):
    data = self._load('catalogue_three_splits', image_size=12)
    self.assertEqual([len(s) for _, s in data.splits()], [30, 6, 8])
    self.assertEqual(data.split_rule, 'given')
    expected = [
      CatalogueThreeSplits.example(None, i)['image'].tobytes() for i in range(8)
    ]
    self.assertCountEqual(
      [image.tobytes() for image in data.test.images], expected
    )
    self.assertEqual(data.class_names, ('0', '1'))
    fine = self._load(
      'catalogue_three_splits', keys=catalogue.Keys(label='fine')
    )
    self.assertEqual(fine.class_names, ('0', '1', '2'))

  def test_findings_become_zeros_and_ones(self):
    data = self._load('catalogue_findings')
    self.assertTrue(data.multi_label)
    rows = np.concatenate([split.labels for _, split in data.splits()])
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    self.assertEqual(kinds.tolist(), [[0, 0, 0], [0, 1, 0], [1, 0, 1]])
    self.assertEqual(counts.tolist(), [20, 20, 20])

  def test_what_does_not_fit_in_memory_is_stored(self):
    expected = self._load('catalogue_three_splits')
    with mock.patch.object(record_pixels, 'MAX_ARRAY_BYTES', 1000):
      data = self._load('catalogue_three_splits')
    self.assertEqual(data.source_digest, expected.source_digest)
    for (_, split), (_, other) in zip(data.splits(), expected.splits()):
      self.assertIsInstance(split.images, pixels.StoredPixels)
      np.testing.assert_array_equal(
        split.rows(np.arange(len(split))), other.images
      )
    raw = list(pathlib.Path(self.tfds_dir).rglob('pixels_*'))
    self.assertLen(raw, 2 * 3)
    with mock.patch.object(record_pixels, 'MAX_ARRAY_BYTES', 1000):
      with mock.patch.object(resizing, 'to_uint8', side_effect=OSError('full')):
        with self.assertRaises(OSError):
          self._load('catalogue_three_splits', image_size=14)
    self.assertCountEqual(pathlib.Path(self.tfds_dir).rglob('pixels_*'), raw)

  @parameterized.parameters('catalogue_three_splits', 'catalogue_one_split')
  def test_stored_pixels_are_written_once(self, name):
    with mock.patch.object(record_pixels, 'MAX_ARRAY_BYTES', 1000):
      first = self._load(name)
      with mock.patch.object(
        catalogue_records.Reader, '_image', side_effect=AssertionError
      ):
        again = self._load(name)
    self.assertEqual(again.source_digest, first.source_digest)
    self.assertEqual(again.preparation, first.preparation)
    for (_, split), (_, other) in zip(again.splits(), first.splits()):
      np.testing.assert_array_equal(split.labels, other.labels)
      rows = np.arange(len(split))
      np.testing.assert_array_equal(split.rows(rows), other.rows(rows))

  @parameterized.parameters('records', 'raw', 'note', 'removed_note')
  def test_stored_pixels_are_written_again_after_a_change_of(self, changed):
    with mock.patch.object(record_pixels, 'MAX_ARRAY_BYTES', 1000):
      first = self._load('catalogue_three_splits')
      rows = np.arange(len(first.train))
      expected = first.train.rows(rows)
      folder = pathlib.Path(first.train.images.path).parent
      raw = folder / 'pixels_16_train.raw'
      note = folder / 'pixels_16_train.json'
      # The first file stays open, so that no other one can have its number.
      inode = raw.stat().st_ino
      if changed == 'records':
        for path in folder.glob('*train.tfrecord*'):
          os.utime(path, ns=(1, 1))
      elif changed == 'raw':
        raw.write_bytes(bytes(raw.stat().st_size))
      elif changed == 'note':
        note.write_text('{"source": 1}')
      else:
        note.unlink()
      again = self._load('catalogue_three_splits')
      self.assertEqual(again.source_digest, first.source_digest)
      self.assertNotEqual(raw.stat().st_ino, inode)
      np.testing.assert_array_equal(again.train.rows(rows), expected)
      self.assertEqual(again.preparation, first.preparation)

  @parameterized.parameters(
    ('patch_camelyon', 'image', 'label', False),
    ('malaria', 'image', 'label', False),
    ('colorectal_histology', 'image', 'label', False),
    ('diabetic_retinopathy_detection/original', 'image', 'label', False),
    ('cifar100', 'image', 'label', False),
    ('chexpert', 'image', 'label', True),
  )
  def test_finds_the_keys_of(self, name, image, label, multi_label):
    builder = tfds.builder(name, data_dir=self.tfds_dir)
    features = dict(catalogue_records.flat(builder.info.features))
    labels = catalogue._labels(name, builder, features, None)
    self.assertEqual(catalogue._image_key(name, builder, features, None), image)
    self.assertEqual((labels.key, labels.multi_label), (label, multi_label))

  @parameterized.parameters(
    ('malarja', {}, "did you mean 'tfds:malaria'"),
    ('ma laria', {}, 'must be tfds:NAME or tfds:NAME/CONFIG'),
    ('mnist/none', {}, 'none not found'),
    ('celeb_a', {}, 'no feature that can be the label_key'),
    ('coco/2014', {}, 'no feature that can be the label_key'),
    ('catalogue_three_splits', {'label': 'mine'}, 'one of coarse, fine of'),
    ('catalogue_three_splits', {'image': 'coarse'}, 'image_key must be one of'),
    ('catalogue_states', {}, 'same finding twice'),
    ('chexpert', {}, 'data_dir must be given with tfds:chexpert'),
  )
  def test_refuses(self, name, keys, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      self._load(name, keys=catalogue.Keys(**keys))

  def test_refuses_a_folder_that_would_be_ignored(self):
    with self.assertRaisesRegex(_validate.InputError, 'data_dir is not used'):
      self._load('catalogue_findings', data_dir='x')

  def test_says_why_a_set_cannot_be_prepared(self):
    with mock.patch.object(
      CatalogueFindings, '_split_generators', side_effect=ConnectionError('off')
    ):
      with self.assertRaisesRegex(
        _validate.InputError, 'cannot be prepared in .*: off; prepare it by'
      ):
        self._load('catalogue_findings')
    self.assertEmpty(
      [p for p in pathlib.Path(self.tfds_dir).rglob('*') if os.path.isfile(p)]
    )


if __name__ == '__main__':
  absltest.main()
