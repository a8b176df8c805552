"""Local runtime: TFF computations in this process, on CPU threads and GPUs."""

from tff_medical.runtime.cohort import ClientError
from tff_medical.runtime.cohort import ComputationError
from tff_medical.runtime.local import AsyncLocalContext
from tff_medical.runtime.local import LocalContext
from tff_medical.runtime.local import create_local_context
from tff_medical.runtime.local import set_local_context
from tff_medical.runtime.tensor_data import tensor_dataset

__all__ = [
  'AsyncLocalContext',
  'ClientError',
  'ComputationError',
  'LocalContext',
  'create_local_context',
  'set_local_context',
  'tensor_dataset',
]
