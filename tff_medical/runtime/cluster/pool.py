"""Workers of a cluster: one on each node, or one on each GPU of a node."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import re
import time
from typing import Any

from absl import logging

from tff_medical import _validate
from tff_medical.runtime import cohort as cohort_lib
from tff_medical.runtime import recipes
from tff_medical.runtime.cluster import messages
from tff_medical.runtime.cluster import signs
from tff_medical.runtime.cluster import spill_folder
from tff_medical.runtime.cluster import versions
from tff_medical.runtime.cluster import worker as worker_lib

# A node on which so many workers in a row did not start gets no more of them.
_MAX_FAILED_STARTS = 3
# Seconds between two looks for workers that have become ready.
_POLL_SECS = 0.2


class ClusterError(cohort_lib.ComputationError):
  """The cluster cannot go on with a round; the round can be run again later."""


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
  """Options of the workers.

  Attributes:
    cores: CPU cores of a worker; None takes all of its node.
    precision: Number format; see `runtime.precision`.
    patience_secs: Seconds without any worker after which a round is given up.
  """

  cores: int | None
  precision: str
  patience_secs: float


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
  """A worker.

  Attributes:
    number: Number of the worker; it is not used again.
    node: Ray's id of its node.
    address: Address of the node, for messages.
    actor: Handle of the actor.
    started: Reference to the result of its start.
  """

  number: int
  node: str
  address: str
  actor: Any
  started: Any


class Pool:
  """Workers on all nodes that are alive."""

  def __init__(self, ray: Any, options: WorkerOptions):
    """Starts no worker yet.

    Args:
      ray: Module of Ray, connected to a cluster.
      options: Options of the workers.
    """
    self._ray = ray
    self._options = options
    self._versions = versions.of_this_process()
    self._number = 0
    self._ready: dict[int, Member] = {}
    self._starting: dict[int, Member] = {}
    self._failed_starts: dict[str, int] = {}
    self._sources: list[recipes.Source] = []
    # CPU cores of the largest node.
    self._largest = 0
    self._had_worker = False
    self._problem = ''
    self._signs = signs.Signs(ray)

  @property
  def ready(self) -> list[Member]:
    """Workers that can be given work."""
    return list(self._ready.values())

  def refresh(self) -> None:
    """Drops workers of dead nodes, starts missing ones, looks for ready ones."""
    nodes = {n['NodeID']: n for n in self._ray.nodes() if n['Alive']}
    for member in [*self._ready.values(), *self._starting.values()]:
      if member.node not in nodes:
        self.lose(member)
    actors = {number: member.actor for number, member in self._ready.items()}
    for number in self._signs.silent(actors):
      self.lose(self._ready[number])
    self._largest = max(
      (int(n['Resources'].get('CPU', 0)) for n in nodes.values()), default=0
    )
    for node, info in nodes.items():
      present = [*self._ready.values(), *self._starting.values()]
      missing = self._slots(info['Resources']) - sum(
        member.node == node for member in present
      )
      if self._failed_starts.get(node, 0) < _MAX_FAILED_STARTS:
        for _ in range(missing):
          self._start(node, info['NodeManagerAddress'], info['Resources'])
    self._look()

  def lose(self, member: Member) -> None:
    """Forgets a worker that is dead, or whose state is not known."""
    self._ready.pop(member.number, None)
    self._starting.pop(member.number, None)
    # A worker that is still alive must not hold the node's resources.
    self._ray.kill(member.actor)

  def wait(self) -> None:
    """Waits until a worker is ready.

    Raises:
      ClusterError: No worker became ready.
      InputError: None can, as a node lacks what a worker needs.
    """
    until = time.monotonic() + self._options.patience_secs
    while not self._ready:
      self.refresh()
      if self._ready:
        return
      # Later, a node that is not there may come back.
      if not self._had_worker and not self._starting and self._problem:
        raise _validate.InputError(self._problem)
      if not self._had_worker and 0 < self._largest < (
        self._options.cores or 1
      ):
        raise _validate.InputError(
          f'worker_cores must be at most {self._largest}, the CPU cores of the '
          f'largest node of the cluster, got {self._options.cores}'
        )
      if time.monotonic() > until:
        raise ClusterError(
          'the cluster has no worker that is ready, after '
          f'{self._options.patience_secs:.0f} s: {self._state()}; start a node '
          'with `ray start --address=...`, and the same command again'
        )
      time.sleep(_POLL_SECS)

  def wait_for_all(self) -> None:
    """Waits until every node has its workers, or the patience is over.

    Raises:
      ClusterError, InputError: There is no worker; see `wait`.
    """
    until = time.monotonic() + self._options.patience_secs
    closing = self._close_folder()
    self.wait()
    while self._starting and time.monotonic() < until:
      time.sleep(_POLL_SECS)
      self._look()
    try:
      problem = self._ray.get(closing)
    except self._ray.exceptions.RayError as error:
      raise ClusterError(
        f"the driver's node does not answer: {error}"
      ) from error
    if problem:
      raise _validate.InputError(problem)

  def _close_folder(self) -> Any:
    """Starts to close the folder of the driver's node; returns the reference.

    What the driver sends and gets passes the store of that node, which may have
    no worker. By way of `ray://` it is another machine than the driver's.
    """
    # A head without CPUs, which only starts trainings, may lack the project.
    self._ray.cloudpickle.register_pickle_by_value(spill_folder)
    node = self._ray.get_runtime_context().get_node_id()
    return (
      self._ray.remote(spill_folder.close)
      .options(
        num_cpus=0,
        enable_task_events=False,
        scheduling_strategy=_only_on(node),
      )
      .remote()
    )

  def open(self, source: recipes.Source) -> None:
    """Has all workers open a source of data, those of later nodes as well.

    Raises:
      InputError: None of the workers can open it.
    """
    self._sources.append(source)
    opened = {m.actor.open.remote(source): m for m in self._ready.values()}
    for ref, member in opened.items():
      try:
        failure = self._ray.get(ref)
      except self._ray.exceptions.RayError:
        self.lose(member)
        continue
      if failure is not None:
        del self._ready[member.number]
        self._failed(member, failure.message, for_good=True)
    if not self._ready and self._problem:
      raise _validate.InputError(self._problem)

  def close(self) -> None:
    """Ends all workers."""
    for member in [*self._ready.values(), *self._starting.values()]:
      self.lose(member)

  def _state(self) -> str:
    if self._starting:
      return (
        f'{len(self._starting)} of them wait for CPU cores, which other work on '
        'the cluster may hold, or are about to start'
      )
    return 'no node with a CPU core is alive'

  def _slots(self, resources: Mapping[str, float]) -> int:
    """Returns the number of workers on a node with these resources."""
    shares = int(resources.get('CPU', 0)) // (self._options.cores or 1)
    return min(int(resources.get('GPU', 0)) or 1, shares)

  def _start(
    self, node: str, address: str, resources: Mapping[str, float]
  ) -> None:
    on_gpu = int(resources.get('GPU', 0)) > 0
    share = int(resources.get('CPU', 0)) // self._slots(resources)
    cores = max(1, self._options.cores or share)
    actor = (
      worker_lib.remote_class(self._ray)
      .options(
        num_cpus=cores,
        num_gpus=int(on_gpu),
        max_restarts=0,
        max_task_retries=0,
        # Ray's list of tasks would show the number of portions, hence the size
        # of a small cohort, and the messages of errors.
        enable_task_events=False,
        scheduling_strategy=_only_on(node),
      )
      .remote()
    )
    started = actor.start.remote(
      cores, on_gpu, self._options.precision, self._sources
    )
    member = Member(self._number, node, address, actor, started)
    self._starting[self._number] = member
    self._number += 1

  def _look(self) -> None:
    """Moves workers that have started to those that are ready."""
    refs = [member.started for member in self._starting.values()]
    if not refs:
      return
    started, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
    for member in list(self._starting.values()):
      if member.started not in started:
        continue
      del self._starting[member.number]
      try:
        actual = self._ray.get(member.started)
      except self._ray.exceptions.RayError as error:
        self._failed(member, _not_started(error))
        continue
      if isinstance(actual, messages.Failure):
        self._failed(member, actual.message, for_good=True)
      elif actual != self._versions:
        self._failed(member, _difference(actual, self._versions), for_good=True)
      else:
        self._ready[member.number] = member
        self._had_worker = True
        self._failed_starts.pop(member.node, None)

  def _failed(
    self, member: Member, problem: str, for_good: bool = False
  ) -> None:
    """Notes that a worker did not start; its node may be left out."""
    failed = self._failed_starts.get(member.node, 0) + 1
    self._failed_starts[member.node] = (
      _MAX_FAILED_STARTS if for_good else failed
    )
    if self._failed_starts[member.node] >= _MAX_FAILED_STARTS:
      self._problem = f'node {member.address}: {" ".join(problem.split())}'
      logging.warning('left out: %s', self._problem)
    self.lose(member)


def _only_on(node: str) -> Any:
  """Returns Ray's strategy that runs something on one node, or not at all."""
  from ray.util import scheduling_strategies  # Ray is an extra.

  return scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)


def _not_started(error: Exception) -> str:
  """Returns an error message on a worker that did not start."""
  plain = re.sub(r'\x1b\[\d*m', '', str(error))
  lines = [line.strip() for line in plain.splitlines() if line.strip()]
  return (
    f'workers do not start: {lines[-1]}; install the locks there, and '
    'start it with the folder of the project in PYTHONPATH'
  )


def _difference(actual: messages.Versions, own: messages.Versions) -> str:
  """Returns an error message on a node with other versions."""
  different = [
    f'{field.name} {getattr(actual, field.name)} and {getattr(own, field.name)}'
    for field in dataclasses.fields(own)
    if getattr(actual, field.name) != getattr(own, field.name)
  ]
  return (
    'it has other versions than this process: '
    f'{", ".join(different)}; install the same on all nodes'
  )
