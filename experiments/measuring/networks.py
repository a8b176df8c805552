"""Networks that several benchmarks train."""

from __future__ import annotations

import tensorflow as tf


def cnn() -> tf.keras.Model:
  """Returns the CNN of 225,352 parameters, for images of 28 x 28 x 3."""
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input((28, 28, 3)),
      tf.keras.layers.Conv2D(32, 3, activation='relu'),
      tf.keras.layers.MaxPooling2D(),
      tf.keras.layers.Conv2D(64, 3, activation='relu'),
      tf.keras.layers.MaxPooling2D(),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(128, activation='relu'),
      tf.keras.layers.Dense(8),
    ]
  )
