"""What a node of a cluster does for a cell: checks, the process, its files.

Ray carries this module to the nodes by value, as no version of the project need
be there. It imports the standard library alone, and what it returns are plain
values.

A cell runs in a folder of its own that only its owner may read. Two processes
see to its end: the kernel kills the training when the process of `Cell` is gone,
and a cleaner removes the folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import fcntl
import importlib.metadata
import io
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from typing import Any

# Bytes of a message that brings files back.
PART_BYTES = 8 * 2**20
# Names in the archive that goes back.
RUN, LOG = 'run', 'log'

# Between fork and exec no code is safe in a process with threads, so that a new
# Python asks the kernel. 1 is PR_SET_PDEATHSIG of <linux/prctl.h>.
_LAUNCHER = """
import ctypes, os, signal, sys
os.setsid()
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
  sys.exit(1)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""
# Its input ends when the process of the cell is gone. The training may then take
# a moment to die, and until then makes files.
_CLEANER = """
import os, shutil, signal, sys, time
if os.fork():  # Ray kills the children of an actor with it.
  os._exit(0)
os.setsid()
for signum in (signal.SIGINT, signal.SIGTERM):
  signal.signal(signum, signal.SIG_IGN)
sys.stdin.read()
for _ in range(100):
  shutil.rmtree(sys.argv[1], ignore_errors=True)
  if not os.path.exists(sys.argv[1]):
    break
  time.sleep(0.1)
"""


def lacking(
  versions: Mapping[str, str],
  inputs: Sequence[str],
  shared: Mapping[str, str],
) -> str:
  """Returns what this node lacks to run cells, in a line, or ''.

  Args:
    versions: Versions of Python and of packages that it must have.
    inputs: Files and folders that it must have.
    shared: Contents of files that it must share with the sender, by their path.
      The sender has locked them.
  """
  where = f'the node {platform.node()}'
  for name, version in versions.items():
    here = _version(name)
    if here != version:
      return (
        f'{where} has {name} {here or "not at all"}, and this machine has '
        f'{version}; install the same requirements.txt for {sys.executable} '
        'there'
      )
  for path in inputs:
    if not os.path.exists(path):
      return (
        f'{where} has no {path}, which the cells read; copy it to the same '
        'path there, or share its folder'
      )
  for path, content in shared.items():
    problem = _unshared(path, content)
    if problem:
      return (
        f'{where} does not share the folder {os.path.dirname(path)} '
        f'({problem}), and a charge of the data_ledger could be lost; put '
        'data_ledger and output_dir on a file system that all nodes mount and '
        'that has locks, or leave --cells_on out'
      )
  return ''


def _version(name: str) -> str:
  if name == 'python':
    return platform.python_version()
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return ''


def _unshared(path: str, content: str) -> str:
  """Returns why a file is not the sender's own and locked, or ''."""
  try:
    with open(path, encoding='utf-8') as file:
      if file.read() != content:
        return 'another file is there'
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        # What another holds is refused; a missing lock is another error.
        return (
          ''
          if error.errno in (errno.EWOULDBLOCK, errno.EACCES)
          else 'it has no locks'
        )
      return 'its locks do not reach the node'
  except OSError as error:
    return error.strerror or 'no such file'


