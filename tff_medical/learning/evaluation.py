"""Scores of a Keras model on images; `tff_medical.scoring` makes metrics of them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import models
from tff_medical.data import examples
from tff_medical.data import pixels


def predict(
  model: tf.keras.Model,
  images: pixels.ArrayOrPixels,
  *,
  batch_size: int = 128,
) -> np.ndarray:
  """Returns float32 logits [N, K] of images or features; see `evaluate`."""
  _validate.positive_int(batch_size=batch_size)
  expected = model.input_shape[1:]
  are_pixels = images.dtype == np.uint8
  are_features = images.dtype == np.float32
  if not (are_pixels or are_features) or images.shape[1:] != expected:
    raise _validate.InputError(
      f'images must be uint8 [N, {", ".join(map(str, expected))}] for this '
      'model, or features of this shape in float32, got '
      f'{images.dtype} {list(images.shape)}'
    )
  models.restore_eager(model)
  parts = [np.zeros((0, model.output_shape[-1]), np.float32)]
  for batch in pixels.batches(images, batch_size):
    x = examples.scaled(batch) if are_pixels else batch
    parts.append(model(x, training=False).numpy())
  return np.concatenate(parts)
