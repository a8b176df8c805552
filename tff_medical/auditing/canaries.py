"""Canaries: units whose contribution is a random direction of the auditor's.

They enter a run as data, so that the client work, the clipping, the noise and
the server that are audited are those of every run. The image of canary i has
-i - 1 in every pixel, which no image has; `with_canaries` makes a model for
which the loss of such an image is linear in the weights, with a gradient along
direction i that is far longer than the clip norm. What a canary sends is then
its direction at the clip norm, be it a client's update (Andrew et al. 2023,
arXiv 2302.03098) or the gradient of a record or patient; where clipping fails,
it is far more.

Of `Canaries`, each takes part or not by a coin (Steinke et al. 2023, arXiv
2305.08846). All of them count in the population, and are drawn for rounds like
others; those that do not take part have no data. `tff_medical.auditing.canary_audit` finds them
again in what the training publishes.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import secrets
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical import runtime
from tff_medical.data import examples
from tff_medical.program import feeds

# Of a canary's contribution over the clip norm. Adaptive clipping may raise the
# clip norm on the way, so it has to be large.
_OVER_CLIP_NORM = 1000.0
_MAX_CANARIES = 2**24  # as float32 pixels, which are exact up to here
_MAX_CHUNK_FLOATS = 2**23


@dataclasses.dataclass(frozen=True, eq=False)
class Canaries:
  """Who the canaries are, secret until the training is over.

  Attributes:
    included: bool [m], whether each takes part.
    key: Makes their directions, an int32.
  """

  included: np.ndarray
  key: int

  def __len__(self) -> int:
    return len(self.included)

  @classmethod
  def draw(cls, count: int) -> Canaries:
    """Returns `count` canaries; coins and key are the operating system's."""
    _validate.positive_int(canaries=count)
    if count > _MAX_CANARIES:
      raise _validate.InputError(
        f'canaries must be at most {_MAX_CANARIES}, got {count}'
      )
    rng = np.random.default_rng(secrets.randbits(128))
    return cls(rng.random(count) < 0.5, secrets.randbits(31))

  def images(
    self, indices: np.ndarray, image_shape: tuple[int, ...]
  ) -> np.ndarray:
    """Returns the images, float32 [n, H, W, C], of these canaries."""
    values = -np.asarray(indices, np.float32) - 1
    return np.broadcast_to(
      values.reshape((-1, 1, 1, 1)), (len(values), *image_shape)
    )

  def directions(self, dimensions: int) -> Iterator[np.ndarray]:
    """Yields float32 [n, dimensions], in all a row a canary, a few at a time."""
    rows = max(1, _MAX_CHUNK_FLOATS // dimensions)
    for start in range(0, len(self), rows):
      numbers = range(start, min(start + rows, len(self)))
      yield np.stack(
        [_direction(self.key, n, dimensions).numpy() for n in numbers]
      )


def _direction(key: int, number: Any, dimensions: int) -> tf.Tensor:
  """Returns an isotropic direction, float32, of about unit length.

  The op's first version, as `tf.vectorized_map` knows it.
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
  """Returns a model that trains like `model`, but for the images of canaries.

  Its predictions have one more column: the canary's loss, 0 for other images. A
  batch holds one canary at most, in the DP-SGD of units each unit does.

  Args:
    model: Takes images [N, H, W, C] of no negative pixel, and has one output
      [N, K].
    canaries: Who they are.
    length: Of the gradient of a canary, about.
    by_unit: Whether units train in `tf.vectorized_map`, as in DP-SGD. A
      direction is then made for every unit, as that map runs a conditional
      branch for no unit at all, and its fallback for random ops fails there.
  """
  sizes = [int(np.size(w)) for w in model.initial_weights[0]]

  @tf.function
  def predict(weights: Any, x: Any, training: bool = True) -> tf.Tensor:
    lowest = tf.reduce_min(x, axis=(1, 2, 3))
    is_canary = lowest < -0.5
    outputs = model.predict_on_batch(weights, tf.nn.relu(x), training)
    outputs = tf.where(
      is_canary[:, tf.newaxis], tf.zeros_like(outputs), outputs
    )
    number = tf.cast(tf.round(-tf.reduce_min(lowest)), tf.int32) - 1

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
    honest = model.loss(output[:, :-1], label, sample_weight)
    return honest + tf.reduce_mean(output[:, -1])

  return tff.learning.models.FunctionalModel(
    initial_weights=model.initial_weights,
    predict_on_batch_fn=predict,
    loss_fn=loss,
    input_spec=model.input_spec,
  )


def _dot(weights: Any, parts: list[tf.Tensor]) -> tf.Tensor:
  products = [
    tf.reduce_sum(tf.reshape(weight, [-1]) * part)
    for weight, part in zip(weights, parts)
  ]
  return tf.add_n(products)


def gradient_length(clip_norm: float, client_learning_rate: float) -> float:
  """Returns a `length` whose contribution is far above the clip norm.

  Args:
    clip_norm: The first clip norm.
    client_learning_rate: The step that makes a gradient an update; 1 where the
      gradient itself is sent.
  """
  return _OVER_CLIP_NORM * clip_norm / client_learning_rate


@dataclasses.dataclass(frozen=True, eq=False)
class CanaryFeed:
  """A feed whose last units are canaries.

  Attributes:
    inner: The feed of the others.
    canaries: Who they are.
    image_shape: (H, W, C).
    label_shape: () or, multi-label, (K,); the label plays no part.
    keeps_absent: Whether clients that do not take part are there without data,
      and send zero: where each client adds its share of the noise, it must.
  """

  inner: feeds.ClientFeed | feeds.UnitFeed
  canaries: Canaries
  image_shape: tuple[int, ...]
  label_shape: tuple[int, ...] = ()
  keeps_absent: bool = False

  @property
  def num_units(self) -> int:
    """The population, canaries that do not take part included."""
    return self.inner.num_units + len(self.canaries)

  def without_data(self) -> list[tf.data.Dataset]:
    """Returns the datasets of a round without data."""
    return self.inner.without_data()

  def __call__(self, indices: np.ndarray) -> list[tf.data.Dataset]:
    """Returns the datasets of a round; canaries of units form one more site."""
    others = self.inner.num_units
    numbers = indices[indices >= others] - others
    included = self.canaries.included[numbers]
    datasets = list(self.inner(indices[indices < others]))
    if isinstance(self.inner, feeds.UnitFeed):
      site = self._site(numbers[included], self.inner.microbatch_size)
      return [*datasets, site]
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
      'x': self.canaries.images(numbers, self.image_shape),
      'y': np.zeros((len(numbers), *self.label_shape), label_type),
    }
