"""Worker: an in-process runtime that trains portions of cohorts.

A worker keeps the computations that it has compiled and the sources that it has
opened. Of a pass it holds the values that all clients share, and the totals of
the spans that it has computed. Two halves of a span are merged as soon as it
holds both of them and knows that they count. A new pass forgets the totals of
the one before.

Portions run in one thread. Totals are taken and added in another one, so that
those of a slow worker can be had while it still works on a portion. A third one
answers the driver.

The worker prints and logs nothing: what a library says about a client's data
would land in Ray's logs.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
import threading
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.runtime import cohort as cohort_lib
from tff_medical.runtime import devices
from tff_medical.runtime import graphs
from tff_medical.runtime import passes
from tff_medical.runtime import planned
from tff_medical.runtime import precision as precision_lib
from tff_medical.runtime import recipes
from tff_medical.runtime.cluster import messages
from tff_medical.runtime.cluster import portions
from tff_medical.runtime.cluster import spill_folder
from tff_medical.runtime.cluster import versions
from tff_medical.runtime.cluster import wire


def silence() -> None:
  """Sends all that this process prints to nowhere."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for descriptor in (1, 2):
    os.dup2(nowhere, descriptor)
  os.close(nowhere)


class Worker:
  """Trains portions of a cohort; an actor of Ray."""

  def __init__(self) -> None:
    silence()
    self._compiled: dict[str, planned.Compiled] = {}
    self._pass: _Pass | None = None

  def start(
    self,
    cores: int,
    on_gpu: bool,
    precision: str,
    sources: Sequence[recipes.Source],
  ) -> messages.Versions | messages.Failure:
    """Prepares the runtime; returns the versions of this process.

    Args:
      cores: Number of CPU cores of the worker, hence of clients at once.
      on_gpu: Whether clients train on the worker's GPU instead.
      precision: Number format; see `runtime.precision`.
      sources: Sources of data that the worker must be able to open.
    """
    problem = spill_folder.close()
    if problem:
      return messages.Failure(None, problem, is_input=True)
    try:
      placement = (
        devices.choose(None, ['GPU:0'], 1)
        if on_gpu
        else devices.on_cores(cores)
      )
      precision_lib.check(precision, placement.devices)
    except _validate.InputError as error:
      return _failure(error)
    self._cohort = cohort_lib.Cohort(placement)
    self._options = graphs.Options.on(placement.devices, precision)
    for source in sources:
      failure = self.open(source)
      if failure is not None:
        return failure
    return versions.of_this_process()

  def open(self, source: recipes.Source) -> messages.Failure | None:
    """Opens a source of data; returns why that fails, or None."""
    try:
      recipes.open_source(source)
    except Exception as error:  # noqa: BLE001 - Ray would publish it
      return _failure(error)
    return None

  def run(
    self,
    call: messages.Call,
    keep: Sequence[int],
    run: int,
    portion: messages.Portion,
  ) -> messages.Report:
    """Trains the clients of a portion and sets the fold of their results aside.

    Args:
      call: Pass to which the portion belongs.
      keep: Numbers of earlier runs at this worker that count.
      run: Number of this run.
      portion: Clients of the portion.
    """
    try:
      state = self._pass
      if state is None or state.key < call.key:
        # Old totals need not be in memory beside new ones.
        self._pass = state = None
        self._pass = state = _Pass(call, self._computation(call.computation))
      elif state.key > call.key:
        return messages.Report()  # The driver has left this pass.
      state.keep(keep)
      return state.run(run, portion, self._cohort)
    except cohort_lib.ClientError as error:
      client = portion.first + error.client_index
      # The cause does not count the clients of the portion.
      return messages.Report(
        failure=messages.Failure(client, str(error.__cause__), is_input=False)
      )
    except Exception as error:  # noqa: BLE001 - Ray would publish it
      return messages.Report(failure=_failure(error))

  def add(
    self, call: messages.Call, span: portions.Span, total: list[Any]
  ) -> messages.Failure | None:
    """Adds the total of a span that another worker has computed.

    Args:
      call: Pass to which the total belongs.
      span: Span, whose other half of a larger span this worker holds.
      total: Total, as `take` returns it.
    """
    try:
      self._state(call).add(span, total)
    except Exception as error:  # noqa: BLE001 - Ray would publish it
      return _failure(error)
    return None

  def take(
    self, call: messages.Call, keep: Sequence[int], span: portions.Span
  ) -> tuple[messages.Failure | None, list[Any]]:
    """Returns the total of a span, and forgets it.

    The first of the two results says whether the second one is there: the
    driver looks at it without fetching the total.

    Args:
      call: Pass to which the total belongs.
      keep: Numbers of runs at this worker that count.
      span: Span that this worker holds.
    """
    try:
      state = self._state(call)
      state.keep(keep)
      return None, [wire.encode(value) for value in state.take(span)]
    except Exception as error:  # noqa: BLE001 - Ray would publish it
      return _failure(error), []

  def answer(self) -> None:
    """Shows that the worker still works."""

  def _state(self, call: messages.Call) -> _Pass:
    state = self._pass  # The other thread may begin another pass now.
    if state is None or state.key != call.key:
      raise ValueError(f'pass {call.key} is over')
    return state

  def _computation(self, shared: messages.Shared) -> planned.Compiled:
    if shared.key not in self._compiled:
      native = [
        tff.framework.deserialize_computation(proto)
        for proto in _fetch(shared.ref)
      ]
      self._compiled[shared.key] = planned.Compiled.create(
        self._options, native
      )
    return self._compiled[shared.key]


