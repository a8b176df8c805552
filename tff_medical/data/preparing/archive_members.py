"""Members of zip and tar archives, read once, forwards, and trusted in nothing.

`open_members` yields the files and folders of a .zip, .tar or gzipped .tar. The
content of the archive decides its kind, never its name. `Damaged` is raised
for what must not be written: absolute paths, `..`, links, devices, names twice
or differing by case alone, encrypted members, and archives that are cut short,
contradict themselves or have headers out of proportion.

Python's `tarfile` takes a cut header for the end of an archive; here the end
has to be marked, as POSIX asks, and nothing may follow it. Sources: APPNOTE.TXT
6.3 of PKWARE; POSIX.1-2017, pax; RFC 1952.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import gzip
import io
import os
import re
import stat
import struct
import tarfile
from typing import BinaryIO, cast
import unicodedata
import zipfile
import zlib

MAX_MEMBERS = 4_000_000
_MAX_DEPTH = 64
_MAX_NAME_BYTES = 255
# Bytes of a zip directory; a name of 60 characters takes about 140.
_MAX_DIRECTORY = 2**30
# Bytes of the headers between two members of a tar.
_MAX_HEADERS = 2**20
# Zero bytes that may follow the end of a tar.
_MAX_PADDING = 2**28
_BLOCK = 2**20
_TAR_BLOCK = 512
_ENCRYPTED = 1
# Of other methods `zipfile` unpacks a megabyte at once, to whatever it holds.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_IS_UTF8 = 0x800
_GZIP_START = b'\x1f\x8b'
_ZIP_STARTS = (b'PK\3\4', b'PK\5\6')
_ZIP_ENTRY = b'PK\1\2'
_ZIP_END_BYTES = 22
_ZIP64_LOCATOR_BYTES = 20
_ZIP64_RECORD_BYTES = 56
_UNREADABLE = (
  zipfile.BadZipFile,
  tarfile.TarError,
  gzip.BadGzipFile,
  zlib.error,
  struct.error,
  EOFError,
  ValueError,
  OverflowError,
  NotImplementedError,
  RuntimeError,
  IndexError,
  KeyError,
  OSError,
)


class Damaged(Exception):
  """An archive that cannot be unpacked; the text follows the archive's name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
  """A file or folder of an archive.

  Attributes:
    name: Relative path with `/`, without `.` and `..`.
    is_folder: Whether it is a folder.
    blocks: Function that yields the content, which has to be read to its end
      before the next member is asked for.
  """

  name: str
  is_folder: bool
  blocks: Callable[[], Iterator[bytes]]


def open_members(file: BinaryIO) -> tuple[int, Iterator[Member]]:
  """Returns the stated number of unpacked bytes, and the members.

  Args:
    file: Archive, open for reading.

  Returns:
    Bytes that the members take as far as it is known (of a gzipped tar, the
    size of the archive), and an iterator over the members, once.

  Raises:
    Damaged: It is no archive, or a member is not acceptable; the iterator
      raises it as well.
  """
  size = file.seek(0, os.SEEK_END)
  file.seek(0)
  start = file.read(4)
  file.seek(0)
  if start in _ZIP_STARTS:
    infos = _zip_entries(file, size)
    return sum(info.file_size for info in infos[1]), _zip_members(*infos)
  return size, _tar_members(file, is_packed=start.startswith(_GZIP_START))


