"""The graph that an exported model runs: check, decode, resize, predict.

All of it is TensorFlow, as it is traced into the SavedModel of `export` and
runs there without this package. An encoded image is brought to the size and
channels of the model, float32 in 0..1: alpha is dropped, grey is repeated into
colour, colour becomes grey by its luma (ITU-R BT.601), 16 bits keep their full
range, resizing is bilinear with antialiasing, and the image is turned upright
as its EXIF orientation says (`encoded_images`). The limits on an encoded image
stand there too, and are checked before a pixel is decoded.

A request that holds a wrong image is refused as a whole, with the number of
that image in the request (from 0) and the reason. An empty request has an empty
answer.

>>> red = tf.constant([[[255, 0, 0]]], tf.uint8)
>>> grey = preprocess(tf.io.encode_png(red), (1, 1, 1))
>>> grey.shape, round(float(grey[0, 0, 0]), 3)
(TensorShape([1, 1, 1]), 0.299)
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tff_medical.serving import encoded_images

# Resizing and decoding may overshoot 0..1 by rounding, and no further.
_SLACK = 1e-3


class Server(tf.Module):
  """A model's weights and the two signatures that use them.

  Attributes:
    assets: `tf.saved_model.Asset`s to travel with the model.
  """

  def __init__(self, model: tf.keras.Model, *, multi_label: bool):
    """Wraps a Keras model from images [N, H, W, C] in 0..1 to logits [N, K]."""
    super().__init__()
    self.weights = ordered_weights(model)
    self.assets: list[tf.saved_model.Asset] = []
    self._model = _Untracked(model)
    self._multi_label = multi_label
    self._shape = tuple(model.input_shape[1:])
    self._num_outputs = model.output_shape[-1]

  def signatures(self) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
    """The traced functions by the name of their signature."""
    images = tf.TensorSpec((None, *self._shape), tf.float32, name='images')
    encoded = tf.TensorSpec((None,), tf.string, name='encoded')
    predict = tf.function(self._check_and_predict)
    decode_and_predict = tf.function(self._decode_and_predict)
    return {
      'serving_default': predict.get_concrete_function(images),
      'serve_bytes': decode_and_predict.get_concrete_function(encoded),
    }

  def _check_and_predict(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
    return self._predict(_checked_images(images, self._shape))

  def _decode_and_predict(self, encoded: tf.Tensor) -> dict[str, tf.Tensor]:
    encoded = _with_shape(
      encoded, (None,), 'encoded must have shape [N], one file an image'
    )
    return self._predict(decode(encoded, self._shape))

  def _predict(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
    # Normalization over groups of channels fails on no images.
    logits = tf.cond(
      tf.shape(images)[0] > 0,
      lambda: self._model.call(images, training=False),
      # Of a size that TensorFlow Lite, too, takes for that of the other.
      lambda: tf.zeros((tf.shape(images)[0], self._num_outputs)),
    )
    if self._multi_label:
      probabilities = tf.sigmoid(logits)
      index = tf.cast(probabilities >= 0.5, tf.int64)
    else:
      probabilities = tf.nn.softmax(logits)
      index = tf.argmax(logits, axis=-1, output_type=tf.int64)
    return {'probabilities': probabilities, 'class_index': index}


def ordered_weights(model: tf.keras.Model) -> list[tf.Variable]:
  """Returns the trainable weights of a model in order, then the others."""
  return [*model.trainable_variables, *model.non_trainable_variables]


class _Untracked:
  """Hides the Keras model, whose layers would each be saved once more."""

  def __init__(self, model: tf.keras.Model):
    self.call = model.__call__


def preprocess(encoded: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
  """Turns the bytes of a PNG or JPEG into float32 `shape`, values in 0..1.

  Args:
    encoded: A scalar string.
    shape: (H, W, C) with C of 1 or 3.

  Returns:
    float32 [H, W, C].
  """
  return decode(tf.reshape(encoded, (1,)), shape)[0]


def decode(encoded: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
  """Turns the bytes of PNGs and JPEGs into float32 images in 0..1.

  Args:
    encoded: Strings [N].
    shape: (H, W, C) with C of 1 or 3.

  Returns:
    float32 [N, H, W, C].

  Raises:
    tf.errors.InvalidArgumentError: An image cannot be used; the message names
      the first such image and the reason.
  """
  images, reasons = encoded_images.decode(encoded, shape)
  wrong = tf.not_equal(reasons, '')
  first = _first(wrong)
  check = tf.debugging.Assert(
    ~tf.reduce_any(wrong),
    [
      encoded_images.sentence(
        'image ', first, ' of encoded ', _at(reasons, first, '')
      )
    ],
  )
  with tf.control_dependencies(_ops(check)):
    return tf.identity(images)


def _checked_images(
  images: tf.Tensor, shape: tuple[int, int, int]
) -> tf.Tensor:
  """Returns the images, or fails naming the one that cannot be used."""
  wanted = ', '.join(map(str, shape))
  images = _with_shape(
    images, (None, *shape), f'images must have shape [N, {wanted}]'
  )
  low = tf.reduce_min(images, axis=(1, 2, 3))
  high = tf.reduce_max(images, axis=(1, 2, 3))
  # The minimum of values with a NaN among them need not be NaN.
  nan = tf.reduce_any(tf.math.is_nan(images), axis=(1, 2, 3))
  wrong = nan | ~((low >= -_SLACK) & (high <= 1 + _SLACK))
  first = _first(wrong)
  found = tf.where(
    _at(nan, first, False),
    'NaN',
    encoded_images.sentence(
      tf.strings.as_string(_at(low, first, 0.0), shortest=True),
      ' to ',
      tf.strings.as_string(_at(high, first, 0.0), shortest=True),
    ),
  )
  check = tf.debugging.Assert(
    ~tf.reduce_any(wrong),
    [
      encoded_images.sentence(
        'images must be in 0..1 (divide 8-bit values by 255), but image ',
        first,
        ' of images holds ',
        found,
      )
    ],
  )
  with tf.control_dependencies(_ops(check)):
    return tf.identity(images)


def _with_shape(
  values: tf.Tensor, shape: tuple[int | None, ...], message: str
) -> tf.Tensor:
  """Returns the values, or fails with the message and the shape they have.

  A loaded signature takes values of any shape, whatever it states.
  """
  # Or TensorFlow would take what the signature states for what is there.
  unknown = tf.compat.v1.placeholder_with_default(values, None)
  sizes = tf.strings.reduce_join(
    tf.strings.as_string(tf.shape(unknown)), separator=', '
  )
  pattern = ', '.join('[0-9]+' if n is None else str(n) for n in shape)
  check = tf.debugging.Assert(
    tf.strings.regex_full_match(sizes, pattern),
    [encoded_images.sentence(f'{message}, got (', sizes, ')')],
  )
  with tf.control_dependencies(_ops(check)):
    return tf.identity(values)


def _first(wrong: tf.Tensor) -> tf.Tensor:
  """The place of the first True; 0 where there is none."""
  padded = tf.concat([wrong, [False]], axis=0)
  return tf.argmax(tf.cast(padded, tf.int32), output_type=tf.int64)


def _at(values: tf.Tensor, place: tf.Tensor, default: object) -> tf.Tensor:
  """The value at a place of a vector that may be empty."""
  return tf.gather(tf.concat([values, [default]], axis=0), place)


def _ops(check: tf.Operation | None) -> list[tf.Operation]:
  """What to wait for: eagerly, a check has run and returned None."""
  return [] if check is None else [check]
