"""Tracer that unfolds a TFF computation into a graph of TensorFlow calls.

`trace` evaluates the building blocks of a computation once, on symbols. The
result consists of nodes (`nodes`): TensorFlow blocks, operations on sequences
and folds over clients. Functions, structures, selections, broadcasts and zips
are resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import itertools
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.runtime import graphs
from tff_medical.runtime import nodes
from tff_medical.runtime import sequences
from tff_medical.runtime import values


def _pack(type_spec: tff.Type, leaves: Iterator[nodes.Value]) -> nodes.Value:
  """Returns the value of a type that is made of the next leaves."""
  if isinstance(type_spec, tff.FederatedType):
    return _pack(type_spec.member, leaves)
  if isinstance(type_spec, tff.StructType):
    types = [t for _, t in tff.structure.iter_elements(type_spec)]
    return tuple(_pack(t, leaves) for t in types)
  return next(leaves)


@dataclasses.dataclass(frozen=True)
class Traced:
  """Traced computation.

  Attributes:
    parameters: Leaves of the parameter.
    result: Leaves of the result.
    has_state: Whether any part holds variables or tables.
  """

  parameters: tuple[nodes.Leaf, ...]
  result: tuple[nodes.Leaf, ...]
  has_state: bool


def trace(
  block: tff.framework.ComputationBuildingBlock,
  functions: Sequence[tff.framework.ComputationBuildingBlock] = (),
  options: graphs.Options = graphs.DEFAULT,
) -> Traced:
  """Evaluates the building block of a function on symbols.

  Args:
    block: Building block of the function.
    functions: Building blocks of the function's parameters of functional type.
    options: Options of the TensorFlow blocks.

  Raises:
    NotImplementedError: The runtime does not support a building block.
  """
  return _Tracer(options).trace(block, functions)


class _Tracer:
  """Evaluates building blocks; see `trace`."""

  def __init__(self, options: graphs.Options) -> None:
    self._options = options
    self._serial = itertools.count()
    self._at_clients = False
    self._has_state = False
    self._evaluators: dict[type, Callable[[Any, dict], nodes.Value]] = {
      tff.framework.Reference: lambda b, env: env[b.name],
      tff.framework.Selection: self._selection,
      tff.framework.Struct: self._struct,
      tff.framework.Call: self._call,
      tff.framework.Lambda: self._lambda,
      tff.framework.Block: self._block,
      tff.framework.Intrinsic: self._intrinsic,
      tff.framework.CompiledComputation: self._compiled,
      tff.framework.Literal: self._literal,
    }

  def trace(
    self,
    block: tff.framework.ComputationBuildingBlock,
    functions: Sequence[tff.framework.ComputationBuildingBlock],
  ) -> Traced:
    parameter = block.type_signature.parameter
    given = [self._evaluate(f, {}) for f in functions]
    leaves: list[nodes.Leaf] = []
    elements: list[nodes.Value] = []
    for leaf in values.leaf_types(parameter):
      if isinstance(leaf.member, tff.FunctionType):
        elements.append(given.pop(0))
        continue
      clients = leaf.at_clients and not leaf.all_equal
      leaves.extend(self._node([leaf.member], (), None, clients))
      elements.append(leaves[-1])
    function = self._evaluate(block, {})
    args = [] if parameter is None else [_pack(parameter, iter(elements))]
    result = tuple(nodes.flatten(function(*args)))
    return Traced(tuple(leaves), result, self._has_state)

  def _node(
    self,
    types: Sequence[tff.Type],
    inputs: Sequence[nodes.Leaf],
    emit_fn: nodes.Emit | None,
    at_clients: bool | None = None,
  ) -> tuple[nodes.Leaf, ...]:
    """Adds a node and returns its outputs."""
    if at_clients is None:
      at_clients = self._at_clients
    level = max((i.node.level for i in inputs), default=0)
    node = nodes.Node(
      tuple(types),
      tuple(inputs),
      emit_fn,
      at_clients,
      level,
      next(self._serial),
    )
    return tuple(nodes.Leaf(node, i) for i in range(len(types)))

  def _evaluate(
    self,
    block: tff.framework.ComputationBuildingBlock,
    env: dict[str, nodes.Value],
  ) -> nodes.Value:
    evaluator = self._evaluators.get(type(block))
    if evaluator is None:
      raise NotImplementedError(
        f'The local runtime cannot run a {type(block).__name__}: {block}'
      )
    return evaluator(block, env)

  def _selection(
    self, block: tff.framework.Selection, env: dict[str, nodes.Value]
  ) -> nodes.Value:
    return self._evaluate(block.source, env)[block.as_index()]

  def _struct(
    self, block: tff.framework.Struct, env: dict[str, nodes.Value]
  ) -> nodes.Value:
    elements = tff.structure.iter_elements(block)
    return tuple(self._evaluate(element, env) for _, element in elements)

  def _call(
    self, block: tff.framework.Call, env: dict[str, nodes.Value]
  ) -> nodes.Value:
    function = self._evaluate(block.function, env)
    if block.argument is None:
      return function()
    return function(self._evaluate(block.argument, env))

  def _lambda(
    self, block: tff.framework.Lambda, env: dict[str, nodes.Value]
  ) -> nodes.Value:
    def function(*args: nodes.Value) -> nodes.Value:
      inner = dict(env)
      if block.parameter_name is not None:
        inner[block.parameter_name] = args[0]
      return self._evaluate(block.result, inner)

    return function

  def _block(
    self, block: tff.framework.Block, env: dict[str, nodes.Value]
  ) -> nodes.Value:
    env = dict(env)
    for name, value in block.locals:
      env[name] = self._evaluate(value, env)
    return self._evaluate(block.result, env)

  def _literal(
    self, block: tff.framework.Literal, env: dict[str, nodes.Value]
  ) -> nodes.Value:
    del env
    spec = tff.types.type_to_tf_tensor_specs(block.type_signature)
    value = block.value
    return self._node(
      [block.type_signature],
      (),
      lambda _: [tf.constant(value, spec.dtype, spec.shape)],
    )[0]

  def _compiled(
    self,
    block: tff.framework.CompiledComputation,
    env: dict[str, nodes.Value],
  ) -> nodes.Value:
    del env
    if block.proto.WhichOneof('computation') != 'tensorflow':
      raise NotImplementedError(
        'The local runtime runs TensorFlow; it cannot run a computation of '
        f'kind {block.proto.WhichOneof("computation")!r}.'
      )
    graph = graphs.Block.from_proto(block.proto.tensorflow, self._options)
    self._has_state |= graph.has_state
    result = block.type_signature.result
    types = [leaf.member for leaf in values.leaf_types(result)]

    def function(*args: nodes.Value) -> nodes.Value:
      place = 'client' if self._at_clients else 'server'
      emit_fn = functools.partial(graph.emit, scope=f'{place}_computation')
      leaves = self._node(types, tuple(nodes.flatten(args)), emit_fn)
      return _pack(result, iter(leaves))

    return function

  def _intrinsic(
    self, block: tff.framework.Intrinsic, env: dict[str, nodes.Value]
  ) -> nodes.Value:
    del env
    method = getattr(self, f'_{block.uri}', None)
    if method is None:
      raise NotImplementedError(
        f'The local runtime has no {block.uri}; if it is a secure sum, this '
        'is a mistake in the runtime.'
      )
    return lambda *args: method(*args, block.type_signature)

  def _run(
    self, at_clients: bool, function: Any, *args: nodes.Value
  ) -> nodes.Value:
    """Calls a function whose operations are placed at clients or server."""
    before, self._at_clients = self._at_clients, at_clients
    try:
      return function(*args)
    finally:
      self._at_clients = before

  def _function(self, function: Any, *types: tff.Type) -> nodes.Function:
    """Traces a function of arguments of the given types."""
    # Nodes that are older than this one belong to the outside: their leaves are
    # captured.
    start = next(self._serial)
    args = []
    for type_spec in types:
      leaves = [leaf.member for leaf in values.leaf_types(type_spec)]
      args.append(_pack(type_spec, iter(self._parameters(leaves))))
    packed = args[0] if len(args) == 1 else tuple(args)
    results = tuple(nodes.flatten(function(packed)))
    captured: dict[nodes.Leaf, None] = {}
    todo, seen = list(results), set()
    while todo:
      leaf = todo.pop()
      if leaf.node.serial < start:
        captured[leaf] = None
      elif leaf.node not in seen:
        seen.add(leaf.node)
        todo.extend(leaf.node.inputs)
    return nodes.Function(
      tuple(nodes.flatten(tuple(args))), results, tuple(captured)
    )

  def _parameters(self, types: Sequence[tff.Type]) -> list[nodes.Leaf]:
    return [self._node([t], (), None)[0] for t in types]

  # TFF's intrinsics, by their names in TFF.

  def _federated_map(self, arg: Any, _: tff.Type) -> nodes.Value:
    return self._run(True, *arg)

  def _federated_apply(self, arg: Any, _: tff.Type) -> nodes.Value:
    return self._run(False, *arg)

  _federated_map_all_equal = _federated_apply

  def _federated_eval_at_clients(
    self, function: Any, _: tff.Type
  ) -> nodes.Value:
    return self._run(True, function)

  def _federated_eval_at_server(
    self, function: Any, _: tff.Type
  ) -> nodes.Value:
    return self._run(False, function)

  def _federated_broadcast(self, arg: Any, _: tff.Type) -> nodes.Value:
    return arg

  _federated_value_at_clients = _federated_broadcast
  _federated_value_at_server = _federated_broadcast
  _federated_zip_at_clients = _federated_broadcast
  _federated_zip_at_server = _federated_broadcast

  def _federated_aggregate(self, arg: Any, type_spec: tff.Type) -> nodes.Value:
    value, zero, accumulate, merge, report = arg
    member, total = type_spec.parameter[0].member, type_spec.parameter[3].result
    add = self._function(accumulate, total, member)
    join = self._function(merge, total, total)
    client_values, zeros = (
      tuple(nodes.flatten(value)),
      tuple(nodes.flatten(zero)),
    )
    inputs = client_values + zeros + add.captured + join.captured
    node = nodes.Fold(
      tuple(leaf.type_spec for leaf in add.results),
      inputs,
      None,
      False,
      max((i.node.level for i in inputs), default=0) + 1,
      next(self._serial),
      client_values,
      zeros,
      add,
      join,
    )
    leaves = (nodes.Leaf(node, i) for i in range(len(node.types)))
    return self._run(False, report, _pack(total, leaves))

  def _federated_select(self, arg: Any, type_spec: tff.Type) -> nodes.Value:
    keys, _, server_value, select = arg
    member = type_spec.parameter[2].member
    key = tff.TensorType(keys.type_spec.dtype)
    function = self._function(select, member, key)
    size = len(function.parameters) - 1

    def emit_fn(inputs: Sequence[Any]) -> list[Any]:
      keys, rest = inputs[0], inputs[1:]
      args, captured = rest[:size], rest[size:]
      return [
        sequences.from_rows(
          keys, lambda key: function.emit([*args, key], captured), element
        )
      ]

    result = type_spec.result.member
    element = result.element
    inputs = (keys, *nodes.flatten(server_value), *function.captured)
    return self._node([result], inputs, emit_fn, True)[0]

  _federated_secure_select = _federated_select

  def _sequence_map(self, arg: Any, type_spec: tff.Type) -> nodes.Value:
    function, sequence = arg
    element, result = sequence.type_spec.element, type_spec.result
    traced = self._function(function, element)

    def emit_fn(inputs: Sequence[Any]) -> list[Any]:
      return [
        sequences.apply(
          inputs[0],
          element,
          lambda leaves: traced.emit(leaves, inputs[1:]),
          result.element,
        )
      ]

    return self._node([result], (sequence, *traced.captured), emit_fn)[0]

  def _sequence_reduce(self, arg: Any, type_spec: tff.Type) -> nodes.Value:
    sequence, zero, function = arg
    result, element = type_spec.result, sequence.type_spec.element
    traced = self._function(function, result, element)
    zeros = tuple(nodes.flatten(zero))
    size = len(zeros)

    def emit_fn(inputs: Sequence[Any]) -> list[Any]:
      state, captured = inputs[1 : 1 + size], inputs[1 + size :]
      return sequences.reduce(
        inputs[0],
        element,
        state,
        lambda state, leaves: traced.emit([*state, *leaves], captured),
      )

    types = [leaf.type_spec for leaf in traced.results]
    inputs = (sequence, *zeros, *traced.captured)
    return _pack(result, iter(self._node(types, inputs, emit_fn)))

  def _sequence_sum(self, sequence: Any, type_spec: tff.Type) -> nodes.Value:
    types = [leaf.member for leaf in values.leaf_types(type_spec.result)]
    specs = [tff.types.type_to_tf_tensor_specs(t) for t in types]

    def emit_fn(inputs: Sequence[Any]) -> list[Any]:
      return sequences.reduce(
        inputs[0],
        sequence.type_spec.element,
        [tf.zeros(s.shape, s.dtype) for s in specs],
        lambda state, leaves: [s + x for s, x in zip(state, leaves)],
      )

    leaves = self._node(types, (sequence,), emit_fn)
    return _pack(type_spec.result, iter(leaves))
