"""The lock of `prepared_dir`: one process at a time writes there."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib

from absl import logging

from tff_medical import _validate

_LOCK = 'lock'


@contextlib.contextmanager
def locked(prepared_dir: pathlib.Path) -> Iterator[None]:
  """Makes the folder, and holds its lock.

  Args:
    prepared_dir: Folder of prepared images, made if it is not there.

  Raises:
    InputError: The folder cannot be written. What is done under the lock may
      raise `OSError` for that.
  """
  try:
    prepared_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(prepared_dir / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        logging.warning('Waiting for another preparation in %s.', prepared_dir)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
      yield
    finally:
      os.close(descriptor)
  except OSError as error:
    raise _validate.InputError(
      f'prepared_dir {str(prepared_dir)!r} cannot be used: '
      f'{error.strerror or error}; make room there, or give another folder'
    ) from error
