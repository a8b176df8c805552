"""File format of ledgers: sealed lines, appended durably under a lock.

A ledger has one JSON object per line. The first line is the header, each
further line an entry. Each line carries the SHA-256 of all lines before it, so
that a line that was changed or removed is found. The charges of a run
(`privacy.ledger`) and those of a data set (`privacy.data_ledger`) are kept in
such files.

An appended line is on disk when `LedgerFile.append` returns. A line of
`LedgerFile.write` survives the death of the process when `write` returns, and
a loss of power when `flush` does. A thread syncs the file in between.

>>> import tempfile
>>> path = pathlib.Path(tempfile.mkdtemp(), 'ledger.jsonl')
>>> with LedgerFile(path, remedy='', change_remedy='') as file:
...   _ = file.load()
...   first = file.append({'format': 1})
...   second = file.append({'round': 1})
>>> [line.record for line in read(path, remedy='').lines]
[{'format': 1}, {'round': 1}]
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent import futures
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import os
import pathlib
import types
from typing import Any

from tff_medical import _files
from tff_medical import _validate


@dataclasses.dataclass(frozen=True)
class Line:
  """One line.

  Attributes:
    number: Number of the line, 1 for the header.
    record: Values of the line, without the digest.
    digest: SHA-256, in hexadecimal, that commits to the file up to this line.
  """

  number: int
  record: dict[str, Any]
  digest: str


@dataclasses.dataclass(frozen=True)
class Chain:
  """Lines of a file whose chain of digests was checked.

  Attributes:
    lines: All complete lines, the header first.
    size: Size in bytes of these lines; a torn last line is left out.
    last_line: Bytes of the last complete line.
  """

  lines: tuple[Line, ...]
  size: int
  last_line: bytes


def read(path: str | os.PathLike[str], remedy: str) -> Chain:
  """Returns the lines of a ledger, without changing it.

  Args:
    path: File of the ledger.
    remedy: What to do with a damaged file, for messages.

  Raises:
    FileNotFoundError: There is no such file.
    InputError: The file is no ledger, or was changed.
  """
  return parse(pathlib.Path(path), _files.read_bytes(path), remedy)


def parse(path: pathlib.Path, content: bytes, remedy: str) -> Chain:
  """Returns the lines of a ledger from its bytes; raises as `read` does."""
  lines = content.splitlines(keepends=True)
  if lines and lines[-1].startswith(b'{') and not lines[-1].endswith(b'\n'):
    lines.pop()
  checked: list[Line] = []
  digest = ''
  for number, line in enumerate(lines, start=1):
    record = _check(path, number, line, digest, remedy)
    digest = _digest_of(line)
    checked.append(Line(number, record, digest))
  return Chain(
    tuple(checked), sum(map(len, lines)), lines[-1] if lines else b''
  )


class LedgerFile:
  """A ledger that is open and locked; use it as a context manager."""

  def __init__(
    self,
    path: str | os.PathLike[str],
    *,
    remedy: str,
    change_remedy: str,
    private: bool = False,
  ):
    """Opens and locks the file; creates it if it is missing.

    Args:
      path: File of the ledger, in an existing folder.
      remedy: What to do with a damaged file, for messages.
      change_remedy: What happens, and what to do, if the file is changed while
        it is open.
      private: Whether only the owner may read a file that is created.

    Raises:
      BlockingIOError: Another process holds the lock.
      InputError: The path is not a regular file, or cannot be opened.
    """
    self._path = pathlib.Path(path)
    self._remedy = remedy
    self._change_remedy = change_remedy
    self._size, self._last_line, self._changed_at = 0, b'', 0
    self._digest = ''
    # What is on disk, and the sync of what is not yet.
    self._synced_size = 0
    self._sync: futures.Future[int] | None = None
    self._syncing = futures.ThreadPoolExecutor(1, 'ledger')
    self._file = _open_regular(self._path, 0o600 if private else 0o666, remedy)
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
      self._file.close()
      raise

  def __enter__(self) -> LedgerFile:
    return self

  def __exit__(
    self,
    exc_type: type[BaseException] | None,
    exc: BaseException | None,
    traceback: types.TracebackType | None,
  ) -> None:
    self.close()

  def close(self) -> None:
    """Puts all lines on disk, closes the file and gives up its lock.

    Raises:
      OSError: As `flush` says; the file is closed nevertheless.
    """
    try:
      self.flush()
    finally:
      self._sync = None
      self._syncing.shutdown()
      self._file.close()

  def load(self) -> Chain:
    """Returns the lines of the file; call it before `append`.

    A line that a crash tore while it was written is cut off: what it says never
    came to pass.

    Raises:
      InputError: The file is no ledger, or was changed.
    """
    self._file.seek(0)
    chain = parse(self._path, self._file.read(), self._remedy)
    self._size = self._synced_size = chain.size
    self._last_line = chain.last_line
    self._digest = chain.lines[-1].digest if chain.lines else ''
    self._file.truncate(self._size)
    return chain

  def append(self, record: Mapping[str, Any]) -> str:
    """Appends a sealed line; it is on disk when this returns.

    Returns:
      Digest of the line.

    Raises:
      InputError: Another process replaced or changed the file.
      OSError: The line could not be written; the file is as it was.
    """
    is_first = not self._size
    digest = self.write(record)
    self.flush()
    if is_first:
      _files.sync_folder(self._path.parent)
    return digest

  def write(self, record: Mapping[str, Any]) -> str:
    """Appends a sealed line, which is on disk only after `flush`.

    The kernel has the line when this returns, so that it outlives the process.
    A line that was written before is flushed first.

    Returns:
      Digest of the line.

    Raises:
      InputError: Another process replaced or changed the file.
      OSError: This line, or the one before it, could not be written; the file
        is as it was.
    """
    self.flush()
    if self._size:
      self._check_unchanged()
    line = _seal(record, self._digest)
    try:
      if self._file.write(line) != len(line):
        raise OSError(errno.ENOSPC, 'No space left on device', self._path)
    except OSError:
      self._file.truncate(self._size)
      raise
    self._size += len(line)
    self._last_line, self._digest = line, _digest_of(line)
    self._sync = self._syncing.submit(_synced, self._file.fileno())
    return self._digest

  def flush(self) -> None:
    """Returns when every line that was written is on disk.

    A disk that failed once is not trusted again: it may have dropped what it
    could not write. Every later call and `write` then raise the same error,
    until the file is opened anew.

    Raises:
      OSError: A line could not be put on disk. The file has what it had before
        that line.
    """
    if self._sync is None:
      return
    try:
      self._changed_at = self._sync.result()
    except OSError:
      self._file.truncate(self._synced_size)
      raise
    self._sync = None
    self._synced_size = self._size

  def _check_unchanged(self) -> None:
    """Refuses to write to a file that is no longer the one that was read.

    An editor or rsync puts a new file under the name. A charge would then go to
    a file that no longer has a name.
    """
    problem = ''
    open_file = os.fstat(self._file.fileno())
    try:
      named_file = os.stat(self._path)
    except OSError:
      problem = 'was removed'
    else:
      if not os.path.samestat(named_file, open_file):
        problem = 'was replaced by another file'
      elif open_file.st_size != self._size or not self._is_as_written(
        open_file
      ):
        problem = 'was changed'
    if problem:
      raise _validate.InputError(
        f'{self._path} {problem} {self._change_remedy}'
      )

  def _is_as_written(self, status: os.stat_result) -> bool:
    """Returns whether the file still holds what was read and written.

    The whole file is read only if its modification time has changed. So the
    time of a charge does not grow with the number of charges.
    """
    read_all = status.st_mtime_ns != self._changed_at
    length = self._size if read_all else len(self._last_line)
    content = os.pread(self._file.fileno(), length, self._size - length)
    if not content.endswith(self._last_line):
      return False
    if read_all:
      try:
        parse(self._path, content, self._remedy)
      except _validate.InputError:
        return False
      self._changed_at = status.st_mtime_ns
    return True


def _synced(descriptor: int) -> int:
  """Puts an open file on disk; returns its modification time, in ns."""
  os.fsync(descriptor)
  return os.fstat(descriptor).st_mtime_ns


def check_format(
  path: pathlib.Path, header: Mapping[str, Any], number: int, remedy: str
) -> None:
  """Raises `InputError` unless a header states the format `number`."""
  if header.get('format') != number:
    raise _validate.InputError(
      f'{path} is of format {header.get("format")!r}, this version writes '
      f'{number}; go on with the version that it was started with or {remedy}'
    )


def no_entry(
  path: pathlib.Path, number: int, error: Exception, remedy: str
) -> _validate.InputError:
  """Returns the error of a line whose values no ledger writes."""
  return _validate.InputError(
    f'{path} line {number} is not a ledger entry ({error}); restore the file '
    f'or {remedy}'
  )


def whole(value: object) -> int:
  """Returns a value of a line that must be a whole number.

  Raises:
    ValueError: The value is anything else.
  """
  if isinstance(value, bool) or not isinstance(value, int):
    raise ValueError(f'{value!r} is not a whole number')
  return value


def _open_regular(path: pathlib.Path, mode: int, remedy: str) -> io.FileIO:
  """Opens the ledger to read and append; creates it if it is missing."""
  # Without O_NONBLOCK, opening a FIFO may wait for its other end.
  flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
  try:
    descriptor = os.open(path, flags, mode)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
      raise
    raise _validate.InputError(
      f'{path} cannot be opened ({error.strerror}); put the ledger itself '
      f'there or {remedy}'
    ) from None
  try:
    _files.check_regular(path, descriptor)
  except BaseException:
    os.close(descriptor)
    raise
  # Unbuffered: closing the file must not retry a failed write.
  return os.fdopen(descriptor, 'a+b', buffering=0)


def _check(
  path: pathlib.Path,
  number: int,
  line: bytes,
  previous_digest: str,
  remedy: str,
) -> dict[str, Any]:
  """Returns the record of a line whose digest follows from the previous one."""
  try:
    record = json.loads(line)
    record.pop('digest')
    sealed = _seal(record, previous_digest)
  except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
    raise _validate.InputError(
      f'{path} line {number} is not a ledger entry; restore the file or '
      f'{remedy}'
    ) from None
  if sealed != line:
    raise _validate.InputError(
      f'{path} was changed at or before line {number}: its digest does not '
      f'match; restore the file or {remedy}'
    )
  return dict(record)


def _seal(record: Mapping[str, Any], previous_digest: str) -> bytes:
  """Returns the record as a line, with a digest of it and all lines before."""
  body = json.dumps(record, sort_keys=True, ensure_ascii=False)
  digest = hashlib.sha256((previous_digest + body).encode()).hexdigest()
  sealed = json.dumps(
    {**record, 'digest': digest}, sort_keys=True, ensure_ascii=False
  )
  return sealed.encode() + b'\n'


def _digest_of(line: bytes) -> str:
  return str(json.loads(line)['digest']) if line else ''
