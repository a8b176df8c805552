"""Server optimizers by name, with the settings of the adaptive FL literature.

The server treats the aggregated client update as a gradient (Reddi et al. 2021,
"Adaptive Federated Optimization", arXiv 2003.00295). Adam and Yogi use the
settings of the paper's section 5: beta1 0.9, beta2 0.99, epsilon 1e-3.

DP-AdamBC (Tang et al. 2024, "DP-AdamBC: Your DP-Adam Is Actually DP-SGD (Unless
You Apply Bias Correction)", arXiv 2312.14334, Algorithm 1). The second moment
of a noised gradient is that of the gradient plus the noise's variance. Where
noise dominates, plain Adam divides every entry by the same number. DP-AdamBC
subtracts the variance, which is known:

    w -= lr * m / sqrt(max(v - stddev**2, floor))

Here m and v are Adam's bias-corrected moments with beta1 0.9 and beta2 0.999.
The paper's floor, gamma', is an absolute number. Here the floor is a fraction
of the variance, so that one setting fits every epsilon and batch size.
"""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.learning import schedules

SERVER_OPTIMIZERS = ('sgd', 'adam', 'yogi', 'adam_bc')

_BETA_1 = 0.9
_BETA_2 = 0.99
_EPSILON = 1e-3
# Second moments of noise need a longer memory (Tang et al. 2024, section 4).
_BETA_2_OF_NOISE = 0.999


def build_server_optimizer(
  name: str,
  *,
  learning_rate: float,
  momentum: float = 0.0,
  noise_stddev: float | None = None,
  noise_floor: float = 0.5,
  schedule: schedules.Schedule | None = None,
) -> tff.learning.optimizers.Optimizer:
  """Returns a server optimizer.

  Args:
    name: Name of the optimizer, from `SERVER_OPTIMIZERS`.
    learning_rate: Learning rate, above 0. With 'sgd' at 1.0 and no momentum the
      aggregated update is simply added, which is FedAvg (McMahan et al. 2017).
    momentum: Momentum in [0, 1), for 'sgd' only.
    noise_stddev: Standard deviation, above 0, of the noise in each entry of the
      mean update. It is needed for 'adam_bc' and ignored by the others.
    noise_floor: Smallest corrected second moment with 'adam_bc', above 0, as a
      fraction of the noise's variance.
    schedule: Learning rate by the number of rounds before, which takes the
      place of `learning_rate`, if given.

  Raises:
    InputError: The name is unknown or a value is out of range.
  """
  optimizer = _build(name, learning_rate, momentum, noise_stddev, noise_floor)
  # An optimizer has no Python control flow on tensors, for which to rewrite its
  # source would take half a second.
  unconverted = tf.autograph.experimental.do_not_convert(optimizer.next)
  setattr(optimizer, 'next', unconverted)  # noqa: B010
  if schedule is None:
    return optimizer
  return schedules.Scheduled(optimizer, schedule)


def _build(
  name: str,
  learning_rate: float,
  momentum: float,
  noise_stddev: float | None,
  noise_floor: float,
) -> tff.learning.optimizers.Optimizer:
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
  if name == 'adam_bc':
    if noise_stddev is None:
      raise _validate.InputError(
        'noise_stddev must be given with server_optimizer adam_bc, which '
        "subtracts the noise's variance, got None; choose adam"
      )
    return _AdamOfNoise(learning_rate, noise_stddev, noise_floor)
  build = {
    'adam': tff.learning.optimizers.build_adam,
    'yogi': tff.learning.optimizers.build_yogi,
  }[name]
  return build(learning_rate, beta_1=_BETA_1, beta_2=_BETA_2, epsilon=_EPSILON)


class _AdamOfNoise(tff.learning.optimizers.Optimizer):
  """DP-AdamBC: Adam whose second moment is freed from that of the noise."""

  def __init__(self, learning_rate: float, stddev: float, floor: float):
    _validate.positive(noise_stddev=stddev, noise_floor=floor)
    self._learning_rate = learning_rate
    self._stddev = stddev
    self._floor = floor

  def initialize(self, specs: Any) -> collections.OrderedDict:
    def zeros() -> Any:
      return tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), specs)

    return collections.OrderedDict(
      [
        (
          tff.learning.optimizers.LEARNING_RATE_KEY,
          tf.constant(self._learning_rate, tf.float32),
        ),
        ('step', tf.constant(0, tf.int32)),
        ('first_moment', zeros()),
        ('second_moment', zeros()),
      ]
    )

  def next(
    self, state: collections.OrderedDict, weights: Any, gradients: Any
  ) -> tuple[collections.OrderedDict, Any]:
    rate = state[tff.learning.optimizers.LEARNING_RATE_KEY]
    step = state['step'] + 1
    of_start_1, of_start_2 = (
      1 - tf.pow(beta, tf.cast(step, tf.float32))
      for beta in (_BETA_1, _BETA_2_OF_NOISE)
    )
    # Squares of tiny gradients would vanish in float32, so the second moment is
    # kept in units of the noise's variance.
    scaled = tf.nest.map_structure(lambda g: g / self._stddev, gradients)
    first = tf.nest.map_structure(
      lambda m, g: _BETA_1 * m + (1 - _BETA_1) * g,
      state['first_moment'],
      scaled,
    )
    second = tf.nest.map_structure(
      lambda v, g: _BETA_2_OF_NOISE * v + (1 - _BETA_2_OF_NOISE) * g**2,
      state['second_moment'],
      scaled,
    )
    weights = tf.nest.map_structure(
      lambda w, m, v: (
        w
        - rate
        * (m / of_start_1)
        / tf.sqrt(tf.maximum(v / of_start_2 - 1, self._floor))
      ),
      weights,
      first,
      second,
    )
    state = collections.OrderedDict(
      {
        **state,
        'step': step,
        'first_moment': first,
        'second_moment': second,
      }
    )
    return state, weights

  def get_hparams(self, state: collections.OrderedDict) -> Any:
    key = tff.learning.optimizers.LEARNING_RATE_KEY
    return collections.OrderedDict([(key, state[key])])

  def set_hparams(
    self, state: collections.OrderedDict, hparams: Any
  ) -> collections.OrderedDict:
    return collections.OrderedDict({**state, **hparams})
