"""Models that train a part of a backbone, with the rest frozen.

| part         | what is trained                                  | frozen part    |
|--------------|--------------------------------------------------|----------------|
| `head`       | one dense layer on the features                  | all but that   |
| `last_block` | the last block, its norms and the dense layer    | before it      |
| `norms`      | scale and offset of each norm, the dense layer   | the kernels    |
| `all`        | everything                                       | nothing        |

Why: per-record gradients of a small part cost less time and less noise. Each
parameter that is trained adds noise to the sum of clipped gradients. What the
frozen part gives can be computed once for an image (`head`, `last_block`).

Batch norm has constant statistics, so that images do not influence each other.

>>> split = trainable(
...   'scattering', 'head', image_shape=(28, 28, 1), num_outputs=2, seed=0
... )
>>> split.frozen.output_shape, split.trained.count_params()
((None, 3969), 7940)
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tff_medical import _validate
from tff_medical.models import layers as layers_lib
from tff_medical.models import transfer
from tff_medical.models.backbones import backbone
from tff_medical.models.backbones import efficientnet_lite0
from tff_medical.models.backbones import keras_applications
from tff_medical.models.backbones import loading

HEAD = 'head'
PARTS = (HEAD, 'last_block', 'norms', 'all')
# By the name before a colon.
_SPLITTERS: dict[str, backbone.Splitter] = {
  efficientnet_lite0.NAME: efficientnet_lite0.split,
  keras_applications.PREFIX: keras_applications.split,
}


def trainable(
  name: str,
  part: str,
  *,
  image_shape: Sequence[int],
  num_outputs: int,
  seed: int | None = None,
  layers: Sequence[str] | None = None,
  weights: str | None = None,
  image_size: int | None = None,
) -> backbone.Split:
  """Returns a classifier on a backbone, as a frozen and a trained part.

  Args:
    name: Name of the backbone; see `loading`.
    part: Part that is trained, from `PARTS`.
    image_shape: Shape (H, W, C) of one image, with C of 1 or 3.
    num_outputs: Number of classes (2 for a binary task) or of labels.
    seed: Seed of the dense layer's initial weights; None draws fresh ones.
    layers: Names of the layers whose features the dense layer gets. For other
      parts than `head` it is one layer, which ends the network; None chooses
      the network's last.
    weights: File of weights in place of the backbone's own.
    image_size: Side in pixels that images are resized to, or None.

  Raises:
    InputError: A name is unknown, the backbone trains no such part, or the
      weights or a size cannot be used.
  """
  load = loading.find(name)
  check_part(name, part)
  _validate.positive_int(num_outputs=num_outputs)
  request = backbone.request(name, image_shape, layers, weights, image_size)
  if part == HEAD:
    return _head(load(request), num_outputs, seed)
  if request.layers is not None and len(request.layers) != 1:
    raise _validate.InputError(
      f'layers must be one name where {part!r} is trained, got '
      f'{",".join(request.layers) or "none"}; name the layer that ends the '
      'network'
    )
  seeds = layers_lib.layer_seeds(seed)

  def logits(x: tf.Tensor) -> tf.Tensor:
    return layers_lib.dense_logits(x, num_outputs, seeds)

  return _SPLITTERS[_kind(name)](request, part, logits)


def check_part(name: str, part: str) -> None:
  """Raises `InputError` if a backbone cannot train a part, without loading it.

  Args:
    name: Name of a backbone.
    part: Part that is to be trained.
  """
  _validate.one_of(PARTS, trainable=part)
  if part != HEAD and _kind(name) not in _SPLITTERS:
    raise _validate.InputError(
      f'trainable must be {HEAD!r} for backbone {name!r}, got {part!r}; choose '
      f'a backbone {" or ".join(_SPLITTERS)}, or train the head'
    )


def _kind(name: str) -> str:
  return name.partition(':')[0]


def _head(
  frozen: backbone.Backbone, num_outputs: int, seed: int | None
) -> backbone.Split:
  return backbone.Split(
    name=frozen.name,
    part=HEAD,
    origin=frozen.origin,
    layers=frozen.layers,
    image_size=frozen.image_size,
    frozen=frozen.model,
    trained=transfer.linear(frozen.model, num_outputs, seed),
  )
