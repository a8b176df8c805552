"""Workers that count clients and train nothing, for costs of the driver.

What a portion costs the driver does not depend on what its worker does. A light
worker compiles and loads nothing. `InstantRay` runs light workers in this
process, a thousand of them if need be: what a pass takes there is the driver's
own bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import types
from typing import Any

from tff_medical.runtime.cluster import messages
from tff_medical.runtime.cluster import portions


class LightWorker:
  """Stands for `runtime.cluster.worker.Worker`: a total is a number of clients."""

  def __init__(self) -> None:
    self._key = -1

  def run(
    self,
    call: messages.Call,
    keep: Sequence[int],
    run: int,
    portion: messages.Portion,
  ) -> messages.Report:
    """Counts the clients of a portion."""
    span = portions.Span(portion.number, portion.number + 1)
    self._of(call, keep).put(run, span, [portion.clients])
    return messages.Report()

  def add(
    self, call: messages.Call, span: portions.Span, total: list[int]
  ) -> None:
    """Adds the total of another worker."""
    self._of(call, []).add(span, total)

  def take(
    self, call: messages.Call, keep: Sequence[int], span: portions.Span
  ) -> tuple[None, list[int]]:
    """Returns the total of a span, and forgets it."""
    return None, self._of(call, keep).take(span)

  def _of(
    self, call: messages.Call, keep: Sequence[int]
  ) -> portions.Results[list[int]]:
    """Returns the results of a pass, in which runs that count are merged."""
    if self._key != call.key:
      self._key = call.key
      totals: portions.Totals[list[int]] = portions.Totals(
        _tree(call.portions),
        lambda left, right: [left[0] + right[0]],
      )
      self._results: portions.Results[list[int]] = portions.Results(totals)
    self._results.keep(keep)
    return self._results


@functools.lru_cache(maxsize=1)
def _tree(number: int) -> portions.Tree:
  """Returns the tree of a pass, which the workers of a process share."""
  return portions.Tree(number)


@dataclasses.dataclass(frozen=True, eq=False)
class LightMember:
  """Stands for `runtime.cluster.pool.Member`.

  Attributes:
    number: Number of the worker.
    actor: Handle of the actor.
  """

  number: int
  actor: Any


class LightPool:
  """Stands for `runtime.cluster.pool.Pool`, with workers that do not change.

  Attributes:
    ready: Workers.
  """

  def __init__(self, actors: Sequence[Any]):
    self.ready = [LightMember(n, actor) for n, actor in enumerate(actors)]

  def refresh(self) -> None:
    """Does nothing, as no worker comes or goes."""

  def wait(self) -> None:
    """Does nothing, as the workers are there."""

  def lose(self, member: LightMember) -> None:
    """Stops the measurement."""
    raise RuntimeError(f'light worker {member.number} has died')


class _Ref:
  """Result of a call in this process."""

  def __init__(self, value: Any):
    self.value = value


@dataclasses.dataclass(frozen=True)
class _Method:
  """Method of a worker in this process."""

  run: Callable[..., Any]
  num_returns: int = 1

  def options(self, num_returns: int) -> _Method:
    """Returns the method with several results."""
    return _Method(self.run, num_returns)

  def remote(self, *arguments: Any) -> Any:
    """Runs the method at once."""
    result = self.run(
      *(a.value if isinstance(a, _Ref) else a for a in arguments)
    )
    if self.num_returns == 1:
      return _Ref(result)
    return [_Ref(part) for part in result]


class _Actor:
  """Handle of a worker in this process."""

  def __init__(self) -> None:
    worker = LightWorker()
    self.run = _Method(worker.run)
    self.add = _Method(worker.add)
    self.take = _Method(worker.take)


class _NoError(Exception):
  """Is never raised."""


class InstantRay:
  """Stands for Ray: results are there at once, the oldest first."""

  exceptions = types.SimpleNamespace(
    RayError=_NoError, RayTaskError=_NoError, RayActorError=_NoError
  )

  def actors(self, number: int) -> list[_Actor]:
    """Returns handles of new workers."""
    return [_Actor() for _ in range(number)]

  def put(self, value: Any) -> _Ref:
    """Returns a reference to a value."""
    return _Ref(value)

  def get(self, refs: Any) -> Any:
    """Returns the values of references."""
    return [r.value for r in refs] if isinstance(refs, list) else refs.value

  def cancel(self, ref: _Ref) -> None:
    """Does nothing, as the result is there."""

  def wait(
    self, refs: Sequence[_Ref], **unused: Any
  ) -> tuple[Sequence[_Ref], Sequence[_Ref]]:
    """Returns the oldest reference as ready."""
    return refs[:1], []
