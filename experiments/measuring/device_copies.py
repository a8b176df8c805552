"""Counts what a turn of a client's loop would do on a GPU, without one.

TensorFlow registers for every operation whether it has a kernel for GPUs, and
which of its inputs and outputs are in the memory of the CPU even then. A value
that is made in one memory and read in the other is copied. Where the CPU reads,
it waits for the GPU. Nothing is measured: the counts say neither how long a
kernel takes nor what TensorFlow's optimizer merges or removes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import function_def_to_graph
from tensorflow.python.framework import kernels

_CALLS = ('PartitionedCall', 'StatefulPartitionedCall')
_LOOPS = ('While', 'StatelessWhile')
_BRANCHES = ('If', 'StatelessIf')
# Types that functions and loops hand on in the memory of the CPU.
_ON_CPU = (tf.int32, tf.string, tf.resource)
# Operations without work of their own.
_FREE = ('Const', 'Identity', 'NoOp', 'Placeholder', 'StopGradient', 'Reshape')


@dataclasses.dataclass(frozen=True)
class Turn:
  """One turn of a loop, from its condition to the end of its body.

  Attributes:
    kernels: Number of operations that run on the GPU.
    to_cpu: Tensors that are copied to the CPU.
    to_gpu: Tensors that are copied to the GPU.
  """

  kernels: int = 0
  to_cpu: tuple[str, ...] = ()
  to_gpu: tuple[str, ...] = ()

  def __add__(self, other: Turn) -> Turn:
    return Turn(
      self.kernels + other.kernels,
      self.to_cpu + other.to_cpu,
      self.to_gpu + other.to_gpu,
    )


def turns(graph: tf.Graph) -> list[Turn]:
  """Returns a turn of each outermost loop of a graph.

  Both branches of a condition inside count.
  """
  library = {f.signature.name: f for f in graph.as_graph_def().library.function}
  return list(_turns(graph, library))


def _turns(graph: tf.Graph, library: Mapping[str, Any]) -> Iterator[Turn]:
  for op in graph.get_operations():
    if op.type in _LOOPS:
      turn = _inside(op, library)
      # The condition is read on the CPU.
      (result,) = _graph(op, 'cond', library).outputs
      if not _is_on_cpu(result):
        turn += Turn(to_cpu=(result.name,))
      yield turn
    elif op.type in _CALLS:
      yield from _turns(_graph(op, 'f', library), library)


def _inside(op: tf.Operation, library: Mapping[str, Any]) -> Turn:
  """Returns the work inside of the functions that an operation runs."""
  keys = [k for k in op.node_def.attr if op.node_def.attr[k].HasField('func')]
  return sum((_work(_graph(op, key, library), library) for key in keys), Turn())


def _graph(op: tf.Operation, key: str, library: Mapping[str, Any]) -> Any:
  return function_def_to_graph.function_def_to_graph(
    library[op.get_attr(key).name]
  )


def _work(graph: tf.Graph, library: Mapping[str, Any]) -> Turn:
  total = Turn()
  copied = set()
  for op in graph.get_operations():
    if op.type in (*_CALLS, *_LOOPS, *_BRANCHES):
      total += _inside(op, library)
    elif op.type not in _FREE and _kernel(op) is not None:
      total += Turn(kernels=0 if _is_scalar_work(op) else 1)
    for tensor, on_cpu in zip(op.inputs, _reads_on_cpu(op)):
      if on_cpu != _is_on_cpu(tensor):
        copied.add((tensor.name, on_cpu))
  return total + Turn(
    to_cpu=tuple(sorted(name for name, on_cpu in copied if on_cpu)),
    to_gpu=tuple(sorted(name for name, on_cpu in copied if not on_cpu)),
  )


def _is_scalar_work(op: tf.Operation) -> bool:
  """Returns whether all of an operation's values are in the CPU's memory."""
  return all(map(_is_on_cpu, op.outputs)) and all(_reads_on_cpu(op))


def _kernel(op: tf.Operation) -> Any:
  """Returns the kernel that runs an operation on a GPU, or None."""
  if 'CPU' in op.device:
    return None
  for kernel in kernels.get_registered_kernels_for_op(op.type).kernel:
    if kernel.device_type == 'GPU' and all(
      op.get_attr(c.name).as_datatype_enum in c.allowed_values.list.type
      for c in kernel.constraint
    ):
      return kernel
  return None


def _by_memory(op: tf.Operation, arguments: Any, count: int) -> list[bool]:
  """Returns whether each input or output is in the CPU's memory."""
  kernel = _kernel(op)
  if kernel is None:
    return [True] * count
  places: list[bool] = []
  for argument in arguments:
    size = 1
    if argument.number_attr:
      size = op.get_attr(argument.number_attr)
    elif argument.type_list_attr:
      size = len(op.get_attr(argument.type_list_attr))
    places += [argument.name in kernel.host_memory_arg] * size
  return places


def _hands_on(op: tf.Operation) -> bool:
  """Returns whether an operation hands on values to and from functions."""
  return op.type in (*_CALLS, *_LOOPS, *_BRANCHES, 'Placeholder')


def _reads_on_cpu(op: tf.Operation) -> list[bool]:
  if _hands_on(op):
    return [tensor.dtype in _ON_CPU for tensor in op.inputs]
  return _by_memory(op, op.op_def.input_arg, len(op.inputs))


def _is_on_cpu(tensor: tf.Tensor) -> bool:
  op = tensor.op
  if _hands_on(op):
    return tensor.dtype in _ON_CPU
  places = _by_memory(op, op.op_def.output_arg, len(op.outputs))
  return places[tensor.value_index]
