"""Runs TFF computations in this process, on CPU threads and GPUs."""

from tff_medical.runtime.cohort import ClientError as ClientError
from tff_medical.runtime.cohort import ComputationError as ComputationError
from tff_medical.runtime.local import AsyncLocalContext as AsyncLocalContext
from tff_medical.runtime.local import LocalContext as LocalContext
from tff_medical.runtime.local import (
  create_local_context as create_local_context,
)
from tff_medical.runtime.local import set_local_context as set_local_context
from tff_medical.runtime.tensor_data import tensor_dataset as tensor_dataset
