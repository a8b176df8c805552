"""Checked reads and atomic writes of files.

A path from a user may name a FIFO, a device, a folder or a huge file.
`read_bytes` detects these before it reads. Each failure is an `InputError`
that names the file. A written file appears under its name only when all of it
is on disk. So a crash leaves either the old file or the new one.

>>> import tempfile
>>> path = pathlib.Path(tempfile.mkdtemp(), 'a.json')
>>> write_json(path, {'epsilon': float('inf')})
>>> read_json(path)
{'epsilon': 'inf'}
"""

from __future__ import annotations

from collections.abc import Mapping
import errno
import hashlib
import json
import math
import numbers
import os
import pathlib
import stat
from typing import Any, BinaryIO

import numpy as np

from tff_medical import _validate

# Far above the size of any JSON file, table or ledger of this project.
MAX_TEXT_BYTES = 256 * 2**20
# Protobuf's limit for a graph, and above the size of the largest backbone.
MAX_MODEL_BYTES = 2**31
PARTIAL_SUFFIX = '.partial'
# Size of one read of a file that is not held in memory.
_BLOCK_BYTES = 2**24


def cache_folder(name: str) -> pathlib.Path:
  """Returns the folder `name` of this project in the user's cache folder."""
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(cache).expanduser() / 'tff_medical' / name


def sha256(path: str | os.PathLike[str]) -> str:
  """Returns the SHA-256 of a regular file of any size, in hexadecimal.

  Raises:
    OSError: The file cannot be read.
  """
  content = hashlib.sha256()
  with open_regular(path) as file:
    while block := file.read(_BLOCK_BYTES):
      content.update(block)
  return content.hexdigest()


def read_bytes(
  path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES
) -> bytes:
  """Returns the content of a regular file.

  Args:
    path: Regular file, or a link to one.
    max_bytes: Largest size that is accepted.

  Raises:
    FileNotFoundError: There is no such file.
    InputError: The file is not a regular file, too large, or unreadable.
  """
  try:
    with open_regular(path) as file:
      return file.read(check_regular(path, file.fileno(), max_bytes))
  except FileNotFoundError:
    raise
  except OSError as error:
    raise _validate.InputError(
      f'{os.fspath(path)} cannot be read: {_reason(error)}; put the file '
      'itself there'
    ) from None


def check_regular(
  path: str | os.PathLike[str],
  descriptor: int,
  max_bytes: int = MAX_TEXT_BYTES,
) -> int:
  """Returns the size of an open file, which must be a regular one.

  Args:
    path: Name of the file in the error message.
    descriptor: Descriptor of the open file.
    max_bytes: Largest size that is accepted.

  Raises:
    InputError: The file is not a regular file, or too large.
  """
  status = os.fstat(descriptor)
  if not stat.S_ISREG(status.st_mode):
    raise _validate.InputError(
      f'{os.fspath(path)} is not a regular file; put the file itself there'
    )
  if status.st_size > max_bytes:
    raise _validate.InputError(
      f'{os.fspath(path)} has {status.st_size:,} bytes, more than the '
      f'{max_bytes:,} that such a file may have'
    )
  return status.st_size


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
  """Opens a regular file for reading, without ever blocking.

  Raises:
    OSError: The path cannot be opened, or names a folder, FIFO, socket or
      device.
  """
  name = os.fspath(path)
  try:
    # Without O_NONBLOCK, opening a FIFO waits until somebody writes to it.
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
    what: Description of the file in error messages.
    path: Regular file.
    max_bytes: Largest size that is accepted.

  Raises:
    InputError: The file cannot be read or is too large.
  """
  name = os.fspath(path)
  try:
    with open_regular(name) as file:
      # Files of /proc report a size of 0, so the content itself is measured.
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


def check_no_pattern(name: str, path: str | os.PathLike[str]) -> None:
  """Raises `InputError` if TensorFlow finds no model at a path.

  It reads the path of a model's weights as a pattern, in which `[` begins a
  choice of characters and a backslash quotes one.
  """
  if any(c in os.fspath(path) for c in '[\\'):
    raise _validate.InputError(
      f'{name} {os.fspath(path)!r} has a [ or a backslash, with which TensorFlow '
      'finds no model; give the folder another name'
    )


def check_folder(what: str, path: str | os.PathLike[str]) -> None:
  """Raises `InputError` if a folder holds special files or a huge file.

  Libraries that read a folder need this check first: they would block on a FIFO
  or a device, and run out of memory on a huge file. It also raises where
  `check_no_pattern` does.
  """
  check_no_pattern(what, path)
  for place in pathlib.Path(path).rglob('*'):
    if place.is_dir():
      continue
    if not place.is_file():
      raise _validate.InputError(
        f'{os.fspath(place)!r} in the {what} is not a regular file; make the '
        f'{what} again'
      )
    if place.stat().st_size > MAX_MODEL_BYTES:
      raise _validate.InputError(
        f'{os.fspath(place)!r} in the {what} has more than the '
        f'{MAX_MODEL_BYTES:,} bytes that such a file may have; make the {what} '
        'again'
      )


def read_text(path: str | os.PathLike[str]) -> str:
  """Returns the content of a UTF-8 file; raises as `read_bytes` does."""
  try:
    return read_bytes(path).decode('utf-8')
  except UnicodeDecodeError:
    raise _validate.InputError(
      f'{os.fspath(path)} is damaged (it is not UTF-8 text)'
    ) from None


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the mapping in a JSON file; raises as `read_bytes` does."""
  return parse_json(read_text(path), os.fspath(path))


