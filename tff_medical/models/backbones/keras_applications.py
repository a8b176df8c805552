"""Backbones `keras:NAME`: the networks of keras.applications.

Keras downloads weights of ImageNet where there is internet. Elsewhere the file
that Keras would download is given. Each network's own `preprocess_input` is
part of the backbone. Batch norm stays constant.
"""

from __future__ import annotations

from collections.abc import Callable
import difflib
import inspect
import re
import sys
from typing import Any

import tensorflow as tf

from tff_medical import _files
from tff_medical import _validate
from tff_medical.models.backbones import backbone
from tff_medical.models.backbones import constant_norms
from tff_medical.models.backbones import features

PREFIX = 'keras'
_SMALLEST = 32
_BLOCK = re.compile(r'(.*_)?block_?\d+[a-z]?(?=_)')


def _networks() -> dict[str, Callable[..., tf.keras.Model]]:
  """Returns the functions of keras.applications that build a network."""
  return {
    name: value
    for name, value in vars(tf.keras.applications).items()
    if name[:1].isupper() and inspect.isfunction(value)
  }


def _module_of(name: str) -> Any:
  """Returns the module of a network, with its `preprocess_input`."""
  return sys.modules[_networks()[name].__module__]


class Preprocessed(tf.keras.layers.Layer):
  """The pixels of a network of keras.applications, from images in 0..1."""

  def __init__(self, network: str, **kwargs: Any):
    super().__init__(**kwargs)
    self.network = network

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    """Returns [N, H, W, 3] of RGB images [N, H, W, 3] in 0..1."""
    return _module_of(self.network).preprocess_input(255.0 * inputs)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of `__init__`, from which Keras clones a layer."""
    return {**super().get_config(), 'network': self.network}


def load(request: backbone.Request) -> backbone.Backbone:
  """Returns the frozen network without its classifier.

  Raises:
    InputError: The name, a layer or the size cannot be used, or the weights can
      neither be downloaded nor read.
  """
  bare = _bare(request)
  layer_names = _layer_names(bare)
  layers = request.chosen(layer_names, _default_layers(bare, layer_names))
  network, origin = _with_weights(request, bare)
  inputs, x = _inputs(request, network)
  network.trainable = False
  cut = tf.keras.Model(
    network.input, [network.get_layer(layer).output for layer in layers]
  )
  maps = cut(x, training=False)
  maps = [maps] if len(layers) == 1 else maps
  return backbone.Backbone(
    name=request.name,
    origin=origin,
    layer_names=layer_names,
    layers=layers,
    image_size=tuple(network.input_shape[1:3]),
    model=tf.keras.Model(
      inputs, features.of_maps(maps), name=request.argument.lower()
    ),
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
    InputError: As `load` raises it, or the network has no such part.
  """
  bare = _bare(request)
  layer_names = _layer_names(bare)
  (end,) = request.chosen(layer_names, layer_names[-1:])
  start = _before_last_block(request, bare, end) if part == 'last_block' else ''
  network, origin = _with_weights(request, bare)
  inputs, x = _inputs(request, network)
  frozen = None
  output = network.get_layer(end).output
  if start:
    maps = network.get_layer(start).output
    rest = tf.keras.Model(maps, output)
    below = tf.keras.Model(network.input, maps)
    below.trainable = False
    frozen = tf.keras.Model(inputs, below(x, training=False))
    inputs = x = tf.keras.Input(frozen.output_shape[1:], name='maps')
  else:
    rest = tf.keras.Model(network.input, output)
  copied = constant_norms.copy(request.name, rest, norms_alone=part == 'norms')
  # Not nested: TFF cannot clone a copied network inside of another one.
  maps = copied.call(x)
  trained = tf.keras.Model(inputs, logits(features.of_maps([maps])))
  return backbone.Split(
    name=request.name,
    part=part,
    origin=origin,
    layers=(end,),
    image_size=tuple(network.input_shape[1:3]),
    frozen=frozen,
    trained=trained,
  )


def _before_last_block(
  request: backbone.Request, network: tf.keras.Model, end: str
) -> str:
  """Returns the layer whose output is all that the last block takes.

  Keras names a block's layers alike: 'conv5_block3_1_conv', 'block7a_add'.
  """
  names = [layer.name for layer in network.layers]
  names = names[: names.index(end) + 1]
  blocks = [match[0] for match in map(_BLOCK.match, names) if match]
  last = blocks[-1] if blocks else ''
  before, open_names = '', set()
  for name in names:
    match = _BLOCK.match(name)
    if last and match and match[0] == last:
      break
    layer = network.get_layer(name)
    open_names.add(name)
    for source in layer.inbound_nodes[0].parent_nodes:
      after = {node.layer.name for node in source.layer.outbound_nodes}
      if after <= set(names[: names.index(name) + 1]):
        open_names.discard(source.layer.name)
    if open_names == {name}:
      before = name
  if not blocks or not before:
    raise _validate.InputError(
      f'backbone {request.name!r} has no layer that begins its last block '
      f"before {end!r}; train 'head', 'norms' or 'all'"
    )
  return before


