"""Runs TFF computations in this process, on all its devices.

TFF's own runtime is a separate program for the CPU alone. This context takes
its place: it unfolds a computation (`blocks`), cuts it into steps and passes
(`plan`), and runs them with the TensorFlow that is installed, the clients of a
cohort at once on CPU threads or GPUs (`cohort`).

>>> import numpy as np
>>> import tensorflow_federated as tff
>>> from tff_medical import runtime
>>> context = runtime.create_local_context(client_threads=1)
>>> @tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
... def total(values):
...   return tff.federated_sum(values)
>>> with tff.framework.get_context_stack().install(context):
...   int(total([1, 2, 3]))
6
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
import functools
import threading
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.runtime import blocks
from tff_medical.runtime import cohort as cohort_lib
from tff_medical.runtime import devices
from tff_medical.runtime import nodes
from tff_medical.runtime import plan as plan_lib
from tff_medical.runtime import values

_Computation = tff.framework.ConcreteComputation
# Characters of a type signature that an error shows.
_SIGNATURE_LENGTH = 200


def _building_block(comp: Any) -> tff.framework.ComputationBuildingBlock:
  """Compiles a computation by TFF's own rules, secure sums as plain sums."""
  comp = tff.backends.test.replace_secure_intrinsics_with_bodies(comp)
  comp = tff.backends.native.desugar_and_transform_to_native(comp)
  return comp.to_building_block()


def _compile(comp: Any, *functions: Any) -> plan_lib.Plan:
  """Returns the plan of a computation applied to computations."""
  return plan_lib.create(
    blocks.trace(_building_block(comp), [_building_block(f) for f in functions])
  )


def _name(comp: Any) -> str:
  """Returns what tells a user which computation it is."""
  block = comp.to_building_block()
  name = getattr(block, 'parameter_name', None) or ''
  signature = comp.type_signature.compact_representation()
  if len(signature) > _SIGNATURE_LENGTH:
    signature = signature[:_SIGNATURE_LENGTH] + '...'
  function = name[: -len('_arg')] if name.endswith('_arg') else name
  return f'{function} {signature}'.strip()


class _Invocation:
  """One run of a plan: the values of its leaves so far."""

  def __init__(
    self,
    plan: plan_lib.Plan,
    cohort: cohort_lib.Cohort,
    clients: int,
    args: Sequence[Any],
  ):
    self._plan = plan
    self._cohort = cohort
    self._clients = clients
    # A leaf at the clients has a list with one value for each of them.
    self._env = dict(zip(plan.traced.parameters, args))

  def run(self) -> list[Any]:
    """Returns the leaves of the result."""
    for step, client_pass in zip(self._plan.steps, self._plan.passes):
      self._run_step(step)
      if client_pass is not None:
        self._run_pass(client_pass)
    return self._values(self._plan.traced.result)

  def _values(self, leaves: Sequence[nodes.Leaf]) -> list[Any]:
    return [self._env[leaf] for leaf in leaves]

  def _key(self, slot: Any) -> Any:
    """Returns what tells apart runs that must not share variables."""
    return slot if self._plan.traced.has_state else None

  def _run_step(self, step: plan_lib.LeafStep) -> None:
    if step.outputs:
      with tf.device(self._cohort.devices[0]):
        outputs = step.step(self._values(step.inputs))
      self._env.update(zip(step.outputs, outputs))

  def _shared(
    self, leaves: Sequence[nodes.Leaf], device: str
  ) -> dict[nodes.Leaf, Any]:
    """Returns the values that clients share, tensors copied to a device."""
    found = {}
    with tf.device(device):
      for leaf in leaves:
        if not leaf.node.at_clients:
          value = self._env[leaf]
          if isinstance(leaf.type_spec, tff.TensorType):
            value = tf.identity(value)
          found[leaf] = value
    return found

  def _run_pass(self, work: plan_lib.Pass) -> None:
    kept: dict[nodes.Leaf, list[Any]] = {
      leaf: [None] * self._clients for leaf in work.kept
    }
    self._env.update(kept)
    shared = [
      self._shared(work.work.inputs, device) for device in self._cohort.devices
    ]
    captured = self._values(work.captured)

    def run_client(index: int, slot: cohort_lib.Slot) -> list[Any]:
      known = shared[slot.lane]
      args = [
        known[leaf] if leaf in known else self._env[leaf][index]
        for leaf in work.work.inputs
      ]
      with tf.device(slot.device):
        outputs = work.work.step(args, self._key(slot))
      found = dict(zip(work.work.outputs, outputs))
      for leaf in work.kept:
        kept[leaf][index] = found[leaf]
      return [found[leaf] for leaf in work.values]

    def fold(lane: int, total: list[Any], result: list[Any]) -> list[Any]:
      if not work.folds:
        return total
      with tf.device(self._cohort.devices[lane]):
        args = [*captured, *total, *result]
        return work.accumulate(args, self._key(lane))

    zero = self._values(work.zeros)
    totals = self._cohort.run(self._clients, run_client, fold, zero)
    with tf.device(self._cohort.devices[0]):
      total = totals.pop(0) if totals else zero
      for other in totals:
        total = work.merge([*captured, *total, *other])
    self._env.update(zip(work.totals, total))


