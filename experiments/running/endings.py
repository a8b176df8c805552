"""How the commands end by SIGINT and SIGTERM, from their first line on.

`experiments` installs this before anything slow is imported. Until a command's
own work begins, and once it is over, a signal ends the process at once: nothing
is half done then. Within the work it raises `ending.Ended`, or requests the end
where the work deferred that. If the process is still there `DEADLINE_SECS` after
the signal, or a second one comes, it ends as it is: all that it writes can be cut
at any time, and what was saved before still loads.

A command that a sweep started is given less time, as the sweep has to end in
time, too; and a signal that reaches it twice, from its sweep and from a scheduler
that signals all processes of a job, counts once.
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
# That of a command whose work is over.
_code: int | None = None
_leaving = threading.Lock()
_before_leaving: list[Callable[[], None]] = []


def is_starting() -> bool:
  """Returns whether Python is about to run a command of this package.

  While `python -m` looks for its module, `-m` is the program's name.
  """
  return sys.argv[:1] == ['-m']


def install() -> None:
  """Makes signals end this command well, unless they do already."""
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
  atexit.register(_leave_quietly)  # The first to come is the last to run.
  sys.unraisablehook = _quiet_hook(sys.unraisablehook)
  threading.excepthook = _quiet_hook(threading.excepthook)
  if hasattr(sys.stdout, 'reconfigure'):
    # Lines that were printed must not be lost if the process ends at once.
    sys.stdout.reconfigure(line_buffering=True)


def before_leaving(callback: Callable[[], None]) -> None:
  """Has `callback` called before the process ends at once.

  It may be called in any thread, while the main thread is anywhere.
  """
  _before_leaving.append(callback)


def signum() -> int | None:
  """Returns the signal that requested the end, or None."""
  return _end.signum if _end is not None else None


@contextlib.contextmanager
def work() -> Iterator[None]:
  """Runs the command's own work: the first signal interrupts it."""
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
    code: What the command came to; None is 0. A failure stays one, anything
      else is the signal's code if there was a signal.
  """
  global _code
  _code = code or exit_codes.OK
  ended_by = signum()
  if ended_by is not None and _code != exit_codes.FAILED:
    _code = exit_codes.of_signal(ended_by)
  return _code


def stopped(error: BaseException | None = None) -> int:
  """Says in a line that a signal ended the command; returns its exit code."""
  if isinstance(error, KeyboardInterrupt):
    by = getattr(error, 'signum', signal.SIGINT)
  else:
    by = signum() or signal.SIGINT
  print(f'\n{_line(by, "")}', file=sys.stderr)
  return exit_code(exit_codes.of_signal(by))


def _line(by: int, how: str) -> str:
  text = f'stopped by {signal.Signals(by).name}'
  if how:
    text += f' {how}'
  return f'{text}; the same command can be started again'


def _leave(by: int, how: str) -> NoReturn:
  """Ends the process at once, with a line."""
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
  """Spares a command whose work is over the interpreter's last moments.

  A signal would kill it there with a code of its own, and objects of work that
  was cut short complain, or wait for ever.
  """
  if _code is None:
    return  # It failed with a traceback.
  gc.collect()  # Writers of TensorFlow flush when nothing holds them.
  if _leaving.acquire(blocking=False):
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    os._exit(_code)


def _quiet_hook(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """Returns a hook that is silent about errors of work that was cut short."""

  def quiet(args: Any) -> None:
    if signum() is None:
      hook(args)

  return quiet
