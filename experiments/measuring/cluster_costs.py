"""Costs of the driver and of failures on a real cluster of this machine.

The driver's costs are processor time of its process, so that other work on the
machine does not count: a portion, the cohort's set-up, and what each further
worker adds. Workers that count clients take the place of those that train. Waits
are by the clock: of a message, and of a killed worker. The cluster consists of
namespaces (`cluster_hosts`), and the driver is a process at its head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import typing
from typing import Any
from unittest import mock

from experiments.measuring import cluster_hosts

# Workers of the smallest and of the largest pass of the driver's bookkeeping.
_FEW, _MANY = 10, 1_000
_PORTIONS_A_WORKER = 16
# Portions of the passes of which one costs the driver more, and clients of the
# pass whose cohort does.
_PORTIONS = (64, 512)
_CLIENTS = 20_000
_MESSAGES = 300
_WAITS = 100
_POLL_SECS = 0.02
_PATIENCE_SECS = 300.0
# Clients of the pass in which a worker is killed, and the time of each.
_FAULT_CLIENTS = 512
_CLIENT_SECS = 0.25
# What the diary says in the place of a client when the driver gives one up.
_LOST = -1


def measure(workers: int, turns: int) -> dict[str, float]:
  """Returns costs as `cluster_simulation.Costs` names them.

  Args:
    workers: Number of workers for the driver's costs, at least 1.
    turns: Number of measured passes, whose median counts.

  Raises:
    InputError: No namespaces can be made here.
  """
  with (
    tempfile.TemporaryDirectory() as folder,
    cluster_hosts.Hosts() as hosts,
  ):
    path = pathlib.Path(folder, 'costs.json')
    hosts.add(workers)
    arguments = {
      'address': hosts.address,
      'workers': workers,
      'turns': turns,
    }
    hosts.run(__name__, '_driver', json.dumps(arguments), str(path))
    costs: dict[str, float] = json.loads(path.read_text(encoding='utf-8'))
  return costs | faults()


# Costs of the driver, in a process at the head.


def _driver(address: str, workers: int, turns: int) -> dict[str, float]:
  from tff_medical.runtime.cluster import connection

  os.environ['RAY_AUTH_MODE'] = 'disabled'
  ray = connection.connect(address)
  cls = _worker_class(ray)
  actors = [cls.remote() for _ in range(workers)]
  few, many = _PORTIONS
  (few_secs, few_jobs), (many_secs, many_jobs), (crowd_secs, _) = (
    _pass_secs(ray, actors, portions, clients, turns)
    for portions, clients in ((few, many), (many, many), (many, _CLIENTS))
  )
  # Ray's own lists of what is waited for, and the driver's, grow with workers.
  growth = _wait_secs(ray) + _bookkeeping_secs(turns)
  return {
    'cohort_micros': 1e6 * (crowd_secs - many_secs) / (_CLIENTS - many),
    'dispatch_millis': 1e3 * (many_secs - few_secs) / (many_jobs - few_jobs),
    'dispatch_micros_per_worker': 1e6 * growth,
    'latency_millis': 1e3 * _message_secs(ray, actors[0]) / 2,
  }


def _worker_class(ray: Any) -> Any:
  from experiments.measuring import light_workers

  return ray.remote(light_workers.LightWorker).options(
    num_cpus=1, enable_task_events=False
  )


def _pass_secs(
  ray: Any, actors: Sequence[Any], portions: int, clients: int, turns: int
) -> tuple[float, int]:
  """Returns the driver's processor time of a pass that counts clients.

  Returns:
    Seconds, and the number of portions and of totals that were moved.
  """
  import numpy as np
  import tensorflow as tf
  import tensorflow_federated as tff

  from experiments.measuring import cluster_traffic
  from experiments.measuring import light_workers
  from tff_medical.runtime import graphs
  from tff_medical.runtime import recipes
  from tff_medical.runtime.cluster import context as context_lib
  from tff_medical.runtime.cluster import pool as pool_lib

  spec = tf.TensorSpec([None], np.float32)
  data_type = tff.SequenceType(tff.TensorType(np.float32, [None]))

  @tff.tensorflow.computation(data_type)
  def one(dataset: tf.data.Dataset) -> tf.Tensor:
    del dataset
    return tf.constant(1, tf.int64)

  @tff.federated_computation(tff.FederatedType(data_type, tff.CLIENTS))
  def count(data: tff.Value) -> tff.Value:
    return tff.federated_sum(tff.federated_map(one, data))

  context = context_lib.ClusterContext(
    ray,
    typing.cast(pool_lib.Pool, light_workers.LightPool(actors)),
    graphs.Options.on(['CPU:0'], 'float32'),
    portions,
    0,
  )
  source = cluster_traffic.Vectors(1)

  def run() -> None:
    datasets = [
      recipes.recipe_dataset(recipes.Recipe(source, n), spec)
      for n in range(clients)
    ]
    if context.invoke(count, datasets) != clients:
      raise RuntimeError('the light workers have not counted all clients')

  with cluster_traffic.places_of_portions() as places:
    seconds = _median_cpu_secs(run, turns)
  return seconds, portions + cluster_traffic.merges(places)


def _wait_secs(ray: Any) -> float:
  """Returns what each further worker adds to one of Ray's waits."""
  from tff_medical.runtime.cluster import gathering

  sleeper = ray.remote(_Sleeper).options(num_cpus=0).remote()
  refs = [
    sleeper.sleep.remote(_PATIENCE_SECS)
    for _ in range(gathering._DEPTH * _MANY - 1)
  ]
  refs.append(ray.put(None))

  def seconds(workers: int) -> float:
    waited = refs[-gathering._DEPTH * workers :]
    return _median_cpu_secs(
      lambda: ray.wait(waited, num_returns=1, fetch_local=False), _WAITS
    )

  growth = (seconds(_MANY) - seconds(_FEW)) / (_MANY - _FEW)
  ray.kill(sleeper)
  return growth


