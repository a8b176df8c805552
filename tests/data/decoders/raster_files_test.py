"""Tests of plain image files, written by Pillow and tifffile."""

import io

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image
import tifffile

from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import raster_files
from tff_medical.data.decoders import resizing

_POLICY = decoded.DecodingPolicy()
_SCENE = np.tile(np.linspace(10, 240, 12), (8, 1)).astype(np.uint8)
_SCENE[:2, :3] = 255


def _encoded(array, kind='PNG', **options):
  file = io.BytesIO()
  image = array if isinstance(array, Image.Image) else Image.fromarray(array)
  image.save(file, kind, **options)
  return file.getvalue()


def _tiff(array, **options):
  file = io.BytesIO()
  tifffile.imwrite(file, array, **options)
  return file.getvalue()


def _image(content, policy=_POLICY):
  (image,) = raster_files.decode(content, policy).images
  return image


def _photograph(height, width, channels):
  """Returns an image with shapes and noise."""
  rows, columns = np.mgrid[:height, :width] / min(height, width)
  waves = 120 + 60 * np.sin(9 * columns + 3 * rows) + 40 * (rows > columns)
  noise = np.random.default_rng(0).normal(0, 9, (height, width, channels))
  image = waves[..., np.newaxis] + 20 * np.arange(channels) + noise
  return np.clip(image, 0, 255).astype(np.uint8)


