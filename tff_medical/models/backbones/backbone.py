"""What a backbone is, what is asked of one, and where its weights come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import difflib
import hashlib
import os
from typing import Any

import numpy as np
import tensorflow as tf

from tff_medical import _files
from tff_medical import _validate
from tff_medical.models import checks

# Number of names that an error lists.
_FEW = 20
# Side in pixels that small images are enlarged to, and that larger ones are
# shrunk to: networks for ImageNet were trained at the second one.
_SMALL = 96
_LARGE = 224


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where the weights of a backbone come from, for the privacy card.

  Attributes:
    source: What holds the weights: a package, a file's name or 'none'.
    sha256: SHA-256 of the weights; '' if there are none.
    license: Licence of the weights, or 'unknown'.
    trained_on: Data that the weights were trained on, 'nothing' or 'unknown'.
    datasets: Names of data sets that a privacy card states, so that a backbone
      that was trained on the same data can be refused.
    card: Entry on the backbone's own training in its privacy card, if any.
  """

  source: str
  sha256: str
  license: str
  trained_on: str
  datasets: tuple[str, ...] = ()
  card: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
  """A frozen network that turns images into features of unit norm.

  Attributes:
    name: Name that the backbone was loaded by.
    origin: Where its weights come from.
    layer_names: Names of the layers that features can be taken from, in order.
    layers: Names of the layers that they are taken from.
    image_size: Height and width in pixels that the network gets.
    model: Keras model from float32 images [N, H, W, C] in 0..1 to float32
      features [N, D] of unit norm. It has no trainable weights.
  """

  name: str
  origin: Origin
  layer_names: tuple[str, ...]
  layers: tuple[str, ...]
  image_size: tuple[int, int]
  model: tf.keras.Model

  @property
  def num_features(self) -> int:
    """Number D of features of an image."""
    return int(self.model.output_shape[-1])

  @property
  def provenance(self) -> dict[str, Any]:
    """Entry on the backbone in a privacy card, fit for JSON."""
    return _stated(self.name, self.layers, self.image_size, self.origin)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """A network with a classifier, of which a part is trained.

  Attributes:
    name: Name that the backbone was loaded by.
    part: What is trained: 'head', 'last_block', 'norms' or 'all'.
    origin: Where the weights of the backbone come from.
    layers: Names of the layers whose features the classifier gets.
    image_size: Height and width in pixels that the network gets.
    frozen: Keras model from float32 images [N, H, W, C] in 0..1 to what
      `trained` takes: features [N, D] or maps [N, h, w, c]. None if `trained`
      takes the images themselves.
    trained: Keras model to logits [N, num_outputs], which TFF can train. With
      its initial weights the features are those of the frozen backbone.
  """

  name: str
  part: str
  origin: Origin
  layers: tuple[str, ...]
  image_size: tuple[int, int]
  frozen: tf.keras.Model | None
  trained: tf.keras.Model

  @property
  def provenance(self) -> dict[str, Any]:
    """Entry on the backbone in a privacy card, fit for JSON."""
    stated = _stated(self.name, self.layers, self.image_size, self.origin)
    return {**stated, 'trained_part': self.part}

  def joined(self) -> tf.keras.Model:
    """Returns both parts as one Keras model from images to logits.

    It shares the weights of `trained`, and may be made before or after them.
    """
    checks.restore_eager(self.trained)
    if self.frozen is None:
      return self.trained
    inputs = tf.keras.Input(self.frozen.input_shape[1:], name='image')
    # Not nested: Keras cannot clone a model of models.
    return tf.keras.Model(inputs, self.trained.call(self.frozen.call(inputs)))


def _stated(
  name: str,
  layers: Sequence[str],
  image_size: Sequence[int],
  origin: Origin,
) -> dict[str, Any]:
  stated: dict[str, Any] = {
    'name': name,
    'layers': list(layers),
    'image_size': list(image_size),
    'source': origin.source,
    'sha256': origin.sha256,
    'license': origin.license,
    'trained_on': origin.trained_on,
  }
  return stated if origin.card is None else {**stated, 'card': origin.card}


