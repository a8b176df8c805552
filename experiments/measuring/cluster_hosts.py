"""A Ray cluster whose nodes are hosts of their own, as far as the kernel can.

Each node has a network namespace with one link to a common bridge, and a mount
namespace with a /dev/shm of its own. So nodes share neither Ray's object store
nor the loopback, and the kernel counts each byte that goes from node to node.

The namespaces have no names. They, their links and their /dev/shm vanish with
the processes in them, however the command ends. Nothing outside can reach the
network of the cluster, so that it needs no token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from tff_medical import _validate

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TOOLS = ('ip', 'mount', 'nsenter', 'unshare')
_ADDRESS = '10.77.0.{}'
_LINK = 'link0'
_PORT = 6379
_START_SECS = 120
_STOP_SECS = 10


def check() -> None:
  """Refuses a machine on which no namespaces can be made.

  Raises:
    InputError: The process is not root, or a tool is missing.
  """
  if os.geteuid() != 0:
    raise _validate.InputError(
      'network namespaces need root, got the user '
      f'{os.geteuid()}; run the command as root'
    )
  for tool in _TOOLS:
    if shutil.which(tool) is None:
      raise _validate.InputError(
        f'network namespaces need {tool}, which is not in PATH; install '
        'iproute2 and util-linux'
      )


class Hosts:
  """A head without work and its nodes, until the end of the `with` block.

  Attributes:
    address: `HOST:PORT` of the head, for a process at the head.
    holders: Process numbers that stand for the namespaces of the hosts: the
      head first, then the nodes in the order of `add`.
  """

  def __init__(self, store_bytes: int = 400_000_000):
    """Starts nothing yet.

    Args:
      store_bytes: Size of the object store of each host.
    """
    check()
    self.address = f'{_ADDRESS.format(1)}:{_PORT}'
    self.holders: list[int] = []
    self._store_bytes = store_bytes
    self._drivers: list[subprocess.Popen[bytes]] = []
    self._nodes: list[subprocess.Popen[bytes]] = []
    self._namespaces: list[subprocess.Popen[bytes]] = []

  def __enter__(self) -> Hosts:
    # Sockets of Ray lie in the folder, and their paths have 107 characters.
    self._folder = pathlib.Path(tempfile.mkdtemp(prefix='ray', dir='/tmp'))
    try:
      self._switch = self._hold()
      self._within(self._switch, 'ip link add switch type bridge')
      self._within(self._switch, 'ip link set switch up')
      self._start_host(
        '--head',
        '--include-dashboard=false',
        f'--port={_PORT}',
        '--num-cpus=0',
        f'--temp-dir={self._home}',
      )
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *unused: object) -> None:
    for process in (*self._drivers, *self._nodes, *self._namespaces):
      _end(process)
    shutil.rmtree(self._folder, ignore_errors=True)

  def add(self, cpus: int = 1) -> None:
    """Starts a node on a host of its own."""
    self._start_host(f'--address={self.address}', f'--num-cpus={cpus}')

  def run(self, module: str, *arguments: str) -> None:
    """Runs a module of the project as a process at the head.

    Raises:
      CalledProcessError: The process failed.
    """
    process = self.start(module, *arguments)
    if process.wait():
      raise subprocess.CalledProcessError(process.returncode, process.args)

  def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts a module of the project as a process at the head."""
    process = _spawn(
      [
        *_enter(self.holders[0]),
        *(sys.executable, '-m', module, *arguments),
      ],
      env=_environment(),
    )
    self._drivers.append(process)
    return process

  @property
  def _home(self) -> pathlib.Path:
    """Folder that is another one at each host."""
    return self._folder / 'ray'

  def _start_host(self, *flags: str) -> None:
    number = len(self.holders)
    holder = self._hold()
    address = _ADDRESS.format(number + 1)
    folder = self._folder / f'host{number}'
    for path in (folder, self._home):
      path.mkdir(exist_ok=True)
    port = f'port{number}'
    for command in (
      f'ip link add {port} type veth peer name {_LINK} netns {holder}',
      f'ip link set {port} master switch up',
    ):
      self._within(self._switch, command)
    for command in (
      'ip link set lo up',
      f'ip address add {address}/24 dev {_LINK}',
      f'ip link set {_LINK} up',
      # Ray asks the kernel for the way to an address outside.
      f'ip route add default dev {_LINK}',
      'mount -t tmpfs tmpfs /dev/shm',
      f'mount --bind {folder} {self._home}',
    ):
      self._within(holder, command)
    self.holders.append(holder)
    self._start_ray(holder, number, f'--node-ip-address={address}', *flags)

  def _start_ray(self, holder: int, number: int, *flags: str) -> None:
    log = self._folder / f'host{number}.log'
    ray = pathlib.Path(sys.executable).parent / 'ray'
    with open(log, 'wb') as file:
      node = _spawn(
        [
          *_enter(holder),
          *(str(ray), 'start', '--block', *flags),
          '--disable-usage-stats',
          f'--object-store-memory={self._store_bytes}',
        ],
        stdout=file,
        stderr=file,
        env=_environment(),
      )
    self._nodes.append(node)
    until = time.monotonic() + _START_SECS
    while 'runtime started' not in log.read_text(encoding='utf-8'):
      if node.poll() is not None or time.monotonic() > until:
        lines = log.read_text(encoding='utf-8').split('\n')
        raise RuntimeError(f'no node of Ray started: {" ".join(lines[-5:])}')
      time.sleep(0.1)

  def _hold(self) -> int:
    """Returns the number of a process with namespaces of its own."""
    process = _spawn(
      ['unshare', '--net', '--mount', 'sleep', 'infinity'], env=os.environ
    )
    self._namespaces.append(process)
    # The namespaces are there once the process has become `sleep`.
    name = pathlib.Path(f'/proc/{process.pid}/comm')
    until = time.monotonic() + _START_SECS
    while name.read_text(encoding='utf-8').strip() != 'sleep':
      if process.poll() is not None or time.monotonic() > until:
        raise _validate.InputError(
          'network namespaces must be allowed to root, got a refusal of '
          'unshare; run the command on a machine that is no container, or in '
          'a privileged one'
        )
      time.sleep(0.01)
    return process.pid

  def _within(self, holder: int, command: str) -> None:
    subprocess.run([*_enter(holder), *command.split()], check=True)


