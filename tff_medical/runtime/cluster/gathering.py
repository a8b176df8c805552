"""One pass over the clients of a cohort on the workers of a cluster.

The driver hands out portions of clients. A worker folds the results of a
portion into a total, which stays there. Totals are merged in a tree that does
not depend on the workers (`portions`), and the total of the whole cohort travels
to the driver.

The driver decides which run of a portion counts, and knows the spans that each
worker holds. When a worker dies, the portions of its spans wait again, and run on
another one. When a worker is late (`paces`), another one that has nothing to do
runs its portions as well, and the first of both runs counts. As the last span
covers each portion once, each client counts once.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import itertools
import time
from typing import Any

from tff_medical import _validate
from tff_medical.runtime import cohort as cohort_lib
from tff_medical.runtime.cluster import messages
from tff_medical.runtime.cluster import paces
from tff_medical.runtime.cluster import pool as pool_lib
from tff_medical.runtime.cluster import portions

# Portions that a worker has at once, one in work and one that waits. Towards the
# end of a pass none waits, so that a slow worker does not keep it from others.
_DEPTH = 2
# Runs of a portion at once.
_MAX_RUNS = 2
# A portion on which more workers died may be what kills them.
_MAX_LOSSES = 5
# Seconds after which the driver looks for dead nodes and new workers, and, while
# a worker has nothing to do, for late ones.
_LOOK_SECS = 1.0
_LATE_LOOK_SECS = 0.1


@dataclasses.dataclass(frozen=True)
class _Run:
  """Run of a portion.

  Attributes:
    number: Number of the run.
    member: Worker.
    portion: Number of the portion.
    keep: Earlier runs of which the worker was told that they count.
  """

  number: int
  member: pool_lib.Member
  portion: int
  keep: Sequence[int]


@dataclasses.dataclass(frozen=True)
class _Move:
  """Way of the total of a span to the worker that holds the other half.

  Attributes:
    source: Worker from which the total is taken.
    target: Worker to which it is added.
    span: Span.
    total: Reference of the total.
    keep: Runs of which the source was told that they count.
  """

  source: pool_lib.Member
  target: pool_lib.Member
  span: portions.Span
  total: Any
  keep: Sequence[int]


class Gathering:
  """One pass; see the module docstring.

  Attributes:
    homes: Number of the worker that had each portion, for the next round.
    findings: What workers have found of the data of each portion; see
      `recipes.take_findings`.
  """

  def __init__(
    self,
    ray: Any,
    pool: pool_lib.Pool,
    call: messages.Call,
    work: Sequence[messages.Portion],
    costs: Sequence[float],
    homes: Mapping[int, int],
  ):
    """Prepares the pass.

    Args:
      ray: Module of Ray, connected to a cluster.
      pool: Workers of the cluster.
      call: The pass.
      work: Portions, in the order of their numbers; at least one.
      costs: Expected work on each portion.
      homes: Number of the worker that had each portion in the last round.

    Raises:
      ClusterError, InputError: There is no worker; see `Pool.wait`.
    """
    self.homes: dict[int, int] = {}
    self.findings: dict[int, Mapping[str, Any]] = {}
    self._ray = ray
    self._pool = pool
    self._call = call
    self._work = work
    self._costs = costs
    self._tree = portions.Tree(len(work))
    # Workers by their number, the dead ones included; runs that each living one
    # has; those that can be given more, in the order of their turn.
    self._members: dict[int, pool_lib.Member] = {}
    self._load: dict[int, int] = {}
    self._hungry: dict[int, None] = {}
    # Runs by their reference and by their portion; portions of which a run
    # counts; runs that count and of which their worker may not know it, with
    # their portions.
    self._number = itertools.count()
    self._running: dict[Any, _Run] = {}
    self._runs: list[int] = [0] * len(work)
    self._counted: set[int] = set()
    self._unknown: dict[int, dict[int, int]] = {}
    self._paces: paces.Paces[int] = paces.Paces()
    # Spans of each worker, the worker of each span, and those on their way.
    self._held: dict[int, portions.Totals[None]] = {}
    self._places: dict[portions.Span, int] = {}
    self._taking: dict[Any, _Move] = {}
    self._adding: dict[Any, _Move] = {}
    # Deaths of workers by the portion that they were working on.
    self._losses: collections.Counter[int] = collections.Counter()
    self._kept: dict[int, Sequence[Sequence[Any]]] = {}
    self._next_look = 0.0
    self._next_late_look = 0.0
    pool.wait()
    self._look()
    self._waiting = portions.Assignment(costs, homes, list(self._load))

  def run(self) -> tuple[list[Any], list[Sequence[Sequence[Any]]]]:
    """Returns the total of the cohort, and the kept values of each portion.

    Raises:
      ClientError: The computation of a client failed.
      ComputationError: Another part of the computation failed.
      ClusterError: No worker is left, or a portion has killed several.
      InputError: The data of a portion cannot be used.
    """
    try:
      while (total := self._total()) is None:
        self._hand_out()
        self._back_up()
        self._wait()
    finally:
      # What has not begun need not begin.
      with contextlib.suppress(ConnectionError, self._ray.exceptions.RayError):
        for ref in self._running:
          self._ray.cancel(ref)
    return total, [self._kept[number] for number in range(len(self._work))]

  def _wait(self) -> None:
    """Waits for a job to end; without jobs, for a worker."""
    jobs = [*self._running, *self._taking, *self._adding]
    if jobs:
      seconds = _LATE_LOOK_SECS if self._idle() else _LOOK_SECS
      done, _ = self._ray.wait(
        jobs, num_returns=1, timeout=seconds, fetch_local=False
      )
      for ref in done:
        self._finish(ref)
    elif self._load and len(self._waiting):
      raise RuntimeError('portions wait, and workers have nothing to do')
    else:
      self._pool.wait()
    if not jobs or time.monotonic() >= self._next_look:
      self._look()

  def _look(self) -> None:
    """Notes which workers are there, and which do not answer any more."""
    self._pool.refresh()
    ready = {member.number: member for member in self._pool.ready}
    for number in set(self._load) - set(ready):
      self._lose(self._members[number])
    for number, member in ready.items():
      if number not in self._members:
        self._members[number] = member
        self._load[number] = 0
        self._hungry[number] = None
        self._unknown[number] = {}
    self._next_look = time.monotonic() + _LOOK_SECS

  def _hand_out(self) -> None:
    """Gives portions to workers that have fewer than they may have at once."""
    # One portion to each worker, and only then a second one.
    for depth in range(_DEPTH):
      for number in [n for n in self._hungry if self._load[n] == depth]:
        if len(self._waiting) <= depth * len(self._load):
          return
        portion = self._waiting.take(number)
        if portion is None:
          return
        self._start(self._members[number], portion)

  def _back_up(self) -> None:
    """Lets workers that have nothing to do run the portions of late ones."""
    now = time.monotonic()
    if now < self._next_late_look or not (idle := self._idle()):
      return
    self._next_late_look = now + _LATE_LOOK_SECS
    by_number = {run.number: run for run in self._running.values()}
    for number in self._paces.late(now):
      portion = by_number[number].portion
      if portion in self._counted or self._runs[portion] >= _MAX_RUNS:
        continue
      self._start(self._members[idle.pop()], portion)
      if not idle:
        return

  def _idle(self) -> list[int]:
    """Returns the workers without work if no portion waits."""
    if len(self._waiting):
      return []
    return [number for number in self._hungry if not self._load[number]]

  def _start(self, member: pool_lib.Member, portion: int) -> None:
    number = next(self._number)
    keep: list[int] = []
    # Otherwise the worker might merge a total that was promised to another one.
    if all(move.source is not member for move in self._taking.values()):
      keep = list(self._unknown[member.number])
    ref = member.actor.run.remote(self._call, keep, number, self._work[portion])
    self._running[ref] = _Run(number, member, portion, keep)
    self._runs[portion] += 1
    self._paces.start(
      member.number, number, self._costs[portion], time.monotonic()
    )
    self._load[member.number] += 1
    if self._load[member.number] == _DEPTH:
      del self._hungry[member.number]

  def _total(self) -> list[Any] | None:
    """Returns the total of the cohort; None if no worker has it."""
    if self._tree.root not in self._places:
      return None
    member = self._members[self._places[self._tree.root]]
    refs = member.actor.take.options(num_returns=2).remote(
      self._call, self._unknown_in(member, self._tree.root), self._tree.root
    )
    while not self._ray.wait([refs[0]], num_returns=1, timeout=_LOOK_SECS)[0]:
      self._look()
      if member.number not in self._load:
        return None
    try:
      failure, total = self._ray.get(list(refs))
    except self._ray.exceptions.RayTaskError as error:
      raise _unexpected(error) from error
    except self._ray.exceptions.RayError:
      self._lose(member)
      return None
    if failure is not None:
      raise _error(failure)
    result: list[Any] = total
    return result

  def _finish(self, ref: Any) -> None:
    """Notes what a job that has ended means."""
    if ref in self._running:
      self._ran(ref)
    elif ref in self._taking:
      self._taken(ref)
    else:
      self._added(ref)

  def _ran(self, ref: Any) -> None:
    run = self._running[ref]
    try:
      report = self._ray.get(ref)
    except self._ray.exceptions.RayTaskError as error:
      raise _unexpected(error) from error
    except self._ray.exceptions.RayError:
      # The worker is dead, killed for its memory, or cannot be reached; what it
      # holds is not known.
      self._lose(run.member)
      return
    number, portion = run.member.number, run.portion
    del self._running[ref]
    self._runs[portion] -= 1
    self._paces.end(number, run.number, time.monotonic())
    self._load[number] -= 1
    self._hungry[number] = None
    self._knows(number, run.keep)
    if portion in self._counted:
      return  # Another worker was quicker.
    if report.failure is not None:
      raise _error(report.failure)
    self._counted.add(portion)
    self._unknown[number][run.number] = portion
    self._kept[portion] = report.kept
    self.findings[portion] = report.findings
    self.homes[portion] = number
    self._hold(run.member, portions.Span(portion, portion + 1))

  def _taken(self, ref: Any) -> None:
    move = self._taking[ref]
    try:
      failure = self._ray.get(ref)
    except self._ray.exceptions.RayTaskError as error:
      raise _unexpected(error) from error
    except self._ray.exceptions.RayError:
      del self._taking[ref]
      self._lose(move.source)
      self._put_back(move.span)
      return
    del self._taking[ref]
    if failure is not None:
      raise _error(failure)
    self._knows(move.source.number, move.keep)
    target = move.target
    if target.number not in self._load:
      self._put_back(move.span)
      return
    added = target.actor.add.remote(self._call, move.span, move.total)
    self._adding[added] = move

  def _added(self, ref: Any) -> None:
    move = self._adding.pop(ref)
    try:
      failure = self._ray.get(ref)
    except self._ray.exceptions.RayTaskError as error:
      # The total may have died on its way, with the node that it came from.
      if not isinstance(error.cause, self._ray.exceptions.RayError):
        raise _unexpected(error) from error
      self._put_back(move.span)
      return
    except self._ray.exceptions.RayError:
      self._lose(move.target)
      self._put_back(move.span)
      return
    if failure is not None:
      raise _error(failure)
    if move.target.number not in self._load:
      self._put_back(move.span)
      return
    self._hold(move.target, move.span)

  def _unknown_in(
    self, member: pool_lib.Member, span: portions.Span
  ) -> list[int]:
    """Returns the runs of a span of which a worker may not know that they count."""
    return [
      run
      for run, portion in self._unknown[member.number].items()
      if span.first <= portion < span.end
    ]

  def _knows(self, number: int, runs: Sequence[int]) -> None:
    """Notes that a worker knows of runs that they count."""
    for run in runs if number in self._load else ():
      self._unknown[number].pop(run, None)

  def _hold(self, member: pool_lib.Member, span: portions.Span) -> None:
    """Notes that a worker has a span, and what it will merge by that."""
    if member.number not in self._held:
      self._held[member.number] = portions.Totals(
        self._tree, lambda left, right: None
      )
    *merged, top = self._held[member.number].add(span, None)
    for half in merged:
      self._places.pop(half, None)
      self._places.pop(self._tree.sibling(half), None)
    self._places[top] = member.number
    self._join(top)

  def _join(self, span: portions.Span) -> None:
    """Starts the merge of a span with its sibling on another worker."""
    parent = self._tree.parent(span)
    if parent is None:
      return
    left, right = self._tree.children(parent)
    if left not in self._places or right not in self._places:
      return
    source = self._members[self._places.pop(right)]
    target = self._members[self._places[left]]
    self._held[source.number].take(right)
    keep = self._unknown_in(source, right)
    ready, total = source.actor.take.options(num_returns=2).remote(
      self._call, keep, right
    )
    self._taking[ready] = _Move(source, target, right, total, keep)

  def _lose(self, member: pool_lib.Member) -> None:
    """Lets all portions wait again whose totals or runs died with a worker."""
    self._pool.lose(member)
    number = member.number
    self._hungry.pop(number, None)
    if self._load.pop(number, None) is not None:
      self._blame(member)
    self._paces.forget(number)
    self._unknown.pop(number, None)
    for ref, run in list(self._running.items()):
      if run.member is member:
        del self._running[ref]
        self._runs[run.portion] -= 1
        self._wait_again(run.portion)
    held = self._held.pop(number, None)
    for span in held.spans if held is not None else ():
      del self._places[span]
      self._put_back(span)

  def _put_back(self, span: portions.Span) -> None:
    """Notes that the total of a span is lost."""
    for portion in range(span.first, span.end):
      self._counted.remove(portion)
      self._wait_again(portion)

  def _wait_again(self, portion: int) -> None:
    """Lets a portion wait unless a run of it counts or goes on."""
    if portion not in self._counted and not self._runs[portion]:
      self._waiting.put_back(portion)

  def _blame(self, member: pool_lib.Member) -> None:
    """Counts a dead worker against the portion that it was working on.

    Raises:
      ClusterError: The portion has been the last one of several workers.
    """
    number = next(
      (r.portion for r in self._running.values() if r.member is member), None
    )
    if number is None:
      return
    self._losses[number] += 1
    if self._losses[number] > _MAX_LOSSES:
      first, clients = self._work[number].first, self._work[number].clients
      raise pool_lib.ClusterError(
        f'{_MAX_LOSSES + 1} workers died with clients {first} to '
        f'{first + clients - 1} of the cohort; their data may need more memory '
        'than a worker has: see the logs of the nodes'
      )


def _error(failure: messages.Failure) -> Exception:
  """Returns the error that a worker has reported."""
  if failure.is_input:
    return _validate.InputError(failure.message)
  if failure.client is None:
    return cohort_lib.ComputationError(failure.message)
  return cohort_lib.ClientError(
    f'client {failure.client} failed: {failure.message}', failure.client
  )


def _unexpected(error: Any) -> cohort_lib.ComputationError:
  return cohort_lib.ComputationError(f'a worker failed: {error.cause}')
