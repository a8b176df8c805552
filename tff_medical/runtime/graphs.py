"""Brings serialized TensorFlow computations of TFF into this process.

TFF ships each TensorFlow computation as a `GraphDef` with bindings that say
which tensors are its parameters and results. `Block` is such a graph made safe
to live beside others in one process, and `emit` stamps it into the graph being
built:

* only the nodes that the results need are kept, as a session would do;
* library functions are renamed by content: TFF's names repeat between graphs;
* variables, tables and iterators get names of their own at every import, and
  run their initializer in front of what reads them, so that no two imports
  ever share state (TFF gives every invocation a session of its own);
* a reduction over a dataset becomes a loop in the graph. `ReduceDataset` runs
  the whole loop inside one op, which keeps the work off a GPU and hides it from
  TensorFlow's optimizer; `loops.reduce_sequence` gives the same result.

Source: the messages `TensorFlow` and `Binding` of TFF's computation.proto.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import itertools
from typing import Any

import tensorflow as tf

from tff_medical.runtime import loops

_HANDLE_ATTR = 'shared_name'
_import_number = itertools.count()


def binding_names(binding: Any) -> Iterator[str]:
  """Yields the tensor names of a TFF binding, leaf by leaf."""
  kind = binding.WhichOneof('binding')
  if kind == 'tensor':
    yield binding.tensor.tensor_name
  elif kind == 'sequence':
    yield binding.sequence.variant_tensor_name
  elif kind == 'struct':
    for element in binding.struct.element:
      yield from binding_names(element)


def _node_name(tensor_name: str) -> str:
  return tensor_name.lstrip('^').split(':')[0]


def _all_nodes(graph_def: tf.compat.v1.GraphDef) -> Iterator[Any]:
  functions = (f.node_def for f in graph_def.library.function)
  return itertools.chain(graph_def.node, *functions)


def _function_refs(attr: Any) -> Iterator[Any]:
  """Yields every `NameAttrList` in an attribute, nested ones included."""
  refs = [attr.func] if attr.HasField('func') else list(attr.list.func)
  for ref in refs:
    yield ref
    for nested in ref.attr.values():
      yield from _function_refs(nested)


def _rename_functions(graph_def: tf.compat.v1.GraphDef, suffix: str) -> None:
  """Appends `suffix` to the names of all library functions, in place."""
  names = {f.signature.name for f in graph_def.library.function}
  for function in graph_def.library.function:
    function.signature.name += suffix
  for gradient in graph_def.library.gradient:
    gradient.function_name += suffix
    gradient.gradient_func += suffix
  attrs = [f.attr for f in graph_def.library.function]
  for node in _all_nodes(graph_def):
    if node.op in names:
      node.op += suffix
    attrs.append(node.attr)
  for attr in itertools.chain(*(a.values() for a in attrs)):
    for ref in _function_refs(attr):
      if ref.name in names:
        ref.name += suffix


def _clear_options(graph_def: tf.compat.v1.GraphDef) -> None:
  """Drops TFF's options of calls, and ties to nodes that may not be there."""
  for node in _all_nodes(graph_def):
    node.attr.pop('_class', None)
    if node.op in ('PartitionedCall', 'StatefulPartitionedCall'):
      node.attr['config_proto'].s = b''


def _keep_loop_bodies_apart(graph_def: tf.compat.v1.GraphDef) -> None:
  """Keeps the functions that reduce datasets from being inlined in a loop.

  TensorFlow's oneDNN pass looks at operations in an order in which, within a
  cycle, the gradient of a pooling may come before the pooling, by chance; it
  then keeps an implementation that is 15 times slower.
  """
  bodies = {
    node.attr['f'].func.name
    for node in graph_def.node
    if node.op == 'ReduceDataset'
  }
  for function in graph_def.library.function:
    if function.signature.name in bodies:
      function.attr['_noinline'].b = True


