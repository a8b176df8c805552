"""Base class of contexts that run computations by plans.

The context unfolds a computation (`blocks`), cuts it into steps and passes
(`plan`) and runs the steps at the server in this process. How a pass visits the
clients is left to the subclass.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
import dataclasses
import functools
import threading
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.runtime import blocks
from tff_medical.runtime import cohort as cohort_lib
from tff_medical.runtime import graphs
from tff_medical.runtime import nodes
from tff_medical.runtime import plan as plan_lib
from tff_medical.runtime import values

_Computation = tff.framework.ConcreteComputation
# Number of characters of a type signature that an error shows.
_SIGNATURE_LENGTH = 200


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
  """Compiled computation.

  Attributes:
    native: The computation and its arguments that are functions, in TFF's
      native form.
    plan: Plan of the computation applied to these functions.
  """

  native: tuple[tff.framework.ConcreteComputation, ...]
  plan: plan_lib.Plan

  @classmethod
  def create(
    cls,
    options: graphs.Options,
    native: Sequence[tff.framework.ConcreteComputation],
  ) -> Compiled:
    """Returns the compiled form of computations in TFF's native form."""
    block, *functions = (comp.to_building_block() for comp in native)
    traced = blocks.trace(block, functions, options)
    return cls(tuple(native), plan_lib.create(traced))


def _compile(
  options: graphs.Options,
  comp: tff.framework.ConcreteComputation,
  *functions: tff.framework.ConcreteComputation,
) -> Compiled:
  """Returns the compiled form of a computation applied to computations."""
  return Compiled.create(options, [_native(c) for c in (comp, *functions)])


def _native(
  comp: tff.framework.ConcreteComputation,
) -> tff.framework.ConcreteComputation:
  """Returns TFF's compiled form of a computation, with secure sums as sums."""
  comp = tff.backends.test.replace_secure_intrinsics_with_bodies(comp)
  return tff.backends.native.desugar_and_transform_to_native(comp)


def _name(comp: tff.framework.ConcreteComputation) -> str:
  """Returns the name of a computation for error messages."""
  block = comp.to_building_block()
  name = getattr(block, 'parameter_name', None) or ''
  signature = comp.type_signature.compact_representation()
  if len(signature) > _SIGNATURE_LENGTH:
    signature = signature[:_SIGNATURE_LENGTH] + '...'
  function = name[: -len('_arg')] if name.endswith('_arg') else name
  return f'{function} {signature}'.strip()


class PlannedContext(tff.framework.SyncContext, abc.ABC):
  """Runs computations by plans, the steps at the server in this process."""

  def __init__(
    self,
    options: graphs.Options,
    server_device: str,
    default_num_clients: int = 0,
  ):
    self._server_device = server_device
    self._default_num_clients = default_num_clients
    self._lock = threading.RLock()
    self._compiled = functools.lru_cache()(functools.partial(_compile, options))

  @abc.abstractmethod
  def _visit(
    self,
    compiled: Compiled,
    number: int,
    work: plan_lib.Pass,
    env: dict[nodes.Leaf, Any],
    clients: int,
  ) -> dict[nodes.Leaf, Any]:
    """Runs a pass; returns its leaves, as `passes.run` does.

    Args:
      compiled: Compiled computation.
      number: Number of the pass in the plan.
      work: Pass itself.
      env: Values of the leaves so far.
      clients: Cohort size.
    """

  def invoke(self, comp: Any, arg: Any) -> Any:
    """Runs `comp` on `arg` and returns its result in TFF's form.

    Raises:
      ClientError: The computation of a client failed.
      ComputationError: The computation of the server failed.
    """
    type_spec = comp.type_signature
    if not isinstance(type_spec, tff.FunctionType):
      raise ValueError(f'Expected a `tff.FunctionType`, found {type_spec}.')
    arg = values.resolve(self.invoke, arg)
    clients = values.cardinality(arg, type_spec.parameter)
    if clients is None:
      clients = self._default_num_clients
    leaves = values.ingest_argument(arg, type_spec.parameter)
    functions = [leaf for leaf in leaves if isinstance(leaf, _Computation)]
    tensors = [leaf for leaf in leaves if not isinstance(leaf, _Computation)]
    with self._lock:
      compiled = self._compiled(comp, *functions)
      try:
        result = self._run(compiled, tensors, clients)
      except cohort_lib.ClientError as error:
        raise cohort_lib.ClientError(
          f'In computation {_name(comp)}: {error}', error.client_index
        ) from error.__cause__
      except tf.errors.OpError as error:
        raise cohort_lib.ComputationError(
          f'In computation {_name(comp)}: {error}'
        ) from error
    at_clients = [leaf.node.at_clients for leaf in compiled.plan.traced.result]
    return values.emit_result(
      zip(result, at_clients), type_spec.result, clients
    )

  def _run(
    self, compiled: Compiled, args: Sequence[Any], clients: int
  ) -> list[Any]:
    """Returns the leaves of the result."""
    plan = compiled.plan
    env: dict[nodes.Leaf, Any] = dict(zip(plan.traced.parameters, args))
    for number, (step, client_pass) in enumerate(zip(plan.steps, plan.passes)):
      if step.outputs:
        with tf.device(self._server_device):
          outputs = step.step([env[leaf] for leaf in step.inputs])
        env.update(zip(step.outputs, outputs))
      if client_pass is not None:
        env.update(self._visit(compiled, number, client_pass, env, clients))
    return [env[leaf] for leaf in plan.traced.result]
