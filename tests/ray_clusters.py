"""Real Ray clusters of this machine for tests, each in a folder of its own."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from unittest import mock

import psutil

# Sockets of Ray lie below its folder, and their paths have 107 characters.
_FOLDERS = '/tmp'
_START_SECS = 240
# Ray reads the token once a process, which may join several clusters.
_TOKEN = secrets.token_hex(32)


def is_installed():
  """Returns whether requirements-cluster.txt is installed."""
  return importlib.util.find_spec('ray') is not None


def has_tokens():
  """Returns whether the installed Ray knows tokens, as from 2.52 on."""
  if not is_installed():
    return False
  major, minor, *_ = importlib.metadata.version('ray').split('.')
  return (int(major), int(minor)) >= (2, 52)


def free_port():
  """Returns a port of this machine that nobody listens on."""
  with socket.socket() as sock:
    sock.bind(('127.0.0.1', 0))
    return sock.getsockname()[1]


def _end_with_parent():
  """Asks the kernel to end this process with a test that is killed."""
  ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG.


def leave():
  """Leaves a cluster that this process has joined.

  Ray ends a process whose cluster has gone.
  """
  if 'ray' in sys.modules:
    sys.modules['ray'].shutdown()


class Cluster:
  """A head and its workers, until the end of the `with` block.

  Attributes:
    address: `HOST:PORT` of the head.
    client_address: `ray://HOST:PORT` of the client server.
    token_file: File of the token that the cluster asks for.
    environment: Variables of a process that may join.
    nodes: Process of `ray start` of each node.
    prefix: Start of a command line that runs beside the head.
  """

  def __init__(self, *cpus, mode=None, network=None):
    """Starts no node yet.

    Args:
      *cpus: CPU cores of each node, that of the head first.
      mode: Value of RAY_AUTH_MODE; None asks for tokens where Ray knows them.
      network: Network with a place for each node, such as
        `tests.faults.network.Network`; None is this machine alone.
    """
    self._cpus = cpus or (1,)
    self._network = network
    self.prefix = network.prefix(0) if network is not None else []
    self.folder = pathlib.Path(tempfile.mkdtemp(prefix='ray', dir=_FOLDERS))
    self.token_file = self.folder / 'token'
    self.token_file.write_text(_TOKEN)
    self.token_file.chmod(0o600)
    self._port, self._client_port = free_port(), free_port()
    self.nodes = []
    self.environment = {
      'RAY_AUTH_MODE': mode or ('token' if has_tokens() else 'disabled'),
      'RAY_AUTH_TOKEN_PATH': str(self.token_file),
      'RAY_USAGE_STATS_ENABLED': '0',
      # A single node cannot be reached from another machine; for more, Ray puts
      # the machine's own address in place of the loopback's.
      'RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER': '0' if len(self._cpus) == 1 else '1',
    }

  def __enter__(self):
    try:
      head, *workers = self._cpus
      self._start(
        head,
        0,
        '--head',
        f'--port={self._port}',
        f'--ray-client-server-port={self._client_port}',
        '--include-dashboard=false',
      )
      log = (self.folder / 'node0.log').read_text()
      host = re.search(r'Local node IP: (\S+)', log)[1]
      self.address = f'{host}:{self._port}'
      self.client_address = f'ray://{host}:{self._client_port}'
      for place, cpus in enumerate(workers, start=1):
        self.add(cpus, place)
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *unused):
    for node in self.nodes:
      self.stop(node)
    shutil.rmtree(self.folder, ignore_errors=True)

  @classmethod
  def of_class(cls, test_class, *cpus):
    """Returns a cluster that this process may join in the tests of a class.

    Args:
      test_class: Class of tests, with which the cluster ends.
      *cpus: Cores of each node.
    """
    cluster = cls(*cpus).__enter__()
    test_class.addClassCleanup(cluster.__exit__)
    patch = mock.patch.dict(os.environ, cluster.environment)
    patch.start()
    test_class.addClassCleanup(patch.stop)
    test_class.addClassCleanup(leave)
    return cluster

  def processes(self):
    """Returns all processes of the cluster."""
    alive = [node for node in self.nodes if node.poll() is None]
    heads = [psutil.Process(node.pid) for node in alive]
    return [p for head in heads for p in head.children(recursive=True)]

  def add(self, cpus, place=0, **environment):
    """Starts a worker node; returns its process.

    Args:
      cpus: CPU cores of the node.
      place: Number of its place in the network.
      **environment: Variables of the node beside those of all nodes.
    """
    return self._start(cpus, place, f'--address={self.address}', **environment)

  def stop(self, node):
    """Kills a node with all of its processes, as a power cut would."""
    try:
      process = psutil.Process(node.pid)
      family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
      family = []
    for member in family:
      try:
        member.kill()
      except psutil.NoSuchProcess:
        pass
    # A process that ends while psutil opens it may raise an error of the system.
    with contextlib.suppress(FileNotFoundError):
      psutil.wait_procs(family, 20)
    node.wait()

  def _start(self, cpus, place, *flags, **environment):
    prefix, address = [], '127.0.0.1'
    if self._network is not None:
      prefix = self._network.prefix(place)
      address = self._network.addresses[place]
    log = self.folder / f'node{len(self.nodes)}.log'
    with open(log, 'wb') as file:
      node = subprocess.Popen(
        [
          *(*prefix, pathlib.Path(sys.executable).parent / 'ray', 'start'),
          *('--block', f'--node-ip-address={address}', *flags),
          *(
            f'--num-cpus={cpus}',
            f'--temp-dir={self.folder}/{len(self.nodes)}',
          ),
          *('--disable-usage-stats', '--object-store-memory=80000000'),
        ],
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
        env={**os.environ, **self.environment, **environment},
        start_new_session=True,
        preexec_fn=_end_with_parent,
      )
    self.nodes.append(node)
    until = time.monotonic() + _START_SECS
    while 'runtime started' not in log.read_text():
      if node.poll() is not None or time.monotonic() > until:
        raise RuntimeError(f'no node of Ray started: {log.read_text()}')
      time.sleep(0.1)
    return node