class _Names:
  """Names of the members so far, each of which may be there once."""

  def __init__(self) -> None:
    self._spelled: dict[str, tuple[str, bool]] = {}
    self._count = 0

  def checked(self, name: str, *, is_folder: bool) -> str:
    """Returns a name without `.`; raises `Damaged` for an unacceptable one."""
    self._count += 1
    self._check_count(self._count)
    if '\\' in name:
      raise _refused(name, 'has a backslash in its name', 'write / for folders')
    if '\0' in name:
      raise _refused(name, 'has a zero byte in its name', 'rename it')
    if name.startswith('/') or re.match('[A-Za-z]:/', name):
      raise _refused(name, 'has an absolute path', 'use relative paths')
    parts = [part for part in name.split('/') if part not in ('', '.')]
    if '..' in parts:
      raise _refused(name, 'leads out of the archive by ..', 'leave it out')
    if not parts:
      if is_folder:
        return ''
      raise _refused(name, 'is a file without a name', 'leave it out')
    if len(parts) > _MAX_DEPTH or any(_is_long(part) for part in parts):
      raise _refused(
        name,
        f'lies more than {_MAX_DEPTH} folders deep or has a name of more than '
        f'{_MAX_NAME_BYTES} bytes',
        'shorten it',
      )
    for depth in range(1, len(parts) + 1):
      self._add(
        '/'.join(parts[:depth]), is_folder=is_folder or depth < len(parts)
      )
    return '/'.join(parts)

  def _add(self, path: str, *, is_folder: bool) -> None:
    key = unicodedata.normalize('NFC', path).casefold()
    if key not in self._spelled:
      self._spelled[key] = (path, is_folder)
      self._check_count(len(self._spelled))
      return
    known, was_folder = self._spelled[key]
    if known != path:
      raise _refused(
        path, f'differs from {known!r} by case or accents alone', 'rename one'
      )
    if not (is_folder and was_folder):
      raise _refused(path, 'is there twice', 'leave one of them out')

  def _check_count(self, count: int) -> None:
    if count > MAX_MEMBERS:
      raise Damaged(
        f'it has more than {MAX_MEMBERS:,} files and folders; pack fewer, or '
        'unpack it yourself and give the folder'
      )


def _is_long(part: str) -> bool:
  try:
    return len(os.fsencode(part)) > _MAX_NAME_BYTES
  except UnicodeEncodeError:
    raise _refused(part, 'has a name that is no text', 'rename it') from None


def _refused(name: str, reason: str, remedy: str) -> Damaged:
  return Damaged(f'its member {name[:200]!r} {reason}; pack it again: {remedy}')


@contextlib.contextmanager
def _reading(name: str | None = None) -> Iterator[None]:
  """Turns what libraries raise for damaged archives into `Damaged`."""
  try:
    yield
  except _UNREADABLE as error:
    what = 'it' if name is None else f'its member {name[:200]!r}'
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise Damaged(
      f'{what} is damaged or cut short ({reason[:200]}); copy or pack the '
      'archive again'
    ) from None


# Zip.


def _zip_entries(
  file: BinaryIO, size: int
) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
  with _reading():
    _check_directory(file, size)
    archive = zipfile.ZipFile(file)
    return archive, archive.infolist()


def _check_directory(file: BinaryIO, size: int) -> None:
  """Refuses a zip whose directory would take too much memory.

  The directory is what lies between its first possible place and the end of
  the file, whatever the headers claim.
  """
  tail_bytes = min(
    size,
    _ZIP64_RECORD_BYTES + _ZIP64_LOCATOR_BYTES + _ZIP_END_BYTES + 2**16,
  )
  file.seek(size - tail_bytes)
  tail = file.read(tail_bytes)
  place = tail.rfind(b'PK\5\6')
  if place < 0 or len(tail) - place < _ZIP_END_BYTES:
    raise ValueError('its directory, which is at its end, is not there')
  (claimed,) = struct.unpack_from('<I', tail, place + 12)
  record = place - _ZIP64_LOCATOR_BYTES - _ZIP64_RECORD_BYTES
  if record >= 0 and tail[record:].startswith(b'PK\6\6'):
    (claimed,) = struct.unpack_from('<Q', tail, record + 40)
  if claimed > min(size, _MAX_DIRECTORY):
    raise ValueError(f'its directory would take {claimed:,} bytes')
  file.seek(max(0, size - tail_bytes - claimed))
  count = file.read(claimed + tail_bytes).count(_ZIP_ENTRY)
  if count > 2 * MAX_MEMBERS:
    raise ValueError(f'it has more than {MAX_MEMBERS:,} members')


def _zip_members(
  archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]
) -> Iterator[Member]:
  names = _Names()
  checked = []
  # All names, before anything is written.
  for info in infos:
    name = _zip_name(info)
    _check_zip_kind(info, name)
    checked.append(names.checked(name, is_folder=info.is_dir()))
  for info, name in zip(infos, checked):
    yield Member(
      name, info.is_dir(), functools.partial(_zip_blocks, archive, info, name)
    )


def _zip_name(info: zipfile.ZipInfo) -> str:
  """Returns a name; that of macOS is UTF-8 without the mark that says so."""
  name = info.orig_filename
  if name.isascii() or info.flag_bits & _IS_UTF8:
    return name
  try:
    return name.encode('cp437').decode('utf-8')
  except UnicodeError:
    return name


