"""Augmentation multiplicity: a unit's gradient is averaged over several views.

De et al. 2022 (arXiv 2204.13650, section 3.2): each image is augmented several
times, and the gradients of its views are averaged before clipping. The average
has a smaller norm and a smaller variance than one view's gradient. It costs no
privacy, as all views belong to one unit. Computation grows with the number of
views.

Views are shifted by a few pixels, with the border reflected. Mirroring is off
by default. Where sides matter (the heart in a chest film, left and right eye) a
mirrored image shows something else, and its label may be wrong.

>>> images = tf.reshape(tf.range(9.0), (1, 3, 3, 1))
>>> Augmentation(views=4, max_shift=1).views_of(images).shape
TensorShape([1, 4, 3, 3, 1])
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tff_medical import _validate


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Random views of images, new in every round.

  Attributes:
    views: Number of views of each image. The unshifted image is not added to
      them.
    max_shift: Largest shift of a view in pixels, vertically and horizontally: 0
      or more and below the image's size.
    mirror: Whether each view is mirrored left to right with probability 1/2,
      independently of the others.
  """

  views: int
  max_shift: int = 2
  mirror: bool = False

  def __post_init__(self) -> None:
    _validate.positive_int(augmentations=self.views)
    _validate.non_negative(max_shift=self.max_shift)

  def views_of(self, images: tf.Tensor) -> tf.Tensor:
    """Returns random views [N, views, H, W, C] of float images [N, H, W, C]."""
    shape = tf.shape(images)
    count = shape[0] * self.views
    repeated = tf.repeat(images, self.views, axis=0)
    rows = self._positions(count, images.shape[1])
    columns = self._positions(count, images.shape[2])
    if self.mirror:
      mirrored = tf.random.uniform([count, 1]) < 0.5
      columns = tf.where(mirrored, images.shape[2] - 1 - columns, columns)
    shifted = tf.gather(repeated, rows, axis=1, batch_dims=1)
    shifted = tf.gather(shifted, columns, axis=2, batch_dims=1)
    return tf.reshape(
      shifted, (shape[0], self.views, *images.shape[1:].as_list())
    )

  def _positions(self, count: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the source pixel of each pixel of a view, int32 [count, size]."""
    shifts = tf.random.uniform(
      [count, 1], -self.max_shift, self.max_shift + 1, tf.int32
    )
    # Reflects positions before the first and after the last pixel.
    beyond_start = tf.abs(tf.range(size) + shifts)
    return size - 1 - tf.abs(size - 1 - beyond_start)
