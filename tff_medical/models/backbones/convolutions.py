"""Convolutions with their batch norm, frozen or trained.

A network says which kernels it has; a `ConvBuilder` says how they become Keras
layers. The statistics of batch norm are constant in each of them, so that the
same images give the same output.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tff_medical.models import frozen_layers


@dataclasses.dataclass(frozen=True, eq=False)
class ConvNorm:
  """Constants of a convolution without bias and of its norm.

  Attributes:
    kernel: Kernel [h, w, in, out], or [h, w, C, 1] if it is depthwise.
    scale: Factor of each output channel, [C].
    offset: Offset of each output channel, [C].
    stride: Stride along both axes; the padding is 'same'.
    is_depthwise: Whether each channel has a kernel of its own.
  """

  kernel: np.ndarray
  scale: np.ndarray
  offset: np.ndarray
  stride: int = 1
  is_depthwise: bool = False

  @property
  def folded_kernel(self) -> np.ndarray:
    """Kernel whose output needs no scale."""
    scale = self.scale[:, np.newaxis] if self.is_depthwise else self.scale
    return self.kernel * scale


# Of (input, constants, name); returns the output.
ConvBuilder = Callable[[tf.Tensor, ConvNorm, str], tf.Tensor]


def folded(x: tf.Tensor, constants: ConvNorm, name: str) -> tf.Tensor:
  """Returns the frozen convolution, with the norm folded into its kernel."""
  layer = _convolution(constants, name, is_frozen=True, use_bias=True)
  y = layer(x)
  layer.set_weights([constants.folded_kernel, constants.offset])
  return y


def trained(x: tf.Tensor, constants: ConvNorm, name: str) -> tf.Tensor:
  """Returns a convolution and an `Affine` norm, which are both trained."""
  return _with_norm(x, constants, name, is_frozen=False)


def norm_trained(x: tf.Tensor, constants: ConvNorm, name: str) -> tf.Tensor:
  """Returns a frozen convolution and an `Affine` norm, which is trained."""
  return _with_norm(x, constants, name, is_frozen=True)


def _with_norm(
  x: tf.Tensor, constants: ConvNorm, name: str, is_frozen: bool
) -> tf.Tensor:
  layer = _convolution(constants, name, is_frozen, use_bias=False)
  x = layer(x)
  layer.set_weights([constants.kernel])
  norm = frozen_layers.Affine(name=f'{name}_norm')
  x = norm(x)
  norm.set_weights([constants.scale, constants.offset])
  return x


def _convolution(
  constants: ConvNorm, name: str, is_frozen: bool, use_bias: bool
) -> tf.keras.layers.Layer:
  options: dict[str, Any] = {
    'kernel_size': constants.kernel.shape[:2],
    'strides': constants.stride,
    'padding': 'same',
    'use_bias': use_bias,
    'name': name,
  }
  # The kernel is replaced at once, so it needs no random numbers.
  if constants.is_depthwise:
    kind = (
      frozen_layers.FrozenDepthwiseConv2D
      if is_frozen
      else tf.keras.layers.DepthwiseConv2D
    )
    return kind(depthwise_initializer='zeros', **options)
  plain = frozen_layers.FrozenConv2D if is_frozen else tf.keras.layers.Conv2D
  return plain(constants.kernel.shape[3], kernel_initializer='zeros', **options)
