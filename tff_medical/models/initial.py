"""A model that was trained before, from whose weights another may start.

What: `InitialModel.put_into` copies the weights into a new model of the same
architecture; the last layer, 'logits', only where the classes are the same
ones. Why: under differential privacy every parameter that must be learned from
private images costs noise; layers learned from public or generated images cost
none (Tramer and Boneh 2021, arXiv 2011.11660; De et al. 2022, arXiv
2204.13650). The data of the first model is not covered by the guarantee of the
second: see `privacy.card`. `tff_medical.serving.pretrained` reads one from a SavedModel.
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
_STATED = ('dataset', 'epsilon', 'delta', 'unit')
_BEFORE = ('initial_model',)  # From which that model started in its turn.


@dataclasses.dataclass(frozen=True, eq=False)
class InitialModel:
  """A model that was trained before.

  Attributes:
    name: How messages call it, for example its folder.
    weights: Its arrays: the trainable ones in the order of a Keras model's
      `weights`, then the others.
    class_names: What its outputs are.
    card: Its privacy card.
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
    """What the card of a model that starts from this one says of it."""
    stated = {key: self.card[key] for key in _STATED}
    before = {key: self.card[key] for key in _BEFORE if key in self.card}
    return {**stated, 'sha256': self.digest, **before}

  @property
  def datasets(self) -> tuple[str, ...]:
    """The data of this model, and of those that it started from in turn."""
    found = []
    stated: dict[str, Any] | None = self.provenance
    while stated is not None:
      found.append(stated['dataset'])
      stated = stated.get('initial_model')
    return tuple(found)

  @functools.cached_property
  def digest(self) -> str:
    """The SHA-256 of weights, class names and card, but for its time."""
    card = {k: v for k, v in self.card.items() if k != 'created'}
    found = hashlib.sha256(
      json.dumps([self.class_names, card], sort_keys=True).encode()
    )
    for weight in self.weights:
      found.update(f'{weight.shape}{weight.dtype}'.encode())
      found.update(np.ascontiguousarray(weight).tobytes())
    return found.hexdigest()

  def put_into(self, model: tf.keras.Model, class_names: Sequence[str]) -> None:
    """Copies the weights into `model`, whose outputs are `class_names`.

    Raises:
      InputError: A layer has other shapes here, or nothing would be copied.
    """
    with_head = tuple(class_names) == self.class_names
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
