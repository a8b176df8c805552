"""Runtimes of TFF computations: this process, or a Ray cluster.

The names below run computations in this process, on CPU threads and GPUs.
`cluster` is the package of what needs a Ray cluster. Each is imported on first
use: the connection to a cluster needs no TensorFlow Federated.
"""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'AsyncLocalContext',
  'ClientError',
  'ComputationError',
  'LocalContext',
  'cluster',
  'create_local_context',
  'set_local_context',
  'tensor_dataset',
]

if typing.TYPE_CHECKING:
  from tff_medical.runtime import cluster as cluster
  from tff_medical.runtime.cohort import ClientError as ClientError
  from tff_medical.runtime.cohort import ComputationError as ComputationError
  from tff_medical.runtime.local import AsyncLocalContext as AsyncLocalContext
  from tff_medical.runtime.local import LocalContext as LocalContext
  from tff_medical.runtime.local import (
    create_local_context as create_local_context,
  )
  from tff_medical.runtime.local import set_local_context as set_local_context
  from tff_medical.runtime.tensor_data import tensor_dataset as tensor_dataset
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(
    __name__,
    __all__,
    {
      'AsyncLocalContext': 'local',
      'ClientError': 'cohort',
      'ComputationError': 'cohort',
      'LocalContext': 'local',
      'create_local_context': 'local',
      'set_local_context': 'local',
      'tensor_dataset': 'tensor_data',
    },
  )
