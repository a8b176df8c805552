"""How a program ends when it is asked to, by Ctrl-C or by a scheduler.

SIGINT is what Ctrl-C sends and SIGTERM what schedulers send before they kill.
Work that must not be cut in two runs within `deferred`: the first signal only
sets a flag there, which the work looks at between its steps. A step that may
take long and can be thrown away runs within `abandonable`: it is interrupted
once it has taken `PATIENCE_SECS` more. A second signal interrupts at once.

>>> with deferred() as end:
...   for step in range(3):
...     if end.requested.is_set():
...       break
...     with end.abandonable():
...       pass
>>> step, end.signum
(2, None)

A command may also install an `End` of its own for its whole life. Outside the
work above a signal then raises `Ended` wherever the main thread is, and a
thread that watches ends the process where that does not help in time.

Nothing here imports more than the standard library: a command has to be ready
for signals before its slow imports. The handlers do no more than set attributes
and write a byte to a pipe, as the main thread may hold any lock when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import os
import select
import signal
import threading
import time
from typing import Any

# What asks a program to end.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds that a step which can be abandoned may still take after the first
# signal. With what has to be written after it a program ends within 10 seconds.
PATIENCE_SECS = 4.0
# Wakes the main thread when they are over; by default it is ignored.
_NUDGE = signal.SIGURG


class Ended(KeyboardInterrupt):
  """Interrupts the main thread, as a signal asked the program to end.

  Attributes:
    signum: The signal, one of `SIGNALS`.
  """

  def __init__(self, signum: int):
    super().__init__(signal.Signals(signum).name)
    self.signum = signum


class Abandoned(Ended):
  """Interrupts what runs within `End.abandonable`, as it takes too long."""


class Requested:
  """Tells whether the end was requested; an event that has no lock.

  A `threading.Event` that is set in a signal handler can wait for ever for a
  lock which the interrupted thread holds.
  """

  def __init__(self) -> None:
    self._is_set = False

  def is_set(self) -> bool:
    """Returns whether a signal came."""
    return self._is_set

  def set(self) -> None:
    """Requests the end."""
    self._is_set = True


# Ends the process with a signal and a reason; it does not come back.
Leave = Callable[[int, str], Any]


class End:
  """Handlers of SIGINT and SIGTERM, and what they have seen.

  Attributes:
    requested: Whether the first signal came.
    signum: The first signal, or None.
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
      patience_secs: After the first signal, what runs within `abandonable` is
        interrupted when they are over; None waits for its end.
      deadline_secs: After the first signal, `leave` is called when they are
        over.
      echo_secs: A signal that follows the first one so soon is the same one,
        sent to the process and to its group, and is no second one for `leave`.
      leave: Ends the process. It is called by the watching thread, or by the
        main thread, after a second signal, at the deadline and, while
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
    """Puts the handlers in place; only the main thread may."""
    global _installed
    self._read, self._write = os.pipe()
    os.set_blocking(self._write, False)
    self._watching = threading.Thread(
      target=self._watch, name='ending', daemon=True
    )
    self._watching.start()
    if self._leave is not None:
      # It tells the watching thread even while the main thread is in C++.
      signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
    self._previous = {
      _NUDGE: signal.signal(_NUDGE, self._on_nudge),
      **{one: signal.signal(one, self._on_signal) for one in SIGNALS},
    }
    # What started this program may have blocked them for a while.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _installed = self

  def uninstall(self) -> None:
    """Puts the handlers that were there before back in place."""
    global _installed
    for one, handler in self._previous.items():
      signal.signal(one, signal.SIG_DFL if handler is None else handler)
    if self._leave is not None:
      signal.set_wakeup_fd(-1)
    _installed = None
    os.write(self._write, b'\0')
    assert self._watching is not None  # Set by `install`.
    self._watching.join()
    os.close(self._write)
    os.close(self._read)

  @contextlib.contextmanager
  def defer(self) -> Iterator[None]:
    """Lets the first signal set the flag alone while its block runs."""
    self._deferrals += 1
    try:
      yield
    finally:
      self._deferrals -= 1

  @contextlib.contextmanager
  def abandonable(self) -> Iterator[None]:
    """Runs its block until the end, or until the patience is over.

    Raises:
      Abandoned: The patience is over; what the block did is lost.
      Ended: A second signal came.
    """
    self._abandonable += 1
    try:
      if self._overdue:
        raise Abandoned(self.signum or signal.SIGINT)
      yield
    finally:
      self._abandonable -= 1

  def _on_signal(self, signum: int, frame: Any) -> None:
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

  def _on_nudge(self, signum: int, frame: Any) -> None:
    del signum, frame
    if self._overdue and self._abandonable:
      raise Abandoned(self.signum or signal.SIGINT)

  def _watch(self) -> None:
    """Waits for signals, patience and deadline, in a thread of its own."""
    signum = self._next(None)
    if not signum:
      return
    if self.at_once and self._leave is not None:
      self._leave(signum, '')
    asked = time.monotonic()
    for secs, act in (
      (self._patience_secs, self._nudge),
      (self._deadline_secs, lambda: self._give_up(signum)),
    ):
      while secs is not None:
        left = asked + secs - time.monotonic()
        another = self._next(max(0.0, left))
        if another is None:
          act()
          break
        if not another:
          return
        late = time.monotonic() - asked > self._echo_secs
        if self._leave is not None and late:
          self._leave(another, 'at once, as it came again')
    self._next(None)

  def _next(self, timeout_secs: float | None) -> int | None:
    """Returns the next signal, 0 at the end, or None after the time."""
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
    """Interrupts what may be abandoned in the main thread."""
    self._overdue = True
    main = threading.main_thread().ident
    if main is not None:
      signal.pthread_kill(main, _NUDGE)

  def _give_up(self, signum: int) -> None:
    if self._leave is not None:
      self._leave(signum, 'before the work at hand was done')


# That of the innermost block or of the command; there is one at a time.
_installed: End | None = None


@contextlib.contextmanager
def deferred(patience_secs: float | None = PATIENCE_SECS) -> Iterator[End]:
  """Lets the first SIGINT or SIGTERM request the end instead of ending.

  Blocks may be nested, and within a command they use its handlers. Outside the
  main thread, where Python delivers no signals, nothing is ever requested.

  Args:
    patience_secs: Seconds that a block of `End.abandonable` may still take
      after the first signal, or None for as long as it takes. A command decides
      on that itself.

  Yields:
    The handlers; look at `requested` between steps.

  Raises:
    Ended: A second signal came.
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
