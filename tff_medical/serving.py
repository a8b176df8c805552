"""The graph that an exported model runs: decode, resize, predict.

All of it is TensorFlow, as it is traced into the SavedModel of `export` and
runs there without this package. An encoded image is brought to the size and
channels of the model, float32 in 0..1: alpha is dropped, grey is repeated into
colour, colour becomes grey by its luma (ITU-R BT.601), 16 bits keep their full
range, and resizing is bilinear with antialiasing.

>>> red = tf.constant([[[255, 0, 0]]], tf.uint8)
>>> grey = preprocess(tf.io.encode_png(red), (1, 1, 1))
>>> grey.shape, round(float(grey[0, 0, 0]), 3)
(TensorShape([1, 1, 1]), 0.299)
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

_LUMA = (0.299, 0.587, 0.114)
_PNG_START = b'\x89PNG\r\n\x1a\n'
_JPEG_START = b'\xff\xd8\xff'
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

  def signatures(self) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
    """The traced functions by the name of their signature."""
    images = tf.TensorSpec((None, *self._shape), tf.float32, name='images')
    encoded = tf.TensorSpec((None,), tf.string, name='encoded')
    predict = tf.function(self._predict)
    decode_and_predict = tf.function(self._decode_and_predict)
    return {
      'serving_default': predict.get_concrete_function(images),
      'serve_bytes': decode_and_predict.get_concrete_function(encoded),
    }

  def _predict(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
    in_range = tf.reduce_all((images >= -_SLACK) & (images <= 1 + _SLACK))
    check = tf.debugging.Assert(
      in_range, ['images must be in 0..1 (divide 8-bit values by 255)']
    )
    with tf.control_dependencies([check]):
      logits = self._model.call(images, training=False)
    if self._multi_label:
      probabilities = tf.sigmoid(logits)
      index = tf.cast(probabilities >= 0.5, tf.int64)
    else:
      probabilities = tf.nn.softmax(logits)
      index = tf.argmax(logits, axis=-1, output_type=tf.int64)
    return {'probabilities': probabilities, 'class_index': index}

  def _decode_and_predict(self, encoded: tf.Tensor) -> dict[str, tf.Tensor]:
    images = tf.map_fn(
      lambda one: preprocess(one, self._shape),
      encoded,
      fn_output_signature=tf.TensorSpec(self._shape, tf.float32),
    )
    return self._predict(images)


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
  height, width, channels = shape
  image = _with_channels(_decode(encoded), channels)
  image = tf.image.resize(image, (height, width), antialias=True)
  return tf.ensure_shape(tf.clip_by_value(image, 0.0, 1.0), shape)


def _decode(encoded: tf.Tensor) -> tf.Tensor:
  """Decodes to float32 [h, w, 1 to 4], values in 0..1."""
  is_png = tf.strings.substr(encoded, 0, len(_PNG_START)) == _PNG_START
  is_jpeg = tf.strings.substr(encoded, 0, len(_JPEG_START)) == _JPEG_START
  known = tf.debugging.Assert(
    is_png | is_jpeg, ['an encoded image is neither a PNG nor a JPEG']
  )
  with tf.control_dependencies([known]):
    return tf.cond(
      is_png,
      # Eight bits are repeated into sixteen, so that 255 becomes 65535.
      lambda: (
        tf.cast(tf.io.decode_png(encoded, dtype=tf.uint16), tf.float32)
        / 65535.0
      ),
      lambda: (
        tf.cast(
          tf.io.decode_jpeg(encoded, dct_method='INTEGER_ACCURATE'), tf.float32
        )
        / 255.0
      ),
    )


def _with_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
  """Drops alpha and turns [h, w, 1 to 4] into [h, w, `channels`]."""
  is_colour = tf.shape(image)[-1] >= 3
  if channels == 3:
    return tf.cond(
      is_colour,
      lambda: image[..., :3],
      lambda: tf.repeat(image[..., :1], 3, axis=-1),
    )
  return tf.cond(
    is_colour,
    lambda: tf.reduce_sum(image[..., :3] * _LUMA, axis=-1, keepdims=True),
    lambda: image[..., :1],
  )