class Cell:
  """A training on this node, as an actor of Ray."""

  def __init__(self) -> None:
    os.umask(0o077)
    self._folder = pathlib.Path(tempfile.mkdtemp(prefix='tff_medical_'))
    self._code = self._folder / 'code'
    self._log = self._folder / LOG
    self._process: subprocess.Popen[bytes] | None = None
    self._run = self._lines = self._code
    self._brings_back = True
    self._core: Any = None
    self._cleaner = subprocess.Popen(
      [sys.executable, '-c', _CLEANER, str(self._folder)],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )

  def begin(
    self,
    code: bytes,
    packages: Sequence[str],
    arguments: Sequence[str],
    run: str,
    lines: str,
    files: bytes,
    log: str,
    environment: Mapping[str, str],
    needs: tuple[Mapping[str, str], Sequence[str], Mapping[str, str]],
  ) -> str:
    """Starts the training; returns what the node lacks for that, or ''.

    Args:
      code: Archive of the project.
      packages: Names of its packages.
      arguments: Arguments of Python.
      run: Run folder: relative to the code if it is to be brought back.
      lines: Name of the file in the run folder whose lines count as progress.
      files: Archive of the run folder that the training goes on with, or
        b''.
      log: File that the output is appended to, or '' for one that is brought
        back.
      environment: Variables of the process beside those of this one.
      needs: Arguments of `lacking`.
    """
    refusal = lacking(*needs)
    if refusal:
      return refusal
    unpack(io.BytesIO(code), {name: self._code / name for name in packages})
    self._run = self._code / run  # An absolute path stays as it is.
    self._lines = self._run / lines
    self._brings_back = not log
    if files:
      unpack(io.BytesIO(files), {RUN: self._run})
    temporary = self._folder / 'tmp'
    temporary.mkdir()
    variables = {
      **{n: v for n, v in os.environ.items() if not n.startswith('RAY_')},
      'TMPDIR': str(temporary),  # The cleaner empties it after a kill as well.
      **environment,
    }
    with open(log or self._log, 'ab') as file:
      self._process = subprocess.Popen(
        [
          *(sys.executable, '-c', _LAUNCHER, str(os.getpid())),
          *(sys.executable, *arguments),
        ],
        cwd=self._code,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
      )
    if not os.environ.get('CUDA_VISIBLE_DEVICES'):
      os.sched_setaffinity(self._process.pid, self._cores())
    return ''

  def poll(self) -> tuple[int | None, int]:
    """Returns the exit code, None while it runs, and the lines of progress."""
    code = None if self._process is None else self._process.poll()
    try:
      count = self._lines.read_bytes().count(b'\n')
    except OSError:
      count = 0
    return code, count

  def signal(self, signum: int) -> None:
    """Sends the training a signal."""
    if self._process is not None:
      self._process.send_signal(signum)

  def pack(self) -> int:
    """Packs the run folder and the log; returns the number of parts."""
    if not self._brings_back:
      return 0
    archive = self._folder / 'back.tar'
    with tarfile.open(archive, 'w') as tar:
      tar.add(self._log, LOG)
      if self._run.exists():
        tar.add(self._run, RUN)
    return -(-archive.stat().st_size // PART_BYTES)

  def part(self, number: int) -> bytes:
    """Returns a part of what was packed."""
    with open(self._folder / 'back.tar', 'rb') as file:
      file.seek(number * PART_BYTES)
      return file.read(PART_BYTES)

  def _cores(self) -> set[int]:
    """Returns a core that no other cell of this node has, or else all."""
    folder = pathlib.Path(
      tempfile.gettempdir(), f'tff_medical_cores_{os.getuid()}'
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    for core in sorted(os.sched_getaffinity(0)):
      file = open(folder / str(core), 'ab')
      with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._core = file  # It is given back when this process ends.
        return {core}
      file.close()
    return os.sched_getaffinity(0)


def packed(folders: Mapping[str, pathlib.Path]) -> bytes:
  """Returns an archive of folders, each under a name."""
  target = io.BytesIO()
  with tarfile.open(fileobj=target, mode='w:gz', compresslevel=1) as tar:
    for name, folder in folders.items():
      tar.add(folder, name)
  return target.getvalue()


def unpack(
  archive: Any, targets: Mapping[str, pathlib.Path], *, sync: bool = False
) -> set[str]:
  """Unpacks an archive.

  Times stay as they are, so that compiled modules still fit their sources.

  Args:
    archive: File of a tar archive.
    targets: Where the entries go, by the first part of their names.
    sync: Whether all files are on disk when this returns.

  Returns:
    First parts of the names that were there.

  Raises:
    ValueError: An entry is neither a file nor a folder, or has another name.
  """
  names = set()
  with tarfile.open(fileobj=archive, mode='r|*') as tar:
    for member, path in _entries(tar, targets):
      names.add(member.name.split('/')[0])
      if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(member.mode & 0o777)
        continue
      path.parent.mkdir(parents=True, exist_ok=True)
      content = tar.extractfile(member)
      if content is None:
        raise ValueError(f'entry {member.name!r} has no content')
      with open(path, 'wb', opener=_private) as file:
        shutil.copyfileobj(content, file)
        file.flush()
        if sync:
          os.fsync(file.fileno())
      path.chmod(member.mode & 0o777)
      os.utime(path, (member.mtime, member.mtime))
  return names


def _entries(
  tar: tarfile.TarFile, targets: Mapping[str, pathlib.Path]
) -> Iterator[tuple[tarfile.TarInfo, pathlib.Path]]:
  for member in tar:
    first, *rest = member.name.split('/')
    if (
      not (member.isreg() or member.isdir())
      or first not in targets
      or not {'', '.', '..'}.isdisjoint(rest)
    ):
      raise ValueError(f'unexpected entry {member.name!r}')
    yield member, targets[first].joinpath(*rest)


def _private(path: str, flags: int) -> int:
  return os.open(path, flags, 0o600)
