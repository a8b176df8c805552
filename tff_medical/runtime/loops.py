"""Loops over a client's batches inside the graph.

TFF's client work reads its data with `tf.data.Dataset.reduce`. This is a single
op, `ReduceDataset`, which runs the training loop inside itself.
`reduce_sequence` builds the same reduction as a loop of the graph around the
same function. The loop reads an iterator of the dataset or, faster, slices of
tensors (`Slices`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import dataset_options_pb2

# Operations on int32 scalars take and give host memory, on a GPU too. A loop
# whose counters are int64 waits for the GPU several times a batch.
_INDEX = tf.int32

Step = Callable[[Sequence[tf.Tensor], Sequence[tf.Tensor]], list]


class Batches(abc.ABC):
  """Batches of one client inside a graph, which a loop can read."""

  @abc.abstractmethod
  def to_variant(self) -> tf.Tensor:
    """Returns the same batches as the variant tensor of a dataset."""

  @abc.abstractmethod
  def reduce(self, step: Step, state: list, shapes: list) -> list[tf.Tensor]:
    """Returns the fold of `step(state, batch)` over all batches.

    Args:
      step: Function of the flat state and the flat components of a batch.
      state: Initial state.
      shapes: Shape of each part of the state.
    """


@dataclasses.dataclass(frozen=True)
class Slices(Batches):
  """Batches of one client inside a graph, as slices of whole tensors.

  Attributes:
    components: Flat components of all examples, each `[examples, ...]`.
    batch_size: Number of examples in a batch, a scalar.
    epochs: Number of repetitions of the batches, a scalar.
    drop_remainder: Whether an incomplete batch is left out, a scalar bool.
  """

  components: tuple[tf.Tensor, ...]
  batch_size: tf.Tensor
  epochs: tf.Tensor
  drop_remainder: tf.Tensor

  def batches(self) -> tf.Tensor:
    """Returns the number of batches in one epoch, int64, on the CPU."""
    examples = tf.shape(self.components[0])[0]
    with tf.device('/device:CPU:0'):
      examples = tf.cast(examples, tf.int64)
      size = tf.cast(self.batch_size, tf.int64)
      extra = tf.where(self.drop_remainder, tf.zeros_like(size), size - 1)
      return (examples + extra) // size

  def batch(self, index: tf.Tensor, size: tf.Tensor) -> list[tf.Tensor]:
    """Returns the flat components of one batch of an epoch.

    Args:
      index: Number of the batch.
      size: Batch size, in the type of the number.
    """
    start = index * size
    return [c[start : start + size] for c in self.components]

  def to_variant(self) -> tf.Tensor:
    """Returns the same batches as the variant tensor of a dataset."""
    with tf.device('/device:CPU:0'):
      dataset = (
        tf.data.Dataset.range(self.batches())
        .map(
          tf.autograph.experimental.do_not_convert(
            lambda i: tuple(self.batch(i, self.batch_size))
          )
        )
        .repeat(self.epochs)
      )
      return tuned(tf.data.experimental.to_variant(dataset), plain=True)

  def reduce(self, step: Step, state: list, shapes: list) -> list[tf.Tensor]:
    """Returns the fold of `step(state, batch)` over all batches."""
    return _over_slices(step, self, state, shapes)


def tuned(variant: tf.Tensor, plain: bool) -> tf.Tensor:
  """Returns a dataset with options for how TensorFlow runs it.

  Args:
    variant: Variant tensor of the dataset.
    plain: Whether TensorFlow neither rewrites nor tunes the dataset. Both take
      longer than a small dataset itself, whenever an iterator is made.
  """
  options = dataset_options_pb2.Options()
  if plain:
    options.autotune_options.enabled = False
    options.optimization_options.apply_default_optimizations = False
  # Memory would hold as many elements as TensorFlow finds useful.
  options.optimization_options.inject_prefetch = False
  with tf.device('/device:CPU:0'):
    # A dataset's iterator knows its types; this operation does not use them.
    return tf.raw_ops.OptionsDataset(
      input_dataset=variant,
      serialized_options=options.SerializeToString(),
      output_types=[tf.int32],
      output_shapes=[None],
    )


def reduce_sequence(
  node: Any,
  function: Any,
  sequence: Batches | tf.Tensor,
  inputs: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
  """Returns the outputs of a `ReduceDataset` node, computed by a loop.

  Args:
    node: `NodeDef` of the reduction.
    function: `FunctionDef` of the reduction's function, which is part of the
      current graph.
    sequence: Batches, or the variant tensor of a dataset.
    inputs: Initial state, followed by the captured arguments.
  """
  size = len(node.attr['Tstate'].list.type)
  shapes = [tf.TensorShape(s) for s in node.attr['output_shapes'].list.shape]
  state, captured = list(inputs[:size]), list(inputs[size:])
  attribute = node.attr['f'].func
  options = node.attr['config_proto'].s  # Of the call, or empty.

  def step(state: Sequence[tf.Tensor], batch: Sequence[tf.Tensor]) -> list:
    outputs = tf.raw_ops.StatefulPartitionedCall(
      args=[*state, *batch, *captured],
      Tout=[s.dtype for s in state],
      f=attribute,
      config_proto=options,
    )
    for output, shape in zip(outputs, shapes):
      output.set_shape(shape)
    return list(outputs)

  if isinstance(sequence, Batches):
    return sequence.reduce(step, state, shapes)
  arguments = function.signature.input_arg
  elements = arguments[size : len(arguments) - len(captured)]
  types = [tf.as_dtype(e.type) for e in elements]
  return over_iterator(step, sequence, types, state, shapes)


def _over_slices(
  step: Step, slices: Slices, state: list, shapes: list
) -> list[tf.Tensor]:
  batches = slices.batches()
  with tf.device('/device:CPU:0'):
    # No loop of 2**31 steps ends.
    total = tf.minimum(batches * slices.epochs, _INDEX.max)
    total, batches, size = (
      tf.cast(n, _INDEX) for n in (total, batches, slices.batch_size)
    )
  _, *result = tf.while_loop(
    lambda i, *_: i < total,
    lambda i, *state: (i + 1, *step(state, slices.batch(i % batches, size))),
    (tf.constant(0, _INDEX), *state),
    shape_invariants=(tf.TensorShape([]), *shapes),
  )
  return result


def over_iterator(
  step: Step,
  variant: tf.Tensor,
  types: list,
  state: list,
  shapes: list,
  at_once: int = 10,
) -> list[tf.Tensor]:
  """Returns the fold of `step(state, element)` over a dataset.

  Args:
    step: Function of the flat state and the flat components of an element.
    variant: Variant tensor of the dataset.
    types: Type of each component.
    state: Initial state.
    shapes: Shape of each part of the state.
    at_once: Number of iterations that run at once, so that reading runs ahead.
  """
  # Control dependencies order the ops: an imported graph has no automatic ones.
  spec = {'output_types': types, 'output_shapes': [None] * len(types)}
  with tf.device('/device:CPU:0'):
    iterator = tf.raw_ops.AnonymousIteratorV3(**spec)
    made = tf.raw_ops.MakeIterator(dataset=variant, iterator=iterator)

  def following(*after: tf.Operation | tf.Tensor) -> tf.Tensor:
    with tf.device('/device:CPU:0'), tf.control_dependencies(after):
      return tf.raw_ops.IteratorGetNextAsOptional(iterator=iterator, **spec)

  def has_value(element: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
    with tf.device('/device:CPU:0'):
      return tf.raw_ops.OptionalHasValue(optional=element)

  def body(element: tf.Tensor, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
    with tf.device('/device:CPU:0'):
      batch = tf.raw_ops.OptionalGetValue(optional=element, **spec)
    return (following(*batch), *step(state, batch))

  _, *result = tf.while_loop(
    has_value,
    body,
    (following(made), *state),
    shape_invariants=(tf.TensorShape([]), *shapes),
    parallel_iterations=at_once,
  )
  return result
