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
from typing import Any

import tensorflow as tf

from tff_medical import _validate

_ATTRIBUTE = '_tff_medical_batches'
_MAX_BATCH_SIZE = 1_000_000


@dataclasses.dataclass(frozen=True)
class TensorBatches:
  """Tensors and options of a dataset of `tensor_dataset`.

  Attributes:
    components: Flat components of all examples, each `[examples, ...]`.
    options: Batch size, epochs and whether to drop the remainder, as scalars.
  """

  components: tuple[tf.Tensor, ...]
  options: tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def tensor_dataset(
  tensors: Any,
  *,
  batch_size: int,
  epochs: int = 1,
  drop_remainder: bool = False,
) -> tf.data.Dataset:
  """Returns the dataset of batches of `tensors`, in the given order.

  The dataset equals
  `from_tensor_slices(tensors).batch(batch_size).repeat(epochs)`. Datasets
  derived from it (`.map`, `.take`, ...) are ordinary ones.

  Args:
    tensors: Structure of arrays with one row per example, `[N, ...]`.
    batch_size: Number of examples in a batch; the last batch of an epoch may
      have fewer.
    epochs: Number of repetitions of the batches.
    drop_remainder: Whether a last, incomplete batch is left out.

  Raises:
    InputError: A number is out of range.
  """
  _validate.positive_int(batch_size=batch_size, epochs=epochs)
  # TensorFlow allocates memory for a whole batch, however few its examples.
  _validate.within(1, _MAX_BATCH_SIZE, batch_size=batch_size)
  with tf.device('CPU:0'):
    tensors = tf.nest.map_structure(tf.convert_to_tensor, tensors)
    dataset = tf.data.Dataset.from_tensor_slices(tensors)
    dataset = dataset.batch(batch_size, drop_remainder).repeat(epochs)
    options = (
      tf.constant(batch_size, tf.int64),
      tf.constant(epochs, tf.int64),
      tf.constant(drop_remainder),
    )
  batches = TensorBatches(tuple(tf.nest.flatten(tensors)), options)
  setattr(dataset, _ATTRIBUTE, batches)
  return dataset


def batches_of(dataset: tf.data.Dataset) -> TensorBatches | None:
  """Returns the tensors behind a dataset, if `tensor_dataset` made it."""
  return getattr(dataset, _ATTRIBUTE, None)
