"""Local steps of SGD that many clients take at once, each on its own weights.

After its first step a client has weights of its own. So the weights of a group
of clients get a leading axis here, and all clients take each step together.
`tf.vectorized_map` makes batched products [clients, p, q] of the products of
dense layers. Thousands of small operations become a few large ones.

Each client takes the steps that it would take alone: its batches of
`batch_size` images in their order, in each epoch. A step beyond a client's last
batch changes nothing. `batched_clients` clips and sums the results.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.learning import augmentation as augmentation_lib
from tff_medical.learning import exact_gradients
from tff_medical.learning import unit_gradients
from tff_medical.runtime import precision


@dataclasses.dataclass(frozen=True)
class LocalSteps:
  """Steps of plain SGD that each client takes in a round.

  Attributes:
    batch_size: Number of images in one step; the last batch of an epoch may
      have fewer.
    epochs: Number of passes over a client's images.
    proximal_strength: Weight mu of FedProx; see
      `client_training.with_proximal_term`.
  """

  batch_size: int
  epochs: int = 1
  proximal_strength: float = 0.0

  def __post_init__(self) -> None:
    _validate.positive_int(batch_size=self.batch_size, epochs=self.epochs)
    _validate.non_negative(proximal_strength=self.proximal_strength)


def check(model: tff.learning.models.FunctionalModel) -> None:
  """Raises `InputError` unless clients of a model can take steps at once.

  Dense layers and operations on single numbers can. Convolutions cannot: they
  have no form in which each image has its own filters.
  """
  exact_gradients.find_way(model, (_at_copies_of_weights,))


def updates(
  model: tff.learning.models.FunctionalModel,
  steps: LocalSteps,
  augmentation: augmentation_lib.Augmentation | None,
  rate: tf.Tensor,
  weights: tff.learning.models.ModelWeights,
  batch: unit_gradients.Batch,
) -> tuple[tf.Tensor, ...]:
  """Returns the first minus the last weights of each client, [C, ...].

  Args:
    model: Functional model that `check` accepts.
    steps: Steps of each client.
    augmentation: Transformations of the images, new ones in each step, if
      given.
    rate: Learning rate.
    weights: Weights from which all clients start.
    batch: C clients in the layout of `unit_gradients.batch_spec`.
  """
  batch = unit_gradients.without_padding(batch)
  start = _copies(weights.trainable, tf.shape(batch['mask'])[0])
  frozen = tuple(weights.non_trainable)
  batches = _batches(batch, steps.batch_size)
  count = tf.shape(batches['mask'])[0]
  way = functools.partial(gradients, model)

  @tf.autograph.experimental.do_not_convert
  def take_step(number: tf.Tensor, own: Any) -> tuple[tf.Tensor, Any]:
    x, y, mask = (batches[k][number % count] for k in ('x', 'y', 'mask'))
    views = unit_gradients.views_of(x, augmentation)
    slopes = precision.apart(way, (own, frozen), views, y, mask)
    if steps.proximal_strength:
      pull = steps.proximal_strength * unit_gradients.is_unit(
        collections.OrderedDict(mask=mask)
      )
      slopes = [
        g + _along(pull, g) * (w - w0) for g, w, w0 in zip(slopes, own, start)
      ]
    return number + 1, tuple(w - rate * g for w, g in zip(own, slopes))

  _, end = tf.while_loop(
    lambda number, _: number < steps.epochs * count,
    take_step,
    (tf.constant(0), start),
    parallel_iterations=1,
  )
  return tuple(w0 - w for w0, w in zip(start, end))


def gradients(
  model: tff.learning.models.FunctionalModel,
  weights: unit_gradients.Weights,
  x: tf.Tensor,
  y: tf.Tensor,
  mask: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
  """Returns the gradient of each client's mean loss at its own weights.

  Args:
    model: Functional model with one output.
    weights: Trainable weights [C, ...] of each client, and the others [...].
    x: Views of the clients' images, [C, K, views, ...].
    y: Labels [C, K, ...].
    mask: 1 for images and 0 for padding, float32 [C, K].

  Raises:
    ValueError: An operation of the model has no batched form.
  """

  def gradient(client: tuple[Any, ...]) -> tuple[tf.Tensor, ...]:
    own, *images = client
    return unit_gradients.gradient_of_unit(
      model, (own, weights[1]), tuple(images)
    )

  return tf.vectorized_map(
    gradient, (weights[0], x, y, mask), fallback_to_while_loop=False
  )


def _batches(
  batch: unit_gradients.Batch, size: int
) -> collections.OrderedDict[str, tf.Tensor]:
  """Returns the batches [batches, C, size, ...] of clients [C, K, ...].

  Clients of no more than one batch keep their K images. TensorFlow takes a
  batch out of the first axis without a copy.
  """
  images = tf.shape(batch['mask'])[1]
  missing = -images % size

  def divided(values: tf.Tensor) -> tf.Tensor:
    others = values.shape[2:].as_list()
    padding = [(0, 0), (0, missing), *((0, 0) for _ in others)]
    parts = tf.reshape(
      tf.pad(values, padding),
      (tf.shape(values)[0], -1, size, *others),
    )
    return tf.transpose(parts, (1, 0, *range(2, parts.shape.rank)))

  return tf.cond(
    images <= size,
    lambda: tf.nest.map_structure(lambda v: v[tf.newaxis], batch),
    lambda: tf.nest.map_structure(divided, batch),
  )


def _at_copies_of_weights(
  model: tff.learning.models.FunctionalModel,
  weights: unit_gradients.Weights,
  x: tf.Tensor,
  y: tf.Tensor,
  mask: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
  """Returns `gradients` where all clients have the same weights."""
  copies = _copies(weights[0], tf.shape(x)[0])
  return gradients(model, (copies, weights[1]), x, y, mask)


def _copies(weights: Any, clients: tf.Tensor) -> tuple[tf.Tensor, ...]:
  """Returns weights [C, ...] of weights [...]."""
  return tuple(tf.broadcast_to(w, (clients, *w.shape)) for w in weights)


def _along(values: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
  """Returns values [C] with the rank of others [C, ...]."""
  return tf.reshape(values, (-1, *[1] * (others.shape.rank - 1)))
