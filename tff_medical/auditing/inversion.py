"""Gradient inversion: reconstructs an image from a client's update.

A client that holds one image sends the gradient of that image. Geiping et al.
2020 (arXiv 2003.14053) search for the image whose gradient has the same
direction. From a random image they minimise the cosine distance to the update,
plus the total variation. The distance depends on the direction alone. So
clipping, which only shortens an update, hides nothing, but noise turns it. The
gradient of the head's bias reveals the label of a single image (iDLG, Zhao et
al. 2020, arXiv 2001.02610).

Differences from the paper, as measured on PneumoniaMNIST and `cnn_small`:

- Softplus in place of ReLU. The second derivative of ReLU is 0 and ignores
  units that switch. With ReLU the attack fails and even moves away from the
  true image. The attacker's copy uses softplus functions that sharpen towards
  ReLU with each step. This change is decisive.
- Smooth initial images, with which most starts succeed.
- Adam with cosine decay, which does a little better than the paper's signed
  gradients with step decay.

Limit: contrast around mid-grey hardly shows in the gradient if the first
convolution is normalised and has no bias, as in `cnn_small`. Its recovery is a
matter of chance, which costs PSNR.

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
import tensorflow_federated as tff

from tff_medical import _validate

# First and last sharpness of the softplus functions.
_SHARPNESS = (1.0, 30.0)
_START_STDDEV = 0.2
_TINY = 1e-12

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Similarity(NamedTuple):
  """Similarity of two images.

  Attributes:
    psnr: Peak signal-to-noise ratio in dB, infinite for identical images.
    ssim: Structural similarity, 1 for identical images.
  """

  psnr: float
  ssim: float


def similarity(original: np.ndarray, other: np.ndarray) -> Similarity:
  """Returns the similarity of two images.

  Args:
    original: Float image [H, W, C] in 0..1, of 11 x 11 pixels or more.
    other: Float image of the same shape.
  """
  pair = [tf.constant(image, tf.float32) for image in (original, other)]
  return Similarity(
    float(tf.image.psnr(*pair, max_val=1.0)),
    float(tf.image.ssim(*pair, max_val=1.0)),
  )


def infer_label(bias_gradient: np.ndarray) -> int:
  """Returns the class of the single image behind a gradient.

  The gradient of the bias is the softmax, minus 1 at the class. So the entry of
  the class is the only one below 0.

  Args:
    bias_gradient: Gradient of the head's bias, [K].
  """
  return int(np.argmin(bias_gradient))


def gradient_of(
  model: tf.keras.Model, loss: Loss, image: np.ndarray, label: np.ndarray
) -> list[np.ndarray]:
  """Returns the update of a client that holds one image and takes one step.

  Args:
    model: Keras model from float32 [N, H, W, C] in 0..1 to logits [N, K].
    loss: Loss of (labels, logits), a mean over images.
    image: Float image [H, W, C] in 0..1.
    label: Label of the image, in the form that the loss takes.

  Returns:
    Gradient of each trainable weight: the update up to the learning rate.
  """
  gradients = _gradients(
    model, loss, tf.constant(image[np.newaxis]), tf.constant(label)[tf.newaxis]
  )
  return [gradient.numpy() for gradient in gradients]


class InversionAttack:
  """Search for the image behind an update."""

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
    """Prepares the search, which is compiled once for all updates.

    Args:
      model: Functional Keras model from float32 [N, H, W, C] in 0..1 to logits,
        with the weights that updates start from. The model is copied.
      loss: Loss of (labels, logits), a mean over images.
      iterations: Number of steps from each start.
      starts: Number of random initial images; the best result counts.
      learning_rate: Initial learning rate of Adam, in pixel values; it falls to
        0 along a cosine.
      total_variation: Weight of the total variation, the mean absolute
        difference between neighbouring pixels.

    Raises:
      InputError: A value is out of range.
    """
    _validate.positive_int(iterations=iterations, starts=starts)
    _validate.positive(learning_rate=learning_rate)
    _validate.non_negative(total_variation=total_variation)
    self._loss = loss
    self._iterations = iterations
    self._starts = starts
    self._learning_rate = learning_rate
    self._optimizer = tff.learning.optimizers.build_adam(learning_rate)
    self._total_variation = total_variation
    self._sharpness = tf.Variable(_SHARPNESS[0], trainable=False)
    self._model = _with_softplus(model, self._sharpness)
    self._search = tf.function(self._steps)

  def reconstruct(
    self, update: Sequence[np.ndarray], label: np.ndarray, seed: int
  ) -> np.ndarray:
    """Returns the image, float32 [H, W, C] in 0..1, that explains the update.

    Args:
      update: Update of each trainable weight; its length does not matter.
      label: Label of the image, in the form that the loss takes.
      seed: Seed of the initial images.
    """
    rng = np.random.default_rng(seed)
    target = [tf.constant(part, tf.float32) for part in update]
    labels = tf.constant(label)[tf.newaxis]
    shape = self._model.input_shape[1:]
    results = []
    for _ in range(self._starts):
      image, distance = self._search(target, labels, _smooth_image(rng, shape))
      results.append((float(distance), image[0].numpy()))
    return min(results, key=lambda result: result[0])[1]

  def _steps(
    self, target: list[tf.Tensor], labels: tf.Tensor, start: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the image [1, H, W, C] after all steps, and its distance."""
    image = start
    state = tf.nest.map_structure(
      tf.convert_to_tensor,
      self._optimizer.initialize(tf.TensorSpec(start.shape, start.dtype)),
    )
    low, high = _SHARPNESS
    for step in tf.range(self._iterations):
      done = tf.cast(step, tf.float32) / self._iterations
      self._sharpness.assign(low * (high / low) ** done)
      with tf.GradientTape() as tape:
        tape.watch(image)
        objective = self._distance(target, labels, image)
        objective += self._total_variation * _total_variation(image)
      gradient = tape.gradient(objective, image)
      rate = self._learning_rate * 0.5 * (1 + tf.cos(np.pi * done))
      state = self._optimizer.set_hparams(state, {'learning_rate': rate})
      state, image = self._optimizer.next(state, image, gradient)
      image = tf.clip_by_value(image, 0.0, 1.0)
    return image, self._distance(target, labels, image)

  def _distance(
    self, target: list[tf.Tensor], labels: tf.Tensor, image: tf.Tensor
  ) -> tf.Tensor:
    """Returns 1 - cosine between the image's gradient and the target."""
    gradients = _gradients(self._model, self._loss, image, labels)
    product = tf.add_n(
      [tf.reduce_sum(a * b) for a, b in zip(gradients, target)]
    )
    norms = tf.linalg.global_norm(gradients) * tf.linalg.global_norm(target)
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

  # The variable is a closure: as an attribute it would become a layer's weight.
  class Softplus(tf.keras.layers.Layer):
    """Softplus, which approaches ReLU as its sharpness grows."""

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

  From pixel-wise noise the attack rarely succeeds.
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
