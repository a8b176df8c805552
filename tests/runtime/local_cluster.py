"""A Ray cluster of several nodes on this machine, for tests."""

import contextlib
import os
import shutil
import signal
import tempfile
import time

import psutil
import ray
from ray import cluster_utils

from tff_medical.runtime import cluster as cluster_lib

_STORE_BYTES = 150 * 2**20


class LocalCluster:
  """Nodes that are processes of this machine."""

  def __init__(self, nodes, cpus=1):
    # Paths of sockets are short.
    self._folder = tempfile.mkdtemp(prefix='r_', dir='/tmp')
    self._cluster = cluster_utils.Cluster(
      initialize_head=True,
      head_node_args={
        'num_cpus': 0,
        'include_dashboard': False,
        'temp_dir': self._folder,
        'object_store_memory': _STORE_BYTES,
      },
    )
    self.nodes = []
    for _ in range(nodes):
      self.add_node(cpus)

  @property
  def address(self):
    return self._cluster.address

  @property
  def folder(self):
    """Folder of Ray's sessions: logs, sockets, spilled objects."""
    return self._folder

  def add_node(self, cpus=1):
    node = self._cluster.add_node(
      num_cpus=cpus, object_store_memory=_STORE_BYTES
    )
    self.nodes.append(node)
    return node

  def kill_node(self, node):
    """Kills all processes of a node, as a crash of the machine would."""
    self.nodes.remove(node)
    self._cluster.remove_node(node, allow_graceful=False)

  def close(self):
    ray.shutdown()
    self._cluster.shutdown()
    shutil.rmtree(self._folder, ignore_errors=True)


def worker_pids(node=None):
  """Returns the process numbers of the workers, of one node or of all.

  Ray gives the process of an actor the name of its class.
  """
  raylets = (
    None
    if node is None
    else {info[0].process.pid for info in node.all_processes.values()}
  )
  pids = []
  for process in psutil.process_iter(['cmdline', 'ppid']):
    cmdline = ' '.join(process.info['cmdline'] or ())
    if cmdline.startswith('ray::Worker') and (
      raylets is None or process.info['ppid'] in raylets
    ):
      pids.append(process.pid)
  return pids


def kill_worker(pid):
  """Kills a process without notice."""
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, signal.SIGKILL)


def context(cluster, **options):
  """Returns a context on a cluster, with short patience."""
  options = {'patience_secs': 120.0, **options}
  return cluster_lib.create_cluster_context(cluster.address, **options)


def wait_until(condition, seconds=60):
  """Waits for a condition; returns whether it holds."""
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    if condition():
      return True
    time.sleep(0.1)
  return bool(condition())
