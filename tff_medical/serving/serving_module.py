"""The graph of an exported model: check, decode, resize, predict.

The graph is traced into the SavedModel of `export` and runs there without this
package. An encoded image is brought to the size and channels of the model, as
float32 in 0..1:

- Alpha is dropped, grey is repeated into colour, and colour becomes grey by its
  luma (ITU-R BT.601).
- 16 bits keep their full range.
- Resizing is bilinear with antialiasing.
- The image is turned upright by its EXIF orientation (`encoded_images`).

The limits on an encoded image (`encoded_images`) are checked before any pixel
is decoded. A request with an invalid image is refused as a whole, with the
number of that image in the request (from 0) and the reason. An empty request
has an empty answer.

>>> red = tf.constant([[[255, 0, 0]]], tf.uint8)
>>> grey = preprocess(tf.io.encode_png(red), (1, 1, 1))
>>> grey.shape, round(float(grey[0, 0, 0]), 3)
(TensorShape([1, 1, 1]), 0.299)
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import threading
from typing import Any

import tensorflow as tf

from tff_medical.serving import encoded_images

# Resizing and decoding may overshoot 0..1 only by rounding.
_SLACK = 1e-3
_tracing = threading.Lock()


class ServingModule(tf.Module):
  """Weights of a model and the two signatures that use them.

  Attributes:
    weights: Variables of the trained model; see `ordered_weights`.
    frozen_weights: Variables of the frozen layers, if there are any.
    assets: `tf.saved_model.Asset`s that are saved with the model.
  """

  def __init__(
    self,
    model: tf.keras.Model,
    *,
    multi_label: bool,
    frozen: tf.keras.Model | None = None,
    reduced_decoding: bool = False,
  ):
    """Wraps a Keras model that returns logits [N, K].

    Args:
      model: Model of images [N, H, W, C] in 0..1, or of their features.
      multi_label: Whether the K outputs are independent labels.
      frozen: Model from images to the features that `model` takes, if it takes
        any.
      reduced_decoding: Choice of `decoded.DecodingPolicy`.
    """
    super().__init__()
    self.weights = ordered_weights(model)
    self.frozen_weights = [] if frozen is None else ordered_weights(frozen)
    self.assets: list[tf.saved_model.Asset] = []
    self._model = _Untracked(model)
    self._frozen = None if frozen is None else _Untracked(frozen)
    self._multi_label = multi_label
    self._reduced_decoding = reduced_decoding
    self._shape = image_shape(model, frozen)
    self._num_outputs = model.output_shape[-1]

  def signatures(self) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
    """Returns the traced function of each signature."""
    images = tf.TensorSpec((None, *self._shape), tf.float32, name='images')
    encoded = tf.TensorSpec((None,), tf.string, name='encoded')
    # There is no Python control flow on tensors, for which to rewrite sources
    # would take longer than to trace them. Both signatures share the model.
    predict = tf.function(self._predict, input_signature=(images,))
    decode_all = traced_decoder(self._shape, self._reduced_decoding)

    @tf.autograph.experimental.do_not_convert
    def check_and_predict(images: tf.Tensor) -> dict[str, tf.Tensor]:
      return predict(_checked_images(images, self._shape))

    @tf.autograph.experimental.do_not_convert
    def decode_and_predict(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
      encoded = _with_shape(
        encoded, (None,), 'encoded must have shape [N], one file an image'
      )
      return predict(decode_all(encoded))

    return {
      'serving_default': tf.function(check_and_predict).get_concrete_function(
        images
      ),
      'serve_bytes': tf.function(decode_and_predict).get_concrete_function(
        encoded
      ),
    }

  @tf.autograph.experimental.do_not_convert
  def _predict(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
    # Group norm fails on an empty batch.
    logits = tf.cond(
      tf.shape(images)[0] > 0,
      lambda: self._logits(images),
      # TensorFlow Lite also accepts this shape as that of the other branch.
      lambda: tf.zeros((tf.shape(images)[0], self._num_outputs)),
    )
    if self._multi_label:
      probabilities = tf.sigmoid(logits)
      index = tf.cast(probabilities >= 0.5, tf.int64)
    else:
      probabilities = tf.nn.softmax(logits)
      index = tf.argmax(logits, axis=-1, output_type=tf.int64)
    return {'probabilities': probabilities, 'class_index': index}

  def _logits(self, images: tf.Tensor) -> tf.Tensor:
    if self._frozen is not None:
      images = self._frozen.call(images, training=False)
    return self._model.call(images, training=False)


def image_shape(
  model: tf.keras.Model, frozen: tf.keras.Model | None
) -> tuple[int, int, int]:
  """Returns the shape (H, W, C) of the images that a model takes.

  Args:
    model: Model of images, or of their features.
    frozen: Model from images to these features, if any.
  """
  return tuple((frozen or model).input_shape[1:])


def traced_decoder(
  shape: tuple[int, int, int], reduced_decoding: bool
) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns `decode` as a TensorFlow function, which is traced once.

  To trace it takes longer than the rest of the graph. As it needs no weights, a
  thread may do so ahead; another call waits for it.

  Args:
    shape: Shape (H, W, C) of the images, with C of 1 or 3.
    reduced_decoding: Choice of `decoded.DecodingPolicy`.
  """
  with _tracing:
    return _traced_decoder(shape, reduced_decoding)


