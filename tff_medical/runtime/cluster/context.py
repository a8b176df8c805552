"""TFF context that runs computations on the machines of a Ray cluster.

Steps at the server run in this process, the driver. Clients run on workers, one
in-process runtime on each node or GPU. A computation travels to a worker once,
and the values that clients share travel once a pass, through Ray's object
store. Client data given as recipes (`runtime.recipes`) is loaded by the worker
that trains the client. What a worker sends back is the sum over its clients.

Noise that a computation adds at the server is drawn in the driver, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import itertools
from typing import Any
import weakref

import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.runtime import graphs
from tff_medical.runtime import nodes
from tff_medical.runtime import plan as plan_lib
from tff_medical.runtime import planned
from tff_medical.runtime import precision as precision_lib
from tff_medical.runtime import recipes
from tff_medical.runtime.cluster import connection
from tff_medical.runtime.cluster import gathering
from tff_medical.runtime.cluster import messages
from tff_medical.runtime.cluster import pool as pool_lib
from tff_medical.runtime.cluster import portions
from tff_medical.runtime.cluster import wire

_SERVER = 'CPU:0'
_MAX_PORTIONS = 1_000_000
# Portions of a cohort unless the caller says. Several for each worker even out
# workers of different speed; a fixed number gives small clusters of any size the
# same sums.
_PORTIONS = 32
_PORTIONS_A_WORKER = 16

Listener = Callable[[Sequence[Any]], None]


class ClusterContext(planned.PlannedContext):
  """Runs computations on a cluster; see `create_cluster_context`."""

  def __init__(
    self,
    ray: Any,
    pool: pool_lib.Pool,
    options: graphs.Options,
    portions_at_most: int,
    default_num_clients: int,
  ):
    super().__init__(options, _SERVER, default_num_clients)
    self._ray = ray
    self._pool = pool
    self._portions = portions_at_most
    self._number = itertools.count()
    self._computations: weakref.WeakKeyDictionary[
      planned.Compiled, messages.Shared
    ] = weakref.WeakKeyDictionary()
    self._homes: weakref.WeakKeyDictionary[
      planned.Compiled, dict[int, dict[int, int]]
    ] = weakref.WeakKeyDictionary()
    self._listeners: dict[str, Listener] = {}

  @property
  def workers(self) -> int:
    """Number of workers that are ready."""
    return len(self._pool.ready)

  @property
  def portions(self) -> int:
    """Largest number of portions of a cohort."""
    return self._portions

  def open(
    self,
    source: recipes.Source,
    listener: Listener | None = None,
  ) -> None:
    """Has the workers open a source of data before they train on it.

    Nodes that cannot open it are left out.

    Args:
      source: Source of data.
      listener: Function that gets all that the source's loaders found in a
        pass (see `recipes.Reader`). Its exceptions end the computation.

    Raises:
      InputError: No worker can.
    """
    if listener is not None:
      self._listeners[source.digest] = listener
    self._pool.open(source)

  def close(self) -> None:
    """Ends the workers; the context cannot be used after it."""
    self._pool.close()

  def _visit(
    self,
    compiled: planned.Compiled,
    number: int,
    work: plan_lib.Pass,
    env: dict[nodes.Leaf, Any],
    clients: int,
  ) -> dict[nodes.Leaf, Any]:
    if not clients:
      zeros = [env[leaf] for leaf in work.zeros]
      return {leaf: [] for leaf in work.kept} | dict(zip(work.totals, zeros))
    try:
      total, kept = self._gathered(compiled, number, work, env, clients)
    except (ConnectionError, self._ray.exceptions.RayError) as error:
      raise pool_lib.ClusterError(f'the cluster failed: {error}') from error
    return dict(zip(work.totals, total)) | {
      leaf: [wire.decode(value) for values in kept for value in values[i]]
      for i, leaf in enumerate(work.kept)
    }

  def _gathered(
    self,
    compiled: planned.Compiled,
    number: int,
    work: plan_lib.Pass,
    env: dict[nodes.Leaf, Any],
    clients: int,
  ) -> tuple[list[Any], list[Any]]:
    """Returns encoded totals, and the encoded kept values of each portion."""
    shared, by_client = {}, {}
    for position, leaf in enumerate(work.reads):
      if leaf.node.at_clients:
        by_client[position] = [wire.encode(value) for value in env[leaf]]
      else:
        shared[position] = wire.encode_shared(env[leaf])
    costs = [
      max(1.0, sum(map(wire.cost, values)))
      for values in zip(*by_client.values())
    ] or [1.0] * clients
    cut = portions.cut(costs, min(self._portions, clients))
    call = messages.Call(
      next(self._number),
      self._computation(compiled),
      number,
      [self._ray.put(shared)],
      len(cut),
    )
    homes = self._homes.setdefault(compiled, {})
    gathered = gathering.Gathering(
      self._ray,
      self._pool,
      call,
      [
        messages.Portion(
          n,
          part.start,
          len(part),
          {
            k: values[part.start : part.stop] for k, values in by_client.items()
          },
        )
        for n, part in enumerate(cut)
      ],
      [sum(costs[part.start : part.stop]) for part in cut],
      homes.get(number, {}),
    )
    result = gathered.run()
    homes[number] = gathered.homes
    for digest, listener in self._listeners.items():
      found = [gathered.findings[n].get(digest) for n in range(len(cut))]
      listener([findings for findings in found if findings is not None])
    return result

  def _computation(self, compiled: planned.Compiled) -> messages.Shared:
    """Returns a computation in Ray's store, into which it is put once."""
    if compiled not in self._computations:
      native = [tff.framework.serialize_computation(c) for c in compiled.native]
      self._computations[compiled] = messages.Shared(
        str(next(self._number)), [self._ray.put(native)]
      )
    return self._computations[compiled]


