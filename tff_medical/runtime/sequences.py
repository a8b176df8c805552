"""TFF's operations on sequences, as datasets inside a graph.

A sequence in a graph is the variant tensor of a dataset. TFF orders the leaves
of an element by its type, whereas a dataset sorts the keys of a mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.runtime import loops
from tff_medical.runtime import values


def _order(element: tff.Type) -> list[int]:
  """Returns the number of the leaf in each component of a dataset."""
  counter = iter(range(len(list(values.leaf_types(element)))))

  def number(type_spec: tff.Type) -> Any:
    if not isinstance(type_spec, tff.StructType):
      return next(counter)
    items = [(n, number(t)) for n, t in tff.structure.iter_elements(type_spec)]
    if items and items[0][0] is not None:
      return dict(items)
    return tuple(i for _, i in items)

  return tf.nest.flatten(number(element))


def _open(
  sequence: tf.Tensor | loops.Batches, element: tff.Type
) -> tf.data.Dataset:
  """Returns the dataset of a sequence, whose elements are flat tuples."""
  if isinstance(sequence, loops.Batches):
    sequence = sequence.to_variant()
  leaves = [leaf.member for leaf in values.leaf_types(element)]
  spec = [tff.types.type_to_tf_tensor_specs(leaves[i]) for i in _order(element)]
  return tf.data.experimental.from_variant(sequence, tuple(spec))


def _leaves(components: Sequence[tf.Tensor], element: tff.Type) -> list:
  pairs = sorted(zip(_order(element), components), key=lambda pair: pair[0])
  return [component for _, component in pairs]


def _call_apart(
  function: Callable[..., Sequence[tf.Tensor]], *args: tf.Tensor
) -> Sequence[tf.Tensor]:
  """Returns the result of a function of tensors, built as a separate graph.

  In a `tf.function` TensorFlow orders operations with side effects by control
  dependencies. That breaks loops that TFF has lowered.
  """
  specs = [tf.TensorSpec(arg.shape, arg.dtype) for arg in args]
  apart = tf.compat.v1.wrap_function(lambda *args: list(function(*args)), specs)
  return apart(*args)


def _close(
  dataset: tf.data.Dataset,
  function: Callable[..., Sequence[tf.Tensor]],
  element: tff.Type,
) -> tf.Tensor:
  """Returns the variant of a dataset mapped to elements of a type."""
  order = _order(element)

  @tf.autograph.experimental.do_not_convert
  def mapped(*args: Any) -> tuple[tf.Tensor, ...]:
    leaves = _call_apart(function, *args)
    return tuple(leaves[i] for i in order)

  return tf.data.experimental.to_variant(dataset.map(mapped))


def from_rows(
  rows: tf.Tensor,
  function: Callable[[tf.Tensor], Sequence[tf.Tensor]],
  element: tff.Type,
) -> tf.Tensor:
  """Returns the sequence of the elements `function(row)`, given as leaves."""
  with tf.device('/device:CPU:0'):
    return _close(tf.data.Dataset.from_tensor_slices(rows), function, element)


def apply(
  sequence: tf.Tensor | loops.Batches,
  element: tff.Type,
  function: Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]],
  result: tff.Type,
) -> tf.Tensor:
  """Returns the sequence of the elements `function(leaves)`."""
  with tf.device('/device:CPU:0'):
    return _close(
      _open(sequence, element),
      lambda *components: function(_leaves(components, element)),
      result,
    )


def reduce(
  sequence: tf.Tensor | loops.Batches,
  element: tff.Type,
  state: Sequence[tf.Tensor],
  function: Callable[[Sequence, Sequence], Sequence[tf.Tensor]],
) -> list[tf.Tensor]:
  """Returns the fold of `function(state, leaves)` over a sequence."""
  size = len(state)

  @tf.autograph.experimental.do_not_convert
  def step(state: Sequence, components: Sequence) -> tuple[tf.Tensor, ...]:
    def apart(*args: tf.Tensor) -> Sequence[tf.Tensor]:
      state, components = args[:size], args[size:]
      return function(state, _leaves(components, element))

    return tuple(_call_apart(apart, *state, *components))

  with tf.device('/device:CPU:0'):
    return list(_open(sequence, element).reduce(tuple(state), step))