def link_bytes(holder: int) -> tuple[int, int]:
  """Returns the bytes that a host has received and sent by its link.

  They are the kernel's counters, with the headers of Ethernet, IP and TCP.
  """
  lines = pathlib.Path(f'/proc/{holder}/net/dev').read_text(encoding='utf-8')
  return parse_link_bytes(lines)


def parse_link_bytes(text: str) -> tuple[int, int]:
  r"""Returns received and sent bytes of the link in the text of a net/dev.

  >>> parse_link_bytes(' lo: 9 1 0 0 0 0 0 0 9 1\n link0: 344 4 0 0 0 0 0 0 90 1')
  (344, 90)
  """
  for line in text.splitlines():
    name, _, counters = line.partition(':')
    if name.strip() == _LINK:
      fields = counters.split()
      return int(fields[0]), int(fields[8])
  raise ValueError(f'no {_LINK} in {text!r}')


def _environment() -> Mapping[str, str]:
  paths = [str(_ROOT), os.environ.get('PYTHONPATH', '')]
  return {
    **os.environ,
    'RAY_AUTH_MODE': 'disabled',
    'RAY_USAGE_STATS_ENABLED': '0',
    'PYTHONPATH': os.pathsep.join(path for path in paths if path),
  }


def _enter(holder: int) -> list[str]:
  return ['nsenter', f'--target={holder}', '--net', '--mount', '--']


def _spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
  return subprocess.Popen(
    command,
    stdin=subprocess.DEVNULL,
    start_new_session=True,
    preexec_fn=_end_with_parent,
    **options,
  )


def _end_with_parent() -> None:
  """Asks the kernel to end this process with the one that started it."""
  ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG.


def _end(process: subprocess.Popen[bytes]) -> None:
  """Ends a process and its session."""
  process.terminate()
  try:
    process.wait(_STOP_SECS)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
