"""Runs commands side by side, each with its own cores or GPU.

`run` starts a process for each `Job` as slots come free. A slot is a share of the
cores, or a GPU if the machine has any. Start, calibration and evaluation of a cell
use one core, and overlap with the rounds of other cells. Processes are needed, as
TensorFlow keeps one set of devices and threads per process.

If this process dies, even by SIGKILL, the kernel interrupts the children (Linux),
so that no child goes on holding its folder. The kernel does so once for each
thread that dies here, which counts as one interruption (`endings`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import multiprocessing
from multiprocessing import resource_tracker
import os
import pathlib
import signal
import subprocess
import time
from typing import Any, NamedTuple, Protocol, TypeVar
import weakref

from experiments.running import endings
from tff_medical import _validate
from tff_medical.program import ending

_POLL_SECS = 0.5
# Seconds that a job has to end after a signal, plus one.
_JOB_END_SECS = endings.JOB_DEADLINE_SECS + 1.0
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_T = TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class Job:
  """A command, and where its files are.

  Attributes:
    name: Name that no other job has.
    command: Program and arguments.
    log: File that gets the output.
    folder: Folder that the command writes, a value of one of its arguments.
    progress_file: Name of the file in the folder whose lines count as progress.
    paths: Other paths among the values of its arguments.
    inputs: Those of the paths that the command reads, and never makes.
    is_shared: Whether other machines may run the job only in this very folder.
  """

  name: str
  command: Sequence[str]
  log: pathlib.Path
  folder: pathlib.Path = pathlib.Path()
  progress_file: str = ''
  paths: tuple[str, ...] = ()
  inputs: tuple[str, ...] = ()
  is_shared: bool = False


class Process(Protocol):
  """A job that was started, on this machine or another."""

  def poll(self) -> int | None:
    """Returns the exit code, None while the job is not over."""

  def progress(self) -> int:
    """Returns the number of lines of the job's progress file."""

  def send_signal(self, signum: int) -> None:
    """Sends the job a signal."""

  def wait(self, timeout: float | None = None) -> int:
    """Returns the exit code at the end of the job.

    Raises:
      subprocess.TimeoutExpired: It did not end within `timeout` seconds.
    """

  def kill(self) -> None:
    """Ends the job at once."""


class Slot(Protocol):
  """A place for one job at a time."""

  def start(self, job: Job) -> Process:
    """Starts a job."""


@dataclasses.dataclass(frozen=True)
class LocalSlot:
  """The cores and the environment variables of one process of this machine."""

  cores: frozenset[int]
  environment: Mapping[str, str]

  def start(self, job: Job) -> Process:
    """Starts a job as a child of this process."""
    return _start(job, self)


def available_cores() -> list[int]:
  """Returns the numbers of the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def visible_gpus() -> list[str]:
  """Returns the GPUs that children may use, without TensorFlow."""
  if 'CUDA_VISIBLE_DEVICES' in os.environ:
    named = os.environ['CUDA_VISIBLE_DEVICES'].split(',')
    return [name for name in named if name and name != '-1']
  with contextlib.suppress(OSError, subprocess.SubprocessError):
    listed = subprocess.run(
      ['nvidia-smi', '--list-gpus'], check=True, capture_output=True, timeout=30
    )
    return [str(i) for i in range(len(listed.stdout.splitlines()))]
  return []


def slots(
  count: int | None, cores: Sequence[int], gpus: Sequence[str]
) -> list[LocalSlot]:
  """Divides cores and GPUs.

  Args:
    count: Number of slots; by default one per GPU or, without GPUs, per core.
    cores: Cores, dealt out evenly; more slots than cores share cores.
    gpus: GPUs, dealt out in turn; TensorFlow allocates their memory as needed.
  """
  if count is None:
    count = len(gpus) or len(cores)
  _validate.positive_int(jobs=count)
  divided = []
  for index in range(count):
    share = cores[index::count] or [cores[index % len(cores)]]
    environment = {'TF_CPP_MIN_LOG_LEVEL': '2'}
    if gpus:
      environment['CUDA_VISIBLE_DEVICES'] = gpus[index % len(gpus)]
      environment['TF_FORCE_GPU_ALLOW_GROWTH'] = 'true'
    divided.append(LocalSlot(frozenset(share), environment))
  return divided


class _Running(NamedTuple):
  job: Job
  process: Process


class _Child(subprocess.Popen[bytes]):
  """A job as a child of this process."""

  def __init__(self, job: Job, **options: Any):
    super().__init__(list(job.command), **options)
    self._lines = job.folder / job.progress_file

  def progress(self) -> int:
    """Returns the number of lines of the job's progress file."""
    try:
      return self._lines.read_bytes().count(b'\n')
    except OSError:
      return 0


