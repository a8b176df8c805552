"""Federated learning processes: `build_*` functions made of TFF's own parts."""

from tff_medical.learning import batched_clients
from tff_medical.learning import batched_steps
from tff_medical.learning import client_training
from tff_medical.learning import evaluation
from tff_medical.learning import schedules
from tff_medical.learning import tasks
from tff_medical.learning import unit_gradients
from tff_medical.learning import weight_averaging
from tff_medical.learning.augmentation import Augmentation
from tff_medical.learning.batched_clients import build_batched_dp_fed_avg
from tff_medical.learning.dp_fed_avg import build_dp_fed_avg
from tff_medical.learning.dp_sgd import build_dp_sgd
from tff_medical.learning.local_dp_sgd import build_local_dp_sgd
from tff_medical.learning.local_dp_sgd import step_arrays
from tff_medical.learning.optimizers import SERVER_OPTIMIZERS
from tff_medical.learning.optimizers import build_server_optimizer

__all__ = [
  'SERVER_OPTIMIZERS',
  'Augmentation',
  'batched_clients',
  'batched_steps',
  'build_batched_dp_fed_avg',
  'build_dp_fed_avg',
  'build_dp_sgd',
  'build_local_dp_sgd',
  'build_server_optimizer',
  'client_training',
  'evaluation',
  'schedules',
  'step_arrays',
  'tasks',
  'unit_gradients',
  'weight_averaging',
]