def create_cluster_context(
  address: str = 'auto',
  *,
  worker_cores: int | None = None,
  portions_at_most: int | None = None,
  default_num_clients: int = 0,
  precision: str = precision_lib.FLOAT32,
  patience_secs: float = 120.0,
) -> ClusterContext:
  """Returns a context that runs TFF computations on a Ray cluster.

  The results are those of the local runtime. Sums of floating-point numbers
  are added in another order, which depends on the cohort and `portions_at_most`
  alone: neither on the number of workers nor on which of them died.

  Args:
    address: Address of the cluster: 'auto' for the one that this machine
      belongs to, 'host:port', or 'ray://host:port' from outside of it.
    worker_cores: CPU cores of a worker, each for one client at a time. By
      default a worker takes all cores of its node. A node with GPUs has one
      worker for each of them.
    portions_at_most: Number of portions into which a cohort is divided, so that
      a slow worker does not hold the round. By default 32, or 16 for each
      worker that is there now if these are more.
    default_num_clients: Cohort size of a computation whose argument does not
      state it.
    precision: Number format of a model's forward and backward pass; see
      `precision`.
    patience_secs: Seconds without any worker after which a computation is given
      up.

  Raises:
    InputError: A value is out of range, Ray is not installed, there is no such
      cluster, or its nodes cannot run a worker.
    ClusterError: No worker was ready in time.
  """
  if worker_cores is not None:
    _validate.positive_int(worker_cores=worker_cores)
  if portions_at_most is not None:
    _validate.positive_int(portions_at_most=portions_at_most)
    _validate.within(1, _MAX_PORTIONS, portions_at_most=portions_at_most)
  _validate.one_of(precision_lib.PRECISIONS, precision=precision)
  precision_lib.refuse_rewriting_of_everything()
  ray = connection.connect(address)
  options = pool_lib.WorkerOptions(worker_cores, precision, patience_secs)
  pool = pool_lib.Pool(ray, options)
  try:
    pool.wait_for_all()
  except BaseException:
    pool.close()
    raise
  return ClusterContext(
    ray,
    pool,
    graphs.Options.on([_SERVER], precision),
    portions_at_most or max(_PORTIONS, _PORTIONS_A_WORKER * len(pool.ready)),
    default_num_clients,
  )


def set_cluster_context(address: str = 'auto', **options: Any) -> None:
  """Makes `create_cluster_context(...)` the default context."""
  tff.framework.set_default_context(create_cluster_context(address, **options))
