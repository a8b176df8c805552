"""Client datasets whose examples stay in memory as whole tensors.

`tensor_dataset` returns an ordinary `tf.data.Dataset` that works in any TFF
runtime and any pipeline. The local runtime recognises the tensors behind the
dataset. It trains on slices of them without building an iterator each round.

>>> import numpy as np
>>> dataset = tensor_dataset({'x': np.arange(5.0)}, batch_size=2)
>>> [len(batch['x']) for batch in dataset]
[2, 2, 1]
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import tensorflow as tf

from tff_medical import _validate
from tff_medical.runtime import lazy_data

_MAX_BATCH_SIZE = 1_000_000


@dataclasses.dataclass(frozen=True)
class TensorBatches:
  """Batches that are consecutive rows of tensors.

  Attributes:
    components: Flat components of all examples, each `[examples, ...]`.
    options: The vector `[first, end, batch_size, epochs, drop_remainder]` of
      int64. Rows `first` to `end - 1` are batched in each epoch.
  """

  components: tuple[tf.Tensor, ...]
  options: tf.Tensor

  @classmethod
  def create(
    cls,
    components: tuple[tf.Tensor, ...],
    rows: tuple[int, int],
    batch_size: int,
    epochs: int,
    drop_remainder: bool,
  ) -> TensorBatches:
    """Returns the batches of the rows `rows[0]` to `rows[1] - 1`."""
    options = [*rows, batch_size, epochs, int(drop_remainder)]
    with tf.device('CPU:0'):
      return cls(components, tf.constant(options, tf.int64))


class TensorDataset(lazy_data.LazyDataset):
  """Dataset of `tensor_dataset`; the local runtime reads `batches` alone.

  Attributes:
    arguments: Tensors, batch size, epochs, and whether an incomplete last batch
      is left out.
    batches: Tensors and options of the dataset.
  """

  def __init__(
    self, tensors: Any, batch_size: int, epochs: int, drop_remainder: bool
  ):
    self.arguments = (tensors, batch_size, epochs, drop_remainder)
    components = tuple(tf.nest.flatten(tensors))
    rows = (0, components[0].shape[0])
    self.batches = TensorBatches.create(
      components, rows, batch_size, epochs, drop_remainder
    )
    self._is_set = True

  @functools.cached_property
  def built(self) -> tf.data.Dataset:
    """The same dataset, made by `tf.data`."""
    tensors, batch_size, epochs, drop_remainder = self.arguments
    with tf.device('CPU:0'):
      dataset = tf.data.Dataset.from_tensor_slices(tensors)
      return dataset.batch(batch_size, drop_remainder).repeat(epochs)

  @property
  def element_spec(self) -> Any:
    """Structure of the specs of a batch."""
    tensors, batch_size, _, drop_remainder = self.arguments
    size = batch_size if drop_remainder else None
    return tf.nest.map_structure(
      lambda t: tf.TensorSpec([size, *t.shape[1:]], t.dtype), tensors
    )


def tensor_dataset(
  tensors: Any,
  *,
  batch_size: int,
  epochs: int = 1,
  drop_remainder: bool = False,
) -> tf.data.Dataset:
  """Returns the dataset of batches of `tensors`, in the given order.

  The dataset equals
  `from_tensor_slices(tensors).batch(batch_size).repeat(epochs)`.

  Args:
    tensors: Structure of arrays with one row per example, `[N, ...]`. Changes
      of the arrays after the call have no effect.
    batch_size: Number of examples in a batch; the last batch of an epoch may
      have fewer.
    epochs: Number of repetitions of the batches.
    drop_remainder: Whether a last, incomplete batch is left out.

  Raises:
    InputError: A number is out of range, or the arrays differ in length.
  """
  _validate.positive_int(batch_size=batch_size, epochs=epochs)
  # TensorFlow allocates memory for a whole batch, however few its examples.
  _validate.within(1, _MAX_BATCH_SIZE, batch_size=batch_size)
  with tf.device('CPU:0'):
    tensors = tf.nest.map_structure(tf.convert_to_tensor, tensors)
  shapes = [tuple(t.shape) for t in tf.nest.flatten(tensors)]
  if not shapes or () in shapes or len({s[0] for s in shapes}) > 1:
    raise _validate.InputError(
      'tensors must be arrays with one row per example, got the shapes '
      f'{shapes}; give all of them the same first dimension'
    )
  return TensorDataset(tensors, batch_size, epochs, drop_remainder)
