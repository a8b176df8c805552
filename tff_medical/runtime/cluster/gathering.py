"""One pass over the clients of a cohort on the workers of a cluster.

The driver hands out portions of clients. A worker folds the results of a
portion into a total, which stays there. Totals are merged in a tree that does
not depend on the workers (`portions`), and the total of the whole cohort travels
to the driver.

The driver knows the spans that each worker holds. When a worker dies, the
portions of its spans wait again, and run on another one. As the last span covers
each portion once, each client counts once.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

from tff_medical import _validate
from tff_medical.runtime import cohort as cohort_lib
from tff_medical.runtime.cluster import messages
from tff_medical.runtime.cluster import pool as pool_lib
from tff_medical.runtime.cluster import portions

# Portions that a worker has at once, one in work and one that waits. Towards the
# end of a pass none waits, so that a slow worker does not keep it from others.
_DEPTH = 2
# A portion on which more workers died may be what kills them.
_MAX_LOSSES = 5
# Seconds after which the driver looks for dead nodes and new workers.
_LOOK_SECS = 1.0


@dataclasses.dataclass(frozen=True)
class _Job:
  """Work that a worker has been given.

  Attributes:
    member: Worker.
    span: Span of a portion, or a span that is taken or added.
    to: Worker to which a span that is taken goes; None for a portion.
    total: Reference of the total that is taken.
  """

  member: pool_lib.Member
  span: portions.Span
  to: pool_lib.Member | None = None
  total: Any = None


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
    self._ray = ray
    self._pool = pool
    self._call = call
    self._work = work
    self._tree = portions.Tree(len(work))
    # Workers by their number, the dead ones included; portions that each living
    # one has; those that can be given more, in the order of their turn.
    self._members: dict[int, pool_lib.Member] = {}
    self._load: dict[int, int] = {}
    self._hungry: dict[int, None] = {}
    # Spans of each worker, and the worker of each span.
    self._held: dict[int, portions.Totals[None]] = {}
    self._places: dict[portions.Span, int] = {}
    # Deaths of workers by the portion that they were working on.
    self._losses: collections.Counter[int] = collections.Counter()
    self._running: dict[Any, _Job] = {}
    self._taking: dict[Any, _Job] = {}
    self._adding: dict[Any, _Job] = {}
    self._kept: dict[int, Sequence[Sequence[Any]]] = {}
    self.findings: dict[int, Mapping[str, Any]] = {}
    self._next_look = 0.0
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
    while True:
      self._hand_out()
      if self._tree.root in self._places:
        total = self._fetch(self._members[self._places[self._tree.root]])
        if total is not None:
          return total, [self._kept[n] for n in range(len(self._work))]
        continue
      jobs = [*self._running, *self._taking, *self._adding]
      if jobs:
        done, _ = self._ray.wait(
          jobs, num_returns=1, timeout=_LOOK_SECS, fetch_local=False
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
    """Notes which workers are there, and which have died with their nodes."""
    self._pool.refresh()
    ready = {member.number: member for member in self._pool.ready}
    for number in set(self._load) - set(ready):
      self._lose(self._members[number])
    for number, member in ready.items():
      if number not in self._members:
        self._members[number] = member
        self._load[number] = 0
        self._hungry[number] = None
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
        member = self._members[number]
        ref = member.actor.run.remote(self._call, self._work[portion])
        span = portions.Span(portion, portion + 1)
        self._running[ref] = _Job(member, span)
        self._load[number] += 1
        if self._load[number] == _DEPTH:
          del self._hungry[number]

  def _fetch(self, member: pool_lib.Member) -> list[Any] | None:
    """Returns the total of the cohort; None if its worker has died."""
    refs = member.actor.take.options(num_returns=2).remote(
      self._call, self._tree.root
    )
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
    steps: tuple[tuple[dict[Any, _Job], Callable[[_Job, Any], None]], ...] = (
      (self._running, self._portion_done),
      (self._taking, self._taken),
      (self._adding, self._added),
    )
    for jobs, done in steps:
      if ref not in jobs:
        continue
      job = jobs[ref]
      try:
        result = self._ray.get(ref)
      except self._ray.exceptions.RayTaskError as error:
        # The total may have died on its way, with the node that it came from.
        is_lost = isinstance(error.cause, self._ray.exceptions.RayError)
        if jobs is not self._adding or not is_lost:
          raise _unexpected(error) from error
        self._put_back(job.span)
      except self._ray.exceptions.RayError:
        # The worker is dead, killed for its memory, or cannot be reached; what
        # it holds is not known.
        self._lose(job.to if jobs is self._adding and job.to else job.member)
        self._put_back(job.span)
      else:
        done(job, result)
      del jobs[ref]
      if jobs is self._running and job.member.number in self._load:
        self._load[job.member.number] -= 1
        self._hungry[job.member.number] = None
      return

  def _portion_done(self, job: _Job, report: messages.Report) -> None:
    if report.failure is not None:
      raise _error(report.failure)
    self.findings[job.span.first] = report.findings
    if job.member.number not in self._load:
      self._put_back(job.span)  # The worker was lost after this portion.
      return
    self._kept[job.span.first] = report.kept
    self.homes[job.span.first] = job.member.number
    self._add(job.member, job.span)

  def _taken(self, job: _Job, failure: messages.Failure | None) -> None:
    if failure is not None:
      raise _error(failure)
    if job.to is None or job.to.number not in self._load:
      self._put_back(job.span)
      return
    ref = job.to.actor.add.remote(self._call, job.span, job.total)
    self._adding[ref] = job

  def _added(self, job: _Job, failure: messages.Failure | None) -> None:
    if failure is not None:
      raise _error(failure)
    if job.to is None or job.to.number not in self._load:
      self._put_back(job.span)
      return
    self._add(job.to, job.span)

  def _add(self, member: pool_lib.Member, span: portions.Span) -> None:
    """Notes that a worker has computed a span, and what it has merged by that."""
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
    ready, total = source.actor.take.options(num_returns=2).remote(
      self._call, right
    )
    self._taking[ready] = _Job(source, right, target, total)

  def _lose(self, member: pool_lib.Member) -> None:
    """Lets all portions wait again whose totals died with a worker."""
    self._pool.lose(member)
    self._hungry.pop(member.number, None)
    if self._load.pop(member.number, None) is not None:
      self._blame(member)
    held = self._held.pop(member.number, None)
    for span in held.spans if held is not None else ():
      del self._places[span]
      self._put_back(span)

  def _put_back(self, span: portions.Span) -> None:
    for number in range(span.first, span.end):
      self._waiting.put_back(number)

  def _blame(self, member: pool_lib.Member) -> None:
    """Counts a dead worker against the portion that it was working on.

    Raises:
      ClusterError: The portion has been the last one of several workers.
    """
    number = next(
      (j.span.first for j in self._running.values() if j.member is member), None
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
