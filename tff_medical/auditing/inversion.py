"""Gradient inversion: the image that an update tells of.

A client that holds one image sends the gradient of that image. Geiping et al.
2020 (arXiv 2003.14053) find the image whose gradient points the same way: they
minimise the cosine distance to what was sent, plus the total variation, from a
random image on. As the distance sees the direction alone, clipping, which
shortens an update, hides nothing; noise turns it. The label of a single image
stands in the gradient of the head's bias (iDLG, Zhao et al. 2020, arXiv
2001.02610).

Differences from the paper, as measured on PneumoniaMNIST and `cnn_small`. With
ReLUs the attack fails, and even moves away from the image itself, as their second
derivative is 0 and knows nothing of units that switch. So the candidate goes
through softplus functions that get sharper with each step, towards the ReLU: that
decides. Smooth starts make most of them succeed; Adam's own steps along a cosine
do a little better than their signs along a staircase. Contrast around mid-grey
hardly shows in the gradient where the first convolution is normalised and has no
bias, as here: it is found by chance and costs PSNR.

>>> infer_label(np.array([0.2, -0.7, 0.5]))
1
>>> mean_image = np.full((16, 16, 1), 0.5, np.float32)
>>> similarity(mean_image, mean_image).ssim
1.0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tff_medical import _validate

# Of the softplus functions: where they start and end.
_SHARPNESS = (1.0, 30.0)
_START_STDDEV = 0.2
_TINY = 1e-12

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class _Adam(NamedTuple):
  first: float = 0.9
  second: float = 0.999
  epsilon: float = 1e-8


_ADAM = _Adam()


class Similarity(NamedTuple):
  """How much an image tells of another one.

  Attributes:
    psnr: Peak signal-to-noise ratio in dB, infinite for the same image.
    ssim: Structural similarity, 1 for the same image.
  """

  psnr: float
  ssim: float


def similarity(original: np.ndarray, other: np.ndarray) -> Similarity:
  """Compares two float images [H, W, C] in 0..1, of 11 pixels or more."""
  pair = [tf.constant(image, tf.float32) for image in (original, other)]
  return Similarity(
    float(tf.image.psnr(*pair, max_val=1.0)),
    float(tf.image.ssim(*pair, max_val=1.0)),
  )


def infer_label(bias_gradient: np.ndarray) -> int:
  """Returns the class of the one image whose gradient of the logits this is.

  It is the softmax minus 1 at the class: the only entry below 0.

  Args:
    bias_gradient: [K], of the head's bias.
  """
  return int(np.argmin(bias_gradient))


def gradient_of(
  model: tf.keras.Model, loss: Loss, image: np.ndarray, label: np.ndarray
) -> list[np.ndarray]:
  """Returns what a client sends that holds one image and takes one step.

  Args:
    model: From float32 [N, H, W, C] in 0..1 to logits [N, K].
    loss: Of (labels, logits), a mean.
    image: Float [H, W, C] in 0..1.
    label: As the loss takes it, of one image.

  Returns:
    The gradient of each trainable weight, up to the learning rate.
  """
  found = _gradients(
    model, loss, tf.constant(image[np.newaxis]), tf.constant(label)[tf.newaxis]
  )
  return [gradient.numpy() for gradient in found]


class Attack:
  """The search for the image behind an update."""

  def __init__(
    self,
    model: tf.keras.Model,
    loss: Loss,
    *,
    iterations: int = 1000,
    starts: int = 2,
    learning_rate: float = 0.05,
    total_variation: float = 1e-3,
  ):
    """Prepares the search; it is compiled once for all updates.

    Args:
      model: A functional Keras model from float32 [N, H, W, C] in 0..1 to
        logits, with the weights that updates start from; it is copied.
      loss: Of (labels, logits), a mean.
      iterations: Steps from each start.
      starts: Random images to start from; the best result counts.
      learning_rate: Adam's at first, in pixel values; it falls to 0.
      total_variation: The weight of the mean difference between neighbours.
    """
    _validate.positive_int(iterations=iterations, starts=starts)
    _validate.positive(learning_rate=learning_rate)
    _validate.non_negative(total_variation=total_variation)
    self._loss = loss
    self._iterations = iterations
    self._starts = starts
    self._learning_rate = learning_rate
    self._total_variation = total_variation
    self._sharpness = tf.Variable(_SHARPNESS[0], trainable=False)
    self._model = _with_softplus(model, self._sharpness)
    self._search = tf.function(self._steps)

  def reconstruct(
    self, update: Sequence[np.ndarray], label: np.ndarray, seed: int
  ) -> np.ndarray:
    """Returns the image, float32 [H, W, C] in 0..1, that explains the update.

    Args:
      update: For each trainable weight; its length does not matter.
      label: As the loss takes it, of one image.
      seed: Of the images to start from.
    """
    rng = np.random.default_rng(seed)
    target = [tf.constant(part, tf.float32) for part in update]
    labels = tf.constant(label)[tf.newaxis]
    shape = self._model.input_shape[1:]
    found = []
    for _ in range(self._starts):
      image, distance = self._search(target, labels, _smooth_image(rng, shape))
      found.append((float(distance), image[0].numpy()))
    return min(found, key=lambda pair: pair[0])[1]

  def _steps(
    self, target: list[tf.Tensor], labels: tf.Tensor, start: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the image [1, H, W, C] after all steps, and its distance."""
    image, first, second = start, tf.zeros_like(start), tf.zeros_like(start)
    low, high = _SHARPNESS
    for step in tf.range(self._iterations):
      done = tf.cast(step, tf.float32) / self._iterations
      self._sharpness.assign(low * (high / low) ** done)
      with tf.GradientTape() as tape:
        tape.watch(image)
        objective = self._distance(target, labels, image)
        objective += self._total_variation * _total_variation(image)
      slope = tape.gradient(objective, image)
      first = _ADAM.first * first + (1 - _ADAM.first) * slope
      second = _ADAM.second * second + (1 - _ADAM.second) * slope**2
      count = tf.cast(step + 1, tf.float32)
      mean = first / (1 - _ADAM.first**count)
      scale = tf.sqrt(second / (1 - _ADAM.second**count)) + _ADAM.epsilon
      rate = self._learning_rate * 0.5 * (1 + tf.cos(np.pi * done))
      image = tf.clip_by_value(image - rate * mean / scale, 0.0, 1.0)
    return image, self._distance(target, labels, image)

  def _distance(
    self, target: list[tf.Tensor], labels: tf.Tensor, image: tf.Tensor
  ) -> tf.Tensor:
    """Returns 1 - cosine between the image's gradient and the target."""
    found = _gradients(self._model, self._loss, image, labels)
    product = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(found, target)])
    norms = tf.linalg.global_norm(found) * tf.linalg.global_norm(target)
    return 1 - product / (norms + _TINY)


