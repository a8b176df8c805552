"""Guard of the worker process of TFF's own runtime.

TFF 0.87 runs computations in a program `worker_binary`. It starts the worker
for the first computation and ends it by SIGINT in a destructor. Three things go
wrong:

- The worker outlives a parent that is killed.
- TFF waits for ever for a worker that ignores SIGINT, as the background jobs of
  a shell do.
- A Ctrl-C or a scheduler's SIGTERM goes to all processes of a job and ends the
  worker in the middle of a round.

`guard` prevents this for all later workers of this process. A small launcher
asks the kernel (Linux) to kill the worker when its parent is gone. It leaves
the process group that a terminal signals, ignores SIGTERM, heeds SIGINT, and
then becomes the worker. To the kernel the parent of a process is the thread
that started it. So a thread that never ends starts the workers.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
import concurrent.futures
import gc
import importlib
import os
import queue
import subprocess
import sys
import threading
import types
from typing import Any

import tensorflow_federated as tff

_MODULE = (
  'tensorflow_federated.python.core.impl.executor_stacks.executor_factory'
)

# Code that runs in another Python process: between fork and exec no code is
# safe in a process with threads. 1 is PR_SET_PDEATHSIG of <linux/prctl.h>.
_LAUNCHER = """
import ctypes, os, signal, sys
os.setsid()
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
  sys.exit(1)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.execv(sys.argv[2], sys.argv[2:])
"""


class _Worker(subprocess.Popen):
  """Process that ends with this one."""

  def __init__(self, args: list[str], **kwargs: Any):
    launcher = [sys.executable, '-I', '-S', '-c', _LAUNCHER, str(os.getpid())]
    start = super().__init__
    _starter.call(lambda: start([*launcher, *args], **kwargs))
    _workers.append(self)


class _Starter:
  """Thread that lasts as long as the process."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._pid = 0
    self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()

  def call(self, function: Callable[[], None]) -> None:
    """Calls a function in the thread and waits for it."""
    with self._lock:
      if self._pid != os.getpid():  # The first call, or the first after a fork.
        self._pid = os.getpid()
        self._calls = queue.SimpleQueue()
        threading.Thread(
          target=self._run, args=(self._calls,), daemon=True
        ).start()
    done: concurrent.futures.Future[None] = concurrent.futures.Future()
    self._calls.put((function, done))
    done.result()

  def _run(self, calls: queue.SimpleQueue[Any]) -> None:
    while True:
      function, done = calls.get()
      try:
        done.set_result(function())
      except Exception as error:  # noqa: BLE001 - raised where it was called
        done.set_exception(error)


class _Subprocess(types.ModuleType):
  """Module that takes the place of `subprocess` in TFF's module."""

  Popen = _Worker

  def __getattr__(self, name: str) -> Any:
    return getattr(subprocess, name)


class _NoContext(tff.framework.SyncContext):
  """Context that takes the place of TFF's, which ends when nothing holds it."""

  def invoke(self, comp: Any, arg: Any) -> Any:
    raise RuntimeError('the program has ended')


_starter = _Starter()
_workers: list[_Worker] = []
_guarded = False


def guard() -> None:
  """Guards the workers that TFF starts from now on in this process.

  TFF's runtime is also ended before the interpreter shuts down, as TFF would
  print a traceback there. Further calls have no effect. On other systems than
  Linux a worker still outlives a parent that is killed.
  """
  global _guarded
  if _guarded:
    return
  _guarded = True
  atexit.register(end)
  if sys.platform.startswith('linux'):
    module: Any = importlib.import_module(_MODULE)
    module.subprocess = _Subprocess('subprocess')


def kill_all() -> None:
  """Kills the guarded workers; their computations fail."""
  for worker in list(_workers):
    worker.kill()


def end() -> None:
  """Ends TFF's runtime, if it is in use; no computation can run afterwards."""
  kill_all()
  tff.framework.set_default_context(_NoContext())
  gc.collect()
