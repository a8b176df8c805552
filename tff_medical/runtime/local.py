"""TFF context that runs computations in this process, on all its devices.

TFF's own runtime is a separate program for the CPU only. This context takes its
place. It runs the plan of a computation (`planned`) with the installed
TensorFlow. The clients of a cohort run at once on CPU threads or GPUs
(`cohort`).

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
from typing import Any

import tensorflow_federated as tff

from tff_medical.runtime import cohort as cohort_lib
from tff_medical.runtime import devices
from tff_medical.runtime import graphs
from tff_medical.runtime import nodes
from tff_medical.runtime import passes
from tff_medical.runtime import plan as plan_lib
from tff_medical.runtime import planned
from tff_medical.runtime import precision as precision_lib


class LocalContext(planned.PlannedContext):
  """Runs computations in this process; see `create_local_context`."""

  def __init__(
    self,
    cohort: cohort_lib.Cohort,
    default_num_clients: int = 0,
    precision: str = precision_lib.FLOAT32,
  ):
    options = graphs.Options.on(cohort.devices, precision)
    super().__init__(options, cohort.devices[0], default_num_clients)
    self._cohort = cohort

  def _visit(
    self,
    compiled: planned.Compiled,
    number: int,
    work: plan_lib.Pass,
    env: dict[nodes.Leaf, Any],
    clients: int,
  ) -> dict[nodes.Leaf, Any]:
    del number
    has_state = compiled.plan.traced.has_state
    return passes.run(self._cohort, work, env, clients, has_state=has_state)


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
