"""Decoded images to the size and the channels of a data set.

As `serving.encoded_images` does: bilinear with antialiasing, without keeping the
aspect, RGB to grey by luma, grey to RGB by repetition. Pillow and TensorFlow
agree here within 0.004.

>>> image = np.zeros([4, 6, 3], np.float32)
>>> to_uint8(image, 2, 1).shape
(2, 2, 1)
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def to_uint8(image: np.ndarray, size: int, channels: int | None) -> np.ndarray:
  """Returns an image as it is stored.

  Args:
    image: float32 [H, W, C] in 0..1 with C of 1 or 3.
    size: Height and width of the result.
    channels: 1 (grey) or 3 (RGB); None for those of the image.

  Returns:
    uint8 [size, size, channels].
  """
  if channels == 1 and image.shape[2] == 3:
    image = (image @ _LUMA)[..., np.newaxis]
  planes = [
    Image.fromarray(np.ascontiguousarray(image[..., i], np.float32)).resize(
      (size, size), Image.Resampling.BILINEAR
    )
    for i in range(image.shape[2])
  ]
  stacked = np.stack([np.asarray(plane) for plane in planes], axis=-1)
  stored = np.rint(np.clip(stacked, 0, 1) * 255).astype(np.uint8)
  return with_channels(stored, channels or stored.shape[2])


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
  """Repeats the one channel of grey images [..., 1] where three are asked for."""
  if images.shape[-1] == channels:
    return images
  return np.repeat(images, channels, axis=-1)
