"""Federated learning processes: `build_*` functions around TFF's own parts."""

from tff_medical.learning.dp_fed_avg import build_dp_fed_avg
from tff_medical.learning.optimizers import (
  SERVER_OPTIMIZERS,
  build_server_optimizer,
)

__all__ = ['SERVER_OPTIMIZERS', 'build_dp_fed_avg', 'build_server_optimizer']
