"""Fixed features: frozen layers, and the layers that are trained behind them.

Under differential privacy a small model on fixed features beats a network that
is trained from scratch (Tramer and Boneh 2021, arXiv 2011.11660). The frozen
layers never change, so `learning.feature_cache` computes them once an image.
The trained layers take the features. Both are one model in the export.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import json
from typing import Any, Callable

import tensorflow as tf

from tff_medical.models import layers

# Function of (features' shape, num_outputs, seed) that returns the Keras model
# from features [N, ...] to logits [N, num_outputs].
TrainedPart = Callable[[tuple[int, ...], int, 'int | None'], tf.keras.Model]


@dataclasses.dataclass(frozen=True, eq=False)
class FixedFeatures:
  """Frozen layers and what is trained behind them.

  Attributes:
    model: Keras model without trainable weights, from float32 images [N, H, W,
      C] in 0..1 to float32 features [N, ...]. It treats each image on its own.
    identity: What the features depend on besides the image, as plain JSON:
      name, layers, image size, digest of the weights. Equal identities give
      equal features.
    provenance: Entry of a privacy card on the frozen layers.
    trained_part: Function that builds the layers behind the features.
  """

  model: tf.keras.Model
  identity: Mapping[str, Any]
  provenance: Mapping[str, Any]
  trained_part: TrainedPart

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the features of one image."""
    return tuple(self.model.output_shape[1:])

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of the identity, in hexadecimal."""
    text = json.dumps(self.identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  @functools.cached_property
  def compute(self) -> Callable[[tf.Tensor], tf.Tensor]:
    """The frozen layers as one graph, for any number of images."""
    images = tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32)
    return tf.function(
      lambda x: self.model(x, training=False), input_signature=[images]
    )

  def build_trained(
    self, num_outputs: int, seed: int | None = None
  ) -> tf.keras.Model:
    """Returns the trained layers with new initial weights.

    Args:
      num_outputs: Number of classes or findings.
      seed: Seed of the initial weights; None draws fresh ones.

    Returns:
      Keras model from features, float32 [N, ...], to logits [N, num_outputs].
    """
    return self.trained_part(self.shape, num_outputs, seed)


def linear(
  shape: tuple[int, ...], num_outputs: int, seed: int | None
) -> tf.keras.Model:
  """Returns one dense layer on features; see `TrainedPart`."""
  inputs = tf.keras.Input(shape=shape, name='features')
  x = inputs if len(shape) == 1 else tf.keras.layers.Flatten()(inputs)
  x = layers.dense_logits(x, num_outputs, layers.layer_seeds(seed))
  return tf.keras.Model(inputs, x)
