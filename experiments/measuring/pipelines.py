"""Client data in the forms that TFF's programs use.

`tutorial` is the pipeline of TFF's tutorial "Federated Learning for Image
Classification", as of TFF 0.87.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

# Constants of the tutorial; the batch size is that of the workload.
_SHUFFLE_BUFFER = 100
_PREFETCH_BUFFER = 10


def slices(data: Mapping[str, np.ndarray], batch_size: int) -> tf.data.Dataset:
  """Returns batches of arrays, in their order."""
  return tf.data.Dataset.from_tensor_slices(data).batch(batch_size)


def tutorial(
  data: Mapping[str, np.ndarray], batch_size: int
) -> tf.data.Dataset:
  """Returns one epoch of shuffled batches, as TFF's tutorial makes them."""

  def batch_format_fn(element: Mapping[str, Any]) -> Mapping[str, Any]:
    shape = [-1, *data['x'].shape[1:]]
    return collections.OrderedDict(
      x=tf.reshape(element['x'], shape), y=tf.reshape(element['y'], [-1])
    )

  dataset = tf.data.Dataset.from_tensor_slices(data)
  dataset = dataset.repeat(1).shuffle(_SHUFFLE_BUFFER, seed=1)
  dataset = dataset.batch(batch_size).map(batch_format_fn)
  return dataset.prefetch(_PREFETCH_BUFFER)
