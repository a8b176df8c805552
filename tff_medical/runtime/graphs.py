"""Import of TFF's serialized TensorFlow computations into this process.

TFF ships each TensorFlow computation as a `GraphDef` with bindings that name
the tensors of its parameters and results. `Block` is such a graph in a form
that can live beside others in one process. `Block.emit` adds it to the current
graph:

* Only the nodes that the results need are kept, as in a session.
* Library functions are renamed by content: TFF's names repeat between graphs.
* Tables lose their names, so that every call makes its own.
* Variables and iterators get new names at every import. The initializer runs
  before all readers. So no two calls share state (TFF gives every invocation
  its own session).
* A reduction over a dataset becomes a loop in the graph (`importing`).

Source: the messages `TensorFlow` and `Binding` of TFF's computation.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import itertools
from typing import Any

import tensorflow as tf

from tff_medical.runtime import importing
from tff_medical.runtime import loops
from tff_medical.runtime import precision as precision_lib

_HANDLE_ATTR = 'shared_name'
# Tables that a name keeps from call to call, and the same without a name. A
# table can be initialized only once.
_UNNAMED_TABLES = {
  'HashTableV2': 'AnonymousHashTable',
  'MutableHashTableV2': 'AnonymousMutableHashTable',
  'MutableHashTableOfTensorsV2': 'AnonymousMutableHashTableOfTensors',
  'MutableDenseHashTableV2': 'AnonymousMutableDenseHashTable',
}
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
  """Drops TFF's call options, and colocation with nodes that may be missing."""
  for node in _all_nodes(graph_def):
    node.attr.pop('_class', None)
    if node.op in ('PartitionedCall', 'StatefulPartitionedCall'):
      node.attr['config_proto'].s = b''


def _keep_loop_bodies_apart(graph_def: tf.compat.v1.GraphDef) -> None:
  """Keeps the functions that reduce datasets from being inlined in a loop.

  TensorFlow's oneDNN pass visits operations in some order. Within a cycle it
  may happen to visit the gradient of a pooling before the pooling itself. It
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


def _run_initializer_first(
  graph_def: tf.compat.v1.GraphDef, init_op: str
) -> None:
  """Makes every reader of a variable or table wait for the initializer."""
  initializing = importing.ancestors(importing.by_name(graph_def), [init_op])
  handles = {n.name for n in graph_def.node if _HANDLE_ATTR in n.attr}
  for node in graph_def.node:
    reads = any(importing.node_name(i) in handles for i in node.input)
    if reads and node.name not in initializing:
      node.input.append(f'^{init_op}')


def _unname_tables(graph_def: tf.compat.v1.GraphDef) -> None:
  """Makes every call create its own tables.

  A node within a function stays as it is: several calls of the function may
  stand for one table.
  """
  for node in graph_def.node:
    if node.op in _UNNAMED_TABLES:
      node.op = _UNNAMED_TABLES[node.op]
      for name in ('container', _HANDLE_ATTR, 'use_node_name_sharing'):
        node.attr.pop(name, None)


@dataclasses.dataclass(frozen=True)
class Options:
  """Ways of compiling that depend on where a computation runs.

  Attributes:
    bodies_apart: Whether functions that reduce datasets stay functions of their
      own. This helps on a CPU alone.
    precision: Number format of marked functions; see `precision`.
  """

  bodies_apart: bool = True
  precision: str = precision_lib.FLOAT32

  @classmethod
  def on(cls, devices: Sequence[str], precision: str) -> Options:
    """Returns the options for TensorFlow's devices with these names."""
    on_cpu = any(name.startswith('CPU:') for name in devices)
    return cls(bodies_apart=on_cpu, precision=precision)


DEFAULT = Options()


@dataclasses.dataclass(frozen=True)
class Block:
  """One TensorFlow computation of TFF, ready to be added to graphs.

  Attributes:
    graph_def: Pruned graph, whose function names hold a hash of its content.
    parameters: Names of the parameter tensors, in TFF's order of leaves.
    results: Names of the result tensors, in TFF's order of leaves.
    session_token: Name of the tensor that takes TFF's session token, or ''.
    has_state: Whether the graph holds variables, iterators or others by name.
  """

  graph_def: tf.compat.v1.GraphDef
  parameters: tuple[str, ...]
  results: tuple[str, ...]
  session_token: str
  has_state: bool

  @classmethod
  def from_proto(cls, proto: Any, options: Options = DEFAULT) -> Block:
    """Reads the `TensorFlow` message of a computation."""
    graph_def = tf.compat.v1.GraphDef()
    proto.graph_def.Unpack(graph_def)
    results = tuple(binding_names(proto.result))
    init_op = importing.node_name(proto.initialize_op)
    needed = [importing.node_name(name) for name in results]
    if init_op:
      needed.append(init_op)
    graph_def = importing.subgraph(
      graph_def, importing.ancestors(importing.by_name(graph_def), needed)
    )
    _clear_options(graph_def)
    if options.bodies_apart:
      _keep_loop_bodies_apart(graph_def)
    if options.precision == precision_lib.BFLOAT16:
      precision_lib.let_tensorflow_rewrite(graph_def)
    if init_op:
      _run_initializer_first(graph_def, init_op)
    _unname_tables(graph_def)
    has_state = bool(_handles(graph_def))
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
    self, args: Sequence[tf.Tensor | loops.Batches], scope: str
  ) -> list[tf.Tensor]:
    """Adds the computation, applied to `args`, to the current graph."""
    graph_def = self.graph_def
    if self.has_state:
      graph_def = _with_own_state(graph_def)
    inputs = dict(
      zip(map(importing.node_name, self.parameters), map(_capture, args))
    )
    if self.session_token:
      token = f'session_{next(_import_number)}'
      inputs[importing.node_name(self.session_token)] = tf.constant(token)
    return importing.Importer(graph_def, inputs, scope).tensors(self.results)


def _capture(value: tf.Tensor | loops.Batches) -> tf.Tensor | loops.Batches:
  """Returns a tensor of an outer graph, captured by the current one."""
  graph = tf.compat.v1.get_default_graph()
  if isinstance(value, loops.Batches) or value.graph is graph:
    return value
  return graph.capture(value)


def _with_own_state(
  graph_def: tf.compat.v1.GraphDef,
) -> tf.compat.v1.GraphDef:
  """Returns a copy that shares its variables and tables with no other graph."""
  copy = tf.compat.v1.GraphDef()
  copy.CopyFrom(graph_def)
  suffix = f'_import_{next(_import_number)}'
  for node in _handles(copy):
    name = node.attr[_HANDLE_ATTR].s or node.name.encode()
    node.attr[_HANDLE_ATTR].s = name + suffix.encode()
  _rename_functions(copy, suffix)
  return copy
