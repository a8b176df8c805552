"""Files that a user names: only regular ones, and not too large.

What: `open_regular` opens a file for reading, or raises an `OSError` whose
`strerror` says why not, and `read` reads a file of bounded size, or raises an
`InputError`. Why: a FIFO or a device that is opened as if it were a file waits
or goes on for ever.

>>> read('assets', '/dev/zero', max_bytes=100)
Traceback (most recent call last):
...
tff_medical._validate.InputError: assets '/dev/zero' cannot be read: \
it is not a regular file
"""

from __future__ import annotations

import errno
import os
import pathlib
import stat
from typing import BinaryIO

from tff_medical import _validate


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
  """Opens a regular file for reading; never waits.

  Raises:
    OSError: It cannot be opened, or is a folder, FIFO, socket or device.
  """
  name = os.fspath(path)
  try:
    # Or the opening of a FIFO would wait for somebody who writes into it.
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except ValueError as error:  # A zero byte in the name.
    raise OSError(errno.EINVAL, 'No file has such a name', name) from error
  try:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
      raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(mode):
      raise OSError(errno.EINVAL, 'it is not a regular file', name)
    return os.fdopen(descriptor, 'rb')
  except BaseException:
    os.close(descriptor)
    raise


def read(what: str, path: str | os.PathLike[str], *, max_bytes: int) -> bytes:
  """Returns the content of a regular file.

  Args:
    what: What an error message calls the file.
    path: The file.
    max_bytes: The most bytes that it may have.

  Raises:
    InputError: The file cannot be read or is too large.
  """
  name = os.fspath(path)
  try:
    with open_regular(name) as file:
      # Files of /proc hold more than they say, so that the size is not asked.
      content = file.read(max_bytes + 1)
  except OSError as error:
    raise _validate.InputError(
      f'{what} {name!r} cannot be read: {error.strerror or error}'
    ) from error
  if len(content) > max_bytes:
    raise _validate.InputError(
      f'{what} {name!r} has more than the {max_bytes} bytes allowed; '
      'give a smaller file'
    )
  return content


def check_folder(what: str, path: str | os.PathLike[str]) -> None:
  """Raises `InputError` if there is a FIFO, device or socket in the folder.

  It is for folders that a library reads, which would wait for those.
  """
  for place in pathlib.Path(path).rglob('*'):
    if not place.is_file() and not place.is_dir():
      raise _validate.InputError(
        f'{os.fspath(place)!r} in the {what} is not a regular file; make the '
        f'{what} again'
      )
