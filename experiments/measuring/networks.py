"""Networks that several benchmarks train."""

from __future__ import annotations

import tensorflow as tf


def cnn(hidden: int = 128) -> tf.keras.Model:
  """Returns a CNN for images of 28 x 28 x 3.

  Args:
    hidden: Units of the hidden layer. The CNN has 225,352 parameters with 128
      of them, and 1,609 for each further one.
  """
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input((28, 28, 3)),
      tf.keras.layers.Conv2D(32, 3, activation='relu'),
      tf.keras.layers.MaxPooling2D(),
      tf.keras.layers.Conv2D(64, 3, activation='relu'),
      tf.keras.layers.MaxPooling2D(),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(hidden, activation='relu'),
      tf.keras.layers.Dense(8),
    ]
  )
