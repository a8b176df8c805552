"""Client training: the FedProx term, and steps that may be rounded.

FedProx (Li et al. 2020, arXiv 1812.06127) adds strength / 2 * |w - w0|**2 to
every client's loss, where w0 are the weights that the server sent. The term
keeps clients with unlike data together. Here it is an optimizer around another
one, so it works with every model, optimizer and schedule.

`build_unweighted_fed_prox` of TFF 0.87 is not used. It adds strength * (w0 - w)
to the gradient instead of strength * (w - w0), which drives clients apart
(learning/templates/proximal_client_work.py, both variants). It also takes no
schedule.

`in_marked_steps` allows `runtime.precision.BFLOAT16` in the training step of
TFF's client work. The step only trains; TFF clips the result of all steps.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, Union

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.learning import wrapping_optimizer
from tff_medical.runtime import precision

ClientOptimizer = Union[
  tff.learning.optimizers.Optimizer,
  Callable[[Any], tff.learning.optimizers.Optimizer],
]


def with_proximal_term(
  optimizer: tff.learning.optimizers.Optimizer, strength: float
) -> tff.learning.optimizers.Optimizer:
  """Returns `optimizer` on the loss plus strength / 2 * |w - w0|**2.

  Args:
    optimizer: Optimizer that minimises the sum.
    strength: Weight mu of FedProx, 0 or more; 0 returns `optimizer` itself.

  Raises:
    InputError: The strength is negative.
  """
  _validate.non_negative(proximal_strength=strength)
  return _Proximal(optimizer, strength) if strength else optimizer


def in_marked_steps(optimizer: ClientOptimizer) -> ClientOptimizer:
  """Returns an optimizer that marks the functions which call its `next`.

  Args:
    optimizer: Optimizer, or function from a learning rate to an optimizer.
  """
  if isinstance(optimizer, tff.learning.optimizers.Optimizer):
    return _Marking(optimizer)
  return lambda learning_rate: _Marking(optimizer(learning_rate))


class _Marking(wrapping_optimizer.WrappingOptimizer):
  """Marks the function that takes a step; see `runtime.precision`."""

  def initialize(self, specs: Any) -> collections.OrderedDict:
    return collections.OrderedDict(inner=self._inner.initialize(specs))

  def next(
    self, state: collections.OrderedDict, weights: Any, gradients: Any
  ) -> tuple[collections.OrderedDict, Any]:
    precision.mark()
    inner, weights = self._inner.next(state['inner'], weights, gradients)
    return collections.OrderedDict(inner=inner), weights


class _Proximal(wrapping_optimizer.WrappingOptimizer):
  """Adds the proximal term to the gradients of another optimizer.

  The weights at the first step are the weights that the server sent.
  """

  def __init__(self, inner: tff.learning.optimizers.Optimizer, strength: float):
    super().__init__(inner)
    self._strength = strength

  def initialize(self, specs: Any) -> collections.OrderedDict:
    return collections.OrderedDict(
      inner=self._inner.initialize(specs),
      started=tf.constant(False),
      sent=tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), specs),
    )

  def next(
    self, state: collections.OrderedDict, weights: Any, gradients: Any
  ) -> tuple[collections.OrderedDict, Any]:
    sent = tf.nest.map_structure(
      lambda old, new: tf.where(state['started'], old, new),
      state['sent'],
      weights,
    )
    gradients = tf.nest.map_structure(
      lambda g, w, w0: g + self._strength * (w - w0), gradients, weights, sent
    )
    inner, weights = self._inner.next(state['inner'], weights, gradients)
    state = collections.OrderedDict(
      inner=inner, started=tf.constant(True), sent=sent
    )
    return state, weights