def remote_class(ray: Any) -> Any:
  """Returns the class of the actors.

  Args:
    ray: Module of Ray, which is an extra.
  """
  of_totals = ray.method(concurrency_group='totals')
  of_totals(Worker.add)
  of_totals(Worker.take)
  # Not behind a total that is on its way.
  ray.method(concurrency_group='signs')(Worker.answer)
  return ray.remote(concurrency_groups={'totals': 1, 'signs': 1})(Worker)


class _Pass:
  """What a worker holds of one pass; both threads of the worker use it.

  Attributes:
    key: Number of the pass.
  """

  def __init__(self, call: messages.Call, compiled: planned.Compiled):
    plan = compiled.plan
    work = plan.passes[call.number]
    if work is None:
      raise ValueError(f'the plan has no pass {call.number}')
    self.key = call.key
    self._work = work
    self._has_state = plan.traced.has_state
    self._leaves = work.reads
    totals = portions.Totals(portions.Tree(call.portions), self._merge)
    self._results: portions.Results[list[Any]] = portions.Results(totals)
    self._lock = threading.Lock()
    # Arrays become tensors once, and not with every portion.
    self._shared = {
      self._leaves[number]: tf.convert_to_tensor(value)
      if isinstance(value, (np.ndarray, np.generic))
      else wire.decode(value)
      for number, value in _fetch(call.values).items()
    }

  def keep(self, runs: Sequence[int]) -> None:
    """Merges the totals of runs that count."""
    with self._lock:
      self._results.keep(runs)

  def add(self, span: portions.Span, total: list[Any]) -> None:
    """Merges the total of a span."""
    with self._lock:
      self._results.add(span, total)

  def take(self, span: portions.Span) -> list[Any]:
    """Returns the total of a span, and forgets it."""
    with self._lock:
      return self._results.take(span)

  def run(
    self,
    run: int,
    portion: messages.Portion,
    cohort: cohort_lib.Cohort,
  ) -> messages.Report:
    """Trains the clients of a portion; see `Worker.run`."""
    env = dict(self._shared)
    for number, values in portion.leaves.items():
      env[self._leaves[number]] = [wire.decode(v) for v in values]
    outputs = passes.run(
      cohort, self._work, env, portion.clients, has_state=self._has_state
    )
    kept = [
      [wire.encode(value) for value in outputs[leaf]]
      for leaf in self._work.kept
    ]
    span = portions.Span(portion.number, portion.number + 1)
    with self._lock:
      self._results.put(
        run, span, [outputs[leaf] for leaf in self._work.totals]
      )
    return messages.Report(kept, findings=recipes.take_findings())

  def _merge(self, left: list[Any], right: list[Any]) -> list[Any]:
    captured = [self._shared[leaf] for leaf in self._work.captured]
    return self._work.merge([*captured, *left, *right])


def _fetch(ref: Sequence[Any]) -> Any:
  """Returns an object of Ray's store, given a list of its reference."""
  import ray

  return ray.get(ref[0])


def _failure(error: Exception) -> messages.Failure:
  is_input = isinstance(error, _validate.InputError)
  message = str(error) if is_input else f'{type(error).__name__}: {error}'
  return messages.Failure(None, message, is_input)
