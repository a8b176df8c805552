import contextlib
import dataclasses
import io
import os
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import loading
from tff_medical.data import phantoms
from tff_medical.data import pixels
from tff_medical.data import record_pixels

_SPEC = phantoms.PhantomSpec(num_train=40, num_validation=10, num_test=20)


class LoadSyntheticTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tfds_dir = self.create_tempdir().full_path

  def test_holds_what_is_generated(self):
    data = loading.load_synthetic(_SPEC, tfds_dir=self.tfds_dir)
    self.assertIsInstance(data, images.ImageData)
    self.assertEqual(data.name, 'synthetic')
    generated = phantoms.generate(_SPEC)
    for name, split in data.splits():
      for field in ('images', 'labels', 'sites', 'patients'):
        np.testing.assert_array_equal(
          getattr(split, field), getattr(generated[name], field)
        )
    self.assertEqual(data.class_names, phantoms.CLASS_NAMES[:4])
    self.assertLen(data.site_names, 8)
    self.assertStartsWith(data.source_digest, 'sha256:')
    self.assertTrue(data.is_public)
    self.assertEqual(data.described, 'synthetic')
    self.assertIn('tff_medical', data.citation)

  def test_colour_has_a_name_of_its_own(self):
    spec = dataclasses.replace(_SPEC, channels=3)
    data = loading.load_synthetic(spec, tfds_dir=self.tfds_dir)
    self.assertEqual(data.name, 'synthetic_rgb')
    self.assertEqual(data.image_shape, (28, 28, 3))

  def test_second_load_uses_the_records(self):
    first = loading.load_synthetic(_SPEC, tfds_dir=self.tfds_dir)
    with mock.patch.object(phantoms, 'generate') as generate:
      second = loading.load_synthetic(_SPEC, tfds_dir=self.tfds_dir)
    generate.assert_not_called()
    np.testing.assert_array_equal(first.train.images, second.train.images)

  def test_what_does_not_fit_in_memory_is_stored_once(self):
    expected = loading.load_synthetic(_SPEC, tfds_dir=self.tfds_dir)
    with mock.patch.object(record_pixels, 'MAX_ARRAY_BYTES', 1000):
      first = loading.load_synthetic(_SPEC, tfds_dir=self.tfds_dir)
      with mock.patch.object(
        record_pixels, 'FileSink', side_effect=AssertionError
      ):
        again = loading.load_synthetic(_SPEC, tfds_dir=self.tfds_dir)
    for data in (first, again):
      for name, split in data.splits():
        in_memory = getattr(expected, name)
        self.assertIsInstance(split.images, pixels.StoredPixels)
        self.assertNotEmpty(split.images.digest)
        np.testing.assert_array_equal(
          split.rows(np.arange(len(split))), in_memory.images
        )
        for field in ('labels', 'sites', 'patients'):
          np.testing.assert_array_equal(
            getattr(split, field), getattr(in_memory, field)
          )

  def test_settings_reach_the_spec(self):
    with mock.patch.object(loading, 'load_synthetic') as load:
      loading.load('synthetic', image_size=32, seed=5, difficulty=0.75)
      loading.load('synthetic', tfds_dir='there')
      loading.load('synthetic_rgb')
    load.assert_has_calls(
      [
        mock.call(
          phantoms.PhantomSpec(image_size=32, seed=5, difficulty=0.75),
          tfds_dir=None,
        ),
        mock.call(phantoms.PhantomSpec(), tfds_dir='there'),
        mock.call(phantoms.PhantomSpec(channels=3), tfds_dir=None),
      ]
    )

  def test_prints_nothing(self):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      loading.load_synthetic(_SPEC, tfds_dir=self.tfds_dir)
    self.assertEqual(out.getvalue(), '')


class RegistryTest(parameterized.TestCase):
  @parameterized.parameters('synthetic', 'synthetic_rgb')
  def test_says_without_loading_what_is_loaded(self, name):
    source = loading.source(name)
    folder = self.create_tempdir().full_path
    data = loading.load(name, image_size=16, tfds_dir=folder)
    self.assertEqual(data.name, name)
    self.assertLen(data.train, source.num_train)
    self.assertEqual(data.image_shape[2], source.channels)
    self.assertEqual(data.class_names, source.class_names)

  def test_a_new_data_set_is_a_line_in_one_place(self):
    asked = []
    new = loading.Source(500, 3, ('healthy', 'ill'), load=asked.append)
    with self.assertRaisesRegex(_validate.InputError, 'one of .*synthetic_rgb'):
      loading.load('clinic/new')
    with mock.patch.dict(loading.DATASETS, {'clinic/new': new}):
      loading.load('clinic/new', image_size=64, data_dir='there', seed=3)
      self.assertEndsWith(loading.names(), 'table, clinic/NAME')
      with self.assertRaisesRegex(_validate.InputError, "mean 'clinic/new'"):
        loading.load('clinic/now')
    self.assertEqual(
      asked, [loading.Options(image_size=64, data_dir='there', seed=3)]
    )

  @parameterized.parameters(
    ((0, 1, ('a',)), 'num_train'),
    ((5, 2, ('a',)), 'channels'),
    ((5, 1, ()), 'class_names'),
  )
  def test_a_source_checks_itself(self, values, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      loading.Source(*values, load=None)


class RejectsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('unknown', dict(dataset='sinthetic'), "did you mean 'synthetic'"),
    (
      'no_prefix',
      dict(dataset='pneumoniamnist'),
      "did you mean 'medmnist/pneumoniamnist'",
    ),
    (
      'three_dims',
      dict(dataset='medmnist/organmnist3d'),
      'one of folder, medmnist/',
    ),
    (
      'data_dir',
      dict(dataset='synthetic', data_dir='x'),
      'data_dir is not used by synthetic',
    ),
    (
      'difficulty',
      dict(dataset='medmnist/octmnist', difficulty=0.1),
      'difficulty is only for synthetic',
    ),
    ('high', dict(dataset='synthetic', difficulty=2.0), 'must lie in 0..1'),
    (
      'size',
      dict(dataset='medmnist/octmnist', image_size=32),
      r'image_size must be one of \(28, 64, 128, 224\) for medmnist, got 32',
    ),
    ('small', dict(dataset='synthetic', image_size=4), 'got 4'),
  )
  def test_rejects(self, arguments, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      loading.load(**arguments)


class ImportTest(absltest.TestCase):
  def test_import_is_light(self):
    code = (
      'import sys, tff_medical.data.loading, tff_medical.data.partition\n'
      'heavy = {"tensorflow", "tensorflow_datasets", "tensorflow_federated"}\n'
      'sys.exit(", ".join(heavy & set(sys.modules)) or None)'
    )
    result = subprocess.run(
      [sys.executable, '-c', code],
      capture_output=True,
      text=True,
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    self.assertEqual(result.returncode, 0, result.stderr)


if __name__ == '__main__':
  absltest.main()
