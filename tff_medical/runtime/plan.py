"""Plan of a computation: steps at the server and passes over the clients.

A pass visits every client once and runs everything that is ready at that time.
All folds whose inputs are ready share the pass, so that no value of a client is
computed twice or held longer than needed. Steps at the server come between the
passes. Each step, each client's part of a pass and each fold is one TensorFlow
function, which is compiled on first use and cached.
"""

from __future__ import annotations

from collections.abc import (
  Callable,
  Container,
  Hashable,
  Iterable,
  Mapping,
  Sequence,
)
import dataclasses
import threading
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.runtime import blocks
from tff_medical.runtime import chunks
from tff_medical.runtime import loops
from tff_medical.runtime import nodes
from tff_medical.runtime import pipelines
from tff_medical.runtime import tensor_data

# Number of forms of datasets that a step is compiled for; others are read by
# iterators. A map of batches that differs between clients, as with the client's
# number in it, must not compile a step per client.
_MAX_FORMS = 8
_VARIANT = tf.TensorSpec([], tf.variant)
_Emit = Callable[[Sequence[Any]], list[Any]]
_Compiled = Callable[..., list[tf.Tensor]]


class Step:
  """Function of leaves, compiled once for each form of its inputs."""

  def __init__(self, types: Sequence[tff.Type], emit: _Emit):
    self._types = tuple(types)
    self._emit = emit
    self._functions: dict[Hashable, _Compiled] = {}
    self._forms: set[Hashable] = set()
    self._lock = threading.Lock()

  def __call__(
    self,
    args: Sequence[Any],
    key: Hashable = None,
    placed: Callable[[tf.Tensor], tf.Tensor] | None = None,
  ) -> list[tf.Tensor]:
    """Runs the step; calls with different keys share no variables.

    Args:
      args: Values of the inputs.
      key: Key of the call.
      placed: Function that returns a client's tensor where the step reads it.
    """
    fed = [
      _Fed.of(spec, value, self._forms)
      for spec, value in zip(self._types, args)
    ]
    signature = (key, tuple(f.kind for f in fed))
    with self._lock:
      function = self._functions.get(signature)
      if function is None:
        function = self._functions[signature] = self._compile(fed)
    return function(*(t for f in fed for t in f.placed(placed)))

  def _compile(self, fed: Sequence[_Fed]) -> _Compiled:
    def step(*tensors: tf.Tensor) -> list[tf.Tensor]:
      rest = list(tensors)
      return self._emit([take(_split(rest, size)) for take, size in forms])

    # The step must not keep the tensors of the client that came first.
    forms = [(f.take, len(f.specs)) for f in fed]
    signature = [spec for f in fed for spec in f.specs]
    return tf.compat.v1.wrap_function(step, signature)


@dataclasses.dataclass(frozen=True)
class _Fed:
  """Input of a compiled step, as tensors with their specs.

  Attributes:
    kind: Form of the input, equal for inputs that share a compiled step.
    tensors: Tensors that are fed.
    specs: Spec of each tensor.
    take: Function that makes the input in a graph from its tensors there.
  """

  kind: Hashable
  tensors: tuple[Any, ...]
  specs: tuple[tf.TensorSpec, ...]
  take: Callable[[Sequence[tf.Tensor]], tf.Tensor | loops.Batches]

  @classmethod
  def of(cls, type_spec: tff.Type, value: Any, forms: set[Hashable]) -> _Fed:
    """Returns a value as tensors.

    Args:
      type_spec: Type of the value.
      value: Tensor, array, dataset or variant of a dataset.
      forms: Kinds of datasets that the step knows, to which one may be added.
    """
    if isinstance(type_spec, tff.TensorType):
      spec = tff.types.type_to_tf_tensor_specs(type_spec)
      return cls('tensor', (_as_tensor(value, spec),), (spec,), _only)
    if not isinstance(value, tf.data.Dataset):
      return cls('variant', (value,), (_VARIANT,), _only)
    form = pipelines.form_of(value)
    if form is not None:
      if isinstance(form, tensor_data.TensorBatches):
        fed = cls._slices(form)
      else:
        fed = cls._chunks(form)
      if fed.kind in forms or len(forms) < _MAX_FORMS:
        forms.add(fed.kind)
        return fed
    variant = tf.data.experimental.to_variant(value)
    return cls('variant', (variant,), (_VARIANT,), _only)

  def placed(
    self, place: Callable[[tf.Tensor], tf.Tensor] | None
  ) -> Sequence[Any]:
    """Returns the tensors, the components of slices where `place` puts them."""
    if place is None or self.take is not _take_slices:
      return self.tensors
    return (*map(place, self.tensors[:-1]), self.tensors[-1])

  @classmethod
  def _slices(cls, form: tensor_data.TensorBatches) -> _Fed:
    specs = tuple(
      tf.TensorSpec([None, *c.shape[1:]], c.dtype) for c in form.components
    )
    return cls(
      ('slices', specs),
      (*form.components, form.options),
      (*specs, tf.TensorSpec([5], tf.int64)),
      _take_slices,
    )

  @classmethod
  def _chunks(cls, read: pipelines.RowChunks) -> _Fed:
    digests = tuple(m.digest for m in read.maps)
    captured = tuple(t for m in read.maps for t in m.captured)
    functions = [(m.function, len(m.captured)) for m in read.maps]
    form = read.form  # `take` must not keep the tensors of `read`.

    def take(tensors: Sequence[tf.Tensor]) -> chunks.Chunks:
      rows, whole, options, *rest = tensors
      maps = tuple(
        chunks.MapCall(function, tuple(_split(rest, size)))
        for function, size in functions
      )
      return chunks.Chunks(form, rows, whole, options, maps)

    return cls(
      ('chunks', digests, form),
      (read.rows, read.whole, read.options, *captured),
      (
        *(_VARIANT, _VARIANT, tf.TensorSpec([4], tf.int64)),
        *(tf.TensorSpec(t.shape, t.dtype) for t in captured),
      ),
      take,
    )


