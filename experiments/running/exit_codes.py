"""The exit codes of all commands.

| code | what it says                                                          |
|------|-----------------------------------------------------------------------|
| 0    | The work is done.                                                     |
| 1    | The work failed: the disk was full, a cell of a sweep failed, or an   |
|      | audit found that the run does not keep its promise.                   |
| 2    | A flag, a file or a folder cannot be used; nothing was done.          |
| 130  | Ctrl-C (SIGINT) ended the command; saved work stays and can go on.    |
| 143  | SIGTERM, as schedulers send it, ended the command in the same way.    |

>>> of_signal(signal.SIGTERM)
143
"""

from __future__ import annotations

import signal

OK = 0
FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def of_signal(signum: int) -> int:
  """Returns the exit code of a command that a signal ended, as in shells."""
  return 128 + signum


def of_interrupt(error: KeyboardInterrupt) -> int:
  """Returns the exit code for the exception that a signal raised."""
  return of_signal(getattr(error, 'signum', signal.SIGINT))