class _Sleeper:
  """Worker whose calls do not end."""

  def sleep(self, secs: float) -> None:
    """Sleeps."""
    time.sleep(secs)


def _bookkeeping_secs(turns: int) -> float:
  """Returns what each further worker adds to a portion outside of Ray."""
  from experiments.measuring import light_workers

  ray = light_workers.InstantRay()

  def seconds(workers: int) -> float:
    portions = _PORTIONS_A_WORKER * workers
    actors = ray.actors(workers)
    secs, jobs = _pass_secs(ray, actors, portions, portions, turns)
    return secs / jobs

  return (seconds(_MANY) - seconds(_FEW)) / (_MANY - _FEW)


def _message_secs(ray: Any, actor: Any) -> float:
  """Returns the median time until a worker's answer to a call is here."""
  from tff_medical.runtime.cluster import messages

  call = messages.Call(0, messages.Shared('', []), 0, [], _MESSAGES)
  seconds = []
  for number in range(_MESSAGES):
    portion = messages.Portion(number, number, 1, {})
    started = time.perf_counter()
    ray.get(actor.run.remote(call, [], number, portion))
    seconds.append(time.perf_counter() - started)
  return statistics.median(seconds)


def _median_cpu_secs(run: Callable[[], object], turns: int) -> float:
  """Returns the median processor time, after one turn that does not count."""
  run()
  seconds = []
  for _ in range(turns):
    started = time.process_time()
    run()
    seconds.append(time.process_time() - started)
  return statistics.median(seconds)


# Deaths of workers, watched from outside of the cluster.


@dataclasses.dataclass(frozen=True)
class Diary:
  """Source of clients that write down when and where they are loaded.

  Attributes:
    path: File with a line `CLIENT PROCESS` for each loaded client.
  """

  path: str

  @property
  def digest(self) -> str:
    """All that decides the data."""
    return repr(self)

  def open(self) -> Any:
    """Returns the function from the number of a client to its data."""
    import numpy as np

    from tff_medical import runtime

    def load(client: int) -> Any:
      with open(self.path, 'a', encoding='utf-8') as file:
        file.write(f'{client} {os.getpid()}\n')
      time.sleep(_CLIENT_SECS)
      return runtime.tensor_dataset(np.ones(1, np.float32), batch_size=1)

    return load