def _gradients(
  model: tf.keras.Model, loss: Loss, images: tf.Tensor, labels: tf.Tensor
) -> list[tf.Tensor]:
  with tf.GradientTape() as tape:
    value = loss(labels, model(images, training=True))
  return tape.gradient(value, model.trainable_variables)


def _with_softplus(
  model: tf.keras.Model, sharpness: tf.Variable
) -> tf.keras.Model:
  """Returns a copy of the model with softplus in place of each ReLU layer."""

  # A closure, as a layer would take a variable of its own for a weight.
  class Softplus(tf.keras.layers.Layer):
    """Nears the ReLU as its sharpness grows."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
      return tf.math.softplus(sharpness * inputs) / sharpness

  def copy(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
    if isinstance(layer, tf.keras.layers.ReLU):
      return Softplus()
    return type(layer).from_config(layer.get_config())

  copied = tf.keras.models.clone_model(model, clone_function=copy)
  copied.set_weights(model.get_weights())
  return copied


def _smooth_image(
  rng: np.random.Generator, shape: tuple[int, int, int]
) -> tf.Tensor:
  """Returns random clouds around mid-grey, [1, H, W, C].

  From the noise of single pixels the attack rarely finds its way.
  """
  height, width, channels = shape
  coarse = rng.standard_normal(
    (1, max(height // 4, 1), max(width // 4, 1), channels)
  )
  clouds = tf.image.resize(coarse, (height, width), 'bicubic')
  return tf.clip_by_value(0.5 + _START_STDDEV * clouds, 0.0, 1.0)


def _total_variation(images: tf.Tensor) -> tf.Tensor:
  """Returns the mean absolute differences along height and along width."""
  return tf.reduce_mean(tf.abs(images[:, 1:] - images[:, :-1])) + (
    tf.reduce_mean(tf.abs(images[:, :, 1:] - images[:, :, :-1]))
  )