@functools.lru_cache(maxsize=4)
def _traced_decoder(shape: tuple[int, int, int], reduced_decoding: bool) -> Any:
  return tf.function(
    lambda encoded: decode(encoded, shape, reduced_decoding=reduced_decoding),
    autograph=False,
  ).get_concrete_function(tf.TensorSpec((None,), tf.string, name='encoded'))


def ordered_weights(model: tf.keras.Model) -> list[tf.Variable]:
  """Returns the trainable weights of a model in order, then the others."""
  return [*model.trainable_variables, *model.non_trainable_variables]


class _Untracked:
  """Hides the Keras model, whose layers would otherwise be saved as well."""

  def __init__(self, model: tf.keras.Model):
    self.call = model.__call__


def preprocess(encoded: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
  """Turns the bytes of a PNG or JPEG into float32 `shape`, values in 0..1.

  Args:
    encoded: Bytes of the file, a scalar string.
    shape: Shape (H, W, C) of the image, with C of 1 or 3.

  Returns:
    Image, float32 [H, W, C].
  """
  return decode(tf.reshape(encoded, (1,)), shape)[0]


def decode(
  encoded: tf.Tensor,
  shape: tuple[int, int, int],
  *,
  reduced_decoding: bool = False,
) -> tf.Tensor:
  """Turns the bytes of PNGs and JPEGs into float32 images in 0..1.

  Args:
    encoded: Bytes of the files, strings [N].
    shape: Shape (H, W, C) of the images, with C of 1 or 3.
    reduced_decoding: Choice of `decoded.DecodingPolicy`.

  Returns:
    Images, float32 [N, H, W, C].

  Raises:
    tf.errors.InvalidArgumentError: An image cannot be used; the message names
      the first such image and the reason.
  """
  images, reasons = encoded_images.decode(
    encoded, shape, reduced_decoding=reduced_decoding
  )
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
  """Returns the images; fails with the number of one that cannot be used."""
  sizes = ', '.join(map(str, shape))
  images = _with_shape(
    images, (None, *shape), f'images must have shape [N, {sizes}]'
  )
  low = tf.reduce_min(images, axis=(1, 2, 3))
  high = tf.reduce_max(images, axis=(1, 2, 3))
  # The minimum of values that include NaN need not be NaN.
  nan = tf.reduce_any(tf.math.is_nan(images), axis=(1, 2, 3))
  wrong = nan | ~((low >= -_SLACK) & (high <= 1 + _SLACK))
  first = _first(wrong)
  content = tf.where(
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
        content,
      )
    ],
  )
  with tf.control_dependencies(_ops(check)):
    return tf.identity(images)


def _with_shape(
  values: tf.Tensor, shape: tuple[int | None, ...], message: str
) -> tf.Tensor:
  """Returns the values; fails with the message and their shape if it differs.

  A loaded signature accepts values of any shape, whatever shape it states.
  """
  # The placeholder hides the stated shape, which TensorFlow would otherwise
  # take for the actual one.
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
  """Returns the index of the first True; 0 if there is none."""
  padded = tf.concat([wrong, [False]], axis=0)
  return tf.argmax(tf.cast(padded, tf.int32), output_type=tf.int64)


def _at(values: tf.Tensor, place: tf.Tensor, default: object) -> tf.Tensor:
  """Returns the value at an index, or `default` if `values` is empty."""
  return tf.gather(tf.concat([values, [default]], axis=0), place)


def _ops(check: tf.Operation | None) -> list[tf.Operation]:
  """Returns the control inputs of a check, which is None in eager mode."""
  return [] if check is None else [check]