def faults() -> dict[str, float]:
  """Returns the times after a worker's process is killed.

  Two workers train a cohort; one is killed when it has trained several clients.
  The times are those until the driver gives it up, whose portions wait for
  another worker from then on, and until a new worker loads its first client.
  """
  with (
    tempfile.TemporaryDirectory() as folder,
    cluster_hosts.Hosts() as hosts,
  ):
    path = pathlib.Path(folder, 'diary')
    path.touch()
    hosts.add()
    hosts.add()
    arguments = {'address': hosts.address, 'path': str(path)}
    driver = hosts.start(
      __name__, '_train', json.dumps(arguments), f'{folder}/end.json'
    )
    try:
      _wait_until(driver, lambda: _busy(path))
      victim, survivor = sorted(_busy(path) or ())[:2]
      before = len(_entries(path))
      os.kill(victim, signal.SIGKILL)
      killed = time.monotonic()

      def later() -> list[tuple[int, int]]:
        return _entries(path)[before:]

      _wait_until(driver, lambda: any(c == _LOST for c, _ in later()))
      noticed = time.monotonic() - killed
      _wait_until(
        driver,
        lambda: any(
          client != _LOST and process not in (victim, survivor)
          for client, process in later()
        ),
      )
      restarted = time.monotonic() - killed
    finally:
      driver.terminate()
      driver.wait()
  return {'notice_seconds': noticed, 'restart_seconds': restarted}


def _entries(path: pathlib.Path) -> list[tuple[int, int]]:
  """Returns the pairs of client and process of a diary."""
  lines = path.read_text(encoding='utf-8').split('\n')[:-1]
  return [(int(a), int(b)) for a, b in (line.split() for line in lines)]


def _busy(path: pathlib.Path) -> set[int] | None:
  """Returns the processes once two of them have loaded several clients."""
  loaded = [process for _, process in _entries(path)]
  several = {process for process in loaded if loaded.count(process) > 8}
  return several if len(several) > 1 else None


def _wait_until(
  driver: subprocess.Popen[bytes], condition: Callable[[], object]
) -> None:
  until = time.monotonic() + _PATIENCE_SECS
  while not condition():
    if driver.poll() is not None or time.monotonic() > until:
      raise RuntimeError('the pass has ended before what it was watched for')
    time.sleep(_POLL_SECS)


def _train(address: str, path: str) -> dict[str, float]:
  """Runs passes over clients of a diary until the process is ended.

  The driver notes there when it gives a worker up.
  """
  import numpy as np
  import tensorflow as tf
  import tensorflow_federated as tff

  from tff_medical.runtime import cluster
  from tff_medical.runtime import recipes
  from tff_medical.runtime.cluster import pool as pool_lib

  data_type = tff.SequenceType(tff.TensorType(np.float32, [None]))

  @tff.tensorflow.computation(data_type)
  def total(dataset: tf.data.Dataset) -> tf.Tensor:
    return dataset.reduce(0.0, lambda a, b: a + tf.reduce_sum(b))

  @tff.federated_computation(tff.FederatedType(data_type, tff.CLIENTS))
  def sum_of(data: tff.Value) -> tff.Value:
    return tff.federated_sum(tff.federated_map(total, data))

  spec = tf.TensorSpec([None], np.float32)
  data = [
    recipes.recipe_dataset(recipes.Recipe(Diary(path), n), spec)
    for n in range(_FAULT_CLIENTS)
  ]
  context = cluster.create_cluster_context(address)
  lose = pool_lib.Pool.lose

  def note(pool: pool_lib.Pool, member: pool_lib.Member) -> None:
    with open(path, 'a', encoding='utf-8') as file:
      file.write(f'{_LOST} {os.getpid()}\n')
    lose(pool, member)

  with mock.patch.object(pool_lib.Pool, 'lose', note):
    while True:
      context.invoke(sum_of, data)


def main(function: str, arguments: str, path: str) -> None:
  """Writes the result of one of this module's functions."""
  functions: dict[str, Callable[..., dict[str, float]]] = {
    '_driver': _driver,
    '_train': _train,
  }
  result = functions[function](**json.loads(arguments))
  pathlib.Path(path).write_text(json.dumps(result), encoding='utf-8')


if __name__ == '__main__':
  # Workers import sources by the name of the module.
  from experiments.measuring import cluster_costs

  cluster_costs.main(*sys.argv[1:])
