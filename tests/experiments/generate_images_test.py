"""Tests of generated images that are written as files."""

import pathlib

from absl.testing import absltest
import numpy as np
from PIL import Image

from experiments import generate_images
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import loading
from tff_medical.data import own_images
from tff_medical.data import phantoms

_SPEC = phantoms.PhantomSpec(
  image_size=16, num_train=30, num_validation=6, num_test=9, num_sites=2
)


class GenerateImagesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.folder = self.temp / 'images'

  def test_the_folder_is_the_generated_set_as_own_images(self):
    generate_images.write(_SPEC, self.folder)
    data = loading.load(
      'folder',
      image_size=16,
      data_dir=str(self.folder),
      own=own_images.OwnImages(
        folder_levels='split/site/class/patient',
        prepared_dir=str(self.temp / 'prepared'),
        workers=1,
      ),
    )
    self.assertEqual(data.split_rule, 'given')
    for name, expected in phantoms.generate(_SPEC).items():
      split = getattr(data, name)
      self.assertEqual(
        _rows(split, data.class_names, data.site_names),
        _rows(expected, phantoms.CLASS_NAMES, phantoms.site_names(_SPEC)),
      )
      self.assertLen(
        np.unique(split.patients), len(np.unique(expected.patients))
      )

  def test_colour_stays_colour(self):
    spec = phantoms.PhantomSpec(
      image_size=16, channels=3, num_train=2, num_validation=1, num_test=1
    )
    generate_images.write(spec, self.folder)
    paths = sorted(self.folder.glob('train/*/*/*/*.png'))
    expected = phantoms.generate(spec)['train']
    self.assertCountEqual(
      [np.asarray(Image.open(path)).tobytes() for path in paths],
      [image.tobytes() for image in expected.rows(np.arange(2))],
    )

  def test_refuses_a_folder_with_files(self):
    self.folder.mkdir()
    (self.folder / 'mine.png').touch()
    with self.assertRaisesRegex(_validate.InputError, 'holds files'):
      generate_images.write(_SPEC, self.folder)
    self.assertLen(list(self.folder.iterdir()), 1)

  def test_refuses_a_folder_that_cannot_be_written(self):
    (self.temp / 'file').touch()
    with self.assertRaisesRegex(_validate.InputError, 'output_dir .* written'):
      generate_images.write(_SPEC, self.temp / 'file' / 'images')


def _rows(split: images.Split, class_names, site_names):
  """Returns pixels, class and site of each image, in the order of the pixels."""
  pixels = split.rows(np.arange(len(split)))
  return sorted(
    (image.tobytes(), class_names[label], site_names[site])
    for image, label, site in zip(pixels, split.labels, split.sites)
  )


if __name__ == '__main__':
  absltest.main()
