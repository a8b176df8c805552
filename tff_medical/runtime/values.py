"""Conversion of Python values to flat leaves, and of results back.

A value of a TFF type is held as its leaves: one entry for each tensor or
sequence of the type, in TFF's order. Accepted values and the form of results
follow TFF's own `serialize_value`, whose checks and conversions run. Only
arrays that already fit their type are taken as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
import concurrent.futures
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff


@dataclasses.dataclass(frozen=True)
class LeafType:
  """Type and placement of one leaf.

  Attributes:
    member: Tensor or sequence type.
    at_clients: Whether the leaf is placed at clients.
    all_equal: Whether all clients have the same value.
  """

  member: tff.Type
  at_clients: bool
  all_equal: bool


def leaf_types(
  type_spec: tff.Type | None, at_clients: bool = False, all_equal: bool = True
) -> Iterator[LeafType]:
  """Yields the leaves of a type in TFF's order."""
  if type_spec is None:
    return
  if isinstance(type_spec, tff.FederatedType):
    clients = type_spec.placement is tff.CLIENTS
    yield from leaf_types(type_spec.member, clients, type_spec.all_equal)
  elif isinstance(type_spec, tff.StructType):
    for _, element in tff.structure.iter_elements(type_spec):
      yield from leaf_types(element, at_clients, all_equal)
  else:
    yield LeafType(type_spec, at_clients, all_equal)


def _elements(value: Any, type_spec: tff.StructType) -> list[Any]:
  """Returns the elements of a container in the order of its type."""
  if isinstance(value, tf.RaggedTensor):
    return [value.flat_values, tuple(value.nested_row_splits)]
  if isinstance(value, tf.SparseTensor):
    return [value.indices, value.values, value.dense_shape]
  struct = tff.structure.from_container(value)
  elements = tff.structure.to_elements(struct)
  names = [name for name, _ in tff.structure.iter_elements(type_spec)]
  if len(elements) != len(names):
    raise TypeError(
      f'Value {value} does not match type {type_spec}: mismatching tuple '
      'length.'
    )
  for (name, _), expected in zip(elements, names):
    if name not in (expected, None):
      raise TypeError(
        f'Value {value} does not match type {type_spec}: mismatching tuple '
        f'element names {name} vs. {expected}.'
      )
  return [element for _, element in elements]


def _tensor(value: Any, type_spec: tff.TensorType) -> Any:
  if isinstance(value, (tf.Tensor, tf.Variable)):
    value = value.numpy()
  dtype = type_spec.dtype.type
  fits = isinstance(value, np.ndarray) and value.dtype.type is dtype
  if fits and tf.TensorShape(type_spec.shape).is_compatible_with(value.shape):
    return value
  proto, _ = tff.framework.serialize_value(value, type_spec)
  return tff.framework.deserialize_value(proto, type_spec)[0]


def _sequence(value: Any, type_spec: tff.SequenceType) -> tf.data.Dataset:
  if not isinstance(value, tf.data.Dataset):
    proto, _ = tff.framework.serialize_value(value, type_spec)
    return tff.framework.deserialize_value(proto, type_spec)[0]
  actual = tff.SequenceType(tff.types.tensorflow_to_type(value.element_spec))
  if not type_spec.is_assignable_from(actual):
    raise TypeError(
      f'Cannot serialize dataset with elements of type {actual} as TFF type '
      f'{type_spec}.'
    )
  return value


def ingest(value: Any, type_spec: tff.Type) -> list[Any]:
  """Returns the leaves of a value that is not placed at clients."""
  if isinstance(type_spec, tff.FederatedType):
    return ingest(value, type_spec.member)
  if isinstance(type_spec, tff.StructType):
    pairs = zip(_elements(value, type_spec), _types(type_spec))
    return [leaf for v, t in pairs for leaf in ingest(v, t)]
  if isinstance(type_spec, tff.SequenceType):
    return [_sequence(value, type_spec)]
  if isinstance(type_spec, tff.FunctionType):
    return [value]
  return [_tensor(value, type_spec)]


def _types(type_spec: tff.StructType) -> list[tff.Type]:
  return [t for _, t in tff.structure.iter_elements(type_spec)]


def ingest_argument(value: Any, type_spec: tff.Type | None) -> list[Any]:
  """Returns the leaves of an argument.

  A leaf that differs between clients is a list with one entry per client.
  """
  if type_spec is None:
    return []
  if isinstance(type_spec, tff.FederatedType) and not type_spec.all_equal:
    rows = [ingest(v, type_spec.member) for v in value]
    if rows:
      return [list(column) for column in zip(*rows)]
    return [[] for _ in leaf_types(type_spec)]
  if isinstance(type_spec, tff.StructType):
    pairs = zip(_elements(value, type_spec), _types(type_spec))
    return [leaf for v, t in pairs for leaf in ingest_argument(v, t)]
  return ingest(value, type_spec)


