"""Nodes on separate addresses of one machine, whose links can be taken down.

Each node is a network namespace of Linux with one link to a bridge in the first
of them. Only root may make namespaces, and `ip` (iproute2) is needed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess

import psutil

_PREFIX = 'tffm'
_BRIDGE = 'bridge'
_NET = '10.77.0'


def problem() -> str:
  """Returns why there can be no such network here; '' if there can."""
  if os.geteuid():
    return 'only root makes network namespaces'
  if shutil.which('ip') is None:
    return 'ip (iproute2) is not installed'
  return ''


class Network:
  """Namespaces with an address each, until the end of the `with` block.

  Attributes:
    addresses: IP addresses of the nodes.
  """

  def __init__(self, nodes: int):
    """Prepares the network.

    Args:
      nodes: Number of nodes, the first of which holds the bridge.
    """
    self.addresses = [f'{_NET}.{n + 1}' for n in range(nodes)]
    self._names = [f'{_PREFIX}-{os.getpid()}-{n}' for n in range(nodes)]

  def __enter__(self) -> Network:
    _remove_stale()
    try:
      for name in self._names:
        _ip('netns', 'add', name)
        _ip('-n', name, 'link', 'set', 'lo', 'up')
      head = self._names[0]
      _ip('-n', head, 'link', 'add', _BRIDGE, 'type', 'bridge')
      for n, name in enumerate(self._names):
        if n:
          _ip(
            *('-n', head, 'link', 'add', f'link{n}', 'type', 'veth'),
            *('peer', 'name', 'eth0', 'netns', name),
          )
          _ip('-n', head, 'link', 'set', f'link{n}', 'master', _BRIDGE)
          self.set_link(n, up=True)
        device = 'eth0' if n else _BRIDGE
        address = f'{self.addresses[n]}/24'
        _ip('-n', name, 'address', 'add', address, 'dev', device)
        _ip('-n', name, 'link', 'set', device, 'up')
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *unused: object) -> None:
    for name in self._names:
      _remove(name)

  def prefix(self, node: int) -> list[str]:
    """Returns what runs a command, which follows it, on a node."""
    return ['ip', 'netns', 'exec', self._names[node]]

  def set_link(self, node: int, up: bool) -> None:
    """Takes the link of a node, but the first, up or down."""
    state = 'up' if up else 'down'
    _ip('-n', self._names[0], 'link', 'set', f'link{node}', state)


def _ip(*arguments: str) -> str:
  """Runs `ip`; returns what it prints."""
  done = subprocess.run(
    ['ip', *arguments], check=False, capture_output=True, text=True
  )
  if done.returncode:
    raise OSError(f'ip {" ".join(arguments)}: {done.stderr.strip()}')
  return done.stdout


def _remove(name: str) -> None:
  with contextlib.suppress(OSError):
    _ip('netns', 'delete', name)


def _remove_stale() -> None:
  """Removes what a process left that was killed."""
  for name, pid in re.findall(rf'^({_PREFIX}-(\d+)-\d+)', _ip('netns'), re.M):
    if not psutil.pid_exists(int(pid)):
      _remove(name)
