"""Tests of writing test images as files."""

import pathlib

from absl.testing import absltest
import numpy as np
from PIL import Image

from experiments import sample_images
from tests.experiments import npz
from tff_medical import _validate
from tff_medical.data import loading


class SampleImagesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.data = loading.load(
      'medmnist/breastmnist', data_dir=npz.write(self.temp)
    )

  def test_files_hold_the_pixels_of_the_class_of_their_folder(self):
    folder = self.temp / 'images'
    written = sample_images.write_images(self.data, folder, 2)
    self.assertLen(written, 4)
    self.assertCountEqual(folder.glob('*/*'), written)
    for path in written:
      row = int(path.stem)
      pixels = np.asarray(Image.open(path))
      np.testing.assert_array_equal(
        pixels, self.data.test.images[row].squeeze(-1)
      )
      name = self.data.class_names[self.data.test.labels[row]]
      self.assertEqual(
        path.parent.name, ''.join(c if c.isalnum() else '_' for c in name)
      )

  def test_refuses(self):
    with self.assertRaisesRegex(_validate.InputError, 'images_per_class'):
      sample_images.write_images(self.data, self.temp / 'x', 0)
    self.assertFalse((self.temp / 'x').exists())


if __name__ == '__main__':
  absltest.main()
