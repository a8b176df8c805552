"""Memory of this process, as the kernel counts it."""

from __future__ import annotations

import pathlib


def peak_mib() -> float:
  """Returns the largest memory that this process has had, in MiB.

  The peak of `resource.getrusage` would be that of the process that started
  this one, if that had more.

  Raises:
    RuntimeError: The kernel does not say.
  """
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    name, _, value = line.partition(':')
    if name == 'VmHWM':
      return int(value.split()[0]) / 2**10
  raise RuntimeError('/proc/self/status has no VmHWM')
