"""Simulation of a round on a cluster, from costs that were measured on a few.

No cluster of a thousand workers is at hand. This module says what a round takes
there if each part costs what it costs here. It follows `runtime.cluster`:

1. The driver draws the cohort, makes a recipe of each client, and cuts the
   cohort into portions.
2. The weights travel to each node once, from the driver to all of them (`star`)
   or from node to node (`tree`: a node that has them serves another one).
3. The driver hands out portions, longest first, one at a time. A worker holds a
   few (`depth`) while more of them wait than there are workers, so that it need
   not wait for the driver between two of them.
4. Workers are slow or die by chance. Once the driver notices, the portions
   whose totals died with a worker run again. A new worker takes its place. When
   no portion waits, those of a late worker are run by an idle one as well.
5. Totals are merged as a binary tree, and the last one goes to the driver.
6. The driver adds the noise, makes the server's step, saves and charges.

Durations of clients are lognormal. The bottleneck of a round is the part whose
removal would save most of its time, in the same draw of chance. For the compute
of clients that is their work, evenly over all workers.

A round is a queue of events in the order of their times, so that `heapq` does
and no simulation library is needed.

>>> quiet = Costs(slow_share=0.0, failures_per_worker_hour=0.0)
>>> work = Round(cohort=1_000, parameters=225_000, client_millis=30.0, workers=10)
>>> outcome = simulate(work, quiet)
>>> outcome.bottleneck, 2.5 < outcome.seconds < 3.5
('compute', True)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import heapq
import math
import statistics

import numpy as np

from tff_medical import _validate

TOPOLOGIES = ('star', 'tree')

_BYTES_A_WEIGHT = 4
_MEGABYTE = 1e6
_INSTANT = 1e30
# More events for each portion and worker than this are no progress.
_MAX_EVENTS = 1_000


class EndlessRoundError(_validate.InputError):
  """Workers die so often that a round does not end."""


@dataclasses.dataclass(frozen=True)
class Costs:
  """Costs of the parts of a round.

  Defaults were measured, but for the bandwidth, slow workers and the rate of
  failures; docs/scaling.md says how.

  Attributes:
    client_sigma: Standard deviation of the logarithm of a client's duration.
    cohort_micros: Driver's microseconds for each client of the cohort.
    dispatch_millis: Driver's milliseconds for each portion that is handed out
      and reported, and for each total that is moved.
    dispatch_micros_per_worker: Microseconds that each worker of the cluster
      adds to them.
    megabytes_per_second: Bandwidth of the link of a node or of the driver.
    latency_millis: Time before a transfer or a message arrives.
    topology: Way of the weights to the nodes, one of `TOPOLOGIES`.
    merge_nanos_per_parameter: Time of adding a total to another one.
    server_nanos_per_parameter: Time of the noise and of the server's step.
    state_copies: Size of the saved state, in copies of the weights.
    save_megabytes_per_second: Speed of writing the state.
    charge_millis: Time of a charge and of a drawn cohort.
    slow_share: Probability that a worker is slow in a round.
    slow_factor: Duration of a portion at a slow worker, over that at others.
    failures_per_worker_hour: Expected deaths of a worker in an hour of work.
    notice_seconds: Time from the death of a worker until its portions wait for
      another one.
    restart_seconds: Time from the death of a worker to a new one, which is not
      there before the death is noticed.
    depth: Number of portions that a worker holds at once.
    late_factor: Duration of a portion, over that at a usual worker, after which
      an idle worker runs it as well.
  """

  client_sigma: float = 0.8
  cohort_micros: float = 20.0
  dispatch_millis: float = 0.65
  dispatch_micros_per_worker: float = 0.3
  megabytes_per_second: float = 1_250.0
  latency_millis: float = 0.5
  topology: str = 'star'
  merge_nanos_per_parameter: float = 0.35
  server_nanos_per_parameter: float = 30.0
  state_copies: float = 2.0
  save_megabytes_per_second: float = 190.0
  charge_millis: float = 1.6
  slow_share: float = 0.05
  slow_factor: float = 2.0
  failures_per_worker_hour: float = 0.01
  notice_seconds: float = 0.05
  restart_seconds: float = 6.0
  depth: int = 2
  late_factor: float = 1.5

  def __post_init__(self) -> None:
    _validate.one_of(TOPOLOGIES, topology=self.topology)
    _validate.positive_int(depth=self.depth)
    _validate.positive(
      megabytes_per_second=self.megabytes_per_second,
      save_megabytes_per_second=self.save_megabytes_per_second,
    )
    _validate.within(0, 1, slow_share=self.slow_share)
    checked = ('topology', 'depth', 'slow_share')
    _validate.non_negative(
      **{
        field.name: getattr(self, field.name)
        for field in dataclasses.fields(self)
        if field.name not in checked
      }
    )


@dataclasses.dataclass(frozen=True)
class Round:
  """A round, and the cluster that it runs on.

  Attributes:
    cohort: Number of clients.
    parameters: Number of weights of the model.
    client_millis: Mean time of a client at a worker that is not slow.
    workers: Number of workers.
    workers_per_node: Number of workers that share a node, its link and its copy
      of the weights. Where one node holds all workers, the driver is on it.
    portions_per_worker: Number of portions over that of workers.
  """

  cohort: int
  parameters: int
  client_millis: float
  workers: int
  workers_per_node: int = 1
  portions_per_worker: int = 16

  def __post_init__(self) -> None:
    _validate.positive_int(
      cohort=self.cohort,
      parameters=self.parameters,
      workers=self.workers,
      workers_per_node=self.workers_per_node,
      portions_per_worker=self.portions_per_worker,
    )
    _validate.non_negative(client_millis=self.client_millis)

  @property
  def portions(self) -> int:
    """Number of portions; each has a client."""
    return min(self.cohort, self.workers * self.portions_per_worker)

  @property
  def nodes(self) -> int:
    """Number of nodes."""
    return -(-self.workers // self.workers_per_node)

  @property
  def remote_nodes(self) -> int:
    """Number of nodes that are reached over the network."""
    return self.nodes if self.nodes > 1 else 0

  @property
  def megabytes(self) -> float:
    """Size of the weights, and of a total, in megabytes."""
    return self.parameters * _BYTES_A_WEIGHT / _MEGABYTE


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a round takes.

  Attributes:
    seconds: Mean duration of a round.
    efficiency: Work on clients, over the time of all workers.
    megabytes_down: Weights that leave the driver or a node for another node.
    megabytes_up: Totals that leave a node.
    rerun_share: Portions that ran again, over all portions.
    saved_secs: Time that the removal of each part would save; of `compute`,
      the work on clients over the number of workers.
  """

  seconds: float
  efficiency: float
  megabytes_down: float
  megabytes_up: float
  rerun_share: float
  saved_secs: Mapping[str, float]

  @property
  def bottleneck(self) -> str:
    """Part whose removal would save most."""
    return max(self.saved_secs, key=lambda name: self.saved_secs[name])


