"""Graph of an unfolded computation.

A `Leaf` is one output of a `Node`: a tensor or a sequence. A node is placed at
the clients or at the server. Its level is the number of folds over all clients
that must end before it can run. A value of a computation is a leaf, a tuple of
values, or a Python function from value to value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import tensorflow_federated as tff

Emit = Callable[[Sequence[Any]], Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One output of a node: a tensor or a sequence."""

  node: Node
  index: int

  @property
  def type_spec(self) -> tff.Type:
    """Type of the tensor or sequence."""
    return self.node.types[self.index]


# Leaf, tuple of values, or function of values; see the module docstring.
Value = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
  """An operation on leaves.

  Attributes:
    types: Tensor or sequence type of each output.
    inputs: Leaves that the operation reads.
    emit: Function that builds the operation in the current graph; None for a
      parameter.
    at_clients: Whether the operation runs once for each client.
    level: Number of folds that must end before the operation.
    serial: Position in the order of creation.
  """

  types: tuple[tff.Type, ...]
  inputs: tuple[Leaf, ...]
  emit: Emit | None
  at_clients: bool
  level: int
  serial: int


@dataclasses.dataclass(frozen=True, eq=False)
class Fold(Node):
  """Fold of the values of all clients, whose outputs are the total.

  Attributes:
    client_values: Leaves of a client's value.
    zeros: Leaves of the initial total.
    accumulate: Function of total and value.
    merge: Function of two totals.
  """

  client_values: tuple[Leaf, ...]
  zeros: tuple[Leaf, ...]
  accumulate: Function
  merge: Function

  @property
  def captured(self) -> tuple[Leaf, ...]:
    """Leaves of the server that the fold's functions read."""
    return self.accumulate.captured + self.merge.captured


@dataclasses.dataclass(frozen=True)
class Function:
  """Function of leaves, with the outer leaves that it captures."""

  parameters: tuple[Leaf, ...]
  results: tuple[Leaf, ...]
  captured: tuple[Leaf, ...]

  def emit(self, args: Sequence[Any], captured: Sequence[Any]) -> list[Any]:
    """Builds the function in the current graph, applied to its inputs."""
    inputs = dict(zip(self.parameters + self.captured, [*args, *captured]))
    return emit(self.results, inputs)


def emit(leaves: Sequence[Leaf], known: Mapping[Leaf, Any]) -> list[Any]:
  """Returns `leaves`, built in the current graph from the `known` leaves."""
  built = dict(known)

  def build(leaf: Leaf) -> Any:
    if leaf not in built:
      node = leaf.node
      if node.emit is None or isinstance(node, Fold):
        raise AssertionError(f'{node} has to be known')
      outputs = node.emit([build(i) for i in node.inputs])
      built.update((Leaf(node, i), o) for i, o in enumerate(outputs))
    return built[leaf]

  return [build(leaf) for leaf in leaves]


def flatten(value: Value) -> Iterator[Leaf]:
  """Yields the leaves of a value."""
  if isinstance(value, Leaf):
    yield value
  elif isinstance(value, tuple):
    for element in value:
      yield from flatten(element)
  else:
    raise TypeError('A function cannot be a value of a client or a result.')
