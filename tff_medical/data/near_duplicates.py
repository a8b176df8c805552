"""Images that are nearly equal, also mirrored, turned, darker or recompressed.

What: `across` counts the images of a later split that have a near copy in an
earlier one. Each image is shrunk to 16 x 16, its mean taken away and its length
made 1: two images whose product is at least 0.995, in one of eight positions,
are near copies. Brightness and contrast then do not matter; a crop is not found.
Every pair is compared, so that there is a limit on their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SIDE = 16
LEAST_PRODUCT = 0.995
# About two minutes on two cores.
MAX_PAIRS = 5 * 10**8
_BATCH = 1024


def signatures(images: np.ndarray) -> np.ndarray:
  """Returns the signatures of images.

  Args:
    images: uint8 [N, H, W, C].

  Returns:
    float32 [N, s, s], of length 1, or 0 of an image of one value alone.
  """
  grey = images.astype(np.float32).mean(axis=3)
  small = _shrunk(_shrunk(grey, 1), 2)
  small -= small.mean(axis=(1, 2), keepdims=True)
  length = np.sqrt((small**2).sum(axis=(1, 2), keepdims=True))
  # Below a grey level of difference there is nothing to compare.
  return np.where(length > 1, small / np.maximum(length, 1), 0)


def across(
  earlier: np.ndarray, later: np.ndarray, exact: Sequence[bool] | np.ndarray
) -> int | None:
  """Returns the number of later images with a near copy among the earlier.

  Args:
    earlier: Signatures [M, s, s].
    later: Signatures [N, s, s].
    exact: Whether each later image has an equal one among the earlier; such
      images do not count.

  Returns:
    The number, or None where there are more than `MAX_PAIRS` pairs.
  """
  if len(earlier) * len(later) > MAX_PAIRS:
    return None
  flat = earlier.reshape(len(earlier), -1)
  found = np.zeros(len(later), bool)
  for start in range(0, len(later), _BATCH):
    part = later[start : start + _BATCH]
    for position in _positions(part):
      turned = position.reshape(len(part), -1)
      for first in range(0, len(flat), 8 * _BATCH):
        product = turned @ flat[first : first + 8 * _BATCH].T
        found[start : start + _BATCH] |= product.max(axis=1) >= LEAST_PRODUCT
  return int((found & ~np.asarray(exact, bool)).sum())


def _shrunk(images: np.ndarray, axis: int) -> np.ndarray:
  """Returns the means of blocks along an axis, at most `SIDE` of them."""
  side = images.shape[axis]
  if side <= SIDE:
    return images
  edges = np.linspace(0, side, SIDE + 1)[:-1].round().astype(int)
  counts = np.diff(np.append(edges, side)).astype(np.float32)
  shape = [1, 1, 1]
  shape[axis] = SIDE
  return np.add.reduceat(images, edges, axis=axis) / counts.reshape(shape)


def _positions(images: np.ndarray) -> list[np.ndarray]:
  """Returns square images mirrored and turned in all eight ways."""
  turned = [np.rot90(images, k, axes=(1, 2)) for k in range(4)]
  return [*turned, *(image[:, :, ::-1] for image in turned)]
