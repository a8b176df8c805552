"""Cluster runtime: TFF computations on the machines of a Ray cluster.

Each name is imported on first use. `connection` needs no TensorFlow Federated,
and Ray itself is imported when a process connects.
"""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'ClusterContext',
  'ClusterError',
  'create_cluster_context',
  'set_cluster_context',
]

if typing.TYPE_CHECKING:
  from tff_medical.runtime.cluster.context import (
    ClusterContext as ClusterContext,
  )
  from tff_medical.runtime.cluster.context import (
    create_cluster_context as create_cluster_context,
  )
  from tff_medical.runtime.cluster.context import (
    set_cluster_context as set_cluster_context,
  )
  from tff_medical.runtime.cluster.pool import ClusterError as ClusterError
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(
    __name__,
    __all__,
    {
      'ClusterContext': 'context',
      'ClusterError': 'pool',
      'create_cluster_context': 'context',
      'set_cluster_context': 'context',
    },
  )
