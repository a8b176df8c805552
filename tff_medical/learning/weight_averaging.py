"""Exponential moving average of the rounds' models.

Noise makes the last model of a private training a matter of luck. The average
over the models of many rounds keeps the signal and loses much of the noise.
Averaging is due to Polyak & Juditsky 1992, and with differential privacy to De
et al. 2022 (arXiv 2204.13650, section 3.3). The average costs no privacy, as
its models were released anyway. Clients still train the last model.

The average is part of the server optimizer's state. So it is saved with that
state and works with every process that takes a server optimizer:

>>> optimizer = Averaging(tff.learning.optimizers.build_sgdm(1.0), decay=0.5)
>>> state, weight = optimizer.initialize(tf.TensorSpec(())), tf.constant(0.0)
>>> for gradient in (-1.0, -2.0):  # The weights are 1, then 3.
...   state, weight = optimizer.next(state, weight, tf.constant(gradient))
>>> round(float(state['total'] / state['mass']), 4)  # (1 / 4 + 3 / 2) / (3 / 4)
2.3333
"""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.learning import wrapping_optimizer


class Averaging(wrapping_optimizer.WrappingOptimizer):
  """Takes the steps of another optimizer and averages the model's weights.

  The state holds `total`, a sum of the weights after each step with
  coefficients that fall by `decay` per step. It also holds `mass`, the sum of
  these coefficients, which is 0 before the first step.
  """

  def __init__(self, inner: tff.learning.optimizers.Optimizer, decay: float):
    """Wraps an optimizer.

    Args:
      inner: Optimizer that takes the steps.
      decay: Decay in (0, 1); about 1 / (1 - decay) steps count.
    """
    _validate.in_range(0, 1, ema_decay=decay)
    super().__init__(inner)
    self._decay = decay

  def initialize(self, specs: Any) -> collections.OrderedDict:
    """Returns the state before the first step."""
    return collections.OrderedDict(
      inner=self._inner.initialize(specs),
      total=tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), specs),
      mass=tf.constant(0.0),
    )

  def next(
    self, state: collections.OrderedDict, weights: Any, gradients: Any
  ) -> tuple[collections.OrderedDict, Any]:
    """Returns the state and the weights after a step."""
    inner, weights = self._inner.next(state['inner'], weights, gradients)
    total = tf.nest.map_structure(self._average, state['total'], weights)
    mass = self._average(state['mass'], 1.0)
    state = collections.OrderedDict(inner=inner, total=total, mass=mass)
    return state, weights

  def _average(self, old: tf.Tensor, new: tf.Tensor | float) -> tf.Tensor:
    return self._decay * old + (1 - self._decay) * new


def with_averaged_model(
  process: tff.learning.templates.LearningProcess,
) -> tff.learning.templates.LearningProcess:
  """Returns the process whose model weights are the average.

  `next` stays as it is. Setting the model weights starts a new average.

  Args:
    process: Process whose server optimizer is an `Averaging`.
  """
  state_type = process.initialize.type_signature.result.member
  weights_type = process.get_model_weights.type_signature.result

  @tff.tensorflow.computation(state_type)
  def get_model_weights(state: Any) -> Any:
    weights, kept = state.global_model_weights, state.finalizer
    started = kept['mass'] > 0
    trainable = tf.nest.map_structure(
      lambda last, total: tf.where(
        started, tf.math.divide_no_nan(total, kept['mass']), last
      ),
      tuple(weights.trainable),
      tuple(kept['total']),
    )
    return tff.learning.models.ModelWeights(
      type(weights.trainable)(trainable), weights.non_trainable
    )

  @tff.tensorflow.computation(state_type, weights_type)
  def set_model_weights(state: Any, weights: Any) -> Any:
    finalizer = collections.OrderedDict(
      inner=state.finalizer['inner'],
      total=tf.nest.map_structure(tf.zeros_like, state.finalizer['total']),
      mass=tf.constant(0.0),
    )
    return tff.learning.templates.LearningAlgorithmState(
      global_model_weights=weights,
      distributor=state.distributor,
      client_work=state.client_work,
      aggregator=state.aggregator,
      finalizer=finalizer,
    )

  return tff.learning.templates.LearningProcess(
    process.initialize,
    process.next,
    get_model_weights,
    set_model_weights,
    get_hparams_fn=process.get_hparams,
    set_hparams_fn=process.set_hparams,
  )
