"""Files are decoded upright and within the limits, or it is said why not."""

from __future__ import annotations

import functools
import io
import struct

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image
from PIL import ImageOps
import tensorflow as tf

from tests import image_files
from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import raster_files
from tff_medical.data.decoders import resizing
from tff_medical.serving import encoded_images

_HEIGHT, _WIDTH = 10, 16


@functools.cache
def _decoder(shape):
  return tf.function(
    lambda encoded: encoded_images.decode(encoded, shape),
    input_signature=[tf.TensorSpec([None], tf.string)],
  )


def _decode(files, shape=(_HEIGHT, _WIDTH, 1)):
  images, reasons = _decoder(shape)(tf.constant(files, tf.string))
  return images.numpy(), [r.decode() for r in reasons.numpy()]


def _one(file, shape=(_HEIGHT, _WIDTH, 1)):
  (image,), (reason,) = _decode([file], shape)
  return image, reason


def _pillow(file):
  """What people see: turned by Pillow, RGB in 0..1."""
  image = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
  return np.asarray(image.convert('RGB')) / 255


class ReducedTest(parameterized.TestCase):
  """Large JPEGs are decoded as training decodes them."""

  @parameterized.product(
    size=((127, 200), (128, 200), (300, 256), (600, 520)),
    options=(
      dict(mode='L'),
      dict(mode='RGB'),
      dict(mode='RGB', progressive=True, subsampling=0),
      dict(mode='CMYK'),
    ),
  )
  def test_as_own_images(self, size, options):
    # Between 1 and 8 as large as is needed, and turned by Exif.
    noise = np.random.default_rng(0).normal(0, 12, (*size, 3))
    pixels = np.clip(image_files.smooth(*size) + noise, 0, 255)
    plain = image_files.saved(
      pixels.astype(np.uint8), 'jpeg', quality=90, **options
    )
    segment = image_files.exif_segment(image_files.exif(6))
    policy = decoded.DecodingPolicy(reduced_decoding=True)
    for file in (plain, image_files.with_segments(plain, segment)):
      (image,) = raster_files.decode(file, policy, 16).images
      expected = resizing.to_uint8(image, 16, 3) / 255
      (found,), (reason,) = encoded_images.decode(
        tf.constant([file]), (16, 16, 3), reduced_decoding=True
      )
      self.assertEqual(reason, b'')
      np.testing.assert_allclose(found, expected, atol=1.2 / 255)