@dataclasses.dataclass(frozen=True)
class Request:
  """What the caller of `load` asks for.

  Attributes:
    name: Full name of the backbone.
    image_shape: Shape (H, W, C) of one image, with C of 1 or 3.
    layers: Names of layers, or None for the backbone's own choice.
    weights: File of weights, or None for the backbone's own.
    image_size: Side in pixels that the network gets, or None for its choice.
  """

  name: str
  image_shape: tuple[int, int, int]
  layers: tuple[str, ...] | None = None
  weights: str | None = None
  image_size: int | None = None

  def __post_init__(self) -> None:
    if len(self.image_shape) != 3 or self.image_shape[2] not in (1, 3):
      raise _validate.InputError(
        'image_shape must be (height, width, 1 or 3 channels), got '
        f'{self.image_shape}'
      )
    height, width, _ = self.image_shape
    _validate.positive_int(height=height, width=width)
    if self.image_size is not None:
      _validate.positive_int(image_size=self.image_size)

  @property
  def argument(self) -> str:
    """What follows the first colon of the name."""
    return self.name.partition(':')[2]

  def without_weights(self) -> None:
    """Raises `InputError` if a file of weights is given."""
    if self.weights is not None:
      raise _validate.InputError(
        f'weights must not be given for backbone {self.name!r}, which has no '
        f'others, got {self.weights!r}; leave them out'
      )

  def side(self, smallest: int, multiple: int = 1) -> int:
    """Returns the side in pixels of the square images that the network gets.

    Args:
      smallest: Smallest side that the network takes.
      multiple: Number that the side must be a multiple of.

    Raises:
      InputError: The asked side is too small or no multiple.
    """
    if self.image_size is None:
      side = min(max(max(self.image_shape[:2]), _SMALL), _LARGE)
      return -(-max(side, smallest) // multiple) * multiple
    if self.image_size < smallest or self.image_size % multiple:
      form = f'a multiple of {multiple} and ' if multiple > 1 else ''
      raise _validate.InputError(
        f'image_size must be {form}at least {smallest} for backbone '
        f'{self.name!r}, got {self.image_size}; choose such a size'
      )
    return self.image_size

  def chosen(
    self, names: Sequence[str], default: Sequence[str]
  ) -> tuple[str, ...]:
    """Returns the layers to take features from, in the order of the network.

    Args:
      names: Names that may be chosen, in order.
      default: Names that are taken if none is asked for.

    Raises:
      InputError: A name is unknown or twice among the layers, or none is there.
    """
    if self.layers is None:
      return tuple(default)
    for layer in self.layers:
      check_layer(self.name, layer, names)
    if not self.layers or len(set(self.layers)) < len(self.layers):
      raise _validate.InputError(
        'layers must be different names, at least one, got '
        f'{",".join(self.layers) or "none"}; name each layer once'
      )
    return tuple(name for name in names if name in self.layers)


def request(
  name: str,
  image_shape: Sequence[int],
  layers: Sequence[str] | None,
  weights: str | None,
  image_size: int | None,
) -> Request:
  """Returns the `Request` of these values, with sequences made tuples."""
  shape = tuple(image_shape)
  return Request(
    name=name,
    image_shape=shape,  # type: ignore[arg-type]
    layers=None if layers is None else tuple(layers),
    weights=weights,
    image_size=image_size,
  )


def check_layer(backbone: str, layer: str, names: Sequence[str]) -> None:
  """Raises `InputError`, with the nearest name, unless `layer` is among `names`."""
  if layer in names:
    return
  near = difflib.get_close_matches(layer, names, n=1)
  listed = names
  if len(names) > _FEW:
    # Hundreds of names help nobody; the last ones have the largest features.
    listed = (*names[: _FEW // 2], '...', *names[-_FEW // 2 :])
  hint = f'; did you mean {near[0]!r}?' if near else ''
  raise _validate.InputError(
    f'layers of backbone {backbone!r} must be among {", ".join(listed)}, got '
    f'{layer!r}{hint}'
  )


def digest_of(weights: Sequence[np.ndarray]) -> str:
  """Returns the SHA-256 of arrays: their shapes, types and values in order."""
  sha256 = hashlib.sha256()
  for weight in weights:
    sha256.update(f'{weight.shape}{weight.dtype}'.encode())
    sha256.update(np.ascontiguousarray(weight).tobytes())
  return sha256.hexdigest()


def digest_of_file(path: str | os.PathLike[str]) -> str:
  """Returns the SHA-256 of a file.

  Raises:
    InputError: The file cannot be read.
  """
  try:
    return _files.sha256(path)
  except OSError as error:
    raise _validate.InputError(
      f'weights file {path} cannot be read ({error.strerror}); check the path'
    ) from error


# Makes a backbone of one kind.
Loader = Callable[[Request], Backbone]
# Returns logits [N, num_outputs] of features [N, D], both Keras tensors.
Classifier = Callable[[tf.Tensor], tf.Tensor]
# Of (request, part, classifier); makes the model that trains a part.
Splitter = Callable[[Request, str, Classifier], Split]