def _only(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
  return tensors[0]


def _take_slices(tensors: Sequence[tf.Tensor]) -> loops.Slices:
  *components, options = tensors
  with tf.device('/device:CPU:0'):
    first, end, batch_size, epochs, drop = tf.unstack(options, 5)
    drop_remainder = drop > 0
  rows = tuple(c[first:end] for c in components)
  return loops.Slices(rows, batch_size, epochs, drop_remainder)


def _as_tensor(value: Any, spec: tf.TensorSpec) -> tf.Tensor:
  if isinstance(value, tf.Tensor):
    return value
  return tf.constant(value, spec.dtype)


@dataclasses.dataclass(frozen=True)
class LeafStep:
  """Step from input leaves to output leaves."""

  inputs: tuple[nodes.Leaf, ...]
  outputs: tuple[nodes.Leaf, ...]
  step: Step

  @classmethod
  def create(
    cls, outputs: Iterable[nodes.Leaf], inside: Container[nodes.Node]
  ) -> LeafStep:
    """Returns the step for `outputs` that runs the nodes `inside`."""
    unique = tuple(dict.fromkeys(outputs))
    inputs = _boundary(unique, inside)
    step = Step(
      [leaf.type_spec for leaf in inputs],
      lambda args: nodes.emit(unique, dict(zip(inputs, args))),
    )
    return cls(inputs, unique, step)


def _boundary(
  outputs: Iterable[nodes.Leaf], inside: Container[nodes.Node]
) -> tuple[nodes.Leaf, ...]:
  """Returns the outside leaves from which `outputs` are computed."""
  boundary: dict[nodes.Leaf, None] = {}  # An ordered set.
  seen: set[nodes.Node] = set()
  todo = list(outputs)
  while todo:
    leaf = todo.pop()
    if leaf.node not in inside:
      boundary[leaf] = None
    elif leaf.node not in seen:
      seen.add(leaf.node)
      todo.extend(leaf.node.inputs)
  return tuple(boundary)


class Pass:
  """One visit to all clients.

  Attributes:
    work: Part of one client, from leaves of the client and of the server.
    values: Leaves of a client that are folded.
    kept: Leaves of a client that are needed after the pass.
    folds: Folds that end with the pass.
    zeros: Leaves of the folds' initial totals.
    captured: Leaves of the server that the folds read.
    accumulate: Step from captured leaves, totals and values to new totals.
    merge: Step from captured leaves and two sets of totals to merged totals.
  """

  def __init__(
    self,
    folds: Sequence[nodes.Fold],
    kept: Iterable[nodes.Leaf],
    inside: Container[nodes.Node],
  ):
    self.folds = tuple(folds)
    self.values = tuple(leaf for f in folds for leaf in f.client_values)
    self.kept = tuple(dict.fromkeys(kept))
    self.work = LeafStep.create(self.values + self.kept, inside)
    self.zeros = tuple(leaf for f in folds for leaf in f.zeros)
    self.captured = tuple(leaf for f in folds for leaf in f.captured)
    shared = [leaf.type_spec for leaf in self.captured]
    totals = [t for f in folds for t in f.types]
    values = [leaf.type_spec for leaf in self.values]
    self.accumulate = Step([*shared, *totals, *values], self._emit_accumulate)
    self.merge = Step([*shared, *totals, *totals], self._emit_merge)

  @property
  def reads(self) -> tuple[nodes.Leaf, ...]:
    """All leaves that the pass reads, each one once."""
    leaves = (*self.work.inputs, *self.captured, *self.zeros)
    return tuple(dict.fromkeys(leaves))

  @property
  def totals(self) -> tuple[nodes.Leaf, ...]:
    """Outputs of all folds."""
    return tuple(
      nodes.Leaf(f, i) for f in self.folds for i in range(len(f.types))
    )

  def _emit_accumulate(self, args: Sequence[Any]) -> list[Any]:
    """Builds the accumulation of one client's values, for all folds.

    Args:
      args: Captured leaves, totals and values, each fold after fold.
    """
    rest = list(args)
    captured = [_split(rest, len(f.captured)) for f in self.folds]
    totals = [_split(rest, len(f.types)) for f in self.folds]
    results = []
    for f, outer, total in zip(self.folds, captured, totals):
      value = _split(rest, len(f.client_values))
      # `Fold.captured` holds the leaves of `accumulate`, then those of `merge`.
      outer = outer[: len(f.accumulate.captured)]
      results.extend(f.accumulate.emit([*total, *value], outer))
    return results

  def _emit_merge(self, args: Sequence[Any]) -> list[Any]:
    """Builds the merge of the totals of two lanes, for all folds.

    Args:
      args: Captured leaves, totals and other totals, each fold after fold.
    """
    rest = list(args)
    captured = [_split(rest, len(f.captured)) for f in self.folds]
    totals = [_split(rest, len(f.types)) for f in self.folds]
    results = []
    for f, outer, total in zip(self.folds, captured, totals):
      other = _split(rest, len(f.types))
      outer = outer[len(f.accumulate.captured) :]
      results.extend(f.merge.emit([*total, *other], outer))
    return results


def _split(rest: list[Any], size: int) -> list[Any]:
  """Removes and returns `size` elements from the front of a list."""
  front = rest[:size]
  del rest[:size]
  return front


@dataclasses.dataclass(frozen=True)
class Plan:
  """Order of a computation: a step at the server, a pass, a step, ...

  Attributes:
    traced: Traced computation.
    steps: Steps at the server.
    passes: Pass after each step; None if no pass is needed.
  """

  traced: blocks.Traced
  steps: tuple[LeafStep, ...]
  passes: tuple[Pass | None, ...]


def _reachable(leaves: Iterable[nodes.Leaf]) -> list[nodes.Node]:
  """Returns the nodes that leaves depend on, in order of creation."""
  reached: set[nodes.Node] = set()
  todo = [leaf.node for leaf in leaves]
  while todo:
    node = todo.pop()
    if node not in reached:
      reached.add(node)
      todo.extend(leaf.node for leaf in node.inputs)
  return sorted(reached, key=lambda node: node.serial)


def create(traced: blocks.Traced) -> Plan:
  """Returns the plan of a computation."""
  reached = _reachable(traced.result)
  levels = range(1 + max((node.level for node in reached), default=0))
  placed = _assign_passes(traced, reached)
  # The nodes that read each leaf; None stands for the result.
  uses: dict[nodes.Leaf, list[nodes.Node | None]] = {}
  for leaf in traced.result:
    uses.setdefault(leaf, []).append(None)
  for node in reached:
    for leaf in node.inputs:
      uses.setdefault(leaf, []).append(node)
  server = {n: n.level for n in reached if _runs(n) and not n.at_clients}
  steps = tuple(
    LeafStep.create(*_outputs(uses, server, level)) for level in levels
  )
  passes = []
  for level in levels:
    folds = [
      n for n in reached if isinstance(n, nodes.Fold) and n.level == level + 1
    ]
    kept, inside = _outputs(uses, placed, level, folds)
    work = Pass(folds, kept, inside) if folds or kept else None
    passes.append(work)
  return Plan(traced, steps, tuple(passes))


def _runs(node: nodes.Node) -> bool:
  return node.emit is not None


def _assign_passes(
  traced: blocks.Traced, reached: Sequence[nodes.Node]
) -> dict[nodes.Node, int]:
  """Returns the first pass that needs each node at the clients."""
  roots = [(leaf.node.level, leaf) for leaf in traced.result]
  for node in reached:
    if isinstance(node, nodes.Fold):
      roots.extend((node.level - 1, leaf) for leaf in node.client_values)
  placed: dict[nodes.Node, int] = {}
  for number, root in sorted(roots, key=lambda pair: pair[0]):
    todo = [root.node]
    while todo:
      node = todo.pop()
      if node.at_clients and _runs(node) and node not in placed:
        placed[node] = number
        todo.extend(leaf.node for leaf in node.inputs)
  return placed


def _outputs(
  uses: Mapping[nodes.Leaf, Sequence[nodes.Node | None]],
  placed: Mapping[nodes.Node, int],
  number: int,
  folds: Container[nodes.Node] = (),
) -> tuple[list[nodes.Leaf], set[nodes.Node]]:
  """Returns the leaves of step or pass `number` that are used outside it.

  Args:
    uses: Nodes that read each leaf; None stands for the result.
    placed: Number of the step or pass of each node.
    number: Number of the step or pass.
    folds: Folds that belong to the pass, so that their inputs stay inside.

  Returns:
    The leaves, and the nodes inside the step or pass.
  """
  inside = {node for node, where in placed.items() if where == number}
  outputs = [
    leaf
    for leaf, users in uses.items()
    if leaf.node in inside
    and any(u not in inside and u not in folds for u in users)
  ]
  return outputs, inside
