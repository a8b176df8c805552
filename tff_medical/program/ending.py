"""Orderly end of a program on a signal, from Ctrl-C or a scheduler.

Ctrl-C sends SIGINT, and schedulers send SIGTERM before they kill. Work that
must not be cut in two runs within `deferred`. There the first signal only sets
a flag, which the work checks between its steps. A step that may take long and
can be thrown away runs within `abandonable`. It is interrupted `PATIENCE_SECS`
after the signal. A second signal interrupts at once.

>>> with deferred() as end:
...   for step in range(3):
...     if end.requested.is_set():
...       break
...     with end.abandonable():
...       pass
>>> step, end.signum
(2, None)

A command may also install its own `End` for its whole life. Outside the work
above a signal then raises `Ended` in the main thread, wherever that is. If the
main thread does not react in time, a watching thread ends the process.

This module imports only the standard library: a command has to be ready for
signals before its slow imports. The handlers only set attributes and write a
byte to a pipe, as the main thread may hold any lock when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import os
import select
import signal
import threading
import time
import types
from typing import Any

# Signals that ask a program to end.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds that an abandonable step may still take after the first signal. With
# the files to write afterwards a program ends within 10 seconds.
PATIENCE_SECS = 4.0
# Signal that wakes the main thread after these seconds; its default is to be
# ignored.
_NUDGE = signal.SIGURG


class Ended(KeyboardInterrupt):
  """Interrupts the main thread, as a signal asked the program to end.

  Attributes:
    signum: Number of the signal, from `SIGNALS`.
  """

  def __init__(self, signum: int):
    super().__init__(signal.Signals(signum).name)
    self.signum = signum


class Abandoned(Ended):
  """Interrupts a block of `End.abandonable` that takes too long."""


class Requested:
  """Lock-free event: whether the end was requested.

  A `threading.Event` that is set in a signal handler may wait for ever for a
  lock that the interrupted thread holds.
  """

  def __init__(self) -> None:
    self._is_set = False

  def is_set(self) -> bool:
    """Returns whether a signal has arrived."""
    return self._is_set

  def set(self) -> None:
    """Requests the end."""
    self._is_set = True


# Function that ends the process with a signal and a reason, and never returns.
Leave = Callable[[int, str], object]


class End:
  """Handlers of SIGINT and SIGTERM, and their state.

  Attributes:
    requested: Whether the first signal has arrived.
    signum: Number of the first signal, or None.
    at_once: Whether the first signal ends the process at once, by `leave`.
  """

  def __init__(
    self,
    *,
    patience_secs: float | None = PATIENCE_SECS,
    deadline_secs: float | None = None,
    echo_secs: float = 0.0,
    leave: Leave | None = None,
  ):
    """Prepares handlers, which `install` puts in place.

    Args:
      patience_secs: Seconds after the first signal at which a block of
        `abandonable` is interrupted; None waits for the end of the block.
      deadline_secs: Seconds after the first signal at which `leave` is called;
        None is no deadline.
      echo_secs: Seconds after the first signal in which further signals do not
        count for `leave`. A signal may arrive twice, sent to the process and to
        its group.
      leave: Function that ends the process. The watching thread or the main
        thread calls it after a second signal, at the deadline and, while
        `at_once` is true, at the first signal. Without it a second signal
        raises `Ended`.
    """
    self.requested = Requested()
    self.signum: int | None = None
    self.at_once = False
    self._patience_secs = patience_secs
    self._deadline_secs = deadline_secs
    self._echo_secs = echo_secs
    self._leave = leave
    self._deferrals = 0
    self._abandonable = 0
    self._overdue = False
    self._previous: dict[int, Any] = {}
    self._read = self._write = -1
    self._watching: threading.Thread | None = None

  def install(self) -> None:
    """Puts the handlers in place; only the main thread may call this."""
    global _installed
    self._read, self._write = os.pipe()
    os.set_blocking(self._write, False)
    self._watching = threading.Thread(
      target=self._watch, name='ending', daemon=True
    )
    self._watching.start()
    if self._leave is not None:
      # The descriptor wakes the watching thread even while the main thread runs
      # C++ code, where Python's handlers have to wait.
      signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
    self._previous = {
      _NUDGE: signal.signal(_NUDGE, self._on_nudge),
      **{signum: signal.signal(signum, self._on_signal) for signum in SIGNALS},
    }
    # The parent process may have blocked the signals.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _installed = self

  def uninstall(self) -> None:
    """Puts the previous handlers back in place."""
    global _installed
    for signum, handler in self._previous.items():
      signal.signal(signum, signal.SIG_DFL if handler is None else handler)
    if self._leave is not None:
      signal.set_wakeup_fd(-1)
    _installed = None
    os.write(self._write, b'\0')
    if self._watching is not None:
      self._watching.join()
    os.close(self._write)
    os.close(self._read)

  @contextlib.contextmanager
  def defer(self) -> Iterator[None]:
    """Makes the first signal only set the flag while the block runs."""
    self._deferrals += 1
    try:
      yield
    finally:
      self._deferrals -= 1

  @contextlib.contextmanager
  def abandonable(self) -> Iterator[None]:
    """Runs the block until its end, or until the patience is over.

    Raises:
      Abandoned: The patience is over; the work of the block is lost.
      Ended: A second signal arrived.
    """
    self._abandonable += 1
    try:
      if self._overdue:
        raise Abandoned(self.signum or signal.SIGINT)
      yield
    except KeyboardInterrupt as error:
      # Ray replaces the exception of a handler by a plain KeyboardInterrupt.
      if self._overdue and not isinstance(error, Ended):
        raise Abandoned(self.signum or signal.SIGINT) from error
      raise
    finally:
      self._abandonable -= 1

  def _on_signal(self, signum: int, frame: types.FrameType | None) -> None:
    del frame
    if self.signum is not None:
      if self._leave is None:
        raise Ended(signum)
      return  # The watching thread leaves, unless it is an echo.
    self.signum = signum
    self.requested.set()
    if self._leave is None:
      os.write(self._write, bytes([signum]))
    elif self.at_once:
      self._leave(signum, '')
    if not self._deferrals:
      raise Ended(signum)

  def _on_nudge(self, signum: int, frame: types.FrameType | None) -> None:
    del signum, frame
    if self._overdue and self._abandonable:
      raise Abandoned(self.signum or signal.SIGINT)

  def _watch(self) -> None:
    """Waits for signals, patience and deadline, in the watching thread."""
    signum = self._next(None)
    if not signum:
      return
    if self.at_once and self._leave is not None:
      self._leave(signum, '')
    requested_at = time.monotonic()
    for secs, act in (
      (self._patience_secs, self._nudge),
      (self._deadline_secs, lambda: self._give_up(signum)),
    ):
      while secs is not None:
        left = requested_at + secs - time.monotonic()
        another = self._next(max(0.0, left))
        if another is None:
          act()
          break
        if not another:
          return
        is_echo = time.monotonic() - requested_at <= self._echo_secs
        if self._leave is not None and not is_echo:
          self._leave(another, 'at once, as it came again')
    self._next(None)

  def _next(self, timeout_secs: float | None) -> int | None:
    """Returns the next signal, 0 after `uninstall`, or None at the timeout."""
    until = None if timeout_secs is None else time.monotonic() + timeout_secs
    poll = select.poll()
    poll.register(self._read, select.POLLIN)
    while True:
      left = None if until is None else max(0.0, until - time.monotonic())
      if not poll.poll(None if left is None else 1000 * left):
        return None
      byte = os.read(self._read, 1)
      if not byte or byte == b'\0':
        return 0
      if byte[0] in SIGNALS:
        return byte[0]

  def _nudge(self) -> None:
    """Interrupts an abandonable block of the main thread."""
    self._overdue = True
    main = threading.main_thread().ident
    if main is not None:
      signal.pthread_kill(main, _NUDGE)

  def _give_up(self, signum: int) -> None:
    if self._leave is not None:
      self._leave(signum, 'before the work at hand was done')


# Handlers of the command, or of the outermost block; one `End` at a time.
_installed: End | None = None


@contextlib.contextmanager
def deferred(patience_secs: float | None = PATIENCE_SECS) -> Iterator[End]:
  """Makes the first SIGINT or SIGTERM request the end instead of ending.

  Blocks may be nested, and within a command they use its handlers. Outside the
  main thread, where Python delivers no signals, the end is never requested.

  Args:
    patience_secs: Seconds that a block of `End.abandonable` may still take
      after the first signal; None is no limit. The handlers of a command have
      their own value instead.

  Yields:
    The handlers; check `requested` between steps.

  Raises:
    Ended: A second signal arrived.
  """
  if threading.current_thread() is not threading.main_thread():
    yield End()
    return
  if _installed is not None:
    with _installed.defer():
      yield _installed
    return
  end = End(patience_secs=patience_secs)
  with end.defer():
    end.install()
    try:
      yield end
    finally:
      end.uninstall()