def simulate(work: Round, costs: Costs, repeats: int = 3) -> Outcome:
  """Returns the means over rounds with different durations and failures.

  Args:
    work: Round.
    costs: Costs of its parts.
    repeats: Number of simulated rounds.

  Raises:
    EndlessRoundError: Workers die so often that a round does not end.
  """
  _validate.positive_int(repeats=repeats)
  seconds: list[float] = []
  reruns: list[float] = []
  busy: list[float] = []
  cheaper = _without(costs)
  saved: dict[str, list[float]] = {name: [] for name in ('compute', *cheaper)}
  for seed in range(repeats):
    durations = portion_seconds(work, costs, np.random.default_rng(seed))
    total, number = _round(work, costs, durations, seed)
    seconds.append(total)
    reruns.append(number / len(durations))
    busy.append(durations.sum() / (total * work.workers))
    saved['compute'].append(durations.sum() / work.workers)
    for name, costs_without in cheaper.items():
      total_without, _ = _round(work, costs_without, durations, seed)
      saved[name].append(total - total_without)
  return Outcome(
    seconds=statistics.mean(seconds),
    efficiency=statistics.mean(busy),
    megabytes_down=work.remote_nodes * work.megabytes,
    megabytes_up=work.remote_nodes * work.megabytes,
    rerun_share=statistics.mean(reruns),
    saved_secs={
      name: statistics.mean(values) for name, values in saved.items()
    },
  )


def portion_seconds(
  work: Round, costs: Costs, rng: np.random.Generator
) -> np.ndarray:
  """Returns the durations of the portions at a usual worker, float64 [P].

  Portions have equal numbers of clients, up to one.
  """
  sigma = costs.client_sigma
  clients = rng.lognormal(-(sigma**2) / 2, sigma, work.cohort)
  starts = np.arange(work.portions) * work.cohort // work.portions
  return np.add.reduceat(clients, starts) * work.client_millis / 1000


