"""Archives of images, unpacked once into `prepared_dir`.

What: `unpacked` returns the folder of an archive's files. The folder is named
by the SHA-256 of the archive, so that another archive of the same name, size and
time is not taken for it. The digest is not computed again while the file's
inode, size and times of writing and of change stay as they were; the latter is
set by the kernel alone. The folder appears under its name when all of it is
there, and is private. What an unpacking that was killed left is removed.

A file's time stands for its content, as 61 bits of its digest: `preparation`
knows files by path, size and time, and then decodes nothing again that a later
archive holds unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any, BinaryIO

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data.preparing import archive_members
from tff_medical.data.preparing import locking

SUFFIXES = ('.zip', '.tar', '.tar.gz', '.tgz')
_FOLDER = 'unpacked'
_CONTENT = 'files'
_INFO = 'archive.json'
# Members may take `_FREE_BYTES` plus `_MAX_RATIO` times the archive's size.
# Scans have ratios below 10; deflate can reach 1032.
_MAX_RATIO = 100
_FREE_BYTES = 2**26
# Room that is left on the disk, and bytes between two looks at it.
_RESERVE = 2**28
_LOOK = 2**28
_BLOCK = 2**22
# Times from 1970 to 2038, which every file system can hold.
_TIMES = 2**31 * 10**9


def is_archive(path: pathlib.Path) -> bool:
  """Returns whether a path is a file with the name of an archive."""
  return path.name.lower().endswith(SUFFIXES) and path.is_file()


def unpacked(
  flag: str, archive: pathlib.Path, prepared_dir: pathlib.Path
) -> pathlib.Path:
  """Returns the folder with the files of an archive, unpacked now or before.

  Args:
    flag: Name of the archive's flag in error messages.
    archive: File of one of the kinds of `SUFFIXES`.
    prepared_dir: Folder of prepared images; made if it is not there.

  Raises:
    InputError: The archive is damaged, unsafe or too large, or the folder
      cannot be written. Nothing of it is left on disk then.
  """
  try:
    file = _files.open_regular(archive)
  except OSError as error:
    raise _validate.InputError(
      f'{flag} {str(archive)!r} cannot be read: {error.strerror or error}'
    ) from None
  with file, locking.locked(prepared_dir):
    try:
      return _Unpacking(file, prepared_dir / _FOLDER).run()
    except archive_members.Damaged as error:
      raise _validate.InputError(
        f'{flag} {str(archive)!r} cannot be unpacked: {error}'
      ) from None


class _Unpacking:
  """One archive, and where it is unpacked."""

  def __init__(self, file: BinaryIO, folder: pathlib.Path):
    self._file = file
    self._folder = folder
    self._state = _state(file)
    self._size = os.fstat(file.fileno()).st_size

  def run(self) -> pathlib.Path:
    self._folder.mkdir(mode=0o700, exist_ok=True)
    for info_path in sorted(self._folder.glob(f'*/{_INFO}')):
      if _read_info(info_path).get('state') == self._state:
        if _is_whole(info_path.parent):
          return info_path.parent / _CONTENT
    target = self._folder / self._digest()
    if not _is_whole(target):
      self._unpack(target)
    elif _read_info(target / _INFO)['state'] != self._state:
      _write_info(target, {**_read_info(target / _INFO), 'state': self._state})
    return target / _CONTENT

  def _digest(self) -> str:
    content = hashlib.sha256()
    self._file.seek(0)
    with self._bar('reading archive') as bar:
      while block := self._file.read(_BLOCK):
        content.update(block)
        bar.update(len(block))
    return content.hexdigest()

  def _unpack(self, target: pathlib.Path) -> None:
    """Unpacks beside the target, which then appears whole."""
    for leftover in self._folder.glob(f'*{_files.PARTIAL_SUFFIX}'):
      shutil.rmtree(leftover)
    shutil.rmtree(target, ignore_errors=True)  # Files of it were removed.
    partial = target.with_name(target.name + _files.PARTIAL_SUFFIX)
    partial.mkdir(mode=0o700)
    try:
      num_files = self._write(partial / _CONTENT)
      if _state(self._file) != self._state:
        raise archive_members.Damaged(
          'it was changed while it was read; start again when it is complete'
        )
      _write_info(partial, {'state': self._state, 'files': num_files})
      os.sync()  # One call for a million files.
      os.rename(partial, target)
      _files.sync_folder(self._folder)
    finally:
      shutil.rmtree(partial, ignore_errors=True)

  def _write(self, folder: pathlib.Path) -> int:
    """Writes all members; returns the number of files."""
    stated, members = archive_members.open_members(self._file)
    limit = _Limit(folder.parent, self._size)
    limit.check(stated)
    folder.mkdir(mode=0o700)
    num_files = 0
    with self._bar('unpacking') as bar:
      for member in members:
        path = folder / member.name
        parent = path if member.is_folder else path.parent
        _make_folders(folder, parent)
        if not member.is_folder:
          _write_member(member, path, limit)
          num_files += 1
        bar.update(max(0, self._file.tell() - bar.n))
    if not num_files:
      raise archive_members.Damaged('it holds no file; give another archive')
    return num_files

  def _bar(self, text: str) -> Any:
    import tqdm  # Late: flags import this module.

    # Nothing is shown where nobody looks.
    return tqdm.tqdm(
      total=self._size, unit='B', unit_scale=True, desc=text, disable=None
    )


class _Limit:
  """Bytes that were written, which may not become too many.

  Attributes:
    written: Number of bytes so far.
  """

  def __init__(self, folder: pathlib.Path, archive_bytes: int):
    self._folder = folder
    self._archive_bytes = archive_bytes
    self._next_look = _LOOK
    self.written = 0

  def add(self, num_bytes: int) -> None:
    """Counts bytes that are about to be written."""
    self.written += num_bytes
    self._check_ratio(self.written)
    if self.written >= self._next_look:
      self._next_look = self.written + _LOOK
      self._check_room(0)

  def check(self, stated: int) -> None:
    """Checks the bytes that an archive states before any is written."""
    self._check_ratio(stated)
    self._check_room(stated)

  def _check_ratio(self, num_bytes: int) -> None:
    allowed = _FREE_BYTES + _MAX_RATIO * self._archive_bytes
    if num_bytes > allowed:
      raise archive_members.Damaged(
        f'its {self._archive_bytes:,} bytes unpack to more than the {allowed:,} '
        'allowed; unpack it yourself if you trust it, and give the folder'
      )

  def _check_room(self, num_bytes: int) -> None:
    free = shutil.disk_usage(self._folder).free
    if num_bytes + _RESERVE > free:
      raise archive_members.Damaged(
        f'{num_bytes + _RESERVE:,} bytes are needed in {str(self._folder)!r}, '
        f'and {free:,} are free; make room, or give another --prepared_dir'
      )


def _make_folders(root: pathlib.Path, folder: pathlib.Path) -> None:
  """Makes a folder and those above it, all of them private."""
  if folder != root and not folder.is_dir():
    _make_folders(root, folder.parent)
    folder.mkdir(mode=0o700)


def _write_member(
  member: archive_members.Member, path: pathlib.Path, limit: _Limit
) -> None:
  content = hashlib.blake2b(digest_size=8)
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
  with open(os.open(path, flags, 0o600), 'wb') as file:
    for block in member.blocks():
      limit.add(len(block))
      content.update(block)
      file.write(block)
    file.flush()
    time = int(content.hexdigest(), 16) % _TIMES
    os.utime(file.fileno(), ns=(time, time))


def _state(file: BinaryIO) -> list[int]:
  status = os.fstat(file.fileno())
  return [
    status.st_dev,
    status.st_ino,
    status.st_size,
    status.st_mtime_ns,
    status.st_ctime_ns,
  ]


def _is_whole(target: pathlib.Path) -> bool:
  """Returns whether a folder has as many files as were unpacked."""
  num_files = sum(len(names) for _, _, names in os.walk(target / _CONTENT))
  return _read_info(target / _INFO).get('files') == num_files


def _read_info(path: pathlib.Path) -> dict[str, Any]:
  with contextlib.suppress(OSError, _validate.InputError):
    return _files.read_json(path)
  return {}


def _write_info(folder: pathlib.Path, info: dict[str, Any]) -> None:
  content = f'{json.dumps(info)}\n'.encode()
  _files.write_bytes(folder / _INFO, content, private=True)
