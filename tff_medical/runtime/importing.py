"""Import of a graph in pieces, with loops in place of dataset reductions.

`ReduceDataset` runs a whole training loop inside one op. This keeps the work
off a GPU and hides it from TensorFlow's optimizer. `Importer` cuts the graph at
such an op. It imports the inputs of the reduction, builds the same reduction as
a loop (`loops`), and imports the rest behind the loop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tff_medical.runtime import loops

_FRAME_ATTR = 'frame_name'


def node_name(tensor_name: str) -> str:
  """Returns the node that a tensor or a control input comes from."""
  return tensor_name.lstrip('^').split(':')[0]


def ancestors(
  nodes: Mapping[str, Any],
  names: Iterable[str],
  known: Collection[str] = (),
) -> set[str]:
  """Returns `names` and all their ancestors, stopping at `known`."""
  reached: set[str] = set()
  todo = list(names)
  while todo:
    name = todo.pop()
    if name not in reached and name not in known:
      reached.add(name)
      todo.extend(node_name(i) for i in nodes[name].input)
  return reached


def in_loop(nodes: Mapping[str, Any], name: str) -> bool:
  """Returns whether the node `name` is in the frame of a loop.

  The search walks up the inputs. An `Exit` leads into a loop that has ended, so
  the matching `Enter` leads out of it again. An `Enter` without an `Exit` below
  it belongs to a loop around the node.
  """
  seen: set[tuple[str, int]] = set()
  todo = [(name, 0)]  # Nodes, each with the number of ended loops around it.
  while todo:
    name, depth = todo.pop()
    if (name, depth) in seen:
      continue
    seen.add((name, depth))
    op = nodes[name].op
    if op in ('Enter', 'RefEnter'):
      if depth == 0:
        return True
      depth -= 1
    elif op in ('Exit', 'RefExit'):
      depth += 1
    todo.extend((node_name(i), depth) for i in nodes[name].input)
  return False


def by_name(graph_def: tf.compat.v1.GraphDef) -> dict[str, Any]:
  """Returns the nodes of a graph by their names."""
  return {node.name: node for node in graph_def.node}


def subgraph(
  graph_def: tf.compat.v1.GraphDef, names: Collection[str]
) -> tf.compat.v1.GraphDef:
  """Returns the nodes called `names`, with the whole library."""
  result = tf.compat.v1.GraphDef()
  result.versions.CopyFrom(graph_def.versions)
  result.library.CopyFrom(graph_def.library)
  result.node.extend(n for n in graph_def.node if n.name in names)
  return result


def _drop_control_inputs(
  graph_def: tf.compat.v1.GraphDef, known: Collection[str]
) -> None:
  """Removes control inputs from nodes that are not `known`.

  Such nodes are placeholders, which do nothing.
  """
  for node in graph_def.node:
    inputs = [i for i in node.input if not i.startswith('^') or i[1:] in known]
    del node.input[:]
    node.input.extend(inputs)


def _rename_frames(graph_def: tf.compat.v1.GraphDef, prefix: str) -> None:
  for node in graph_def.node:
    if _FRAME_ATTR in node.attr:
      name = node.attr[_FRAME_ATTR].s
      node.attr[_FRAME_ATTR].s = f'{prefix}/'.encode() + name


class Importer:
  """Imports a graph in pieces, cut at the reductions of datasets."""

  def __init__(
    self,
    graph_def: tf.compat.v1.GraphDef,
    args: dict[str, tf.Tensor | loops.Batches],
    scope: str,
  ):
    self._graph_def = graph_def
    self._nodes = by_name(graph_def)
    self._args = args
    self._scope = scope
    graph = tf.compat.v1.get_default_graph()
    self._frames = graph.unique_name(f'{scope}_frames')
    self._outputs: dict[str, Sequence[tf.Tensor]] = {}
    self._operations: dict[str, tf.Operation] = {}
    library = subgraph(graph_def, ())
    tf.graph_util.import_graph_def(library, name='')
    self._functions = {f.signature.name: f for f in library.library.function}

  def tensors(self, names: Sequence[str]) -> list[tf.Tensor]:
    """Returns the tensors `names`, imported with their ancestors."""
    for node in self._graph_def.node:
      self._reduce(node)
    return self._import(names)

  def _reduce(self, node: Any) -> None:
    """Builds a loop in the place of `node`, if it reduces a dataset."""
    if node.op != 'ReduceDataset' or node.name in self._outputs:
      return
    # A piece of a loop cannot be imported apart from the rest of the loop.
    if in_loop(self._nodes, node.name):
      return
    # Reductions that this one depends on come first.
    for name in ancestors(self._nodes, [node.name]) - {node.name}:
      self._reduce(self._nodes[name])
    sequence = self._batches(node.input[0])
    if sequence is None:
      sequence, *rest = self._import(node.input)
    else:
      rest = self._import(node.input[1:])
    before = [node_name(i) for i in node.input if i.startswith('^')]
    function = self._functions[node.attr['f'].func.name]
    with tf.control_dependencies(
      [self._operations[b] for b in before if b in self._operations]
    ):
      outputs = loops.reduce_sequence(node, function, sequence, rest)
    self._outputs[node.name] = outputs
    self._operations[node.name] = outputs[0].op

  def _batches(self, name: str) -> loops.Batches | None:
    """Returns the batches that the tensor `name` stands for, or None."""
    node = node_name(name)
    while self._nodes[node].op == 'Identity':
      node = node_name(self._nodes[node].input[0])
    value = self._args.get(node)
    return value if isinstance(value, loops.Batches) else None

  def _known(self, name: str) -> tf.Tensor:
    """Returns a tensor that is already in the graph."""
    node, _, index = name.partition(':')
    if node in self._outputs:
      return self._outputs[node][int(index or 0)]
    value = self._args[node]
    if isinstance(value, loops.Batches):
      value = self._args[node] = value.to_variant()
    return value

  def _after(self, name: str) -> tf.Tensor:
    """Returns a tensor that depends on the operation `name`."""
    with tf.control_dependencies([self._operations[name]]):
      return tf.constant(0)

  def _import(self, names: Sequence[str]) -> list[tf.Tensor]:
    """Imports the missing ancestors of `names` as one piece."""
    in_graph = self._args.keys() | self._outputs.keys()
    piece = ancestors(self._nodes, map(node_name, names), in_graph)
    graph_def = subgraph(self._graph_def, piece)
    # Inputs of the piece that come from earlier pieces or arguments.
    outside = {}
    for node in graph_def.node:
      for name in node.input:
        source = node_name(name)
        if source in piece:
          continue
        if not name.startswith('^'):
          outside[name] = self._known(name)
        elif source in self._operations:
          outside[name] = self._after(source)
    _drop_control_inputs(graph_def, piece | {n[1:] for n in outside})
    _rename_frames(graph_def, self._frames)
    imported = tf.graph_util.import_graph_def(
      graph_def,
      input_map=outside,
      return_elements=[node.name for node in graph_def.node],
      name=self._scope,
    )
    for node, operation in zip(graph_def.node, imported):
      self._operations[node.name] = operation
      self._outputs[node.name] = operation.outputs
    return [self._known(name) for name in names if not name.startswith('^')]
