"""Bytes that rounds on a cluster move, counted by the kernel.

A host is a network namespace with one link (`cluster_hosts`). The counters of
all links are read before and after each round. A round is one of DP-FedAvg with
a dense layer as model. Clients are recipes, whose data workers make themselves.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from typing import Any
from unittest import mock

from experiments.measuring import cluster_hosts

_BYTES_A_WEIGHT = 4
_IDLE_SECS = 20.0


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Bytes of a round, or of a time without one.

  Attributes:
    parameters: Number of weights of the model.
    workers: Number of workers, each on a host of its own.
    round_num: Number of the round from 0; None for a time without a round.
    merges: Merges of two totals from different workers, as the merge tree and
      the places of the portions say.
    driver_sent: Bytes that left the driver's host.
    driver_received: Bytes that arrived at the driver's host.
    workers_sent: Bytes that left the hosts of workers.
    most_received: Largest number of bytes that a worker's host received.
    seconds: Duration.
  """

  parameters: int
  workers: int
  round_num: int | None
  merges: int
  driver_sent: int
  driver_received: int
  workers_sent: int
  most_received: int
  seconds: float

  @property
  def between_workers(self) -> int:
    """Bytes from worker to worker."""
    return self.workers_sent - self.driver_received


def expected_megabytes(traffic: Traffic) -> tuple[float, float, float]:
  """Returns what docs/scaling.md says of a round, in megabytes.

  Weights go to each host, a total to the driver, and one from worker to worker
  for each merge of totals from two workers.

  Returns:
    Megabytes from the driver, to the driver, and from worker to worker.
  """
  model = traffic.parameters * _BYTES_A_WEIGHT / 1e6
  return traffic.workers * model, model, traffic.merges * model


def measure(
  parameters: Sequence[int], workers: Sequence[int], clients: int, rounds: int
) -> list[Traffic]:
  """Returns the traffic of each round, the first ones included.

  Args:
    parameters: Numbers of weights of the models.
    workers: Numbers of workers.
    clients: Number of clients of a round.
    rounds: Number of rounds after the first one.

  Raises:
    InputError: No namespaces can be made here.
  """
  results: list[Traffic] = []
  with (
    tempfile.TemporaryDirectory() as folder,
    cluster_hosts.Hosts() as hosts,
  ):
    path = pathlib.Path(folder, 'traffic.json')
    for number in sorted(set(workers)):
      while len(hosts.holders) <= number:
        hosts.add()
      arguments = {
        'address': hosts.address,
        'holders': hosts.holders,
        'parameters': list(parameters),
        'clients': clients,
        'rounds': rounds,
      }
      hosts.run(__name__, json.dumps(arguments), str(path))
      rows = json.loads(path.read_text(encoding='utf-8'))
      results += [Traffic(**row) for row in rows]
  return results


def merges(places: Mapping[int, int]) -> int:
  """Returns the number of merges of totals from different workers.

  The merged total is where its left half was.

  Args:
    places: Worker of each portion.
  """
  from tff_medical.runtime.cluster import portions

  tree = portions.Tree(len(places))
  number = 0

  def place(span: portions.Span) -> int:
    nonlocal number
    if span.end - span.first == 1:
      return places[span.first]
    left, right = map(place, tree.children(span))
    number += left != right
    return left

  place(tree.root)
  return number


@contextlib.contextmanager
def places_of_portions() -> Iterator[dict[int, int]]:
  """Yields the worker of each portion of the pass that has run last."""
  from tff_medical.runtime.cluster import gathering

  places: dict[int, int] = {}

  class Gathering(gathering.Gathering):
    """A pass that says where its portions ran."""

    def run(self) -> Any:
      result = super().run()
      places.clear()
      places.update(self.homes)
      return result

  with mock.patch.object(gathering, 'Gathering', Gathering):
    yield places


class _Counter:
  """Traffic of a cluster between two moments."""

  def __init__(self, holders: Sequence[int]):
    self._holders = holders
    self._before = self._read()
    self._started = time.monotonic()

  def _read(self) -> list[tuple[int, int]]:
    return [cluster_hosts.link_bytes(holder) for holder in self._holders]

  def traffic(
    self, parameters: int, round_num: int | None, number_of_merges: int
  ) -> Traffic:
    (head_in, head_out), *others = [
      (after[0] - before[0], after[1] - before[1])
      for before, after in zip(self._before, self._read())
    ]
    return Traffic(
      parameters=parameters,
      workers=len(others),
      round_num=round_num,
      merges=number_of_merges,
      driver_sent=head_out,
      driver_received=head_in,
      workers_sent=sum(sent for _, sent in others),
      most_received=max(received for received, _ in others),
      seconds=time.monotonic() - self._started,
    )


@dataclasses.dataclass(frozen=True)
class Vectors:
  """Source of clients with one random vector each.

  Attributes:
    size: Length of a vector.
  """

  size: int

  @property
  def digest(self) -> str:
    """All that decides the data."""
    return repr(self)

  def open(self) -> Any:
    """Returns the function from the number of a client to its data."""
    import numpy as np

    from tff_medical import runtime

    def load(client: int) -> Any:
      rng = np.random.default_rng(client)
      arrays = collections.OrderedDict(
        x=rng.random((1, self.size), np.float32),
        y=np.zeros(1, np.int64),
      )
      return runtime.tensor_dataset(arrays, batch_size=1)

    return load


def datasets(number: int) -> list[Any]:
  """Returns the datasets of clients, none of them loaded.

  Args:
    number: Number of clients.
  """
  import tensorflow as tf

  from experiments.measuring import driver_costs
  from tff_medical.runtime import recipes

  spec = collections.OrderedDict(
    x=tf.TensorSpec([None, driver_costs.INPUTS]),
    y=tf.TensorSpec([None], tf.int64),
  )
  source = Vectors(driver_costs.INPUTS)
  return [
    recipes.recipe_dataset(recipes.Recipe(source, n), spec)
    for n in range(number)
  ]


def _rounds(
  address: str,
  holders: Sequence[int],
  parameters: Sequence[int],
  clients: int,
  rounds: int,
) -> list[Traffic]:
  """Returns the traffic of the rounds of a process at the head."""
  import tensorflow_federated as tff

  from experiments.measuring import driver_costs
  from tff_medical.runtime import cluster

  results: list[Traffic] = []
  with places_of_portions() as places:
    context = cluster.create_cluster_context(address)
    with tff.framework.get_context_stack().install(context):
      for number in parameters:
        process = driver_costs.dense_process(number)
        data = datasets(clients)
        state = process.initialize()
        for round_num in range(rounds + 1):
          counter = _Counter(holders)
          state = process.next(state, data).state
          results.append(counter.traffic(number, round_num, merges(places)))
    counter = _Counter(holders)
    time.sleep(_IDLE_SECS)
    results.append(counter.traffic(0, None, 0))
    context.close()
  return results


def main(arguments: str, path: str) -> None:
  """Writes the traffic of the rounds that the arguments describe."""
  rows = _rounds(**json.loads(arguments))
  text = json.dumps([dataclasses.asdict(row) for row in rows])
  pathlib.Path(path).write_text(text, encoding='utf-8')


if __name__ == '__main__':
  # Workers import the source by its name.
  from experiments.measuring import cluster_traffic

  cluster_traffic.main(*sys.argv[1:])
