"""Nodes of a real cluster on this machine, their workers, and their deaths."""

import contextlib
import os
import signal
import time
from unittest import mock

import psutil

from tests import ray_clusters
from tff_medical.runtime import cluster as cluster_lib


@contextlib.contextmanager
def cluster(workers):
  """A head without work and worker nodes of one CPU each, for this process."""
  with (
    ray_clusters.Cluster(0, *[1] * workers) as nodes,
    mock.patch.dict(os.environ, nodes.environment),
  ):
    try:
      yield nodes
    finally:
      ray_clusters.leave()


def context(nodes, **options):
  """Returns a context on a cluster."""
  return cluster_lib.create_cluster_context(nodes.address, **options)


def worker_pids(nodes, node=None):
  """Returns the process numbers of the workers of a cluster, or of one node.

  Ray gives the process of an actor the name of its class.
  """
  processes = (
    nodes.processes()
    if node is None
    else psutil.Process(node.pid).children(recursive=True)
  )
  pids = []
  for process in processes:
    with contextlib.suppress(psutil.NoSuchProcess):
      if ' '.join(process.cmdline()).startswith('ray::Worker'):
        pids.append(process.pid)
  return pids


def kill(pid):
  """Kills a process without notice."""
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, signal.SIGKILL)


def wait_until(condition, seconds=60):
  """Waits for a condition; returns whether it holds."""
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    if condition():
      return True
    time.sleep(0.1)
  return bool(condition())