def _handles(graph_def: tf.compat.v1.GraphDef) -> list[Any]:
  return [n for n in _all_nodes(graph_def) if _HANDLE_ATTR in n.attr]


def _ancestors(
  nodes: Mapping[str, Any],
  names: Iterable[str],
  known: Collection[str] = (),
) -> set[str]:
  """Returns `names` and all that they depend on, stopping at `known`."""
  found: set[str] = set()
  todo = list(names)
  while todo:
    name = todo.pop()
    if name not in found and name not in known:
      found.add(name)
      todo.extend(_node_name(i) for i in nodes[name].input)
  return found


def _by_name(graph_def: tf.compat.v1.GraphDef) -> dict[str, Any]:
  return {node.name: node for node in graph_def.node}


def _run_initializer_first(
  graph_def: tf.compat.v1.GraphDef, init_op: str
) -> None:
  """Makes every reader of a variable or table wait for the initializer."""
  initializing = _ancestors(_by_name(graph_def), [init_op])
  handles = {n.name for n in graph_def.node if _HANDLE_ATTR in n.attr}
  for node in graph_def.node:
    reads = any(_node_name(i) in handles for i in node.input)
    if reads and node.name not in initializing:
      node.input.append(f'^{init_op}')


def _subgraph(
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
  """Forgets control inputs from placeholders, which do nothing."""
  for node in graph_def.node:
    inputs = [i for i in node.input if not i.startswith('^') or i[1:] in known]
    del node.input[:]
    node.input.extend(inputs)


@dataclasses.dataclass(frozen=True)
class Block:
  """One TensorFlow computation of TFF, ready to be stamped into graphs.

  Attributes:
    graph_def: The pruned graph; its function names hold a hash of its content.
    parameters: Names of the parameter tensors, in TFF's order of leaves.
    results: Names of the result tensors, likewise.
    session_token: Name of the tensor that takes TFF's session token, or ''.
    has_state: Whether the graph holds variables, tables or iterators by name.
  """

  graph_def: tf.compat.v1.GraphDef
  parameters: tuple[str, ...]
  results: tuple[str, ...]
  session_token: str
  has_state: bool

  @classmethod
  def from_proto(cls, proto: Any) -> Block:
    """Reads the `TensorFlow` message of a computation."""
    graph_def = tf.compat.v1.GraphDef()
    proto.graph_def.Unpack(graph_def)
    results = tuple(binding_names(proto.result))
    init_op = _node_name(proto.initialize_op)
    wanted = [_node_name(name) for name in results]
    if init_op:
      wanted.append(init_op)
    graph_def = _subgraph(graph_def, _ancestors(_by_name(graph_def), wanted))
    _clear_options(graph_def)
    _keep_loop_bodies_apart(graph_def)
    has_state = bool(_handles(graph_def))
    if init_op:
      _run_initializer_first(graph_def, init_op)
    content = hashlib.sha256(graph_def.SerializeToString(deterministic=True))
    _rename_functions(graph_def, f'_tff_{content.hexdigest()[:16]}')
    return cls(
      graph_def,
      tuple(binding_names(proto.parameter)),
      results,
      proto.session_token_tensor_name,
      has_state,
    )

  def emit(
    self, args: Sequence[tf.Tensor | loops.Slices], scope: str
  ) -> list[tf.Tensor]:
    """Stamps the computation into the current graph, applied to `args`."""
    graph_def = self.graph_def
    if self.has_state:
      graph_def = _with_own_state(graph_def)
    inputs = dict(zip(map(_node_name, self.parameters), map(_capture, args)))
    if self.session_token:
      token = f'session_{next(_import_number)}'
      inputs[_node_name(self.session_token)] = tf.constant(token)
    return _Importer(graph_def, inputs, scope).tensors(self.results)


def _capture(value: tf.Tensor | loops.Slices) -> tf.Tensor | loops.Slices:
  """Brings a tensor of an outer graph into the current one."""
  graph = tf.compat.v1.get_default_graph()
  if isinstance(value, loops.Slices) or value.graph is graph:
    return value
  return graph.capture(value)


def _with_own_state(
  graph_def: tf.compat.v1.GraphDef,
) -> tf.compat.v1.GraphDef:
  """Returns a copy whose variables and tables are shared with nothing else."""
  copy = tf.compat.v1.GraphDef()
  copy.CopyFrom(graph_def)
  suffix = f'_import_{next(_import_number)}'
  for node in _handles(copy):
    name = node.attr[_HANDLE_ATTR].s or node.name.encode()
    node.attr[_HANDLE_ATTR].s = name + suffix.encode()
  _rename_functions(copy, suffix)
  return copy


class _Importer:
  """Imports a graph in pieces, cut where a dataset is reduced."""

  def __init__(
    self,
    graph_def: tf.compat.v1.GraphDef,
    args: dict[str, tf.Tensor | loops.Slices],
    scope: str,
  ):
    self._graph_def = graph_def
    self._nodes = _by_name(graph_def)
    self._args = args
    self._scope = scope
    self._outputs: dict[str, Sequence[tf.Tensor]] = {}
    self._operations: dict[str, tf.Operation] = {}
    library = _subgraph(graph_def, ())
    tf.graph_util.import_graph_def(library, name='')
    self._functions = {f.signature.name: f for f in library.library.function}

  def tensors(self, names: Sequence[str]) -> list[tf.Tensor]:
    """Imports what `names` need and returns them."""
    for node in self._graph_def.node:
      self._reduce(node)
    return self._import(names)

  def _reduce(self, node: Any) -> None:
    """Puts a loop in the place of `node`, if it reduces a dataset."""
    if node.op != 'ReduceDataset' or node.name in self._outputs:
      return
    for name in _ancestors(self._nodes, [node.name]) - {node.name}:
      self._reduce(self._nodes[name])
    sequence = self._slices(node.input[0])
    if sequence is None:
      sequence, *rest = self._import(node.input)
    else:
      rest = self._import(node.input[1:])
    before = [_node_name(i) for i in node.input if i.startswith('^')]
    function = self._functions[node.attr['f'].func.name]
    with tf.control_dependencies(
      [self._operations[b] for b in before if b in self._operations]
    ):
      outputs = loops.reduce_sequence(node, function, sequence, rest)
    self._outputs[node.name] = outputs
    self._operations[node.name] = outputs[0].op

  def _slices(self, name: str) -> loops.Slices | None:
    """Returns the slices that the tensor `name` stands for, if it does."""
    node = _node_name(name)
    while self._nodes[node].op == 'Identity':
      node = _node_name(self._nodes[node].input[0])
    value = self._args.get(node)
    return value if isinstance(value, loops.Slices) else None

  def _known(self, name: str) -> tf.Tensor:
    """Returns a tensor that is in the graph already."""
    node, _, index = name.partition(':')
    if node in self._outputs:
      return self._outputs[node][int(index or 0)]
    value = self._args[node]
    if isinstance(value, loops.Slices):
      value = self._args[node] = value.to_variant()
    return value

  def _after(self, name: str) -> tf.Tensor:
    """Returns a tensor that depends on the operation `name`."""
    with tf.control_dependencies([self._operations[name]]):
      return tf.constant(0)

  def _import(self, names: Sequence[str]) -> list[tf.Tensor]:
    """Imports the missing ancestors of `names` as one piece."""
    known = self._args.keys() | self._outputs.keys()
    piece = _ancestors(self._nodes, map(_node_name, names), known)
    graph_def = _subgraph(self._graph_def, piece)
    outside = {}
    for node in graph_def.node:
      for name in node.input:
        source = _node_name(name)
        if source in piece:
          continue
        if not name.startswith('^'):
          outside[name] = self._known(name)
        elif source in self._operations:
          outside[name] = self._after(source)
    _drop_control_inputs(graph_def, piece | {n[1:] for n in outside})
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
