"""Pace of workers: which of them are late with what they were given.

A worker is late when the run that it is at has taken longer than such a run
takes by the pace of the others. Its portions are then run once more by workers
that have nothing to do, as the backup tasks of MapReduce are (Dean and
Ghemawat, OSDI 2004, section 3.6), those first that will end last (Zaharia et
al., OSDI 2008).

>>> paces = Paces()
>>> paces.start('a', run=0, cost=2.0, now=0.0)
>>> paces.end('a', run=0, now=2.0)
>>> paces.start('b', run=1, cost=2.0, now=0.0)
>>> paces.late(now=2.9), paces.late(now=3.1)
([], [1])
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable
from typing import Generic, TypeVar

WorkerT = TypeVar('WorkerT', bound=Hashable)

# A run is late after this multiple of the seconds that it should take.
_LATE = 1.5
# It is not before so many seconds: a second run has a price of its own.
_GRACE_SECS = 0.2


class Paces(Generic[WorkerT]):
  """Runs that workers were given, in their order, and how long others took."""

  def __init__(self) -> None:
    # Runs of each worker with their cost, the one that it is at first.
    self._queues: dict[WorkerT, dict[int, float]] = {}
    # Time at which each worker began with the first run of its queue.
    self._since: dict[WorkerT, float] = {}
    # Seconds for a unit of cost, of each run that has ended, in ascending order.
    self._seconds: list[float] = []

  def start(self, worker: WorkerT, run: int, cost: float, now: float) -> None:
    """Notes that a worker was given a run.

    Args:
      worker: Worker.
      run: Number of the run.
      cost: Expected work on the run, positive; the unit does not matter.
      now: Time in seconds; the origin does not matter.
    """
    queue = self._queues.setdefault(worker, {})
    if not queue:
      self._since[worker] = now
    queue[run] = cost

  def end(self, worker: WorkerT, run: int, now: float) -> None:
    """Notes that a worker has ended a run."""
    cost = self._queues[worker].pop(run)
    bisect.insort(self._seconds, (now - self._since[worker]) / cost)
    self._since[worker] = now

  def forget(self, worker: WorkerT) -> None:
    """Notes that a worker was lost."""
    self._queues.pop(worker, None)

  def late(self, now: float) -> list[int]:
    """Returns the runs of late workers, those that will end last first."""
    if not self._seconds:
      return []
    pace = self._seconds[len(self._seconds) // 2]
    runs: list[tuple[int, float, int]] = []
    for worker, queue in self._queues.items():
      if not queue:
        continue
      since = self._since[worker]
      if now > since + max(
        _GRACE_SECS, _LATE * pace * next(iter(queue.values()))
      ):
        runs.extend(
          (place, now - since, run) for place, run in enumerate(queue)
        )
    return [run for *_, run in sorted(runs, reverse=True)]
