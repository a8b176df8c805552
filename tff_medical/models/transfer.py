"""Transfer: the frozen and the trained part of a network.

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

# Function of (num_outputs, seed) that returns the Keras model from features, or
# from images if no part is frozen, to logits [N, num_outputs].
TrainedPart = Callable[[int, 'int | None'], tf.keras.Model]


@dataclasses.dataclass(frozen=True, eq=False)
class Transfer:
  """The frozen and the trained part of a network.

  Attributes:
    frozen: Keras model without trainable weights, from float32 images [N, H, W,
      C] in 0..1 to float32 features [N, ...]. It treats each image on its own.
      None if the trained part takes images.
    identity: What the features depend on besides the image, as plain JSON:
      name, layers, image size, digest of the weights. Equal identities give
      equal features.
    provenance: Entry of a privacy card on the network.
    build_trained: Function that builds the trained part with its initial
      weights.
  """

  frozen: tf.keras.Model | None
  identity: Mapping[str, Any]
  provenance: Mapping[str, Any]
  build_trained: TrainedPart

  @property
  def feature_shape(self) -> tuple[int, ...] | None:
    """Shape of the features of one image; None if nothing is frozen."""
    return tuple(self.frozen.output_shape[1:]) if self.frozen else None

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of the identity, in hexadecimal."""
    text = json.dumps(self.identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  @functools.cached_property
  def compute(self) -> Callable[[tf.Tensor], tf.Tensor]:
    """The frozen part as one graph, for any number of images."""
    frozen = self.frozen
    if frozen is None:
      raise ValueError('nothing is frozen')
    images = tf.TensorSpec((None, *frozen.input_shape[1:]), tf.float32)
    return tf.function(
      lambda x: frozen(x, training=False), input_signature=[images]
    )


def linear(
  frozen: tf.keras.Model, num_outputs: int, seed: int | None
) -> tf.keras.Model:
  """Returns one dense layer on the features of a frozen part.

  Args:
    frozen: Keras model whose output are the features.
    num_outputs: Number of classes or findings.
    seed: Seed of the initial weights; None draws fresh ones.
  """
  inputs = tf.keras.Input(shape=frozen.output_shape[1:], name='features')
  x = inputs
  if len(frozen.output_shape) > 2:
    x = tf.keras.layers.Flatten()(x)
  x = layers.dense_logits(x, num_outputs, layers.layer_seeds(seed))
  return tf.keras.Model(inputs, x)