class OrientationTest(parameterized.TestCase):
  def _compare(self, file, atol=1e-6):
    expected = _pillow(file)
    found, reason = _one(file, expected.shape)
    self.assertEqual(reason, '')
    np.testing.assert_allclose(found, expected, atol=atol)

  @parameterized.product(orientation=tuple(range(1, 9)), order=('<', '>'))
  def test_as_pillow_turns_a_jpeg(self, orientation, order):
    plain = image_files.saved(
      image_files.smooth(_HEIGHT, _WIDTH), 'jpeg', quality=95
    )
    data = image_files.exif(orientation, order)
    file = image_files.with_segments(plain, image_files.exif_segment(data))
    is_wide = _pillow(file).shape[:2] == (_HEIGHT, _WIDTH)
    self.assertEqual(is_wide, orientation < 5)
    self._compare(file, atol=3 / 255)

  @parameterized.product(orientation=tuple(range(1, 9)), order=('<', '>'))
  def test_as_pillow_turns_a_png(self, orientation, order):
    pixels = image_files.pixels(_HEIGHT, _WIDTH)
    data = image_files.exif(orientation, order)
    chunk = image_files.chunk(b'eXIf', data)
    self._compare(image_files.grey_png(pixels, chunk))

  @parameterized.parameters(3, 4, 8, 9)
  def test_any_whole_number(self, kind):
    chunk = image_files.chunk(b'eXIf', image_files.exif(6, '>', kind))
    self._compare(
      image_files.grey_png(image_files.pixels(_HEIGHT, _WIDTH), chunk)
    )

  def test_resizing_and_turning_go_together(self):
    pixels = image_files.smooth(64, 40)[..., 0]
    chunk = image_files.chunk(b'eXIf', image_files.exif(6))
    turned, _ = _one(image_files.grey_png(pixels, chunk), (8, 12, 1))
    rotated = np.ascontiguousarray(np.rot90(pixels, -1))
    plain, _ = _one(image_files.grey_png(rotated), (8, 12, 1))
    np.testing.assert_allclose(turned, plain, atol=1e-6)

  def test_found_wherever_it_may_stand(self):
    data = image_files.exif(8)
    pixels = image_files.pixels(_HEIGHT, _WIDTH)
    other = struct.pack('<HHII', 0x0100, 4, 1, 16)
    plain = image_files.saved(image_files.smooth(_HEIGHT, _WIDTH), 'jpeg')
    segment = image_files.exif_segment(data)
    comments = [image_files.segment(0xFE, b'x' * n) for n in (0, 9, 60_000)]
    for name, file, atol in (
      (
        'png: after the pixels',
        image_files.png(
          image_files.header(_WIDTH, _HEIGHT),
          rows=image_files.grey_rows(pixels),
          last=False,
        )
        + image_files.chunk(b'eXIf', data)
        + image_files.chunk(b'IEND'),
        1e-6,
      ),
      (
        'png: with the prefix of JPEG',
        image_files.grey_png(
          pixels, image_files.chunk(b'eXIf', b'Exif\0\0' + data)
        ),
        1e-6,
      ),
      (
        'png: not the first entry',
        image_files.grey_png(
          pixels,
          image_files.chunk(b'eXIf', image_files.exif(8, before=[other])),
        ),
        1e-6,
      ),
      (
        'jpeg: after other segments',
        image_files.with_segments(
          plain, *comments, image_files.segment(0xE1, b'http://x'), segment
        ),
        3 / 255,
      ),
      (
        'jpeg: after fill bytes',
        image_files.with_segments(plain, b'\xff\xff' + segment),
        3 / 255,
      ),
    ):
      with self.subTest(name):
        self.assertEqual(_pillow(file).shape[:2], (_WIDTH, _HEIGHT))
        self._compare(file, atol)

  def test_exif_without_sense_counts_as_upright(self):
    good = image_files.exif(6)
    pixels = image_files.pixels(_HEIGHT, _WIDTH)
    jpeg = image_files.saved(image_files.smooth(_HEIGHT, _WIDTH), 'jpeg')
    upright, _ = _one(jpeg)
    files = [image_files.exif(n) for n in (0, 9, 255, 65535)]
    files += [good[:n] for n in range(len(good) - 8)]
    files += [
      image_files.exif(6, kind=kind) for kind in (0, 1, 2, 5, 7, 11, 65535)
    ]
    files += [image_files.exif(6, count=n) for n in (0, 2, 2**31, 2**32 - 1)]
    files += [
      good[:4] + struct.pack('<I', n) + good[8:]
      for n in (0, 9, 1000, 2**31, 2**32 - 1)
    ]
    files += [b'XX' + good[2:], b'IM' + good[2:], good[:2] + b'\0*' + good[4:]]
    files += [image_files.exif(6, tag=0x0113), bytes(200), b'\xff' * 200]
    for data in files:
      with self.subTest(data[:30]):
        png = image_files.grey_png(pixels, image_files.chunk(b'eXIf', data))
        image, reason = _one(png)
        self.assertEqual(reason, '')
        np.testing.assert_allclose(image[..., 0], pixels / 255, atol=1e-6)
        file = image_files.with_segments(jpeg, image_files.exif_segment(data))
        image, reason = _one(file)
        self.assertEqual(reason, '')
        np.testing.assert_array_equal(image, upright)

  def test_a_count_of_entries_beyond_the_end(self):
    # What is there counts, as in Pillow.
    data = bytearray(image_files.exif(6))
    data[8:10] = b'\xff\xff'
    chunk = image_files.chunk(b'eXIf', bytes(data))
    file = image_files.grey_png(image_files.pixels(_HEIGHT, _WIDTH), chunk)
    image, reason = _one(file, (_WIDTH, _HEIGHT, 3))
    self.assertEqual(reason, '')
    pixels = image_files.pixels(_HEIGHT, _WIDTH)
    np.testing.assert_allclose(image[..., 0], np.rot90(pixels, -1) / 255, 1e-5)


class FormatsTest(parameterized.TestCase):
  def test_interlaced(self):
    pixels = image_files.pixels(_HEIGHT, _WIDTH)
    image, reason = _one(image_files.interlaced_png(pixels))
    self.assertEqual(reason, '')
    np.testing.assert_allclose(image[..., 0], pixels / 255, atol=1e-6)

  def test_the_still_image_of_an_animated_png(self):
    pixels = image_files.pixels(_HEIGHT, _WIDTH)
    frames = [Image.fromarray(p) for p in (pixels, 255 - pixels)]
    stream = io.BytesIO()
    frames[0].save(stream, 'png', save_all=True, append_images=frames[1:])
    self.assertIn(b'acTL', stream.getvalue())
    image, _ = _one(stream.getvalue())
    np.testing.assert_allclose(image[..., 0], pixels / 255, atol=1e-6)

  @parameterized.parameters(
    dict(mode='L'),
    dict(mode='RGB', progressive=True),
    dict(mode='CMYK'),
    dict(mode='RGB', optimize=True, subsampling=0),
  )
  def test_jpegs(self, **options):
    file = image_files.saved(
      image_files.smooth(_HEIGHT, _WIDTH), 'jpeg', quality=95, **options
    )
    image, reason = _one(file, (_HEIGHT, _WIDTH, 3))
    self.assertEqual(reason, '')
    np.testing.assert_allclose(image, _pillow(file), atol=4 / 255)

  @parameterized.parameters(1, 2, 4)
  def test_grey_of_few_bits(self, depth):
    values = image_files.pixels(8, 8) >> (8 - depth)
    bits = np.unpackbits(values[..., np.newaxis], axis=-1)[..., 8 - depth :]
    rows = image_files.grey_rows(np.packbits(bits.reshape(8, -1), axis=1))
    file = image_files.png(image_files.header(8, 8, depth), rows=rows)
    image, _ = _one(file, (8, 8, 1))
    expected = values / (2**depth - 1)
    np.testing.assert_allclose(image[..., 0], expected, atol=1e-6)


class LimitsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('png', 16_000, 16_000, 'is 16000 x 16000 pixels, more than the 67108864'),
    ('wide', 65_536, 1, 'more than the 65535 a side'),
    ('most', 2**31 - 1, 2**31 - 1, 'is 2147483647 x 2147483647 pixels'),
    ('none', 0, 5, 'is 0 x 5 pixels, which is no image'),
  )
  def test_png_sizes(self, width, height, message):
    file = image_files.png(image_files.header(width, height), rows=b'\0')
    self.assertIn(message, _one(file)[1])

  @parameterized.parameters((65_000, 65_000), (16_384, 4097))
  def test_jpeg_sizes(self, width, height):
    jpeg = image_files.saved(image_files.pixels(8, 8), 'jpeg')
    file = image_files.with_size(jpeg, width, height)
    self.assertIn(f'is {width} x {height} pixels, more than', _one(file)[1])

  def test_the_limit_itself_is_allowed(self):
    file = image_files.saved(np.full((8192, 8192), 255, np.uint8), 'png')
    image, reason = _one(file)
    self.assertEqual(reason, '')
    np.testing.assert_allclose(image, 1.0, atol=1e-5)

  def test_nothing_is_decoded_that_is_too_large(self):
    # The pixels are damaged: to decode them would give another reason.
    file = image_files.png(
      image_files.header(8193, 8192), image_files.chunk(b'IDAT', b'no pixels')
    )
    self.assertIn('more than the 67108864 allowed', _one(file)[1])

  def test_bytes(self):
    file = image_files.grey_png(image_files.pixels(_HEIGHT, _WIDTH))
    padding = bytes(encoded_images.MAX_BYTES - len(file))
    self.assertEqual(_one(file + padding)[1], '')
    _, reason = _one(file + padding + b'\0')
    self.assertIn('has 67108865 bytes, more than the 67108864 allowed', reason)

  def test_chunks(self):
    pixels = image_files.pixels(_HEIGHT, _WIDTH)
    chunk = image_files.chunk(b'teST')
    most = encoded_images.MAX_CHUNKS - 3  # Header, pixels and end are the rest.
    self.assertEqual(_one(image_files.grey_png(pixels, chunk * most))[1], '')
    _, reason = _one(image_files.grey_png(pixels, chunk * (most + 1)))
    self.assertIn('has more than the 16384 chunks allowed', reason)

  def test_scans(self):
    jpeg = image_files.saved(image_files.pixels(8, 8), 'jpeg', progressive=True)
    self.assertEqual(_one(jpeg, (8, 8, 1))[1], '')
    start = jpeg.rindex(b'\xff\xda')
    file = jpeg[:start] + jpeg[start:-2] * 600 + b'\xff\xd9'
    self.assertIn('has too many scans', _one(file, (8, 8, 1))[1])


class BatchTest(parameterized.TestCase):
  def test_each_image_is_itself_whatever_stands_beside_it(self):
    pixels = image_files.pixels(5, _HEIGHT, _WIDTH)
    good = [image_files.grey_png(p) for p in pixels]
    files = [good[0], b'', good[1], good[2][:-20], b'GIF89a', *good[3:]]
    images, reasons = _decode(files)
    places = [0, 2, 5, 6]
    np.testing.assert_allclose(
      images[places, ..., 0], pixels[[0, 1, 3, 4]] / 255, atol=1e-6
    )
    self.assertEqual([reasons[i] for i in places], [''] * 4)
    self.assertIn('neither a PNG nor a JPEG', reasons[1])
    self.assertIn('damaged or cut short', reasons[3])
    self.assertIn('neither a PNG nor a JPEG', reasons[4])

  def test_no_image(self):
    images, reasons = _decode([])
    self.assertEqual(images.shape, (0, _HEIGHT, _WIDTH, 1))
    self.assertEmpty(reasons)

  def test_only_wrong_ones(self):
    _, reasons = _decode([b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff'])
    self.assertLen(reasons, 2)
    for reason in reasons:
      self.assertIn('damaged or cut short', reason)


if __name__ == '__main__':
  absltest.main()
