"""Decoder of PNG and JPEG images in TensorFlow, within stated limits.

What: `decode` turns strings into images of one size. For each string that
cannot be used it gives the reason. Why not `tf.io.decode_image` alone: it
decodes any size that the header claims (a PNG of 31 kB may hold 256
megapixels). It also ignores the EXIF orientation, and its error does not name
the image of a batch.

The header is checked against these limits before any pixel is decoded:

| limit        | value                                                       |
|--------------|-------------------------------------------------------------|
| `MAX_BYTES`  | 64 MiB per file                                             |
| `MAX_PIXELS` | 64 Mi pixels (such as 8192 x 8192)                          |
| `MAX_SIDE`   | 65,535 pixels, the maximum of JPEG                          |
| `MAX_SCANS`  | 500 scans of a progressive JPEG; fewer for large images     |
| `MAX_CHUNKS` | 16,384 chunks of a PNG                                      |

The still image of an animated PNG is used. The orientation comes from the first
Exif segment of a JPEG (CIPA DC-008) or the eXIf chunk of a PNG. Invalid Exif
data counts as upright, as in Pillow's `ImageOps.exif_transpose`.

>>> images, reasons = decode(tf.constant([b'GIF89a']), (2, 2, 1))
>>> images.shape, reasons.numpy().tolist()
(TensorShape([1, 2, 2, 1]), [b'is neither a PNG nor a JPEG'])
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

MAX_BYTES = 2**26
MAX_PIXELS = 2**26
MAX_SIDE = 2**16 - 1
MAX_SCANS = 500
MAX_CHUNKS = 2**14

_LUMA = (0.299, 0.587, 0.114)
_PNG_START = b'\x89PNG\r\n\x1a\n'
_JPEG_START = b'\xff\xd8\xff'
# Limit on scans times pixels of a progressive JPEG: each scan visits each
# pixel.
_MAX_SCANNED = 32 * MAX_PIXELS
# Number of a JPEG's markers that are searched for its Exif segment.
_MAX_MARKERS = 1024
_DAMAGED = 'cannot be decoded: the PNG or JPEG is damaged or cut short'
_UNKNOWN = 'is neither a PNG nor a JPEG'
_APP1 = 0xE1
# Markers that end the headers: start of scan and end of image.
_LAST_MARKERS = (0xDA, 0xD9)
# Markers without a length: TEM, the restarts and start of image.
_LONE_MARKERS = (0x01, *range(0xD0, 0xD9))
_EXIF_START = int.from_bytes(b'Exif\0\0', 'big')
_EXIF_CHUNK = int.from_bytes(b'eXIf', 'big')
_LAST_CHUNK = int.from_bytes(b'IEND', 'big')
_HEADER_CHUNK = int.from_bytes(b'IHDR', 'big')
_LITTLE, _BIG = int.from_bytes(b'II', 'big'), int.from_bytes(b'MM', 'big')
_ORIENTATION_TAG = 0x0112
# Exif types of integers of two and of four bytes.
_SHORT_TYPES, _LONG_TYPES = (3, 8), (4, 9)


class _Header(NamedTuple):
  """Contents of a file's header.

  Attributes:
    reason: Reason why the file cannot be used, a string; empty if it can.
    is_png: Whether the file is a PNG; otherwise it is a JPEG.
    is_deep: Whether a channel has 16 bits.
    orientation: Orientation of Exif, int64 from 1 to 8.
  """

  reason: tf.Tensor
  is_png: tf.Tensor
  is_deep: tf.Tensor
  orientation: tf.Tensor


def decode(
  encoded: tf.Tensor,
  shape: tuple[int, int, int],
  *,
  reduced_decoding: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Decodes, resizes and turns images upright.

  Args:
    encoded: Bytes of the files, strings [N], each a PNG or JPEG.
    shape: Shape (H, W, C) of the images to return, with C of 1 or 3.
    reduced_decoding: Whether a large JPEG is decoded at a fraction of its size,
      as `data.decoders` does; then H and W are equal.

  Returns:
    Images, float32 [N, H, W, C] in 0..1, and reasons, strings [N]. A reason is
    '' for an image that was decoded. Otherwise it completes a sentence that
    starts with the name of the image.
  """
  count = tf.size(encoded, out_type=tf.int64)

  def decode_one(
    number: tf.Tensor, file: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    header = _header(file)
    image = tf.cond(
      tf.equal(header.reason, ''),
      lambda: _image(file, header, shape, reduced_decoding),
      lambda: tf.zeros(shape),
    )
    return number, image, header.reason

  # In a graph only a dataset can continue after a decoder has failed: it skips
  # the failed elements. Decoding one image at a time bounds the memory.
  decoded = (
    # With `enumerate` TensorFlow would rewrite the dataset each time.
    tf.data.Dataset.from_tensor_slices((tf.range(count), encoded))
    .map(decode_one)
    .ignore_errors()
    .concatenate(  # The extra row keeps the batch from being empty.
      tf.data.Dataset.from_tensors((count, tf.zeros(shape), _DAMAGED))
    )
    .batch(count + 1)
    .get_single_element()
  )
  numbers, images, reasons = decoded
  # Row of each image among the decoded ones; -1 for an image that failed.
  row = tf.scatter_nd(
    numbers[:, tf.newaxis],
    tf.range(1, tf.size(numbers) + 1),
    tf.reshape(count + 1, (1,)),
  )
  row = row[:-1] - 1
  # The extra, last row stands for images that failed.
  row = tf.where(row < 0, tf.size(numbers) - 1, row)
  images = tf.ensure_shape(tf.gather(images, row), (None, *shape))
  return images, tf.gather(reasons, row)


def _header(encoded: tf.Tensor) -> _Header:
  """Returns the header of one file; fails if libjpeg finds it damaged."""
  is_png = _starts_with(encoded, _PNG_START)
  is_jpeg = _starts_with(encoded, _JPEG_START)
  size = tf.strings.length(encoded)
  reason, is_deep, orientation = tf.case(
    [
      (
        size > MAX_BYTES,
        lambda: _refused(
          sentence(
            'has ', size, ' bytes, more than the ', MAX_BYTES, ' allowed'
          )
        ),
      ),
      (is_png, lambda: _png_header(encoded)),
      (is_jpeg, lambda: _jpeg_header(encoded)),
    ],
    default=lambda: _refused(_UNKNOWN),
  )
  return _Header(reason, is_png, is_deep, orientation)


def _refused(
  reason: str | tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  return (
    tf.convert_to_tensor(reason),
    tf.constant(False),
    tf.constant(1, tf.int64),
  )


def _png_header(
  encoded: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Returns reason, whether channels have 16 bits, and orientation of a PNG."""
  data = tf.io.decode_raw(encoded, tf.uint8)
  width, height = _number(data, 16, 4), _number(data, 20, 4)
  start, length, too_many = _find_exif_chunk(data)
  reason = tf.case(
    [
      (
        (_number(data, 8, 4) != 13) | (_number(data, 12, 4) != _HEADER_CHUNK),
        lambda: tf.constant(_DAMAGED),
      ),
      (
        too_many,
        lambda: tf.constant(f'has more than the {MAX_CHUNKS} chunks allowed'),
      ),
    ],
    default=lambda: _reason_of_size(width, height),
  )
  has_prefix = _number(data, start, 6) == _EXIF_START
  skipped = tf.where(has_prefix, tf.constant(6, tf.int64), 0)
  orientation = _orientation(data, start + skipped, length - skipped)
  return reason, _number(data, 24, 1) == 16, orientation


def _jpeg_header(
  encoded: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Returns reason, False (no 16 bits) and orientation of a JPEG."""
  # libjpeg, which later decodes the file, reads the shape.
  shape = tf.image.extract_jpeg_shape(encoded, tf.int64)
  height, width = shape[0], shape[1]
  data = tf.io.decode_raw(encoded, tf.uint8)
  scans = tf.math.count_nonzero((data[:-1] == 0xFF) & (data[1:] == 0xDA))
  reason = tf.cond(
    (scans > MAX_SCANS) | (scans * width * height > _MAX_SCANNED),
    lambda: sentence(
      'has too many scans (', scans, '); save it as a baseline JPEG'
    ),
    lambda: tf.constant(''),
  )
  of_size = _reason_of_size(width, height)
  reason = tf.where(of_size == '', reason, of_size)
  orientation = _orientation(data, *_find_exif_segment(data))
  return reason, tf.constant(False), orientation


def _reason_of_size(width: tf.Tensor, height: tf.Tensor) -> tf.Tensor:
  """Returns the reason why an image of this size cannot be used, or ''."""
  size = sentence('is ', width, ' x ', height, ' pixels, ')
  return tf.case(
    [
      (
        (width < 1) | (height < 1),
        lambda: sentence(size, 'which is no image'),
      ),
      (
        (width > MAX_SIDE) | (height > MAX_SIDE),
        lambda: sentence(
          size, 'more than the ', MAX_SIDE, ' a side allowed; make it smaller'
        ),
      ),
      (
        width * height > MAX_PIXELS,
        lambda: sentence(
          size, 'more than the ', MAX_PIXELS, ' allowed; make it smaller'
        ),
      ),
    ],
    default=lambda: tf.constant(''),
  )


def _image(
  encoded: tf.Tensor,
  header: _Header,
  shape: tuple[int, int, int],
  reduced_decoding: bool,
) -> tf.Tensor:
  """Returns the decoded image: float32 `shape`, values in 0..1, upright."""
  height, width, channels = shape
  on_its_side = header.orientation >= 5
  size = tf.where(on_its_side, (width, height), (height, width))

  def resized(pixels: tf.Tensor) -> tf.Tensor:
    # Resizing takes integers, so that no float copy of the whole image is made.
    image = tf.image.resize(pixels, size, antialias=True)
    return tf.cast(image, tf.float32) / pixels.dtype.max

  image = tf.case(
    [
      (
        header.is_png & header.is_deep,
        lambda: resized(tf.io.decode_png(encoded, dtype=tf.uint16)),
      ),
      (header.is_png, lambda: resized(tf.io.decode_png(encoded))),
    ],
    default=lambda: resized(
      _jpeg(encoded, height if reduced_decoding else None)
    ),
  )
  image = _upright(_with_channels(image, channels), header.orientation)
  return tf.ensure_shape(tf.clip_by_value(image, 0.0, 1.0), shape)


def _jpeg(encoded: tf.Tensor, image_size: int | None) -> tf.Tensor:
  """Returns the pixels of a JPEG, at a fraction of its size if it is large.

  Args:
    encoded: Bytes of the file.
    image_size: Height and width of what is made of it; None for all pixels.
  """

  def of_ratio(ratio: int) -> tf.Tensor:
    return tf.io.decode_jpeg(
      encoded, ratio=ratio, dct_method='INTEGER_ACCURATE'
    )

  if image_size is None:
    return of_ratio(1)
  side = tf.reduce_min(tf.image.extract_jpeg_shape(encoded)[:2])
  # The rule of `decoded.reduction`.
  return tf.case(
    [
      (side >= 2 * ratio * image_size, functools.partial(of_ratio, ratio))
      for ratio in (8, 4, 2)
    ],
    default=lambda: of_ratio(1),
  )


def _with_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
  """Returns [h, w, `channels`] of an image [h, w, 1 to 4], without alpha."""
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


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
  """Returns the image [h, w, C] turned by its Exif orientation, 1 to 8."""

  def when(
    values: tuple[int, ...],
    turn: Callable[[tf.Tensor], tf.Tensor],
    image: tf.Tensor,
  ) -> tf.Tensor:
    is_one = tf.reduce_any(orientation == tf.constant(values, tf.int64))
    return tf.cond(is_one, lambda: turn(image), lambda: image)

  image = when((5, 6, 7, 8), lambda x: tf.transpose(x, (1, 0, 2)), image)
  image = when((2, 3, 6, 7), lambda x: tf.reverse(x, (1,)), image)
  return when((3, 4, 7, 8), lambda x: tf.reverse(x, (0,)), image)


def _find_exif_segment(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns start and length of the Exif data of a JPEG; 0 and 0 if none."""

  def step(
    position: tf.Tensor, start: tf.Tensor, length: tf.Tensor, done: tf.Tensor
  ) -> tuple[tf.Tensor, ...]:
    del start, length, done
    marker, size = (
      _number(data, position + 1, 1),
      _number(data, position + 2, 2),
    )
    is_fill = (_number(data, position, 1) != 0xFF) | _is_in(marker, (0, 0xFF))
    is_lone = _is_in(marker, _LONE_MARKERS)
    is_segment = ~is_fill & ~is_lone
    is_exif = (
      is_segment
      & (marker == _APP1)
      & (_number(data, position + 4, 6) == _EXIF_START)
    )
    ends = is_segment & (_is_in(marker, _LAST_MARKERS) | (size < 2))
    zero = tf.zeros_like(position)
    return (
      position
      + tf.where(is_fill, zero + 1, tf.where(is_lone, zero + 2, 2 + size)),
      tf.where(is_exif, position + 10, zero),
      tf.where(is_exif, size - 8, zero),
      is_exif | ends,
    )

  _, start, length, _ = _walk(data, 2, step, _MAX_MARKERS)
  return start, length


def _find_exif_chunk(
  data: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Returns start and length of a PNG's eXIf, and if it has too many chunks."""

  def step(
    position: tf.Tensor, start: tf.Tensor, length: tf.Tensor, done: tf.Tensor
  ) -> tuple[tf.Tensor, ...]:
    del start, length, done
    size, kind = _number(data, position, 4), _number(data, position + 4, 4)
    is_exif = kind == _EXIF_CHUNK
    zero = tf.zeros_like(position)
    return (
      position + 12 + size,
      tf.where(is_exif, position + 8, zero),
      tf.where(is_exif, size, zero),
      is_exif | (kind == _LAST_CHUNK),
    )

  position, start, length, done = _walk(data, 8, step, MAX_CHUNKS)
  return start, length, ~done & (position < tf.size(data, tf.int64))


def _walk(
  data: tf.Tensor,
  first: int,
  step: Callable[..., tuple[tf.Tensor, ...]],
  most: int,
) -> tuple[tf.Tensor, ...]:
  """Walks the parts of a file until done, its end, or `most` steps.

  The loop variables are position, start, length and done, as `step` takes them.
  """
  size = tf.size(data, tf.int64)
  zero = tf.constant(0, tf.int64)
  return tf.while_loop(
    lambda position, start, length, done: ~done & (position < size),
    step,
    (tf.constant(first, tf.int64), zero, zero, tf.constant(False)),
    maximum_iterations=most,
  )


def _orientation(
  data: tf.Tensor, start: tf.Tensor, length: tf.Tensor
) -> tf.Tensor:
  """Returns the orientation of the Exif data at `start`; 1 if there is none."""
  end = tf.minimum(start + length, tf.size(data, tf.int64))
  order = _number(data, start, 2)
  is_big = order == _BIG
  directory = start + _number(data, start + 4, 4, is_big)
  fits = (end - directory - 2) // 12
  count = tf.minimum(_number(data, directory, 2, is_big), fits)
  is_exif = (length > 0) & _is_in(order, (_LITTLE, _BIG))
  is_exif &= _number(data, start + 2, 2, is_big) == 42
  count = tf.where(is_exif, tf.maximum(count, 0), 0)
  # Each entry has 12 bytes: tag, type, count, value or its offset.
  first = tf.minimum(directory + 2, tf.size(data, tf.int64))
  entries = tf.reshape(data[first : first + 12 * count], (-1, 12))
  tag, kind = (
    _numbers(entries[:, :2], is_big),
    _numbers(entries[:, 2:4], is_big),
  )
  is_one = _numbers(entries[:, 4:8], is_big) == 1
  short = _numbers(entries[:, 8:10], is_big)
  long = _numbers(entries[:, 8:12], is_big)
  is_short = _is_in(kind[:, tf.newaxis], _SHORT_TYPES)
  is_long = _is_in(kind[:, tf.newaxis], _LONG_TYPES)
  is_stated = (tag == _ORIENTATION_TAG) & is_one & (is_short | is_long)
  values = tf.boolean_mask(tf.where(is_short, short, long), is_stated)
  # If a file states the orientation more than once, the last one counts.
  value = tf.concat([tf.ones((1,), tf.int64), values], axis=0)[-1]
  return tf.where((value >= 1) & (value <= 8), value, 1)


def _number(
  data: tf.Tensor,
  start: int | tf.Tensor,
  width: int,
  is_big: bool | tf.Tensor = True,
) -> tf.Tensor:
  """Returns an int64 of `width` bytes; bytes after the end count as 0."""
  places = tf.cast(start, tf.int64) + np.arange(width)
  size = tf.size(data, tf.int64)
  read = tf.gather(data, tf.clip_by_value(places, 0, size - 1))
  read = tf.where(places < size, read, tf.zeros_like(read))
  return _numbers(read[tf.newaxis], is_big)[0]


def _numbers(rows: tf.Tensor, is_big: bool | tf.Tensor) -> tf.Tensor:
  """Returns the int64 numbers [N] of bytes [N, width]."""
  width = rows.shape[-1]
  small = 256 ** np.arange(width)
  big = small[::-1]
  if isinstance(is_big, bool):
    weights = tf.constant(big if is_big else small)
  else:
    weights = tf.where(is_big, big, small)
  return tf.reduce_sum(tf.cast(rows, tf.int64) * weights, axis=-1)


def _is_in(value: tf.Tensor, values: tuple[int, ...]) -> tf.Tensor:
  return tf.reduce_any(value == tf.constant(values, tf.int64), axis=-1)


def _starts_with(encoded: tf.Tensor, start: bytes) -> tf.Tensor:
  return tf.strings.substr(encoded, 0, len(start)) == start


def sentence(*parts: str | int | tf.Tensor) -> tf.Tensor:
  """Returns the text and numbers of `parts`, joined."""
  return tf.strings.join([_text(part) for part in parts])


def _text(part: str | int | tf.Tensor) -> str | tf.Tensor:
  if isinstance(part, (str, int)):
    return str(part)
  return part if part.dtype == tf.string else tf.strings.as_string(part)
