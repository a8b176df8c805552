"""Examples as models take them: scaled images, labels and the mask of units.

This module alone defines how pixels are scaled and how examples are laid out:

| kind   | x                            | y                   | mask           |
|--------|------------------------------|---------------------|----------------|
| images | float32 [n, H, W, C] in 0..1 | [n] or [n, L]       | none           |
| units  | float32 [n, K, H, W, C]      | [n, K] or [n, K, L] | float32 [n, K] |

Where the split holds fixed features of its images, x is these features, float32
[n, ...] or [n, K, ...], as they are.
y is an int64 class index, or float32 0, 1 or `label_values.UNKNOWN` for each of
L findings. mask is 1 for an image and 0 for padding. K is the largest number of
images of a unit. Pixels are held as uint8 until they are read and scaled, once.

>>> scaled(np.array([0, 51, 255], np.uint8)).tolist()
[0.0, 0.20000000298023224, 1.0]
"""

from __future__ import annotations

import collections

import numpy as np

from tff_medical.data import images
from tff_medical.data import pixels as pixels_lib

PADDING = -1

Examples = collections.OrderedDict[str, np.ndarray]


def scaled(pixels: np.ndarray) -> np.ndarray:
  """Returns uint8 pixels divided by 255, as a new float32 array."""
  return np.divide(pixels, np.float32(255), dtype=np.float32)


def inputs(split: images.Split, rows: np.ndarray) -> np.ndarray:
  """Returns what a model takes for images: scaled pixels, or their features.

  Args:
    split: Images with or without features.
    rows: Rows of the split, int64 in any shape.

  Returns:
    New float32 array [..., H, W, C] in 0..1, or [..., *shape] of features.
  """
  if split.features is not None:
    return pixels_lib.read(split.features, rows)
  return scaled(split.rows(rows))


def y_dtype(split: images.Split) -> np.dtype:
  """Returns the data type of y: float32 for findings, else int64."""
  return np.dtype(np.float32 if split.labels.ndim == 2 else np.int64)


def of_images(split: images.Split, rows: np.ndarray) -> Examples:
  """Returns x and y of the images at `rows`, int64 [n]."""
  return collections.OrderedDict(x=inputs(split, rows), y=_y(split, rows))


def of_units(split: images.Split, rows: np.ndarray) -> Examples:
  """Returns x, y and mask of units.

  Args:
    split: Images with their labels.
    rows: Images of each unit, int64 [n, K]; `PADDING` fills up a unit that has
      fewer than K.
  """
  is_image = rows != PADDING
  if is_image.all():
    x = inputs(split, rows)
  else:
    x = np.zeros((*rows.shape, *split.input_shape), np.float32)
    x[is_image] = inputs(split, rows[is_image])
  return _with_mask(x, _y(split, rows), is_image)


def of_single_images(x: np.ndarray, y: np.ndarray) -> Examples:
  """Returns x, y and mask of one-image units, from x and y of the images."""
  return _with_mask(x[:, np.newaxis], y[:, np.newaxis], np.ones((len(x), 1)))


def _y(split: images.Split, rows: np.ndarray) -> np.ndarray:
  return split.labels[rows].astype(y_dtype(split), copy=False)


def _with_mask(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> Examples:
  return collections.OrderedDict(x=x, y=y, mask=mask.astype(np.float32))