class LocalContext(tff.framework.SyncContext):
  """Runs computations in this process; see `create_local_context`."""

  def __init__(self, cohort: cohort_lib.Cohort, default_num_clients: int = 0):
    self._cohort = cohort
    self._default_num_clients = default_num_clients
    self._lock = threading.RLock()
    self._plan = functools.lru_cache()(_compile)

  def invoke(self, comp: Any, arg: Any) -> Any:
    """Runs `comp` on `arg` and returns its result as TFF would."""
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
      plan = self._plan(comp, *functions)
      try:
        result = _Invocation(plan, self._cohort, clients, tensors).run()
      except cohort_lib.ClientError as error:
        raise cohort_lib.ClientError(
          f'In computation {_name(comp)}: {error}', error.client_index
        ) from error.__cause__
      except tf.errors.OpError as error:
        raise cohort_lib.ComputationError(
          f'In computation {_name(comp)}: {error}'
        ) from error
    at_clients = [leaf.node.at_clients for leaf in plan.traced.result]
    return values.emit_result(
      zip(result, at_clients), type_spec.result, clients
    )


class AsyncLocalContext(tff.framework.AsyncContext):
  """A `LocalContext` for programs that await their computations."""

  def __init__(self, context: LocalContext):
    self._context = context

  async def invoke(self, comp: Any, arg: Any) -> Any:
    """Runs `comp` on `arg` on a thread of its own."""
    if asyncio.iscoroutine(arg):
      arg = await arg
    return await asyncio.to_thread(self._context.invoke, comp, arg)


def create_local_context(
  client_threads: int | None = None,
  client_devices: Sequence[str] | None = None,
  clients_per_device: int | None = None,
  default_num_clients: int = 0,
) -> LocalContext:
  """Returns a context that runs TFF computations in this process.

  Create it before the first TensorFlow operation: TensorFlow cannot divide the
  machine later. Without arguments clients run on all GPUs, one at a time on
  each, or on the CPU, one on each core, where there is no GPU.

  Args:
    client_threads: Clients at once on the CPU. Each gets an equal share of the
      cores for TensorFlow's threads inside an operation.
    client_devices: TensorFlow devices that run clients, as in `['GPU:0']`.
    clients_per_device: Clients at once on each device, which is divided into
      as many logical devices.
    default_num_clients: Size of the cohort of a computation whose argument
      does not tell it.
  """
  placement = devices.choose(client_threads, client_devices, clients_per_device)
  return LocalContext(cohort_lib.Cohort(placement), default_num_clients)


def set_local_context(
  client_threads: int | None = None,
  client_devices: Sequence[str] | None = None,
  clients_per_device: int | None = None,
  default_num_clients: int = 0,
) -> None:
  """Makes `create_local_context(...)` the default of all computations."""
  tff.framework.set_default_context(
    create_local_context(
      client_threads,
      client_devices,
      clients_per_device,
      default_num_clients,
    )
  )
