"""DP-FedAvg with adaptive clipping in plain TensorFlow, without TFF.

This is the floor of the benchmark: the arithmetic of TFF's algorithm, written
by hand in the fastest way found. A client is one `tf.function`, whose loop is
unrolled over slices of the images. Clients run at once on threads, and each
thread keeps its own sum.

The arithmetic follows TFF 0.87: local SGD, a model delta that is dropped if it
is not finite, clipping to a norm that tracks the median, Gaussian noise on sum
and count, division by the expected cohort, and momentum at the server.
"""

from __future__ import annotations

from collections.abc import Sequence
import concurrent.futures
import itertools
import threading
from typing import Any

import tensorflow as tf

CLIENT_RATE = 0.1
MOMENTUM = 0.9
_INITIAL_CLIP = 0.1
_TARGET_QUANTILE = 0.5
_CLIP_RATE = 0.2


class Training:
  """Model, data and optimizer state of one training run.

  Attributes:
    weights: Weights of the model after the last round.
    clip: Clip norm of the next round.
  """

  def __init__(
    self,
    model: tf.keras.Model,
    data: Sequence[Any],
    batch_size: int,
    noise_multiplier: float,
    threads: int,
  ):
    self._data = [(tf.constant(d['x']), tf.constant(d['y'])) for d in data]
    self.weights = [v.read_value() for v in model.trainable_variables]
    self._momentum = [tf.zeros_like(w) for w in self.weights]
    self.clip = tf.constant(_INITIAL_CLIP)
    self._clients = float(len(data))
    # In TFF the noise on the count has a standard deviation of a twentieth of
    # the cohort. The noise on the sum is raised, so that both releases together
    # cost as much as a single one.
    self._count_std = 0.05 * self._clients
    self._sum_noise = (
      noise_multiplier**-2 - (2 * self._count_std) ** -2
    ) ** -0.5
    self._batch_size = batch_size
    self._threads = threads
    self._pool = concurrent.futures.ThreadPoolExecutor(threads)
    self._train = tf.function(self._train_client)
    self._add = tf.function(lambda a, b: [x + y for x, y in zip(a, b)])
    self._finish = tf.function(self._finish_round)

  def next_round(self) -> None:
    """Trains on every client once and updates the model."""
    turn, lock = itertools.count(), threading.Lock()

    zero = [*(tf.zeros_like(w) for w in self.weights), tf.constant(0.0)]

    def work(_: int) -> list[tf.Tensor]:
      total = zero
      while True:
        with lock:
          index = next(turn)
        if index >= len(self._data):
          return total
        images, labels = self._data[index]
        total = self._train(total, self.weights, self.clip, images, labels)

    totals = list(self._pool.map(work, range(self._threads)))
    total = totals[0]
    for other in totals[1:]:
      total = self._add(total, other)
    self.weights, self._momentum, self.clip = self._finish(
      self.weights, self._momentum, self.clip, total
    )

  def _train_client(
    self,
    total: list[tf.Tensor],
    initial: list[tf.Tensor],
    clip: tf.Tensor,
    images: tf.Tensor,
    labels: tf.Tensor,
  ) -> list[tf.Tensor]:
    weights = initial
    for start in range(0, images.shape[0], self._batch_size):
      end = start + self._batch_size
      with tf.GradientTape() as tape:
        tape.watch(weights)
        logits = _logits(weights, images[start:end])
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
          labels[start:end], logits
        )
        loss = tf.reduce_mean(losses)
      gradients = tape.gradient(loss, weights)
      weights = [w - CLIENT_RATE * g for w, g in zip(weights, gradients)]
    delta = [a - b for a, b in zip(initial, weights)]
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(d)) for d in delta])
    delta = [tf.where(finite, d, tf.zeros_like(d)) for d in delta]
    clipped, norm = tf.clip_by_global_norm(delta, clip)
    below = tf.cast(norm <= clip, tf.float32) - 0.5
    return [a + b for a, b in zip(total, [*clipped, below])]

  def _finish_round(
    self,
    weights: list[tf.Tensor],
    momentum: list[tf.Tensor],
    clip: tf.Tensor,
    total: list[tf.Tensor],
  ) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor]:
    *deltas, below = total
    std = self._sum_noise * clip
    mean = [
      (d + tf.random.normal(d.shape, stddev=std)) / self._clients
      for d in deltas
    ]
    below += tf.random.normal([], stddev=self._count_std)
    fraction = below / self._clients + 0.5
    clip *= tf.exp(-_CLIP_RATE * (fraction - _TARGET_QUANTILE))
    momentum = [MOMENTUM * m + u for m, u in zip(momentum, mean)]
    weights = [w - m for w, m in zip(weights, momentum)]
    return weights, momentum, clip


def _logits(weights: list[tf.Tensor], images: tf.Tensor) -> tf.Tensor:
  """Returns the logits of the benchmark's CNN, by TensorFlow operations."""
  w = iter(weights)
  values = images
  for _ in range(2):
    values = tf.nn.conv2d(values, next(w), 1, 'VALID')
    values = tf.nn.relu(tf.nn.bias_add(values, next(w)))
    values = tf.nn.max_pool2d(values, 2, 2, 'VALID')
  values = tf.reshape(values, [-1, 5 * 5 * 64])
  values = tf.nn.relu(tf.nn.bias_add(tf.matmul(values, next(w)), next(w)))
  return tf.nn.bias_add(tf.matmul(values, next(w)), next(w))
