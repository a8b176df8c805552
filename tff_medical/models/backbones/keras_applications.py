"""Backbones `keras:NAME`: the networks of keras.applications.

Keras downloads weights of ImageNet where there is internet. Elsewhere the file
that Keras would download is given. Each network's own `preprocess_input` is
part of the backbone. Batch norm stays constant.
"""

from __future__ import annotations

from collections.abc import Callable
import difflib
import inspect
import sys
from typing import Any

import tensorflow as tf

from tff_medical import _files
from tff_medical import _validate
from tff_medical.models.backbones import backbone
from tff_medical.models.backbones import features

PREFIX = 'keras'
_SMALLEST = 32


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
  name = request.argument
  build = _find(name)
  side = request.side(_SMALLEST)
  network = _without_weights(request, build, side)
  layer_names = _layer_names(network)
  layers = request.chosen(layer_names, _default_layers(network, layer_names))
  network, origin = _with_weights(request, build, network)
  inputs, x = features.rgb_images(request.image_shape, side)
  network.trainable = False
  cut = tf.keras.Model(
    network.input, [network.get_layer(layer).output for layer in layers]
  )
  maps = cut(Preprocessed(name)(x), training=False)
  maps = [maps] if len(layers) == 1 else maps
  return backbone.Backbone(
    name=request.name,
    origin=origin,
    layer_names=layer_names,
    layers=layers,
    image_size=(side, side),
    model=tf.keras.Model(inputs, features.of_maps(maps), name=name.lower()),
  )


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


def _without_weights(
  request: backbone.Request, build: Callable[..., tf.keras.Model], side: int
) -> tf.keras.Model:
  try:
    return build(include_top=False, weights=None, input_shape=(side, side, 3))
  except ValueError as error:
    raise _validate.InputError(
      f'backbone {request.name!r} takes no images of {side} x {side} pixels '
      f'({error}); choose a larger image_size'
    ) from error


def _with_weights(
  request: backbone.Request,
  build: Callable[..., tf.keras.Model],
  network: tf.keras.Model,
) -> tuple[tf.keras.Model, backbone.Origin]:
  """Returns the network with its weights, and where they come from."""
  if request.weights is None:
    network = _downloaded(request, build, network)
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
  request: backbone.Request,
  build: Callable[..., tf.keras.Model],
  network: tf.keras.Model,
) -> tf.keras.Model:
  try:
    return build(
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
  """Returns the layers with maps [N, h, w, c], without padding and input."""
  return tuple(
    layer.name
    for layer in network.layers
    if isinstance(layer.output, type(network.output))
    and layer.output.shape.rank == 4
    and not isinstance(
      layer, (tf.keras.layers.InputLayer, tf.keras.layers.ZeroPadding2D)
    )
  )


def _default_layers(
  network: tf.keras.Model, names: tuple[str, ...]
) -> tuple[str, ...]:
  """Returns the last layer, and the last one of twice its resolution."""
  last = names[-1]
  height = network.get_layer(last).output.shape[1]
  larger = [n for n in names if network.get_layer(n).output.shape[1] > height]
  return (*larger[-1:], last)
