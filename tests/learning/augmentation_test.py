"""Tests of views of images."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical.learning import augmentation


class AugmentationTest(parameterized.TestCase):
  def test_no_shift_repeats_each_image(self):
    images = np.random.default_rng(0).random((3, 4, 5, 2))
    views = augmentation.Augmentation(views=2, max_shift=0).views_of(
      tf.constant(images)
    )
    np.testing.assert_array_equal(views, np.stack([images, images], axis=1))

  @parameterized.parameters(False, True)
  def test_views_are_all_shifts_with_reflected_borders(self, mirror):
    image = np.arange(20.0).reshape(4, 5)
    expected = set()
    padded = np.pad(image, 1, mode='reflect')
    for row in range(3):
      for column in range(3):
        view = padded[row : row + 4, column : column + 5]
        expected.add(view.tobytes())
        if mirror:
          expected.add(view[:, ::-1].tobytes())
    views = augmentation.Augmentation(400, max_shift=1, mirror=mirror).views_of(
      tf.constant(image[np.newaxis, ..., np.newaxis])
    )
    found = {view.tobytes() for view in views.numpy()[0, ..., 0]}
    self.assertEqual(found, expected)

  def test_each_image_has_views_of_its_own(self):
    images = tf.zeros((2, 4, 5, 1)) + tf.reshape([1.0, 2.0], (2, 1, 1, 1))
    views = augmentation.Augmentation(3).views_of(images).numpy()
    self.assertEqual(views.shape, (2, 3, 4, 5, 1))
    np.testing.assert_array_equal(views[0], 1.0)
    np.testing.assert_array_equal(views[1], 2.0)

  @parameterized.parameters(({'views': 0},), ({'views': 2, 'max_shift': -1},))
  def test_refuses(self, arguments):
    with self.assertRaises(_validate.InputError):
      augmentation.Augmentation(**arguments)


if __name__ == '__main__':
  absltest.main()