def parse_json(text: str, what: str) -> dict[str, Any]:
  """Returns the mapping that a JSON text holds.

  Args:
    text: JSON text of one object.
    what: Description of the text in error messages.

  Raises:
    InputError: The text is not JSON, or not an object.
  """
  try:
    content = json.loads(text)
    # A lone surrogate can be parsed, but never be written or printed.
    json.dumps(content, ensure_ascii=False).encode()
  except (ValueError, RecursionError):
    raise _validate.InputError(f'{what} is damaged (it is not JSON)') from None
  if not isinstance(content, dict):
    raise _validate.InputError(f'{what} is damaged (it holds no JSON object)')
  return content


def write_bytes(
  path: str | os.PathLike[str], content: bytes, *, private: bool = False
) -> None:
  """Writes a file atomically; the file is on disk when this returns.

  Args:
    path: File in an existing folder; an older file is replaced.
    content: Whole content of the file.
    private: Whether only the owner may read the file.

  Raises:
    OSError: The file could not be written; an older file is untouched.
  """
  target = pathlib.Path(path)
  partial = target.with_name(target.name + PARTIAL_SUFFIX)
  try:
    with open(partial, 'wb', opener=_open_private if private else None) as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, target)
  except OSError:
    partial.unlink(missing_ok=True)
    raise
  sync_folder(target.parent)


def write_json(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
  """Writes a mapping as JSON (`plain_json`), atomically (`write_bytes`)."""
  text = json.dumps(
    plain_json(values), indent=2, ensure_ascii=False, allow_nan=False
  )
  write_bytes(path, f'{text}\n'.encode())


def sync_folder(path: str | os.PathLike[str]) -> None:
  """Flushes a folder, so that the names in it survive a loss of power."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def plain_json(value: Any, name: str = 'value') -> Any:
  """Returns `value` in plain JSON types: no NumPy types, NaN or Infinity.

  Args:
    value: Mappings, sequences, strings, numbers and None, nested at will.
    name: Name of the value in error messages.

  Returns:
    The same values, with NaN as None and an infinity as 'inf' or '-inf'.

  Raises:
    InputError: A nested value is of another type.
  """
  if isinstance(value, Mapping):
    return {
      str(key): plain_json(part, f'{name}[{key!r}]')
      for key, part in value.items()
    }
  if isinstance(value, (list, tuple, np.ndarray)):
    return [plain_json(part, f'{name}[...]') for part in value]
  if value is None or isinstance(value, str):
    return value
  if isinstance(value, (bool, np.bool_)):
    return bool(value)
  if isinstance(value, numbers.Integral):
    return int(value)
  if isinstance(value, numbers.Real):
    number = float(value)
    if math.isnan(number):
      return None
    return str(number) if math.isinf(number) else number
  raise _validate.InputError(
    f'{name} must be text, a number, a list or a mapping, got {value!r}'
  )


def _open_private(path: str, flags: int) -> int:
  return os.open(path, flags, 0o600)


def _reason(error: Exception) -> str:
  return getattr(error, 'strerror', None) or str(error)