def broadcast_seconds(work: Round, costs: Costs) -> np.ndarray:
  """Returns the time at which each worker has the weights, float64 [W]."""
  if not work.remote_nodes:
    return np.zeros(work.workers)
  transfer = work.megabytes / costs.megabytes_per_second
  node = np.arange(work.nodes)
  # In a tree the copies double with each transfer: 1, 3, 7, ... nodes have them.
  steps = node + 1 if costs.topology == 'star' else np.frexp(node + 1)[1]
  ready = costs.latency_millis / 1000 + steps * transfer
  return ready[np.arange(work.workers) // work.workers_per_node]


def merge_seconds(work: Round, costs: Costs) -> float:
  """Returns the time from the last portion to the driver's total.

  A level of the tree takes its slowest step: the transfer and addition of a
  total, or the driver's handling of all totals that move at this level.
  """
  add = work.parameters * costs.merge_nanos_per_parameter / 1e9
  send = (
    costs.latency_millis / 1000 + work.megabytes / costs.megabytes_per_second
  )
  totals, seconds = work.workers, 0.0
  while totals > 1:
    moved = totals // 2
    is_remote = totals <= work.nodes
    at_workers = add + (send if is_remote else 0)
    seconds += max(at_workers, moved * _dispatch_secs(work, costs))
    totals -= moved
  return seconds + (send if work.remote_nodes else 0)


def server_seconds(work: Round, costs: Costs) -> float:
  """Returns the driver's time for noise, step, checkpoint and charge."""
  step = work.parameters * costs.server_nanos_per_parameter / 1e9
  state = work.megabytes * costs.state_copies
  return (
    step + state / costs.save_megabytes_per_second + costs.charge_millis / 1000
  )


def _dispatch_secs(work: Round, costs: Costs) -> float:
  return (
    costs.dispatch_millis / 1000
    + costs.dispatch_micros_per_worker * work.workers / 1e6
  )


def _without(costs: Costs) -> dict[str, Costs]:
  """Returns the costs of a round without each of its parts."""
  cheaper: dict[str, dict[str, float]] = {
    'cohort': {'cohort_micros': 0.0},
    'dispatch': {'dispatch_millis': 0.0, 'dispatch_micros_per_worker': 0.0},
    'network': {'megabytes_per_second': _INSTANT, 'latency_millis': 0.0},
    'merge': {'merge_nanos_per_parameter': 0.0},
    'server step': {'server_nanos_per_parameter': 0.0},
    'checkpoint': {'state_copies': 0.0, 'charge_millis': 0.0},
    'slow workers': {'slow_share': 0.0},
    'failures': {'failures_per_worker_hour': 0.0},
  }
  return {
    name: dataclasses.replace(costs, **changed)  # type: ignore[arg-type]
    for name, changed in cheaper.items()
  }


def _round(
  work: Round, costs: Costs, durations: np.ndarray, seed: int
) -> tuple[float, int]:
  """Returns the seconds of a round, and the number of portions run again."""
  begin = work.cohort * costs.cohort_micros / 1e6
  ended, reruns = _Portions(work, costs, durations, seed).run()
  rest = merge_seconds(work, costs) + server_seconds(work, costs)
  return begin + ended + rest, reruns


class _Portions:
  """The part of a round in which workers run portions.

  Attributes of a worker are lists by its number. The life of a worker ends with
  its death; an event of an earlier life means nothing.
  """

  def __init__(
    self, work: Round, costs: Costs, durations: np.ndarray, seed: int
  ):
    # Chances of a worker do not depend on the costs, so that rounds with and
    # without a part can be compared.
    rng = np.random.default_rng((seed, 1))
    self._slow = np.where(
      rng.random(work.workers) < costs.slow_share, costs.slow_factor, 1.0
    )
    self._lifetimes = [
      _lifetimes((seed, 2, number), costs.failures_per_worker_hour)
      for number in range(work.workers)
    ]
    self._costs = costs
    self._durations = durations
    self._dispatch_secs = _dispatch_secs(work, costs)
    self._ready = broadcast_seconds(work, costs)
    self._waiting = [(-d, p) for p, d in enumerate(durations.tolist())]
    heapq.heapify(self._waiting)
    self._events: list[tuple[float, int, str, int, int]] = []
    self._num_events = 0
    self._life = [0] * work.workers
    # Portions that a worker has not begun, with their times of arrival.
    self._at_hand: list[list[tuple[float, int]]] = [
      [] for _ in range(work.workers)
    ]
    # The portion that a worker runs, if any.
    self._running: list[list[int]] = [[] for _ in range(work.workers)]
    self._held: list[list[int]] = [[] for _ in range(work.workers)]
    # Portions whose totals or runs died with a worker, until the driver notices.
    self._lost: list[tuple[list[int], list[int]]] = [([], [])] * work.workers
    # Portions of which a run counts, and the runs of each portion.
    self._counted: set[int] = set()
    self._runs = [0] * len(durations)
    # Time from which a worker's portions are run by idle workers as well.
    self._late_at = np.full(work.workers, math.inf)
    self._reruns = 0
    self._driver_free = 0.0
    self._idle: set[tuple[int, int]] = set()

  def run(self) -> tuple[float, int]:
    """Returns the end of the last portion, and the number of reruns."""
    workers = range(len(self._life))
    for worker in workers:
      self._add(next(self._lifetimes[worker]), 'death', worker)
    for _ in range(self._costs.depth):
      for worker in workers:
        self._add(0.0, 'request', worker)
    handlers = {
      'death': self._die,
      'notice': self._notice,
      'request': self._hand_out,
      'arrival': self._start,
      'end': self._end,
      'birth': self._be_born,
      'late': self._back_up,
    }
    limit = _MAX_EVENTS * (len(self._durations) + len(self._life))
    while True:
      time, _, kind, worker, life = heapq.heappop(self._events)
      if life != self._life[worker]:
        continue
      handlers[kind](time, worker)
      if len(self._counted) == len(self._durations):
        return time, self._reruns
      if self._num_events > limit:
        raise EndlessRoundError(
          'failures_per_worker_hour must let a round end, got '
          f'{self._costs.failures_per_worker_hour:g}; lower it, or give a round '
          'less work or more workers'
        )

  def _add(self, time: float, kind: str, worker: int) -> None:
    # Of events at the same time, the one that was added first comes first.
    self._num_events += 1
    event = (time, self._num_events, kind, worker, self._life[worker])
    heapq.heappush(self._events, event)

  def _hand_out(self, time: float, worker: int) -> None:
    load = len(self._at_hand[worker]) + len(self._running[worker])
    if len(self._waiting) <= load * len(self._life):
      if not load:
        self._idle.add((worker, self._life[worker]))
        self._back_up(time, worker)
      return
    _, portion = heapq.heappop(self._waiting)
    self._give(time, worker, portion)

  def _give(self, time: float, worker: int, portion: int) -> None:
    self._runs[portion] += 1
    self._driver_free = max(time, self._driver_free) + self._dispatch_secs
    arrival = max(self._driver_free, self._ready[worker])
    self._at_hand[worker].append((arrival, portion))
    self._add(arrival, 'arrival', worker)

  def _start(self, time: float, worker: int) -> None:
    """Starts a portion that has arrived, unless one runs."""
    at_hand = self._at_hand[worker]
    if self._running[worker] or not at_hand or at_hand[0][0] > time:
      return
    _, portion = at_hand.pop(0)
    self._running[worker].append(portion)
    usual = self._durations[portion]
    self._late_at[worker] = time + self._costs.late_factor * usual
    self._add(time + usual * self._slow[worker], 'end', worker)

  def _back_up(self, time: float, worker: int) -> None:
    """Lets an idle worker run a portion of a late one, now or when one is late."""
    if (worker, self._life[worker]) not in self._idle:
      return
    while (since := self._late_at.min()) <= time:
      late = int(self._late_at.argmin())
      portions = [p for _, p in reversed(self._at_hand[late])]
      for portion in [*portions, *self._running[late]]:
        if portion not in self._counted and self._runs[portion] < 2:
          self._idle.remove((worker, self._life[worker]))
          self._give(time, worker, portion)
          return
      self._late_at[late] = math.inf
    if since < math.inf:
      self._add(since, 'late', worker)

  def _end(self, time: float, worker: int) -> None:
    portion = self._running[worker].pop()
    self._runs[portion] -= 1
    self._late_at[worker] = math.inf
    if portion not in self._counted:
      self._counted.add(portion)
      self._held[worker].append(portion)
    self._start(time, worker)
    self._add(time, 'request', worker)

  def _die(self, time: float, worker: int) -> None:
    held, running = self._held[worker], self._running[worker]
    self._reruns += len(held) + len(running)
    self._counted.difference_update(held)
    self._lost[worker] = (
      held,
      [*running, *(p for _, p in self._at_hand[worker])],
    )
    self._held[worker], self._at_hand[worker] = [], []
    self._running[worker] = []
    self._late_at[worker] = math.inf
    self._life[worker] += 1
    noticed = time + self._costs.notice_seconds
    self._add(noticed, 'notice', worker)
    self._add(max(noticed, time + self._costs.restart_seconds), 'birth', worker)

  def _notice(self, time: float, worker: int) -> None:
    held, runs = self._lost[worker]
    for portion in runs:
      self._runs[portion] -= 1
    for portion in [*held, *runs]:
      if portion not in self._counted and not self._runs[portion]:
        heapq.heappush(self._waiting, (-self._durations[portion], portion))
    for other, life in sorted(self._idle):
      if life == self._life[other]:
        self._add(time, 'request', other)
    self._idle.clear()

  def _be_born(self, time: float, worker: int) -> None:
    self._add(time + next(self._lifetimes[worker]), 'death', worker)
    for _ in range(self._costs.depth):
      self._add(time, 'request', worker)


def _lifetimes(seed: tuple[int, ...], per_hour: float) -> Iterator[float]:
  """Yields the seconds that a worker and those after it live."""
  rng = np.random.default_rng(seed)
  while True:
    yield 3600 * rng.exponential() / per_hour if per_hour else math.inf