# All children, for an end that leaves no time.
_alive: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()


def run(
  jobs: Sequence[Job],
  where: Sequence[Slot],
  *,
  on_end: Callable[[Job, int], None],
  on_poll: Callable[[Mapping[str, int]], None] = lambda lines: None,
) -> None:
  """Runs all jobs, one in each slot at a time, in their order.

  Args:
    jobs: Jobs to run.
    where: Slots of the jobs.
    on_end: Function that is called with a job and its exit code.
    on_poll: Function that is called every half second with the progress of the
      running jobs, by their names.

  Raises:
    ending.Ended: A signal requested the end. The children got the same signal;
      those that did not end in time were killed.
  """
  waiting = list(jobs)
  running: dict[int, _Running] = {}
  # A signal between the start of a child and its entry here would lose it.
  with ending.deferred() as end:
    try:
      while waiting or running:
        for index, slot in enumerate(where):
          if waiting and index not in running and not end.requested.is_set():
            job = waiting.pop(0)
            running[index] = _Running(job, slot.start(job))
        _sleep(end)
        if end.requested.is_set():
          raise ending.Ended(end.signum or signal.SIGINT)
        for index, (job, process) in list(running.items()):
          code = process.poll()
          if code is not None:
            del running[index]
            on_end(job, code)
        on_poll({job.name: p.progress() for job, p in running.values()})
    except BaseException as error:
      signum = getattr(error, 'signum', signal.SIGINT)
      _end([process for _, process in running.values()], signum)
      raise


def call(function: Callable[..., _T], *args: Any) -> _T:
  """Calls a function in a process of its own; returns or raises as it does.

  The process is killed if this one is interrupted or dies, so that the function
  must leave nothing behind.

  Args:
    function: Function that pickle can name; its result can be pickled.
    *args: Arguments that can be pickled.
  """
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(
    1, spawn, initializer=_end_with, initargs=(os.getpid(),)
  ) as pool:
    try:
      with _whole_start():
        future = pool.submit(function, *args)
      return future.result()
    except BaseException:
      for process in multiprocessing.active_children():
        process.kill()
      raise


@contextlib.contextmanager
def _whole_start() -> Iterator[None]:
  """Blocks signals while a process of `multiprocessing` starts.

  The new process would print a traceback if its input were cut, or if Ctrl-C in
  the terminal reached it during its imports.
  """
  # The tracker starts at its first use, and unblocks the signals.
  resource_tracker.ensure_running()
  with ending.deferred() as end:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending.SIGNALS)
    try:
      yield
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if end.requested.is_set():
      raise ending.Ended(end.signum or signal.SIGINT)


def _end_with(parent: int) -> None:
  """Makes this process ignore Ctrl-C and die with its parent."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:
    os._exit(1)


def kill_all() -> None:
  """Kills all children, for an end that leaves no time."""
  for process in list(_alive):
    process.kill()  # Those that are over are not harmed.
  for child in multiprocessing.active_children():
    child.kill()


def _sleep(end: ending.End) -> None:
  """Waits until the children are to be polled, or for a signal."""
  until = time.monotonic() + _POLL_SECS
  while time.monotonic() < until and not end.requested.is_set():
    time.sleep(_POLL_SECS / 10)


def _start(job: Job, slot: LocalSlot) -> _Child:
  job.log.parent.mkdir(parents=True, exist_ok=True)

  parent = os.getpid()

  def prepare() -> None:
    """Runs in the child before the command."""
    # A shell's background job ignores Ctrl-C, which children inherit.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(os, 'sched_setaffinity'):
      os.sched_setaffinity(0, slot.cores)
    with contextlib.suppress(OSError, AttributeError):
      ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != parent:  # The parent died before prctl was called.
      os._exit(1)

  with open(job.log, 'ab') as log:  # The child keeps the file open.
    process = _Child(
      job,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      env={**os.environ, endings.JOB_VARIABLE: '1', **slot.environment},
      # Ctrl-C in a terminal would reach the child beside this process's signal.
      start_new_session=True,
      preexec_fn=prepare,
    )
  _alive.add(process)
  return process


def _end(processes: Sequence[Process], signum: int) -> None:
  """Sends processes a signal, waits, and kills those that take too long."""
  for process in processes:
    process.send_signal(signum)
  until = time.monotonic() + _JOB_END_SECS
  try:
    for process in processes:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, until - time.monotonic()))
  finally:
    for process in processes:
      process.kill()
      process.wait()


endings.before_leaving(kill_all)