def cardinality(value: Any, type_spec: tff.Type | None) -> int | None:
  """Returns the number of clients in an argument; None if it has none."""
  if value is None or type_spec is None:
    return None
  if isinstance(value, tff.framework.CardinalityCarrying):
    return value.cardinality.get(tff.CLIENTS)
  if isinstance(type_spec, tff.FederatedType):
    if type_spec.all_equal:
      return None
    if not isinstance(value, (list, tuple)):
      raise TypeError(
        'Expected non-all-equal value with placement CLIENTS to be a `list` '
        f'or `tuple`, found a value of Python type {type(value)}:\n{value}'
      )
    return len(value)
  clients: int | None = None
  if isinstance(type_spec, tff.StructType):
    for v, t in zip(_elements(value, type_spec), _types(type_spec)):
      number = cardinality(v, t)
      if None not in (clients, number) and clients != number:
        raise ValueError(
          f'Conflicting cardinalities for CLIENTS: {number} vs {clients}'
        )
      clients = number if clients is None else clients
  return clients


def resolve(invoke: Callable[..., Any], value: Any) -> Any:
  """Returns an argument with TFF's data descriptors replaced by their data."""
  if isinstance(value, tff.framework.Ingestable):
    coroutine = value.ingest(_DescriptorExecutor(invoke))
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
      return thread.submit(asyncio.run, coroutine).result()
  if isinstance(value, tff.structure.Struct):
    elements = tff.structure.iter_elements(value)
    return tff.structure.Struct((n, resolve(invoke, v)) for n, v in elements)
  return value


class _DescriptorExecutor:
  """Part of a TFF executor that data descriptors use."""

  def __init__(self, invoke: Callable[..., Any]):
    self._invoke = invoke

  async def create_value(self, value: Any, type_spec: Any) -> Any:
    del type_spec
    return value

  async def create_call(self, comp: Any, arg: Any) -> Any:
    return self._invoke(comp, arg)


def _result_leaf(value: Any, type_spec: tff.Type) -> Any:
  if isinstance(type_spec, tff.SequenceType):
    return _result_sequence(value, type_spec)
  return value.numpy() if isinstance(value, tf.Tensor) else value


def _result_sequence(value: Any, type_spec: tff.SequenceType) -> Any:
  if isinstance(value, tf.data.Dataset):
    return value
  graph = tf.raw_ops.DatasetToGraphV2(input_dataset=value)
  proto = tff.framework.serialize_value([], type_spec)[0]
  proto.sequence.serialized_graph_def = graph.numpy()
  # The empty list gave an element type with batches of size 0. Without it the
  # actual type counts.
  proto.sequence.ClearField('element_type')
  return tff.framework.deserialize_value(proto, type_spec)[0]


def _assemble(leaves: Iterator[Any], type_spec: tff.Type) -> Any:
  """Builds the value of an unplaced type from its leaves."""
  if isinstance(type_spec, tff.StructType):
    return tff.structure.Struct(
      (name, _assemble(leaves, element))
      for name, element in tff.structure.iter_elements(type_spec)
    )
  return _result_leaf(next(leaves), type_spec)


def emit_result(
  leaves: Iterator[tuple[Any, bool]], type_spec: tff.Type, clients: int
) -> Any:
  """Returns a result as a Python value.

  Args:
    leaves: Value of each leaf, and whether the value is a list over clients.
    type_spec: Type of the result.
    clients: Cohort size.
  """
  value = _placed(leaves, type_spec, clients)
  return tff.types.type_to_py_container(value, type_spec)


def _placed(
  leaves: Iterator[tuple[Any, bool]], type_spec: tff.Type, clients: int
) -> Any:
  if isinstance(type_spec, tff.StructType):
    return tff.structure.Struct(
      (name, _placed(leaves, element, clients))
      for name, element in tff.structure.iter_elements(type_spec)
    )
  if not isinstance(type_spec, tff.FederatedType):
    return _result_leaf(next(leaves)[0], type_spec)
  placed = [next(leaves) for _ in leaf_types(type_spec)]
  if type_spec.all_equal:
    return _assemble(iter([v for v, _ in placed]), type_spec.member)
  rows = []
  for client in range(clients):
    row = [v[client] if is_list else v for v, is_list in placed]
    rows.append(_assemble(iter(row), type_spec.member))
  return rows
