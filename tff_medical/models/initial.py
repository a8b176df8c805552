"""Initial weights from a model that was trained before.

What: `InitialModel.put_into` copies the weights into a new model of the same
architecture. The last layer, 'logits', is copied only if the classes are the
same. Why: under differential privacy every parameter that is learned from
private images costs noise. Layers learned from public or generated images cost
none (Tramer and Boneh 2021, arXiv 2011.11660; De et al. 2022, arXiv
2204.13650). The guarantee of the second model does not cover the data of the
first: see `privacy.card`. `tff_medical.serving.pretrained` reads an
`InitialModel` from a SavedModel.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np
import tensorflow as tf

from tff_medical import _validate

_HEAD = 'logits'
# Keys of the initial model's card that the new card repeats. The last one names
# the model that the initial model itself started from, if any.
_STATED = ('dataset', 'epsilon', 'delta', 'unit')
_BEFORE = ('initial_model',)


@dataclasses.dataclass(frozen=True, eq=False)
class InitialModel:
  """A model that was trained before.

  Attributes:
    name: Name of the model in messages, for example its folder.
    weights: Weights of the model: the trainable ones in the order of a Keras
      model's `weights`, then the others.
    class_names: Names of the classes, in the order of the outputs.
    card: Privacy card of the model.
  """

  name: str
  weights: tuple[np.ndarray, ...]
  class_names: tuple[str, ...]
  card: dict[str, Any]

  def __post_init__(self) -> None:
    if not all(np.isfinite(w).all() for w in self.weights):
      raise _validate.InputError(
        f'initial_model {self.name} has weights that are not finite; train it '
        'again'
      )

  @property
  def provenance(self) -> dict[str, Any]:
    """Entry on this model in the card of a model that starts from it."""
    stated = {key: self.card[key] for key in _STATED}
    before = {key: self.card[key] for key in _BEFORE if key in self.card}
    return {**stated, 'sha256': self.digest, **before}

  @property
  def datasets(self) -> tuple[str, ...]:
    """Data sets of this model and of the models that it started from."""
    datasets = []
    stated: dict[str, Any] | None = self.provenance
    while stated is not None:
      datasets.append(stated['dataset'])
      stated = stated.get('initial_model')
    return tuple(datasets)

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of weights, class names and card, without its creation time."""
    card = {k: v for k, v in self.card.items() if k != 'created'}
    sha256 = hashlib.sha256(
      json.dumps([self.class_names, card], sort_keys=True).encode()
    )
    for weight in self.weights:
      sha256.update(f'{weight.shape}{weight.dtype}'.encode())
      sha256.update(np.ascontiguousarray(weight).tobytes())
    return sha256.hexdigest()

  def put_into(self, model: tf.keras.Model, class_names: Sequence[str]) -> None:
    """Copies the weights into `model`, whose outputs are `class_names`.

    Raises:
      InputError: A layer of `model` has another shape, or no layer would be
        copied.
    """
    with_head = tuple(class_names) == self.class_names
    # The order of `weights`: trainable ones first, each group in layer order.
    owners = [(layer, w) for layer in model.layers for w in layer.weights]
    owners.sort(key=lambda owner: not owner[1].trainable)
    if len(owners) != len(self.weights):
      raise _validate.InputError(
        f'initial_model {self.name} has {len(self.weights)} weights, the model '
        f'has {len(owners)}; choose the model that it was trained as'
      )
    copied = 0
    for (layer, variable), weight in zip(owners, self.weights):
      if layer.name == _HEAD and not with_head:
        continue
      if tuple(variable.shape) != weight.shape:
        raise _validate.InputError(
          f'layer {layer.name!r} has a weight of shape '
          f'{tuple(variable.shape)}, but {weight.shape} in initial_model '
          f'{self.name}; choose the model, image size and channels (grey or '
          'colour) that it was trained with'
        )
      variable.assign(weight)
      copied += 1
    if not copied:
      raise _validate.InputError(
        f'initial_model {self.name} would be ignored: only its last layer has '
        f'weights, for the classes {", ".join(self.class_names)} instead of '
        f'{", ".join(class_names)}; leave it out'
      )