class ReducedTest(parameterized.TestCase):
  def _decode(self, content, image_size=16, reduced_decoding=True):
    policy = decoded.DecodingPolicy(reduced_decoding=reduced_decoding)
    return raster_files.decode(content, policy, image_size)

  @parameterized.parameters(
    (63, 200, 1), (64, 200, 2), (127, 200, 2), (128, 150, 4), (256, 300, 8),
    (700, 900, 8),
  )  # fmt: skip
  def test_divides_by(self, height, width, divisor):
    for sides in ((height, width), (width, height)):
      content = _encoded(_photograph(*sides, 3), 'JPEG', quality=90)
      found = self._decode(content)
      expected = tuple(-(-side // divisor) for side in sides)
      self.assertEqual(found.images[0].shape, (*expected, 3))
      self.assertEqual(found.original_sizes, (sides,))
      self.assertEqual(
        f'decoded at 1/{divisor} of its size' in found.rules, divisor > 1
      )

  @parameterized.product(channels=(1, 3), progressive=(False, True))
  def test_changes_few_levels(self, channels, progressive):
    image = _photograph(512, 640, channels)
    content = _encoded(
      image[..., 0] if channels == 1 else image,
      'JPEG',
      quality=90,
      progressive=progressive,
    )
    full, found = (
      resizing.to_uint8(
        self._decode(content, 32, reduced).images[0], 32, channels
      ).astype(int)
      for reduced in (False, True)
    )
    self.assertBetween(np.abs(full - found).max(), 1, 6)
    self.assertLess(np.abs(full - found).mean(), 1)

  def test_is_turned_upright(self):
    exif = Image.Exif()
    exif[274] = 6
    content = _encoded(_photograph(128, 200, 3), 'JPEG', exif=exif.tobytes())
    found = self._decode(content)
    self.assertEqual(found.images[0].shape, (50, 32, 3))
    self.assertEqual(found.original_sizes, ((200, 128),))

  def test_is_a_choice_and_for_jpeg_alone(self):
    image = _photograph(256, 300, 3)
    jpeg = _encoded(image, 'JPEG')
    for found in (
      self._decode(jpeg, reduced_decoding=False),
      self._decode(jpeg, image_size=None),
      self._decode(_encoded(image, 'PNG')),
      self._decode(_encoded(image, 'JPEG2000')),
      self._decode(_tiff(image)),
    ):
      self.assertEqual(found.images[0].shape, (256, 300, 3))
      self.assertEqual(found.original_sizes, ((256, 300),))

  def test_half_a_file_is_refused(self):
    content = _encoded(_photograph(512, 512, 3), 'JPEG')
    for part in (0.3, 0.9):
      with self.assertRaises(decoded.BadFile):
        self._decode(content[: int(len(content) * part)])


class RasterTest(parameterized.TestCase):
  @parameterized.parameters(*range(1, 9))
  def test_orientation_is_applied(self, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    turned = {
      1: _SCENE, 2: _SCENE[:, ::-1], 3: _SCENE[::-1, ::-1], 4: _SCENE[::-1],
      5: _SCENE.T, 6: np.rot90(_SCENE), 7: _SCENE[::-1, ::-1].T,
      8: np.rot90(_SCENE, -1),
    }[orientation]  # fmt: skip
    turned = np.ascontiguousarray(turned)
    png = _image(_encoded(turned, exif=exif.tobytes()))
    np.testing.assert_array_equal(png[..., 0] * 255, _SCENE)
    tiff = _image(_tiff(turned, extratags=[(274, 'H', 1, orientation, True)]))
    np.testing.assert_array_equal(tiff[..., 0] * 255, _SCENE)

  @parameterized.named_parameters(
    ('bits', Image.fromarray(_SCENE).convert('1'), 1),
    ('grey_alpha', Image.fromarray(_SCENE).convert('LA'), 1),
    ('rgba', Image.fromarray(_SCENE).convert('RGBA'), 3),
    ('palette', Image.fromarray(_SCENE).convert('RGB').quantize(8), 3),
  )
  def test_modes(self, image, channels):
    found = _image(_encoded(image))
    self.assertEqual(found.shape, (8, 12, channels))
    rgb = np.asarray(image.convert('RGB'))
    np.testing.assert_allclose(found * 255, rgb[..., :channels], atol=1e-3)

  @parameterized.product(
    kind=('uint8', 'uint16'), colour=(False, True), order=('<', '>'),
    planar=(False, True),
  )  # fmt: skip
  def test_tiff_of_whole_numbers(self, kind, colour, order, planar):
    top = np.iinfo(kind).max
    values = np.round(_SCENE / 255.0 * top).astype(kind)
    options = {'photometric': 'minisblack'}
    if colour:
      values = np.stack([values, top - values, values // 2], -1)
      options = {'photometric': 'rgb'}
    stored = values
    if colour and planar:
      stored = np.moveaxis(values, -1, 0)
      options['planarconfig'] = 'separate'
    found = _image(_tiff(stored, byteorder=order, **options))
    expected = values if colour else values[..., np.newaxis]
    np.testing.assert_allclose(found, expected / top, atol=1e-6)

  def test_white_is_zero(self):
    found = _image(_tiff(_SCENE, photometric='miniswhite'))
    np.testing.assert_allclose(found[..., 0], 1 - _SCENE / 255, atol=1e-6)

  def test_compressed_tiff(self):
    for kind in ('tiff_lzw', 'tiff_adobe_deflate', 'packbits'):
      found = _image(_encoded(_SCENE, 'TIFF', compression=kind))
      np.testing.assert_allclose(found[..., 0], _SCENE / 255, atol=1e-6)
    deep = _SCENE.astype(np.uint16) * 257
    found = _image(_encoded(deep, 'TIFF', compression='tiff_lzw'))
    np.testing.assert_allclose(found[..., 0], deep / 65535, atol=1e-6)

  @parameterized.parameters('float32', 'float64', 'int16', 'uint32')
  def test_values_without_a_range_ask_for_one(self, kind):
    values = (_SCENE.astype(kind) * 3) - 20
    content = _tiff(values)
    with self.assertRaisesRegex(decoded.PolicyNeeded, '--value_range'):
      raster_files.decode(content, _POLICY)
    policy = decoded.DecodingPolicy(value_range=(0.0, 500.0))
    expected = np.clip(values.astype(float) / 500, 0, 1)
    np.testing.assert_allclose(
      _image(content, policy)[..., 0], expected, atol=1e-5
    )

  def test_nan_is_black_and_warned_of(self):
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = np.nan
    found = raster_files.decode(
      _tiff(values), decoded.DecodingPolicy(value_range=(0.0, 1.0))
    )
    self.assertEqual(found.images[0][1, 2, 0], 0)
    self.assertIn('NaN', found.warnings[0])

  def test_pages_are_a_choice(self):
    pages = np.stack([_SCENE // (i + 1) for i in range(3)])
    content = _tiff(pages, photometric='minisblack')
    with self.assertRaisesRegex(decoded.PolicyNeeded, '3 pages'):
      raster_files.decode(content, _POLICY)
    for choice, factors in (('2', [3]), ('middle', [2]), ('all', [1, 2, 3])):
      found = raster_files.decode(
        content, decoded.DecodingPolicy(frames=choice)
      )
      for image, factor in zip(found.images, factors):
        np.testing.assert_allclose(
          image[..., 0], (_SCENE // factor) / 255, atol=1e-6
        )
      self.assertLen(found.images, len(factors))

  def test_whole_slides_are_refused_by_name(self):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
      level = np.zeros((512, 512, 3), np.uint8)
      writer.write(level, tile=(64, 64), photometric='rgb', subifds=2)
      for step in (2, 4):
        writer.write(
          level[::step, ::step], tile=(64, 64), photometric='rgb',
          subfiletype=1,
        )  # fmt: skip
    with self.assertRaisesRegex(decoded.BadFile, 'whole-slide'):
      raster_files.decode(file.getvalue(), _POLICY)

  @parameterized.parameters('PNG', 'JPEG', 'TIFF', 'WEBP', 'BMP', 'GIF')
  def test_half_a_file_is_refused(self, kind):
    rng = np.random.default_rng(0)
    content = _encoded(rng.integers(0, 255, (64, 64), np.uint8), kind)
    for keep in (0.02, 0.5, 0.9):
      with self.assertRaises(decoded.BadFile):
        raster_files.decode(content[: int(len(content) * keep)], _POLICY)

  def test_dark_files_are_warned_of(self):
    dark = (_SCENE.astype(np.uint16) * 4)[np.newaxis][0]
    found = raster_files.decode(_encoded(dark), _POLICY)
    self.assertEqual(found.warnings, ('uses 1/64 of its 16-bit range',))
    full = _SCENE.astype(np.uint16) * 257
    self.assertEqual(raster_files.decode(_encoded(full), _POLICY).warnings, ())


if __name__ == '__main__':
  absltest.main()
