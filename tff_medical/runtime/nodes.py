"""The graph that a computation is unfolded into.

A `Leaf` is one output of a `Node`: a tensor or a sequence. A node is placed at
the clients or at the server, and has a level: the number of folds over all
clients that must be over before it can run. A value of a computation is a leaf,
a tuple of values, or a Python function from value to value.
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


# See the docstring of the module.
Value = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
  """An operation on leaves.

  Attributes:
    types: A tensor or sequence type for each output.
    inputs: The leaves it reads.
    emit: Builds the operation in the current graph; `None` for a parameter.
    at_clients: Whether it runs once for each client.
    level: Folds that come before it.
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
  """Folds a value of every client into one: its outputs are the total.

  Attributes:
    client_values: The leaves of a client's value.
    zeros: The leaves to start from.
    accumulate: Function of total and value.
    merge: Function of two totals.
  """

  client_values: tuple[Leaf, ...]
  zeros: tuple[Leaf, ...]
  accumulate: Function
  merge: Function

  @property
  def captured(self) -> tuple[Leaf, ...]:
    """The leaves of the server that its functions read."""
    return self.accumulate.captured + self.merge.captured


@dataclasses.dataclass(frozen=True)
class Function:
  """A function of leaves, with the outer leaves that it captures."""

  parameters: tuple[Leaf, ...]
  results: tuple[Leaf, ...]
  captured: tuple[Leaf, ...]

  def emit(self, args: Sequence[Any], captured: Sequence[Any]) -> list[Any]:
    """Builds the function in the current graph, applied to its inputs."""
    known = dict(zip(self.parameters + self.captured, [*args, *captured]))
    return emit(self.results, known)


def emit(leaves: Sequence[Leaf], known: Mapping[Leaf, Any]) -> list[Any]:
  """Builds what `leaves` need in the current graph, from the `known` ones."""
  found = dict(known)

  def build(leaf: Leaf) -> Any:
    if leaf not in found:
      node = leaf.node
      if node.emit is None or isinstance(node, Fold):
        raise AssertionError(f'{node} has to be known')
      outputs = node.emit([build(i) for i in node.inputs])
      found.update((Leaf(node, i), o) for i, o in enumerate(outputs))
    return found[leaf]

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
