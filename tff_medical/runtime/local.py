"""TFF context that runs computations in this process, on all its devices.

TFF's own runtime is a separate program for the CPU only. This context takes its
place. It unfolds a computation (`blocks`), cuts it into steps and passes
(`plan`), and runs them with the installed TensorFlow. The clients of a cohort
run at once on CPU threads or GPUs (`cohort`).

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
from collections.abc import Hashable, Sequence
import functools
import threading
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.runtime import blocks
from tff_medical.runtime import cohort as cohort_lib
from tff_medical.runtime import devices
from tff_medical.runtime import graphs
from tff_medical.runtime import nodes
from tff_medical.runtime import plan as plan_lib
from tff_medical.runtime import precision as precision_lib
from tff_medical.runtime import values

_Computation = tff.framework.ConcreteComputation
# Number of characters of a type signature that an error shows.
_SIGNATURE_LENGTH = 200


def _building_block(
  comp: tff.framework.ConcreteComputation,
) -> tff.framework.ComputationBuildingBlock:
  """Returns TFF's compiled form of a computation, with secure sums as sums."""
  comp = tff.backends.test.replace_secure_intrinsics_with_bodies(comp)
  comp = tff.backends.native.desugar_and_transform_to_native(comp)
  return comp.to_building_block()


def _compile(
  options: graphs.Options,
  comp: tff.framework.ConcreteComputation,
  *functions: tff.framework.ConcreteComputation,
) -> plan_lib.Plan:
  """Returns the plan of a computation applied to computations."""
  return plan_lib.create(
    blocks.trace(
      _building_block(comp), [_building_block(f) for f in functions], options
    )
  )


def _name(comp: tff.framework.ConcreteComputation) -> str:
  """Returns the name of a computation for error messages."""
  block = comp.to_building_block()
  name = getattr(block, 'parameter_name', None) or ''
  signature = comp.type_signature.compact_representation()
  if len(signature) > _SIGNATURE_LENGTH:
    signature = signature[:_SIGNATURE_LENGTH] + '...'
  function = name[: -len('_arg')] if name.endswith('_arg') else name
  return f'{function} {signature}'.strip()


class _Invocation:
  """One run of a plan, with the values of its leaves so far."""

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
    # The value of a leaf at the clients is a list with one value per client.
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

  def _key(self, slot: Hashable) -> Hashable:
    """Returns a key that separates runs which must not share variables."""
    return slot if self._plan.traced.has_state else None

  def _run_step(self, step: plan_lib.LeafStep) -> None:
    if step.outputs:
      with tf.device(self._cohort.devices[0]):
        outputs = step.step(self._values(step.inputs))
      self._env.update(zip(step.outputs, outputs))

  def _shared(
    self, leaves: Sequence[nodes.Leaf], device: str
  ) -> dict[nodes.Leaf, Any]:
    """Returns the values that clients share, with tensors on a device."""
    shared = {}
    with tf.device(device):
      for leaf in leaves:
        if not leaf.node.at_clients:
          value = self._env[leaf]
          if isinstance(leaf.type_spec, tff.TensorType):
            value = tf.identity(value)
          shared[leaf] = value
    return shared

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
      from_server = shared[slot.lane]
      args = [
        from_server[leaf] if leaf in from_server else self._env[leaf][index]
        for leaf in work.work.inputs
      ]
      with tf.device(slot.device):
        placed = self._cohort.placed_on(slot.lane)
        outputs = work.work.step(args, self._key(slot), placed)
      by_leaf = dict(zip(work.work.outputs, outputs))
      for leaf in work.kept:
        kept[leaf][index] = by_leaf[leaf]
      return [by_leaf[leaf] for leaf in work.values]

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

  def __init__(
    self,
    cohort: cohort_lib.Cohort,
    default_num_clients: int = 0,
    precision: str = precision_lib.FLOAT32,
  ):
    self._cohort = cohort
    self._default_num_clients = default_num_clients
    self._lock = threading.RLock()
    on_cpu = any(name.startswith('CPU:') for name in cohort.devices)
    options = graphs.Options(bodies_apart=on_cpu, precision=precision)
    self._plan = functools.lru_cache()(functools.partial(_compile, options))

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
  """`LocalContext` for programs that await their computations."""

  def __init__(self, context: LocalContext):
    self._context = context

  async def invoke(self, comp: Any, arg: Any) -> Any:
    """Runs `comp` on `arg` in another thread."""
    if asyncio.iscoroutine(arg):
      arg = await arg
    return await asyncio.to_thread(self._context.invoke, comp, arg)


def create_local_context(
  client_threads: int | None = None,
  client_devices: Sequence[str] | None = None,
  clients_per_device: int | None = None,
  default_num_clients: int = 0,
  precision: str = precision_lib.FLOAT32,
) -> LocalContext:
  """Returns a context that runs TFF computations in this process.

  Create the context before the first TensorFlow operation: TensorFlow cannot
  divide the machine later. By default one client at a time runs on each GPU.
  Without a GPU one client runs on each CPU core.

  Args:
    client_threads: Number of clients that run at once on the CPU. Each client
      gets an equal share of the cores for TensorFlow's intra-op threads.
    client_devices: TensorFlow devices that run clients, such as `['GPU:0']`.
    clients_per_device: Number of clients that run at once on each device, which
      is divided into as many logical devices.
    default_num_clients: Cohort size of a computation whose argument does not
      state it.
    precision: Number format of a model's forward and backward pass, 'float32'
      or 'bfloat16'; see `precision`.

  Raises:
    InputError: A value is out of range, there is no such device, or the device
      does not compute in this precision.
  """
  precision_lib.refuse_rewriting_of_everything()
  placement = devices.choose(client_threads, client_devices, clients_per_device)
  precision_lib.check(precision, placement.devices)
  return LocalContext(
    cohort_lib.Cohort(placement), default_num_clients, precision
  )


def set_local_context(
  client_threads: int | None = None,
  client_devices: Sequence[str] | None = None,
  clients_per_device: int | None = None,
  default_num_clients: int = 0,
  precision: str = precision_lib.FLOAT32,
) -> None:
  """Makes `create_local_context(...)` the default context."""
  tff.framework.set_default_context(
    create_local_context(
      client_threads,
      client_devices,
      clients_per_device,
      default_num_clients,
      precision,
    )
  )
