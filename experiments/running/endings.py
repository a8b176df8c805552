"""The end of commands by SIGINT and SIGTERM, from their first line on.

`experiments` installs the handlers before any slow import. Before and after the
work of a command, a signal ends the process at once, as nothing is half done.
During the work a signal raises `ending.Ended`, or requests the end where the work
defers signals. `DEADLINE_SECS` after the signal, or at a second signal, the
process ends as it is. Its writes can be cut at any time: files saved before still
load.

A command that a sweep started has less time, as the sweep has its own deadline. A
signal may reach such a command twice: from the sweep, and from a scheduler that
signals all processes of a job. Both count as one.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from experiments.running import exit_codes
from tff_medical.program import ending

# Set for the commands that a sweep starts.
JOB_VARIABLE = 'TFF_MEDICAL_JOB'
DEADLINE_SECS = 8.0
# `timeout` and terminals may signal a process and its group.
_ECHO_SECS = 0.2
JOB_DEADLINE_SECS = 5.0
_JOB_PATIENCE_SECS = 2.0

_end: ending.End | None = None
# The exit code of a command whose work is over.
_code: int | None = None
_leaving = threading.Lock()
_before_leaving: list[Callable[[], None]] = []


def is_starting() -> bool:
  """Returns whether Python is about to run a command of this package.

  While `python -m` looks for its module, `-m` is the program's name.
  """
  return sys.argv[:1] == ['-m']


def install() -> None:
  """Installs the handlers of signals, once."""
  global _end
  if _end is not None:
    return
  if threading.current_thread() is not threading.main_thread():
    return
  if os.environ.get(JOB_VARIABLE):
    _end = ending.End(
      patience_secs=_JOB_PATIENCE_SECS,
      deadline_secs=JOB_DEADLINE_SECS,
      echo_secs=JOB_DEADLINE_SECS,
      leave=_leave,
    )
  else:
    _end = ending.End(
      deadline_secs=DEADLINE_SECS, echo_secs=_ECHO_SECS, leave=_leave
    )
  _end.at_once = True
  _end.install()
  atexit.register(_leave_quietly)  # Registered first, hence run last.
  sys.unraisablehook = _quiet_hook(sys.unraisablehook)
  threading.excepthook = _quiet_hook(threading.excepthook)
  if hasattr(sys.stdout, 'reconfigure'):
    # Printed lines must not be lost if the process ends at once.
    sys.stdout.reconfigure(line_buffering=True)


def before_leaving(callback: Callable[[], None]) -> None:
  """Registers a function to be called before the process ends at once.

  The function may be called in any thread and at any moment of the main thread.
  """
  _before_leaving.append(callback)


def signum() -> int | None:
  """Returns the signal that requested the end, or None."""
  return _end.signum if _end is not None else None


@contextlib.contextmanager
def work() -> Iterator[None]:
  """Marks the work of the command, which the first signal interrupts."""
  if _end is None:
    yield
    return
  _end.at_once = False
  try:
    yield
  finally:
    _end.at_once = True


def exit_code(code: int | None) -> int:
  """Returns the code to exit with.

  Args:
    code: Exit code of the command's work; None is 0. After a signal, every code
      but that of a failure gives way to the code of the signal.
  """
  global _code
  _code = code or exit_codes.OK
  ended_by = signum()
  if ended_by is not None and _code != exit_codes.FAILED:
    _code = exit_codes.of_signal(ended_by)
  return _code


def stopped(error: BaseException | None = None) -> int:
  """Prints that a signal ended the command; returns the exit code."""
  # Libraries raise interruptions without a number of their own.
  by = getattr(error, 'signum', None) or signum() or signal.SIGINT
  print(f'\n{_line(by, "")}', file=sys.stderr)
  return exit_code(exit_codes.of_signal(by))


def _line(by: int, how: str) -> str:
  text = f'stopped by {signal.Signals(by).name}'
  if how:
    text += f' {how}'
  return f'{text}; the same command can be started again'


def _leave(by: int, how: str) -> NoReturn:
  """Prints a line and ends the process at once."""
  if not _leaving.acquire(blocking=False):
    while True:  # Another thread is about to end it.
      time.sleep(1)
  for callback in _before_leaving:
    with contextlib.suppress(Exception):
      callback()
  with contextlib.suppress(OSError):
    os.write(2, f'{_line(by, how)}\n'.encode())
  first = signum()
  os._exit(exit_codes.of_signal(by if first is None else first))


def _leave_quietly() -> None:
  """Ends a command whose work is over without the interpreter's shutdown.

  During the shutdown a signal would decide the exit code, and objects of work
  that was cut short print errors or wait for ever.
  """
  if _code is None:
    return  # The command failed with a traceback.
  gc.collect()  # TensorFlow's writers flush when they are collected.
  if _leaving.acquire(blocking=False):
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    os._exit(_code)


def _quiet_hook(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """Returns a hook that prints no errors of work that was cut short."""

  def quiet(args: Any) -> None:
    if signum() is None:
      hook(args)

  return quiet