def _bare(request: backbone.Request) -> tf.keras.Model:
  """Returns the network with random weights, which costs no download."""
  build = _find(request.argument)
  side = request.side(_SMALLEST)
  try:
    return build(include_top=False, weights=None, input_shape=(side, side, 3))
  except ValueError as error:
    raise _validate.InputError(
      f'backbone {request.name!r} takes no images of {side} x {side} pixels '
      f'({error}); choose a larger image_size'
    ) from error


def _inputs(
  request: backbone.Request, network: tf.keras.Model
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the input, images in 0..1, and it as the network's own pixels."""
  side = network.input_shape[1]
  inputs, x = features.rgb_images(request.image_shape, side)
  return inputs, Preprocessed(request.argument, name='preprocessed')(x)


def _find(name: str) -> Callable[..., tf.keras.Model]:
  networks = _networks()
  if name not in networks:
    near = difflib.get_close_matches(name, networks, n=1)
    hint = f'; did you mean {PREFIX}:{near[0]}?' if near else ''
    raise _validate.InputError(
      f'backbone {PREFIX}:NAME must name one of the {len(networks)} functions '
      f'of keras.applications, such as ResNet50, got {name!r}{hint}'
    )
  return networks[name]


def _with_weights(
  request: backbone.Request, network: tf.keras.Model
) -> tuple[tf.keras.Model, backbone.Origin]:
  """Returns the network with its weights, and where they come from."""
  if request.weights is None:
    network = _downloaded(request, network)
    source, license, trained_on = (
      'keras.applications',
      'as keras.applications states it',
      'ImageNet-1k (ILSVRC 2012)',
    )
  else:
    _read(request, network)
    source, license, trained_on = (
      request.weights.rpartition('/')[2],
      'unknown',
      'unknown',
    )
  digest = backbone.digest_of(network.get_weights())
  return network, backbone.Origin(source, digest, license, trained_on)


def _downloaded(
  request: backbone.Request, network: tf.keras.Model
) -> tf.keras.Model:
  try:
    return _find(request.argument)(
      include_top=False,
      weights='imagenet',
      input_shape=network.input_shape[1:],
    )
  except Exception as error:  # Keras raises a plain Exception.
    raise _validate.InputError(
      f'weights of backbone {request.name!r} cannot be downloaded by Keras '
      f'({error}); fetch that file elsewhere and give it as weights '
      '(--backbone_weights=FILE)'
    ) from error


def _read(request: backbone.Request, network: tf.keras.Model) -> None:
  path = request.weights
  try:
    with _files.open_regular(str(path)):
      pass  # Keras would take another path for a prefix of a checkpoint.
    network.load_weights(path)
  except Exception as error:  # Keras and HDF5 raise errors of many kinds.
    reason = ' '.join(str(error).split())[:200]
    raise _validate.InputError(
      f'weights file {path} cannot be loaded into backbone {request.name!r} '
      f'({reason}); give the file that Keras publishes for this network without '
      'its top (notop)'
    ) from error


def _layer_names(network: tf.keras.Model) -> tuple[str, ...]:
  """Returns the layers with maps [N, h, w, c] that Keras gives a name.

  Names that Keras counts up, such as 'multiply_17', change from one network to
  the next in a process. They and zero padding are left out.
  """
  return tuple(
    layer.name
    for layer in network.layers
    if isinstance(layer.output, type(network.output))
    and layer.output.shape.rank == 4
    and not isinstance(
      layer, (tf.keras.layers.InputLayer, tf.keras.layers.ZeroPadding2D)
    )
    and not _is_counted(layer)
  )


def _is_counted(layer: tf.keras.layers.Layer) -> bool:
  kind = re.escape(type(layer).__name__.lower())
  plain = layer.name.replace('_', '')
  return layer.name.startswith('tf.') or bool(
    re.fullmatch(rf'{kind}\d*', plain)
  )


def _default_layers(
  network: tf.keras.Model, names: tuple[str, ...]
) -> tuple[str, ...]:
  """Returns the last layer, and the last one of twice its resolution."""
  last = names[-1]
  height = network.get_layer(last).output.shape[1]
  larger = [n for n in names if network.get_layer(n).output.shape[1] > height]
  return (*larger[-1:], last)
