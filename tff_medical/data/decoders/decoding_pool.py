"""Worker processes that decode files side by side, each of which may die.

What: `Pool.outcomes` yields the outcome of each file, in the order in which
files are done. A worker that dies or takes longer than `file_seconds` costs the
file that it was at, which is then bad, and is replaced. Why not a pool of the
standard library: `multiprocessing` waits for ever for a killed worker, and
`concurrent.futures` gives up all files; both import the main module anew, which
takes seconds where that imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import contextlib
from multiprocessing import connection
import os
import socket
import subprocess
import sys
import time
from types import TracebackType

from tff_medical import _validate
from tff_medical.data.decoders import decoding_worker

_POLL_SECONDS = 0.5
# Not -m, which would give its classes other names than here.
_PROGRAM = (
  'import sys; from tff_medical.data.decoders import decoding_worker as w;'
  ' w.main(int(sys.argv[1]))'
)
# Workers that die one after the other before the first answer of any.
_MAX_FAILED_STARTS = 3


class _Worker:
  """A process, the socket to it, and the file that it is decoding."""

  def __init__(self, task: decoding_worker.Task):
    ours, theirs = socket.socketpair()
    with theirs:
      self.process = subprocess.Popen(
        [
          *(sys.executable, '-c', _PROGRAM),
          str(theirs.fileno()),
        ],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # Decoders print what they find in a file.
        stderr=subprocess.DEVNULL,
        env={
          **os.environ,
          'PYTHONPATH': os.pathsep.join(p for p in sys.path if p),
          # One image is too little for more threads, and files are many.
          'OMP_NUM_THREADS': '1',
          'OPENBLAS_NUM_THREADS': '1',
        },
      )
    self.pipe = connection.Connection(ours.detach())
    self.number: int | None = None
    self.deadline = 0.0
    self.has_answered = False
    with contextlib.suppress(OSError):
      self.pipe.send(task)

  def ask(self, number: int, path: str, seconds: float) -> None:
    self.number = number
    # The first file waits for the imports as well.
    grace = 0 if self.has_answered else 60
    self.deadline = time.monotonic() + seconds + grace
    with contextlib.suppress(OSError):  # It died; `receive` will say so.
      self.pipe.send((number, path))

  def end(self) -> int:
    """Ends the process; returns its exit status."""
    self.pipe.close()
    if self.process.poll() is None:
      self.process.kill()
    return self.process.wait()


class Pool:
  """Workers; a context manager that ends them."""

  def __init__(
    self, task: decoding_worker.Task, *, workers: int, file_seconds: float
  ):
    """Starts nothing yet.

    Args:
      task: Policy, size and channels.
      workers: Number of processes.
      file_seconds: Seconds after which a file is given up.
    """
    _validate.positive_int(decode_workers=workers)
    _validate.positive(file_seconds=file_seconds)
    self._task = task
    self._count = workers
    self._seconds = file_seconds
    self._workers: list[_Worker] = []
    self._failed_starts = 0

  def __enter__(self) -> Pool:
    return self

  def __exit__(
    self,
    error_type: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    while self._workers:
      self._workers.pop().end()

  @property
  def process_ids(self) -> list[int]:
    """The workers that run."""
    return [worker.process.pid for worker in self._workers]

  def outcomes(
    self, files: Iterable[tuple[int, str]]
  ) -> Iterator[tuple[int, decoding_worker.Outcome]]:
    """Yields the number and the outcome of each file.

    Args:
      files: Number and path of each file.

    Raises:
      InputError: No worker can be started.
    """
    waiting = iter(files)
    is_done = False
    while True:
      while not is_done:
        worker = self._idle()
        if worker is None:
          break
        following = next(waiting, None)
        if following is None:
          is_done = True
          break
        worker.ask(*following, self._seconds)
      busy = [(w, w.number) for w in self._workers if w.number is not None]
      if not busy:
        return
      yield from self._received(busy)

  def _idle(self) -> _Worker | None:
    """Returns a worker without a file, a new one if there may be more."""
    for worker in self._workers:
      if worker.number is None:
        return worker
    if len(self._workers) == self._count:
      return None
    self._workers.append(_Worker(self._task))
    return self._workers[-1]

  def _received(
    self, busy: list[tuple[_Worker, int]]
  ) -> Iterator[tuple[int, decoding_worker.Outcome]]:
    """Yields the answers of workers, and outcomes for those that died or hang."""
    ready = connection.wait([w.pipe for w, _ in busy], timeout=_POLL_SECONDS)
    now = time.monotonic()
    for worker, number in busy:
      if worker.pipe in ready:
        try:
          answered, outcome = worker.pipe.recv()
        except (EOFError, OSError):
          yield number, self._lost(worker, '')
          continue
        worker.number, worker.has_answered = None, True
        self._failed_starts = 0
        yield answered, outcome
      elif now > worker.deadline:
        yield (
          number,
          self._lost(worker, f'takes more than {self._seconds:g} s to decode'),
        )

  def _lost(self, worker: _Worker, reason: str) -> decoding_worker.Outcome:
    """Ends a worker; returns the outcome of the file that it was decoding."""
    self._workers.remove(worker)
    status = worker.end()
    if not worker.has_answered and status >= 0 and not reason:
      self._failed_starts += 1
      if self._failed_starts >= _MAX_FAILED_STARTS:
        raise _validate.InputError(
          'the processes that decode images end as soon as they start (exit '
          f'code {status}); try to import {decoding_worker.__name__}'
        )
    if not reason:
      how = f'signal {-status}' if status < 0 else f'exit code {status}'
      reason = f'makes its decoder die ({how})'
    return decoding_worker.Outcome(reason=reason)