def _check_zip_kind(info: zipfile.ZipInfo, name: str) -> None:
  if info.flag_bits & _ENCRYPTED:
    raise _refused(name, 'is encrypted', 'without a password')
  if info.compress_type not in _METHODS:
    raise _refused(
      name,
      f'is compressed by method {info.compress_type} of zip',
      'stored or deflated',
    )
  file_type = stat.S_IFMT(info.external_attr >> 16)
  if file_type == stat.S_IFLNK:
    raise _refused(name, 'is a link', 'with the file itself')
  if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
    raise _refused(name, 'is a device or a pipe', 'leave it out')


def _zip_blocks(
  archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str
) -> Iterator[bytes]:
  num_bytes = 0
  with contextlib.ExitStack() as stack:
    with _reading(name):
      content = stack.enter_context(archive.open(info))
    while True:
      with _reading(name):
        block = content.read(_BLOCK)
      if not block:
        break
      num_bytes += len(block)
      yield block
  if num_bytes != info.file_size:
    raise Damaged(
      f'its member {name!r} has {num_bytes:,} bytes and not the '
      f'{info.file_size:,} that its header states; copy or pack the archive '
      'again'
    )


# Tar.


class _Forward(io.RawIOBase):
  """A stream that is read forwards, with a limit on what is read at a time.

  `tarfile` reads as many bytes as a header claims into memory.

  Attributes:
    allowed: Number of bytes that may still be read.
    last: What was read last.
  """

  def __init__(self, file: BinaryIO):
    super().__init__()
    self._file = file
    self._place = 0
    self.allowed = _MAX_HEADERS
    self.last = b''

  def tell(self) -> int:
    return self._place

  def read(self, size: int = -1) -> bytes:
    if not 0 <= size <= self.allowed:
      raise ValueError(f'a header claims {size:,} bytes')
    self.allowed -= size
    self.last = self._file.read(size)
    self._place += len(self.last)
    return self.last

  def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
    if whence != os.SEEK_SET or place < self._place:
      raise ValueError('it leads backwards')
    while self._place < place:
      if not self.read(min(place - self._place, _BLOCK)):
        raise EOFError('it ends in the midst of a member')
    return place


def _tar_members(file: BinaryIO, *, is_packed: bool) -> Iterator[Member]:
  names = _Names()
  content = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_packed else file
  stream = _Forward(content)
  with _reading():
    archive = tarfile.open(
      fileobj=cast(BinaryIO, stream), mode='r:', encoding='utf-8'
    )
  while True:
    with _reading():
      stream.allowed = _MAX_HEADERS
      info = archive.next()
    archive.members.clear()  # type: ignore[attr-defined]  # It keeps them all.
    if info is None:
      break
    _check_tar_kind(info)
    name = names.checked(info.name, is_folder=info.isdir())
    yield Member(
      name,
      info.isdir(),
      functools.partial(_tar_blocks, archive, stream, info, name),
    )
  with _reading():
    _check_end(stream)


def _check_tar_kind(info: tarfile.TarInfo) -> None:
  if info.issym() or info.islnk():
    raise _refused(
      info.name, 'is a link', 'with tar --dereference --hard-dereference'
    )
  if info.issparse():
    raise _refused(info.name, 'is a sparse file', 'without tar --sparse')
  if not (info.isreg() or info.isdir()):
    raise _refused(info.name, 'is a device or a pipe', 'leave it out')


def _tar_blocks(
  archive: tarfile.TarFile, stream: _Forward, info: tarfile.TarInfo, name: str
) -> Iterator[bytes]:
  content = archive.extractfile(info)
  if content is None:
    raise _refused(name, 'has no content', 'leave it out')
  left = info.size
  while left:
    with _reading(name):
      stream.allowed = 2 * _BLOCK  # It is buffered.
      block = content.read(min(left, _BLOCK))
      if not block:
        raise EOFError('it ends in the midst of the member')
    left -= len(block)
    yield block


def _check_end(stream: _Forward) -> None:
  """Raises unless a block of zeros and then nothing but zeros was read."""
  if len(stream.last) != _TAR_BLOCK or stream.last.strip(b'\0'):
    raise EOFError('its end is missing')
  padding = 0
  while padding < _MAX_PADDING:
    stream.allowed = _BLOCK
    block = stream.read(_BLOCK)
    if not block:
      return
    if block.strip(b'\0'):
      break
    padding += len(block)
  raise ValueError('more follows its end')
