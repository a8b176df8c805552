"""Values of leaves as objects that can be pickled, and back.

A tensor travels as an array. An array of zeros that all clients share, such as
the total of no client, travels as its shape. A dataset that is a recipe travels
as the recipe, and its data is loaded where it arrives. Any other dataset travels
with its data.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tff_medical.runtime import recipes
from tff_medical.runtime import tensor_data


@dataclasses.dataclass(frozen=True)
class _Slices:
  """Arguments of a `tensor_data.TensorDataset`, as arrays."""

  tensors: Any
  batch_size: int
  epochs: int
  drop_remainder: bool


@dataclasses.dataclass(frozen=True)
class _Graph:
  """Serialized graph of a dataset, with its data."""

  graph_def: bytes


@dataclasses.dataclass(frozen=True)
class _Zeros:
  """Array of which all bytes are 0."""

  shape: tuple[int, ...]
  dtype: np.dtype[Any]


def encode(value: Any) -> Any:
  """Returns a value of a leaf in a form that can be pickled.

  Args:
    value: Tensor, array, dataset, or variant tensor of a dataset.

  Raises:
    tf.errors.OpError: A dataset depends on something outside of it, such as a
      Python function.
  """
  if isinstance(value, recipes.RecipeDataset):
    return value.recipe
  if isinstance(value, tensor_data.TensorDataset):
    tensors, batch_size, epochs, drop_remainder = value.arguments
    arrays = tf.nest.map_structure(_array, tensors)
    return _Slices(arrays, batch_size, epochs, drop_remainder)
  if isinstance(value, tf.data.Dataset):
    value = tf.data.experimental.to_variant(value)
  if isinstance(value, tf.Tensor) and value.dtype == tf.variant:
    graph = tf.raw_ops.DatasetToGraphV2(
      input_dataset=value, external_state_policy=2
    )
    return _Graph(graph.numpy())
  return _array(value)


def encode_shared(value: Any) -> Any:
  """Returns a value that all clients share, as `encode` does, or as its shape.

  A pass reads the total of no client, which is as large as the weights.

  Args:
    value: See `encode`.
  """
  value = encode(value)
  if isinstance(value, np.ndarray) and _is_zero(value):
    return _Zeros(value.shape, value.dtype)
  return value


def decode(value: Any) -> Any:
  """Returns what `encode` or `encode_shared` was given, or its equal.

  Args:
    value: Encoded value.

  Raises:
    InputError: The source of a recipe cannot be opened.
  """
  if isinstance(value, recipes.Recipe):
    return recipes.load(value)
  if isinstance(value, _Slices):
    with tf.device('CPU:0'):
      tensors = tf.nest.map_structure(tf.convert_to_tensor, value.tensors)
    return tensor_data.TensorDataset(
      tensors, value.batch_size, value.epochs, value.drop_remainder
    )
  if isinstance(value, _Zeros):
    return tf.convert_to_tensor(np.zeros(value.shape, value.dtype))
  if isinstance(value, _Graph):
    return tf.raw_ops.DatasetFromGraph(graph_def=value.graph_def)
  return value


def cost(value: Any) -> float:
  """Returns the expected work on an encoded value at a client."""
  if isinstance(value, recipes.Recipe):
    return value.cost
  if isinstance(value, _Slices):
    return float(len(tf.nest.flatten(value.tensors)[0])) * value.epochs
  return 0.0


def _is_zero(value: np.ndarray) -> bool:
  """Returns whether all bytes are 0, which those of -0.0 are not."""
  if value.dtype.kind not in 'biuf' or value.dtype.itemsize > 8:
    return False
  whole = np.dtype(f'u{value.dtype.itemsize}')
  return not np.ascontiguousarray(value).view(whole).any()


def _array(value: Any) -> Any:
  return value.numpy() if isinstance(value, tf.Tensor) else np.asarray(value)
