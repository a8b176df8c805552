"""Server optimizers by name, with the settings of the adaptive FL literature.

The server treats the aggregated client update as a gradient (Reddi et al. 2021,
"Adaptive Federated Optimization", arXiv 2003.00295). Adam and Yogi use the
settings of the paper's section 5: beta1 0.9, beta2 0.99, epsilon 1e-3.
"""

from __future__ import annotations

import tensorflow_federated as tff

from tff_medical import _validate

SERVER_OPTIMIZERS = ('sgd', 'adam', 'yogi')

_BETA_1 = 0.9
_BETA_2 = 0.99
_EPSILON = 1e-3


def build_server_optimizer(
  name: str, *, learning_rate: float, momentum: float = 0.0
) -> tff.learning.optimizers.Optimizer:
  """Returns a server optimizer.

  Args:
    name: Name of the optimizer, from `SERVER_OPTIMIZERS`.
    learning_rate: Learning rate, above 0. With 'sgd' at 1.0 and no momentum the
      aggregated update is simply added, which is FedAvg (McMahan et al. 2017).
    momentum: Momentum in [0, 1), for 'sgd' only.

  Raises:
    InputError: The name is unknown or a value is out of range.
  """
  _validate.one_of(SERVER_OPTIMIZERS, server_optimizer=name)
  _validate.positive(server_learning_rate=learning_rate)
  if momentum:
    _validate.in_range(0, 1, server_momentum=momentum)
  if name == 'sgd':
    return tff.learning.optimizers.build_sgdm(
      learning_rate, momentum=momentum or None
    )
  if momentum:
    raise _validate.InputError(
      f'server_momentum must be 0 with server_optimizer {name}, which has its '
      f'own, got {momentum:g}'
    )
  build = {
    'adam': tff.learning.optimizers.build_adam,
    'yogi': tff.learning.optimizers.build_yogi,
  }[name]
  return build(learning_rate, beta_1=_BETA_1, beta_2=_BETA_2, epsilon=_EPSILON)
