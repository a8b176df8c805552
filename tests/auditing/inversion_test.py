"""Tests of gradient inversion: closed forms, and what hides an image."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import models
from tff_medical.auditing import inversion

_SHAPE = (12, 12, 1)
_LOSS = models.loss(multi_label=False)


def _image():
  """Returns a bright blob on a dark slope, float32 [12, 12, 1]."""
  y, x = np.mgrid[:12, :12] / 11
  blob = np.exp(-((x - 0.3) ** 2 + (y - 0.6) ** 2) / 0.05)
  return (0.1 + 0.3 * x + 0.5 * blob)[..., np.newaxis].astype(np.float32)


def _linear(outputs=3):
  tf.keras.utils.set_random_seed(0)
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input(_SHAPE),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(outputs),
    ]
  )


def _add_noise(update, stddev):
  rng = np.random.default_rng(0)
  return [part + rng.normal(0, stddev, part.shape) for part in update]


class AttackTest(parameterized.TestCase):
  def test_finds_what_the_gradient_of_a_linear_model_is(self):
    """There the gradient of a row, over that of its bias, is the image."""
    model, image = _linear(), _image()
    kernel, bias = inversion.gradient_of(model, _LOSS, image, np.int64(1))
    exact = (kernel[:, 1] / bias[1]).reshape(_SHAPE)
    np.testing.assert_allclose(exact, image, atol=1e-4)
    attack = inversion.InversionAttack(
      model, _LOSS, iterations=400, starts=1, total_variation=0.0
    )
    found = attack.reconstruct([kernel, bias], np.int64(1), seed=0)
    self.assertEqual(found.dtype, np.float32)
    np.testing.assert_allclose(found, exact, atol=0.02)

  def test_clipping_hides_nothing_and_noise_does(self):
    model, image, label = _linear(), _image(), np.int64(2)
    update = inversion.gradient_of(model, _LOSS, image, label)
    attack = inversion.InversionAttack(model, _LOSS, iterations=400, starts=1)
    norm = np.sqrt(sum(np.sum(part**2) for part in update))
    ssim = {}
    for name, seen in (
      ('raw', update),
      ('clipped', [0.01 * part / norm for part in update]),
      ('little noise', _add_noise(update, 1e-4 * norm)),
      ('much noise', _add_noise(update, norm)),
    ):
      found = attack.reconstruct(seen, label, seed=0)
      ssim[name] = inversion.similarity(image, found).ssim
    self.assertGreater(ssim['raw'], 0.95)
    self.assertAlmostEqual(ssim['clipped'], ssim['raw'], delta=0.02)
    self.assertGreater(ssim['little noise'], 0.95)
    self.assertLess(ssim['much noise'], 0.3)

  def test_sees_through_relus_strides_and_group_norm(self):
    model = models.build('cnn_small', input_shape=_SHAPE, num_outputs=2, seed=0)
    image, label = _image(), np.int64(0)
    before = model.get_weights()
    update = inversion.gradient_of(model, _LOSS, image, label)
    attack = inversion.InversionAttack(model, _LOSS, iterations=600)
    found = attack.reconstruct(update, label, seed=0)
    self.assertGreater(inversion.similarity(image, found).ssim, 0.8)
    np.testing.assert_array_equal(
      np.concatenate([np.ravel(w) for w in model.get_weights()]),
      np.concatenate([np.ravel(w) for w in before]),
    )

  def test_several_labels_and_colours(self):
    shape = (12, 12, 3)
    model = models.build('cnn_small', input_shape=shape, num_outputs=4, seed=0)
    loss = models.loss(multi_label=True)
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    label = np.array([1, 0, 0, 1], np.float32)
    update = inversion.gradient_of(model, loss, image, label)
    self.assertLen(update, len(model.trainable_variables))
    attack = inversion.InversionAttack(model, loss, iterations=2, starts=1)
    found = attack.reconstruct(update, label, seed=0)
    self.assertEqual(found.shape, shape)
    self.assertBetween(found.min(), 0, 1)

  @parameterized.parameters(
    {'iterations': 0},
    {'starts': 0},
    {'learning_rate': -1.0},
    {'total_variation': -1.0},
  )
  def test_refuses(self, **changed):
    with self.assertRaisesRegex(_validate.InputError, next(iter(changed))):
      inversion.InversionAttack(_linear(), _LOSS, **changed)


class InferLabelTest(parameterized.TestCase):
  @parameterized.parameters(range(5))
  def test_is_the_label_of_the_image(self, label):
    model = models.build('cnn_small', input_shape=_SHAPE, num_outputs=5, seed=0)
    update = inversion.gradient_of(model, _LOSS, _image(), np.int64(label))
    self.assertEqual(inversion.infer_label(update[-1]), label)


class SimilarityTest(absltest.TestCase):
  def test_closed_forms(self):
    black = np.zeros(_SHAPE, np.float32)
    self.assertEqual(inversion.similarity(black, black), (np.inf, 1.0))
    found = inversion.similarity(black, black + 0.1)
    self.assertAlmostEqual(found.psnr, 20.0, places=4)
    self.assertLess(found.ssim, 0.1)


if __name__ == '__main__':
  absltest.main()
