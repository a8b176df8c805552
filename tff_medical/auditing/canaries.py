"""Canaries: units whose contribution is a random direction of the auditor.

Canaries enter a run as data. So the audited client work, clipping, noise and
server are those of every run. The image (or features) of canary i has the value
-10**6 - i everywhere, which no real image has. `with_canaries` returns a model
whose loss on such an image is linear in the weights. The gradient of that loss
points along direction i and is far longer than the clip norm. A canary therefore sends
its direction at the clip norm. This holds for the update of a client (Andrew et
al. 2023, arXiv 2302.03098) and for the gradient of a record or patient. If
clipping fails, the contribution is far longer.

A coin decides whether each of the `Canaries` takes part (Steinke et al. 2023,
arXiv 2305.08846). All canaries count in the population and are drawn for rounds
like other units. Those that do not take part have no data.
`tff_medical.auditing.canary_audit` looks for the canaries in the published
models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import secrets
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical import runtime
from tff_medical.data import examples
from tff_medical.program import client_groups
from tff_medical.program import feeds

# Length of a canary's contribution over the clip norm. It is large because
# adaptive clipping may raise the clip norm during training.
_OVER_CLIP_NORM = 1000.0
_LOWEST = -1e6  # No pixel and no feature is as low as the value of a canary.
# Float32 holds each integer of the values of so many canaries.
_MAX_CANARIES = 2**24 + int(_LOWEST)
_MAX_CHUNK_FLOATS = 2**23


@dataclasses.dataclass(frozen=True, eq=False)
class Canaries:
  """Canaries of one audit, secret until the training is over.

  Attributes:
    included: Whether each canary takes part, bool [m].
    key: Seed of the directions, an int32.
  """

  included: np.ndarray
  key: int

  def __len__(self) -> int:
    return len(self.included)

  @classmethod
  def draw(cls, count: int) -> Canaries:
    """Returns `count` canaries; the operating system draws coins and key."""
    _validate.positive_int(canaries=count)
    if count > _MAX_CANARIES:
      raise _validate.InputError(
        f'canaries must be at most {_MAX_CANARIES}, got {count}'
      )
    rng = np.random.default_rng(secrets.randbits(128))
    return cls(rng.random(count) < 0.5, secrets.randbits(31))

  def inputs(
    self, indices: np.ndarray, input_shape: tuple[int, ...]
  ) -> np.ndarray:
    """Returns the inputs, float32 [n, *input_shape], of these canaries."""
    values = np.float32(_LOWEST) - np.asarray(indices, np.float32)
    ones = (1,) * len(input_shape)
    return np.broadcast_to(
      values.reshape((-1, *ones)), (len(values), *input_shape)
    )

  def directions(self, dimensions: int) -> Iterator[np.ndarray]:
    """Yields the directions of a few canaries at a time, [n, dimensions]."""
    rows = max(1, _MAX_CHUNK_FLOATS // dimensions)
    for start in range(0, len(self), rows):
      numbers = range(start, min(start + rows, len(self)))
      yield np.stack(
        [_direction(self.key, n, dimensions).numpy() for n in numbers]
      )


def _direction(key: int, number: int | tf.Tensor, dimensions: int) -> tf.Tensor:
  """Returns an isotropic direction, float32, of about unit length.

  The first version of the random op is used, as `tf.vectorized_map` supports
  it.
  """
  normal = tf.raw_ops.StatelessRandomNormal(
    shape=[dimensions], seed=tf.stack([key, number])
  )
  return normal / np.float32(dimensions**0.5)


def with_canaries(
  model: tff.learning.models.FunctionalModel,
  canaries: Canaries,
  *,
  length: float,
  by_unit: bool = False,
) -> tff.learning.models.FunctionalModel:
  """Returns a model that trains like `model` except on images of canaries.

  Its predictions have one more column: the canary's loss, 0 for other images. A
  batch holds at most one canary; in DP-SGD each unit does.

  Args:
    model: Functional model that takes images or features [N, ...] above -10**6
      and has one output [N, K].
    canaries: Canaries of the audit.
    length: Approximate length of a canary's gradient.
    by_unit: Whether units train in `tf.vectorized_map`, as in DP-SGD and as
      clients in one batch do. A
      direction is then made for every unit. `tf.vectorized_map` runs a branch
      of `tf.cond` even for no units, and its fallback for random ops fails on
      none.
  """
  sizes = [int(np.size(w)) for w in model.initial_weights[0]]

  @tf.function
  def predict(weights: Any, x: Any, training: bool = True) -> tf.Tensor:
    lowest = tf.reduce_min(x, axis=range(1, x.shape.rank))
    is_canary = lowest <= _LOWEST
    outputs = model.predict_on_batch(
      weights, tf.where(x <= _LOWEST, 0.0, x), training
    )
    outputs = tf.where(
      is_canary[:, tf.newaxis], tf.zeros_like(outputs), outputs
    )
    number = tf.cast(tf.round(_LOWEST - tf.reduce_min(lowest)), tf.int32)

    def direction() -> tf.Tensor:
      return length * _direction(canaries.key, number, sum(sizes))

    chosen = (
      direction()
      if by_unit
      else tf.cond(
        tf.reduce_any(is_canary), direction, lambda: tf.zeros([sum(sizes)])
      )
    )
    loss = _dot(weights[0], tf.split(chosen, sizes))
    loss = tf.where(is_canary, loss, 0.0)
    return tf.concat([outputs, loss[:, tf.newaxis]], axis=1)

  def loss(output: Any, label: Any, sample_weight: Any = None) -> tf.Tensor:
    # The outputs for a canary are constants, so the first term has no gradient.
    model_loss = model.loss(output[:, :-1], label, sample_weight)
    return model_loss + tf.reduce_mean(output[:, -1])

  return tff.learning.models.FunctionalModel(
    initial_weights=model.initial_weights,
    predict_on_batch_fn=predict,
    loss_fn=loss,
    input_spec=model.input_spec,
  )


def _dot(weights: Sequence[tf.Tensor], parts: list[tf.Tensor]) -> tf.Tensor:
  products = [
    tf.reduce_sum(tf.reshape(weight, [-1]) * part)
    for weight, part in zip(weights, parts)
  ]
  return tf.add_n(products)


def gradient_length(clip_norm: float, client_learning_rate: float) -> float:
  """Returns a `length` whose contribution is far above the clip norm.

  Args:
    clip_norm: Clip norm of the first round.
    client_learning_rate: Learning rate that turns a gradient into an update; 1
      if units send the gradient itself.
  """
  return _OVER_CLIP_NORM * clip_norm / client_learning_rate


@dataclasses.dataclass(frozen=True, eq=False)
class CanaryFeed:
  """Feed whose last units are canaries.

  Attributes:
    inner: Feed of the other units.
    canaries: Canaries of the audit.
    input_shape: Shape of what the model takes for an image: (H, W, C) of its
      pixels, or the shape of its features.
    label_shape: Shape of a label: () or, multi-label, (K,). The label itself
      has no effect.
    keeps_absent: Whether canaries that do not take part join as clients without
      data, which send zero. This is needed if each client adds a share of the
      noise.
  """

  inner: feeds.ClientFeed | feeds.UnitFeed | client_groups.ClientGroupFeed
  canaries: Canaries
  input_shape: tuple[int, ...]
  label_shape: tuple[int, ...] = ()
  keeps_absent: bool = False

  @property
  def num_units(self) -> int:
    """Number of units, including canaries that do not take part."""
    return self.inner.num_units + len(self.canaries)

  def without_data(self) -> list[tf.data.Dataset]:
    """Returns the datasets of a round without data."""
    return self.inner.without_data()

  def __call__(self, indices: np.ndarray) -> list[tf.data.Dataset]:
    """Returns the datasets of a round.

    With a feed of units the drawn canaries form one more site, and with one of
    groups of clients one more group.

    Args:
      indices: Indices of the drawn units, int [n].
    """
    others = self.inner.num_units
    numbers = indices[indices >= others] - others
    included = self.canaries.included[numbers]
    datasets = list(self.inner(indices[indices < others]))
    if isinstance(self.inner, feeds.UnitFeed):
      site = self._site(numbers[included], self.inner.microbatch_size)
      return [*datasets, site]
    if isinstance(self.inner, client_groups.ClientGroupFeed):
      return [*datasets, self._site(numbers[included], self.inner.size.clients)]
    datasets += [self._client(numbers[[n]]) for n in np.flatnonzero(included)]
    if self.keeps_absent:
      datasets += [self._client(numbers[:0])] * int((~included).sum())
    return datasets

  def _client(self, numbers: np.ndarray) -> tf.data.Dataset:
    return runtime.tensor_dataset(self._examples(numbers), batch_size=1)

  def _site(self, numbers: np.ndarray, batch_size: int) -> tf.data.Dataset:
    arrays = examples.of_single_images(**self._examples(numbers))
    return runtime.tensor_dataset(arrays, batch_size=batch_size)

  def _examples(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
    label_type = np.float32 if self.label_shape else np.int64
    return {
      'x': self.canaries.inputs(numbers, self.input_shape),
      'y': np.zeros((len(numbers), *self.label_shape), label_type),
    }
