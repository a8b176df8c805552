"""Scores of a model on images, in memory and stored."""

from __future__ import annotations

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import models
from tff_medical.data import pixels
from tff_medical.learning import evaluation


class PredictTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.model = models.build(
      'cnn_small', input_shape=(12, 10, 3), num_outputs=2, seed=0
    )
    rng = np.random.default_rng(0)
    self.images = rng.integers(0, 256, (7, 12, 10, 3), dtype=np.uint8)
    self.labels = np.array([0, 1, 0, 1, 0, 1, 1])

  @parameterized.parameters(1, 3, 7, 100)
  def test_predictions_do_not_depend_on_the_batch(self, batch_size):
    expected = self.model(tf.constant(self.images / 255.0, tf.float32))
    found = evaluation.predict(self.model, self.images, batch_size=batch_size)
    self.assertEqual(found.dtype, np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_no_images_give_no_predictions(self):
    found = evaluation.predict(self.model, self.images[:0])
    self.assertEqual(found.shape, (0, 2))

  def test_stored_images_are_predicted_batch_by_batch(self):
    path = pathlib.Path(self.create_tempdir().full_path, 'images.raw')
    self.images.tofile(path)
    stored = pixels.StoredPixels(path, self.images.shape)
    with absltest.mock.patch.object(
      pixels.StoredPixels, 'rows', autospec=True
    ) as rows:
      rows.side_effect = lambda _, indices: self.images[indices]
      found = evaluation.predict(self.model, stored, batch_size=3)
    self.assertEqual([len(c.args[1]) for c in rows.mock_calls], [3, 3, 1])
    expected = evaluation.predict(self.model, self.images, batch_size=3)
    np.testing.assert_array_equal(found, expected)
    found = evaluation.predict(self.model, stored, batch_size=3)
    np.testing.assert_array_equal(found, expected)

  def test_images_that_do_not_fit(self):
    for images in (self.images / 255.0, self.images[..., :1]):
      with self.assertRaisesRegex(_validate.InputError, 'must be uint8'):
        evaluation.predict(self.model, images)


if __name__ == '__main__':
  absltest.main()
