"""Encoded images arrive in the model as the pixels they are."""

from __future__ import annotations

import io
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image
import tensorflow as tf

from tff_medical.serving import serving_module


def _png(image) -> tf.Tensor:
  return tf.io.encode_png(image)


def _random(shape, dtype=np.uint8):
  high = np.iinfo(dtype).max
  return np.random.default_rng(0).integers(
    0, high, shape, dtype=dtype, endpoint=True
  )


def _pillow(image: Image.Image, kind: str) -> bytes:
  stream = io.BytesIO()
  image.save(stream, kind)
  return stream.getvalue()


class PreprocessTest(parameterized.TestCase):
  @parameterized.product(dtype=(np.uint8, np.uint16), channels=(1, 3))
  def test_same_size_keeps_every_value(self, dtype, channels):
    image = _random((9, 7, channels), dtype)
    found = serving_module.preprocess(_png(image), image.shape)
    expected = image / np.float64(np.iinfo(dtype).max)
    np.testing.assert_allclose(found, expected, atol=1e-7)

  def test_colour_becomes_luma(self):
    image = _random((9, 7, 3))
    found = serving_module.preprocess(_png(image), (9, 7, 1))
    expected = image @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-6)

  def test_grey_stored_as_colour_is_that_grey(self):
    image = _random((9, 7, 1))
    found = serving_module.preprocess(_png(np.repeat(image, 3, -1)), (9, 7, 1))
    np.testing.assert_allclose(found, image / 255, atol=1e-6)

  def test_grey_is_repeated_into_colour(self):
    image = _random((9, 7, 1))
    found = serving_module.preprocess(_png(image), (9, 7, 3))
    np.testing.assert_allclose(found, np.repeat(image, 3, -1) / 255, atol=1e-7)

  @parameterized.parameters(1, 3)
  def test_alpha_is_dropped(self, channels):
    image = _random((9, 7, channels + 1))
    found = serving_module.preprocess(_png(image), (9, 7, channels))
    np.testing.assert_allclose(found, image[..., :-1] / 255, atol=1e-7)

  @parameterized.parameters('1', 'P')
  def test_bits_and_palettes(self, mode):
    image = Image.fromarray(_random((9, 7))).convert(mode)
    found = serving_module.preprocess(_pillow(image, 'png'), (9, 7, 1))
    expected = np.asarray(image.convert('L')) / 255
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-6)

  @parameterized.parameters('L', 'RGB', 'CMYK')
  def test_jpeg_is_near_what_pillow_reads(self, mode):
    ramp = np.linspace(40, 200, 32 * 24).reshape(32, 24).astype(np.uint8)
    data = _pillow(Image.fromarray(ramp).convert(mode), 'jpeg')
    channels = 1 if mode == 'L' else 3
    found = serving_module.preprocess(data, (32, 24, channels))
    read = Image.open(io.BytesIO(data)).convert('L' if mode == 'L' else 'RGB')
    expected = np.asarray(read).reshape(32, 24, channels) / 255
    np.testing.assert_allclose(found, expected, atol=3 / 255)

  def test_shrinking_averages_and_does_not_alias(self):
    # Interpolation alone would look between the stripes and see black.
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::8] = 240
    found = serving_module.preprocess(_png(stripes), (8, 8, 1))
    np.testing.assert_allclose(found[:, 1:-1], 240 / 255 / 8, atol=0.02)

  def test_any_shape_becomes_the_model_s(self):
    flat = np.full((50, 13, 1), 51, np.uint8)
    found = serving_module.preprocess(_png(flat), (20, 30, 1))
    np.testing.assert_allclose(found, np.full((20, 30, 1), 0.2), atol=1e-6)

  @parameterized.parameters('bmp', 'gif')
  def test_other_formats_are_refused(self, kind):
    data = _pillow(Image.fromarray(_random((9, 7))), kind)
    with self.assertRaisesRegex(
      tf.errors.InvalidArgumentError, 'neither a PNG nor a JPEG'
    ):
      serving_module.preprocess(data, (9, 7, 1))

  def test_empty_and_truncated_are_refused(self):
    data = _png(_random((9, 7, 1))).numpy()
    for broken in (b'', data[:4], data[:40]):
      with self.assertRaises(tf.errors.InvalidArgumentError):
        serving_module.preprocess(broken, (9, 7, 1))


class TracedDecoderTest(absltest.TestCase):
  def test_threads_share_what_is_traced_once(self):
    functions = []
    with mock.patch.object(
      serving_module, 'decode', side_effect=serving_module.decode
    ) as decode:
      threads = [
        threading.Thread(
          target=lambda: functions.append(
            serving_module.traced_decoder((6, 5, 3), False)
          )
        )
        for _ in range(3)
      ]
      for thread in threads:
        thread.start()
      for thread in threads:
        thread.join()
    self.assertEqual(decode.call_count, 1)
    self.assertLen(set(map(id, functions)), 1)
    self.assertLen(functions, 3)

  def test_it_decodes_as_the_function_that_is_traced(self):
    images = [_random((6, 7, 3)), _random((9, 3, 3))]
    encoded = tf.stack([_png(image) for image in images])
    decoder = serving_module.traced_decoder((5, 4, 3), False)
    np.testing.assert_array_equal(
      decoder(encoded), serving_module.decode(encoded, (5, 4, 3))
    )


if __name__ == '__main__':
  absltest.main()
