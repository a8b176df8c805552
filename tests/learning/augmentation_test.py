"""Tests of views of images: each transformation by closed form."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tests.learning import unit_models
from tff_medical import _validate
from tff_medical.learning import augmentation


def _images(*shape):
  return np.random.default_rng(0).random(shape, np.float32)


class TransformationsTest(parameterized.TestCase):
  def test_flipped_mirrors_left_and_right(self):
    images = _images(3, 4, 5, 2)
    found = augmentation.flipped(
      tf.constant(images), tf.constant([True, False, True])
    )
    expected = np.stack([images[0, :, ::-1], images[1], images[2, :, ::-1]])
    np.testing.assert_array_equal(found, expected)

  def test_rotated_by_quarter_turns(self):
    images = _images(5, 6, 6, 2)
    degrees = tf.constant([0.0, 90.0, 180.0, 270.0, -90.0])
    found = augmentation.rotated(tf.constant(images), degrees)
    turns = [np.rot90(image, k) for image, k in zip(images, (0, 1, 2, 3, -1))]
    np.testing.assert_allclose(found, np.stack(turns), atol=1e-5)

  def test_rotated_turns_a_ramp_by_any_angle(self):
    # Bilinear interpolation is exact for a plane, whose gradient is turned.
    x, y = np.meshgrid(np.arange(21) - 10.0, np.arange(21) - 10.0)
    angle = np.deg2rad(20)
    image = tf.constant(x[np.newaxis, ..., np.newaxis], tf.float32)
    found = augmentation.rotated(image, tf.constant([20.0])).numpy()[0, ..., 0]
    expected = np.cos(angle) * x - np.sin(angle) * y
    inside = np.hypot(x, y) < 9
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)

  def test_cropped_enlarges_a_part(self):
    images = _images(3, 8, 8, 2)
    half = tf.constant([0.5, 0.5, 1.0])
    found = augmentation.cropped(
      tf.constant(images), half, tf.constant([0.0, 0.25, 0.0]), 0.5 - half / 2
    ).numpy()
    np.testing.assert_allclose(found[2], images[2], atol=1e-6)
    for number, top in ((0, 0), (1, 2)):
      part = images[number, top : top + 4, 2:6]
      # Two pixels for one: the mean of each pair is 3/4 and 1/4 of neighbours.
      rows = 0.75 * part[1:3] + 0.25 * part[0:2]
      expected = 0.75 * rows[:, 1:3] + 0.25 * rows[:, 0:2]
      np.testing.assert_allclose(
        found[number, 2:6:2, 2:6:2], expected, atol=1e-6
      )

  def test_brightened_multiplies_and_clips(self):
    images = _images(2, 3, 3, 1)
    found = augmentation.brightened(
      tf.constant(images), tf.constant([0.5, 2.0])
    )
    np.testing.assert_allclose(found[0], images[0] / 2)
    np.testing.assert_allclose(found[1], np.minimum(images[1] * 2, 1))

  def test_shifted_reflects_borders(self):
    images = _images(2, 4, 5, 1)
    rows, columns = [1, -2], [-1, 2]
    found = augmentation.shifted(
      tf.constant(images), tf.constant(rows), tf.constant(columns)
    )
    for number in range(2):
      padded = np.pad(images[number], ((2, 2), (2, 2), (0, 0)), mode='reflect')
      top, left = 2 + rows[number], 2 + columns[number]
      np.testing.assert_array_equal(
        found[number], padded[top : top + 4, left : left + 5]
      )


class AugmentationTest(parameterized.TestCase):
  def test_views_are_all_shifts_and_mirrored_ones(self):
    image = np.arange(20.0).reshape(4, 5)
    expected = set()
    padded = np.pad(image, 1, mode='reflect')
    for row in range(3):
      for column in range(3):
        view = padded[row : row + 4, column : column + 5]
        expected |= {view.tobytes(), view[:, ::-1].tobytes()}
    views = augmentation.Augmentation(
      ('shift', 'flip'), views=400, max_shift=1
    ).views_of(tf.constant(image[np.newaxis, ..., np.newaxis]))
    # Flipping a shifted image is a shift of the flipped one.
    found = {view.tobytes() for view in views.numpy()[0, ..., 0]}
    self.assertEqual(found, expected)

  def test_strengths_stay_within_their_bounds_and_reach_them(self):
    ones = tf.fill((1, 9, 9, 1), 0.5)
    views = augmentation.Augmentation(
      ('brightness',), views=2000, max_factor=1.5
    ).views_of(ones)
    values = views.numpy()[0, :, 0, 0, 0]
    self.assertBetween(values.min(), 0.5 / 1.5, 0.34)
    self.assertBetween(values.max(), 0.74, 0.75 + 1e-6)
    # A ramp shows angle and side of a view by its slope.
    ramp = tf.reshape(tf.range(31.0), (1, 1, 31, 1)) * tf.ones((1, 31, 1, 1))
    for name, low, high in (('rotate', np.cos(0.2), 1.0), ('crop', 0.7, 1.0)):
      views = augmentation.Augmentation(
        (name,), views=500, max_degrees=np.rad2deg(0.2), min_side=0.7
      ).views_of(ramp)
      slopes = np.diff(views.numpy()[0, :, 15, 14:17, 0], axis=1).mean(axis=1)
      self.assertBetween(slopes.min(), low - 1e-3, low + 0.01, name)
      self.assertBetween(slopes.max(), high - 0.01, high + 1e-3, name)

  def test_every_view_of_every_call_is_new(self):
    image = tf.constant(_images(1, 12, 12, 1))
    twice = tf.concat([image, image], axis=0)
    every = augmentation.Augmentation(augmentation.NAMES, views=3)
    views_of = tf.function(every.views_of)
    found = np.concatenate([views_of(twice), views_of(twice)]).reshape(12, -1)
    self.assertLen(np.unique(found, axis=0), 12)
    self.assertAllInRange(found)

  def assertAllInRange(self, values):
    self.assertGreaterEqual(values.min(), 0)
    self.assertLessEqual(values.max(), 1)

  def test_each_image_has_views_of_its_own(self):
    images = tf.zeros((2, 8, 9, 1)) + tf.reshape([0.25, 0.5], (2, 1, 1, 1))
    names = tuple(n for n in augmentation.NAMES if n != 'brightness')
    views = augmentation.Augmentation(names, views=3).views_of(images).numpy()
    self.assertEqual(views.shape, (2, 3, 8, 9, 1))
    np.testing.assert_allclose(views[0], 0.25, rtol=1e-6)
    np.testing.assert_allclose(views[1], 0.5, rtol=1e-6)

  @parameterized.parameters(
    ({'names': ('turn',)}, "augment must be one of .*got 'turn'"),
    ({'names': ()}, 'each once'),
    ({'names': ('flip', 'flip')}, 'each once'),
    ({'views': 0}, 'augmentations'),
    ({'max_shift': -1}, 'max_shift'),
    ({'max_degrees': 181}, 'max_degrees'),
    ({'min_side': 0}, 'min_side'),
    ({'min_side': 1.1}, 'min_side'),
    ({'max_factor': 0.5}, 'max_factor'),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      augmentation.Augmentation(**{'names': ('flip',), **changed})


class AugmentedModelTest(absltest.TestCase):
  def test_training_sees_views_and_evaluation_the_images(self):
    model = unit_models.model()
    weights = (unit_models.weights(), ())
    shape = model.input_spec['x'].shape[1:]
    x = tf.constant(_images(6, *shape))
    seen = augmentation.augmented(
      model, augmentation.Augmentation(('brightness', 'crop'))
    )
    np.testing.assert_array_equal(
      seen.predict_on_batch(weights, x, training=False),
      model.predict_on_batch(weights, x, training=False),
    )
    first, second = (
      seen.predict_on_batch(weights, x, training=True) for _ in range(2)
    )
    self.assertGreater(np.abs(first - second).min(axis=1).max(), 1e-4)

  def test_refuses_several_views_and_other_models(self):
    views = augmentation.Augmentation(('flip',), views=2)
    with self.assertRaisesRegex(_validate.InputError, 'one view'):
      augmentation.augmented(unit_models.model(), views)
    with self.assertRaisesRegex(_validate.InputError, 'FunctionalModel'):
      augmentation.augmented(lambda: None, views)


if __name__ == '__main__':
  absltest.main()
