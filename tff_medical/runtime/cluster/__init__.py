<<<<<<< HEAD
"""Cluster runtime: TFF computations on the machines of a Ray cluster."""

from tff_medical.runtime.cluster.context import ClusterContext
from tff_medical.runtime.cluster.context import create_cluster_context
from tff_medical.runtime.cluster.context import set_cluster_context
from tff_medical.runtime.cluster.pool import ClusterError

__all__ = [
  'ClusterContext',
  'ClusterError',
  'create_cluster_context',
  'set_cluster_context',
]
=======
"""Computations on a Ray cluster."""
>>>>>>> wt-cel
