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
  """Returns float32 logits [N, K] for uint8 images [N, H, W, C]."""
  _validate.positive_int(batch_size=batch_size)
  expected = model.input_shape[1:]
  if images.dtype != np.uint8 or images.shape[1:] != expected:
    raise _validate.InputError(
      f'images must be uint8 [N, {", ".join(map(str, expected))}] for this '
      f'model, got {images.dtype} {list(images.shape)}'
    )
  models.restore_eager(model)
  parts = [np.zeros((0, model.output_shape[-1]), np.float32)]
  for batch in pixels.batches(images, batch_size):
    parts.append(model(examples.scaled(batch), training=False).numpy())
  return np.concatenate(parts)
