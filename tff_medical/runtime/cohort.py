"""Parallel clients of a cohort, and the fold of their results.

Clients are dealt to lanes in turn, one lane per device. Each lane runs several
clients at once on threads. A result is folded into the lane's total as soon as
all earlier clients of the lane are in it. So the order of additions, and every
bit of the result, is independent of the number of threads and of their timing.
Threads that are too far ahead of the slowest client wait. This bounds the
number of waiting results, whatever the cohort size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import functools
import threading
from typing import Any

import grpc
import tensorflow as tf

from tff_medical.runtime import devices
from tff_medical.runtime import resident

# Number of results that may wait for an earlier client, per thread of a lane.
_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Slot:
  """Place of a running client: `worker` of `lane`, on a TensorFlow device."""

  lane: int
  worker: int
  device: str


class ComputationError(RuntimeError, grpc.RpcError):
  """A computation failed while it ran.

  TFF's default runtime is another program, where every such error is a
  `grpc.RpcError`. This class derives from it for programs that catch it.
  """


class ClientError(ComputationError):
  """The computation of one client failed.

  Attributes:
    client_index: Position of the client in the cohort.
  """

  def __init__(self, message: str, client_index: int):
    super().__init__(message)
    self.client_index = client_index


class _Lane:
  """Hands out the clients of one lane and folds their results in order."""

  def __init__(
    self,
    clients: Sequence[int],
    limit: int,
    fold: Callable[[Any, Any], Any],
    total: Any,
  ):
    self.total = total
    self.errors: list[tuple[int, Exception]] = []
    self._clients = clients
    self._limit = limit
    self._fold = fold
    self._taken = 0
    self._folded = 0
    self._folding = False
    self._waiting: dict[int, Any] = {}
    self._stopped = False
    self._changed = threading.Condition()

  def stop(self) -> None:
    """Hands out no more clients."""
    with self._changed:
      self._stopped = True
      self._changed.notify_all()

  def take(self) -> int | None:
    """Returns the next position in the lane; None when all are taken."""
    with self._changed:
      self._changed.wait_for(
        lambda: self._stopped or self._taken - self._folded < self._limit
      )
      if self._stopped or self._taken == len(self._clients):
        return None
      self._taken += 1
      return self._taken - 1

  def put(self, position: int, result: Any) -> None:
    """Folds a result, and the results that waited for it."""
    with self._changed:
      self._waiting[position] = result
      # Another thread is folding and takes this result over, if its turn comes.
      if self._folding:
        return
      self._folding = True
    # The fold itself runs without the lock, so that other threads can go on.
    while True:
      with self._changed:
        result = self._waiting.pop(self._folded, None)
        if result is None:
          self._folding = False
          return
      self.total = self._fold(self.total, result)
      with self._changed:
        self._folded += 1
        self._changed.notify_all()

  def run(self, work: Callable[[int, Slot], Any], slot: Slot) -> None:
    """Works on clients until none is left or one has failed."""
    while (position := self.take()) is not None:
      index = self._clients[position]
      try:
        self.put(position, work(index, slot))
      except Exception as error:  # noqa: BLE001 - reported by `Cohort.run`
        self.errors.append((index, error))
        self.stop()
      except BaseException:
        self.stop()
        raise


class Cohort:
  """Threads that run clients, `threads` for each device of a placement."""

  def __init__(self, placement: devices.Placement):
    self.devices = placement.devices
    self.threads = placement.threads
    self._knob = placement.knob
    self._residents = [
      None if name.startswith('CPU:') else resident.Resident(name)
      for name in self.devices
    ]
    self._pool = concurrent.futures.ThreadPoolExecutor(
      len(self.devices) * self.threads, thread_name_prefix='tff_client'
    )

  def placed_on(self, lane: int) -> Callable[[tf.Tensor], tf.Tensor] | None:
    """Returns the function that puts a tensor on the device of a lane.

    The result is None on a CPU, where tensors are at once.
    """
    kept = self._residents[lane]
    return kept.placed if kept is not None else None

  def _client_error(
    self, index: int, clients: int, error: Exception
  ) -> ClientError:
    message = f'client {index} of {clients} failed: {error}'
    if isinstance(error, tf.errors.ResourceExhaustedError):
      device = self.devices[index % len(self.devices)]
      message = (
        f'client {index} of {clients} found no memory left on {device}; '
        f'lower {self._knob} or the batch size. {error}'
      )
    return ClientError(message, index)

  def run(
    self,
    clients: int,
    work: Callable[[int, Slot], Any],
    fold: Callable[[int, Any, Any], Any],
    zero: Any,
  ) -> list[Any]:
    """Returns the total of each lane that had a client.

    Args:
      clients: Cohort size.
      work: Function that returns the result of the client with this index.
      fold: Function that adds a result to the total of a lane: `fold(lane,
        total, result)`.
      zero: Initial total.

    Raises:
      ClientError: A client failed; the error of the first such client is its
        cause.
    """
    lanes = []
    for number in range(min(clients, len(self.devices))):
      lane_clients = range(number, clients, len(self.devices))
      add = functools.partial(fold, number)
      lanes.append(_Lane(lane_clients, _AHEAD * self.threads, add, zero))
    futures = [
      self._pool.submit(lane.run, work, Slot(n, worker, self.devices[n]))
      for n, lane in enumerate(lanes)
      for worker in range(self.threads)
    ]
    try:
      for future in futures:
        future.result()
    finally:
      for lane in lanes:
        lane.stop()
      concurrent.futures.wait(futures)
    errors = [error for lane in lanes for error in lane.errors]
    if errors:
      index, error = min(errors, key=lambda pair: pair[0])
      raise self._client_error(index, clients, error) from error
    return [lane.total for lane in lanes]
