"""Learning rates by round, for clients and server.

>>> schedule = build_schedule('cosine', learning_rate=0.1, rounds=100)
>>> [round(float(schedule(done)), 4) for done in (0, 50, 99)]
[0.1, 0.05, 0.0]
"""

from __future__ import annotations

import collections
from collections.abc import Callable
import math
from typing import Any, Union

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.learning import wrapping_optimizer

# Maps the number of completed rounds, an int or int32, to a learning rate.
Schedule = Callable[[Union[int, tf.Tensor]], tf.Tensor]

SCHEDULES = ('constant', 'linear', 'cosine')


def build_schedule(name: str, *, learning_rate: float, rounds: int) -> Schedule:
  """Returns the learning rate by the number n of completed rounds.

  Args:
    name: Name of the schedule: 'constant', 'linear' (lr * (1 - n / rounds)) or
      'cosine' (lr * (1 + cos(pi * n / rounds)) / 2).
    learning_rate: Learning rate lr of the first round, above 0.
    rounds: Number of planned rounds. Later rounds keep the rate of the last
      one.

  Raises:
    InputError: The name is unknown or a value is out of range.
  """
  _validate.one_of(SCHEDULES, learning_rate_schedule=name)
  _validate.positive(learning_rate=learning_rate)
  _validate.positive_int(rounds=rounds)

  def schedule(rounds_done: int | tf.Tensor) -> tf.Tensor:
    progress = tf.cast(tf.minimum(rounds_done, rounds - 1), tf.float32) / rounds
    if name == 'linear':
      return learning_rate * (1 - progress)
    if name == 'cosine':
      return learning_rate * (1 + tf.cos(math.pi * progress)) / 2
    return tf.constant(learning_rate, tf.float32)

  return schedule


class Scheduled(wrapping_optimizer.WrappingOptimizer):
  """Takes the steps of another optimizer, each with the rate of its round.

  The number of steps is part of the state, so that a run that goes on from a
  checkpoint continues the schedule.
  """

  def __init__(
    self, inner: tff.learning.optimizers.Optimizer, schedule: Schedule
  ):
    """Wraps an optimizer.

    Args:
      inner: Optimizer that takes the steps. Its hyperparameters hold a learning
        rate, as those of TFF's optimizers do.
      schedule: Learning rate by the number of steps before.
    """
    super().__init__(inner)
    self._schedule = schedule

  def initialize(self, specs: Any) -> collections.OrderedDict:
    """Returns the state before the first step."""
    return collections.OrderedDict(
      inner=self._inner.initialize(specs), steps=tf.constant(0, tf.int32)
    )

  def next(
    self, state: collections.OrderedDict, weights: Any, gradients: Any
  ) -> tuple[collections.OrderedDict, Any]:
    """Returns the state and the weights after a step."""
    rate = self._schedule(state['steps'])
    inner = self._inner.set_hparams(
      state['inner'],
      collections.OrderedDict(
        {
          **self._inner.get_hparams(state['inner']),
          tff.learning.optimizers.LEARNING_RATE_KEY: rate,
        }
      ),
    )
    inner, weights = self._inner.next(inner, weights, gradients)
    state = collections.OrderedDict(inner=inner, steps=state['steps'] + 1)
    return state, weights
