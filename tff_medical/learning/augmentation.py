"""Augmentation: images are transformed at random wherever they are trained on.

What: `Augmentation` names the transformations. At client level a client trains
on one view of each image in each step (`augmented`). At record and patient level
the gradient of an image is averaged over a fixed number of views before it is
clipped (De et al. 2022, arXiv 2204.13650, section 3.2): the average has a
smaller norm and a smaller variance than the gradient of one view. Both draw from
the same transformations, inside the graph and from fresh entropy, anew for each
view and each step.

Epsilon is unchanged. Views of an image are made from that image alone, and what
is clipped is the update of the client, or the averaged gradient of the unit.
Computation grows with the number of views.

Transformations: `flip` mirrors left to right with probability 1/2. `rotate` turns
by up to 15 degrees. `crop` cuts out a square of 0.8 to 1 of the side and enlarges
it. `shift` moves by up to 2 pixels in each direction. `brightness` multiplies by
0.8 to 1.25, and clips to 0..1. Pixels from beyond the border are reflected. Where
sides matter (the heart in a chest film, left and right eye) a mirrored image
shows something else, and its label may be wrong.

>>> images = tf.reshape(tf.range(9.0), (1, 3, 3, 1))
>>> Augmentation(('shift',), views=4, max_shift=1).views_of(images).shape
TensorShape([1, 4, 3, 3, 1])
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate

# In the order in which they are applied.
NAMES = ('flip', 'rotate', 'crop', 'shift', 'brightness')


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Random views of images, new in every step.

  Attributes:
    names: Transformations, of `NAMES`, each once. They are applied in the order
      of `NAMES`.
    views: Number of views of each image. The image itself is not added to
      them.
    max_degrees: Largest angle of `rotate`, 0 to 180.
    min_side: Smallest side of `crop` as a share of the image's, above 0 and at
      most 1.
    max_shift: Largest shift of `shift` in pixels, vertically and horizontally:
      0 or more and below the image's size.
    max_factor: Largest factor of `brightness`, 1 or more; the smallest is its
      inverse.
  """

  names: tuple[str, ...]
  views: int = 1
  max_degrees: float = 15.0
  min_side: float = 0.8
  max_shift: int = 2
  max_factor: float = 1.25

  def __post_init__(self) -> None:
    for name in self.names:
      _validate.one_of(NAMES, augment=name)
    if not self.names or len(set(self.names)) < len(self.names):
      raise _validate.InputError(
        f'augment must name transformations, each once, got {self.names}'
      )
    _validate.positive_int(augmentations=self.views)
    _validate.within(0, 180, max_degrees=self.max_degrees)
    _validate.positive(min_side=self.min_side)
    _validate.within(0, 1, min_side=self.min_side)
    _validate.non_negative(max_shift=self.max_shift)
    _validate.within(1, 100, max_factor=self.max_factor)

  def views_of(self, images: tf.Tensor) -> tf.Tensor:
    """Returns random views [N, views, H, W, C] of float images [N, H, W, C].

    Args:
      images: Values of 0 to 1; the shape of an image is known.
    """
    views = tf.repeat(images, self.views, axis=0)
    for name in NAMES:
      if name in self.names:
        views = getattr(self, f'_{name}')(views)
    return tf.reshape(
      views, (tf.shape(images)[0], self.views, *images.shape[1:].as_list())
    )

  def _flip(self, images: tf.Tensor) -> tf.Tensor:
    return flipped(images, _uniform(images, 0, 1) < 0.5)

  def _rotate(self, images: tf.Tensor) -> tf.Tensor:
    limit = self.max_degrees
    return rotated(images, _uniform(images, -limit, limit))

  def _crop(self, images: tf.Tensor) -> tf.Tensor:
    sides = _uniform(images, self.min_side, 1)
    tops, lefts = (_uniform(images, 0, 1) * (1 - sides) for _ in range(2))
    return cropped(images, sides, tops, lefts)

  def _shift(self, images: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(images)[:1]
    limit = self.max_shift
    rows, columns = (
      tf.random.uniform(shape, -limit, limit + 1, tf.int32) for _ in range(2)
    )
    return shifted(images, rows, columns)

  def _brightness(self, images: tf.Tensor) -> tf.Tensor:
    limit = math.log(self.max_factor)
    return brightened(images, tf.exp(_uniform(images, -limit, limit)))


def flipped(images: tf.Tensor, is_flipped: tf.Tensor) -> tf.Tensor:
  """Returns images [N, H, W, C], those with `is_flipped` [N] mirrored."""
  chosen = is_flipped[:, tf.newaxis, tf.newaxis, tf.newaxis]
  return tf.where(chosen, tf.reverse(images, axis=[2]), images)


def rotated(images: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
  """Returns images turned anticlockwise about their centres.

  Args:
    images: float [N, H, W, C].
    degrees: float32 [N].
  """
  angles = degrees * (math.pi / 180)
  cosine, sine = tf.cos(angles), tf.sin(angles)
  height, width = images.shape[1] - 1, images.shape[2] - 1
  return _mapped(
    images,
    (cosine, -sine, (width * (1 - cosine) + height * sine) / 2),
    (sine, cosine, (height * (1 - cosine) - width * sine) / 2),
  )


def cropped(
  images: tf.Tensor, sides: tf.Tensor, tops: tf.Tensor, lefts: tf.Tensor
) -> tf.Tensor:
  """Returns parts of images, enlarged to the images' size.

  Args:
    images: float [N, H, W, C].
    sides: float32 [N], height and width of each part, as shares of the image's.
    tops: float32 [N], the upper border of each part, as a share of the height.
    lefts: float32 [N], the left border of each part, as a share of the width.
  """
  zeros = tf.zeros_like(sides)
  # Pixels are squares, whose centres lie half a pixel from their borders.
  half = sides / 2 - 0.5
  return _mapped(
    images,
    (sides, zeros, lefts * images.shape[2] + half),
    (zeros, sides, tops * images.shape[1] + half),
  )


def shifted(
  images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor
) -> tf.Tensor:
  """Returns images moved up and left by int32 [N] pixels, borders reflected."""
  by_row = _sources(images.shape[1], rows)
  moved = tf.gather(images, by_row, axis=1, batch_dims=1)
  by_column = _sources(images.shape[2], columns)
  return tf.gather(moved, by_column, axis=2, batch_dims=1)


def brightened(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
  """Returns images times float32 factors [N], clipped to 0..1."""
  factors = tf.cast(factors, images.dtype)
  return tf.clip_by_value(
    images * factors[:, tf.newaxis, tf.newaxis, tf.newaxis], 0, 1
  )


def augmented(
  model: tff.learning.models.FunctionalModel, augmentation: Augmentation
) -> tff.learning.models.FunctionalModel:
  """Returns a model that sees one random view of each image in training.

  Args:
    model: Functional model whose input is images [N, H, W, C].
    augmentation: Transformations; of one view.

  Raises:
    InputError: The model is another kind, or there are several views.
  """
  if not isinstance(model, tff.learning.models.FunctionalModel):
    raise _validate.InputError(
      f'augmentation needs a FunctionalModel, got {type(model).__name__}; make it '
      'by tff.learning.models.functional_model_from_keras'
    )
  if augmentation.views != 1:
    raise _validate.InputError(
      'augmentation must have one view where clients train, got '
      f'{augmentation.views}'
    )

  @tf.function
  def predict(weights: Any, x: tf.Tensor, training: bool = True) -> Any:
    seen = augmentation.views_of(x)[:, 0] if training else x
    return model.predict_on_batch(weights, seen, training)

  return tff.learning.models.FunctionalModel(
    initial_weights=model.initial_weights,
    predict_on_batch_fn=predict,
    loss_fn=model.loss,
    metrics_fns=(
      model.initialize_metrics_state,
      model.update_metrics_state,
      model.finalize_metrics,
    ),
    input_spec=model.input_spec,
  )


def _uniform(images: tf.Tensor, low: float, high: float) -> tf.Tensor:
  """Returns a new number for each image, float32 [N]."""
  return tf.random.uniform(tf.shape(images)[:1], low, high)


def _sources(size: int, shifts: tf.Tensor) -> tf.Tensor:
  """Returns the source pixel of each pixel of a view, int32 [N, size]."""
  # Reflects positions before the first and after the last pixel.
  beyond_start = tf.abs(tf.range(size) + shifts[:, tf.newaxis])
  return size - 1 - tf.abs(size - 1 - beyond_start)


def _mapped(
  images: tf.Tensor,
  x_source: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
  y_source: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
) -> tf.Tensor:
  """Returns images whose pixels come from elsewhere, bilinearly.

  Args:
    images: float [N, H, W, C].
    x_source: Factors of x and y, and an offset, float32 [N] each: the column
      from which the pixel at (x, y) comes.
    y_source: The same for its row.
  """
  zeros = tf.zeros_like(x_source[0])
  return tf.raw_ops.ImageProjectiveTransformV3(
    images=images,
    transforms=tf.stack([*x_source, *y_source, zeros, zeros], axis=1),
    output_shape=images.shape[1:3].as_list(),
    fill_value=0.0,
    interpolation='BILINEAR',
    fill_mode='REFLECT',
  )
