"""Backbones `savedmodel:DIR`: any network that TensorFlow has saved.

The signature `serving_default` takes float32 images [N, h, w, C] in 0..1. Each
of its float outputs is a layer: features [N, d], or maps [N, h, w, c], which
are averaged. A graph may read and write files, so that only a SavedModel that
is trusted may be loaded.

A privacy card inside, as `tff_medical.serving` writes it, says which data the
network was trained on.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Any

import tensorflow as tf

from tff_medical import _files
from tff_medical import _validate
from tff_medical.models.backbones import backbone
from tff_medical.models.backbones import features
from tff_medical.privacy import card_format

PREFIX = 'savedmodel'
_SIGNATURE = 'serving_default'
_SMALLEST = 8
# Keys of the card that the new card repeats.
_STATED = ('dataset', 'epsilon', 'delta', 'unit', 'initial_model', 'backbone')


class Served(tf.keras.layers.Layer):
  """The signature of a SavedModel as a layer without weights of its own."""

  def __init__(self, loaded: Any, outputs: tuple[str, ...], **kwargs: Any):
    super().__init__(trainable=False, **kwargs)
    self._loaded = loaded  # It holds the variables of the signature.
    self._signature = loaded.signatures[_SIGNATURE]
    self._outputs = outputs

  def call(self, inputs: tf.Tensor) -> list[tf.Tensor]:
    """Returns the chosen outputs for images [N, h, w, C] in 0..1."""
    (argument,) = self._signature.structured_input_signature[1]
    found = self._signature(**{argument: inputs})
    return [found[name] for name in self._outputs]


def load(request: backbone.Request) -> backbone.Backbone:
  """Returns the network of a SavedModel.

  Raises:
    InputError: The folder is no SavedModel, its signature does not turn images
      into features, or weights are given beside it.
  """
  request.without_weights()
  folder = pathlib.Path(request.argument)
  origin = _origin(folder)
  loaded = _loaded(request, folder)
  signature = loaded.signatures[_SIGNATURE]
  height, width, channels = _input_shape(request, signature)
  layer_names = _layer_names(request, signature)
  layers = request.chosen(layer_names, layer_names)
  inputs, x = features.images(request.image_shape, height, width)
  if channels > request.image_shape[2]:
    x = tf.keras.layers.Concatenate(name='rgb')([x, x, x])
  outputs = Served(loaded, layers, name='served')(x)
  vectors = [
    tf.keras.layers.GlobalAveragePooling2D()(output)
    if output.shape.rank == 4
    else output
    for output in outputs
  ]
  return backbone.Backbone(
    # A card does not state where a folder lies on this machine.
    name=f'{PREFIX}:{origin.source}',
    origin=origin,
    layer_names=layer_names,
    layers=layers,
    image_size=(height, width),
    model=tf.keras.Model(inputs, features.of_vectors(vectors)),
  )


def _origin(folder: pathlib.Path) -> backbone.Origin:
  """Returns what the folder's files and its card tell, before it is loaded."""
  graph = folder / 'saved_model.pb'
  if not graph.is_file():
    raise _validate.InputError(
      f'backbone {PREFIX}:{folder} must be the folder of a SavedModel, got one '
      'without saved_model.pb; check the path'
    )
  _files.check_folder('backbone', folder)
  sha256 = hashlib.sha256()
  for path in (graph, *sorted((folder / 'variables').glob('*'))):
    sha256.update(path.name.encode())
    sha256.update(backbone.digest_of_file(path).encode())
  card = _card(folder)
  return backbone.Origin(
    source=folder.resolve().name,
    sha256=sha256.hexdigest(),
    license='unknown',
    trained_on=str(card['dataset']) if card else 'unknown',
    datasets=_datasets(card),
    card={key: card[key] for key in _STATED if key in card} if card else None,
  )


def _card(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns the privacy card among the assets, or None if there is none."""
  try:
    card = _files.read_json(folder / 'assets' / card_format.FILE)
  except FileNotFoundError:
    return None
  return card_format.checked(card)


def _datasets(card: dict[str, Any] | None) -> tuple[str, ...]:
  """Returns the data sets of a model and of those that it started from."""
  if card is None:
    return ()
  names = [str(card['dataset'])] if 'dataset' in card else []
  # The entry on a backbone holds that on its training, or one for each part.
  for key in ('initial_model', 'backbone', 'card', 'parts'):
    earlier = card.get(key)
    for entry in earlier if isinstance(earlier, list) else [earlier]:
      if isinstance(entry, dict):
        names.extend(_datasets(entry))
  return tuple(names)


def _loaded(request: backbone.Request, folder: pathlib.Path) -> Any:
  """Returns the SavedModel, which has the signature."""
  try:
    loaded = tf.saved_model.load(os.fspath(folder))
    signatures = loaded.signatures
  except Exception as error:  # A damaged graph may raise anything.
    raise _validate.InputError(
      f'backbone {request.name!r} cannot be loaded ({type(error).__name__}: '
      f'{" ".join(str(error).split())[:200]}); save it again'
    ) from error
  if _SIGNATURE not in signatures:
    raise _validate.InputError(
      f'backbone {request.name!r} must have the signature {_SIGNATURE}, got '
      f'{", ".join(signatures) or "none"}; save it with that signature'
    )
  return loaded


def _input_shape(
  request: backbone.Request, signature: Any
) -> tuple[int, int, int]:
  """Returns the shape (h, w, C) of the images that the signature gets."""
  specs = list(signature.structured_input_signature[1].values())
  shape = specs[0].shape if len(specs) == 1 else tf.TensorShape(None)
  if (
    shape.rank != 4
    or specs[0].dtype != tf.float32
    or shape[0] is not None
    or shape[3] not in (1, 3)
  ):
    raise _validate.InputError(
      f'backbone {request.name!r} must take one batch of float32 images [N, h, '
      f'w, 1 or 3], got {", ".join(map(str, specs)) or "nothing"}; save a '
      'signature of images'
    )
  height, width, channels = shape[1:]
  if channels < request.image_shape[2]:
    raise _validate.InputError(
      f'backbone {request.name!r} takes grey images, got image_shape '
      f'{request.image_shape}; choose a backbone for colour'
    )
  if height is None or width is None:
    height = width = request.side(_SMALLEST)
  elif request.image_size not in (None, height, width):
    raise _validate.InputError(
      f'image_size must be {height} for backbone {request.name!r}, whose '
      f'signature fixes it, got {request.image_size}; leave it out'
    )
  return height, width, channels


def _layer_names(request: backbone.Request, signature: Any) -> tuple[str, ...]:
  """Returns the outputs that are features or maps of each image."""
  outputs = signature.structured_outputs
  names = tuple(
    name
    for name, spec in sorted(outputs.items())
    if spec.dtype == tf.float32
    and spec.shape.rank in (2, 4)
    and spec.shape[-1] is not None
  )
  if not names:
    raise _validate.InputError(
      f'backbone {request.name!r} must return float32 features [N, d] or maps '
      f'[N, h, w, c], got {", ".join(map(str, outputs.values())) or "nothing"};'
      ' save such a signature'
    )
  return names
