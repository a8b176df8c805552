"""Tests of DICOM decoding against the formulas of the standard."""

import glob
import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pydicom
from pydicom import dataset as dataset_lib
from pydicom import sequence

from tests.data import dicom_writing
from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import decoding
from tff_medical.data.decoders import dicom_files

_RAMP = np.arange(-400, 400, 10, dtype=np.int16).reshape(8, 10)
_POLICY = decoded.DecodingPolicy()


def _decode(values, policy=_POLICY, **tags):
  content = dicom_writing.content(values, **tags)
  return dicom_files.decode(content, policy)


def _image(values, policy=_POLICY, **tags):
  return _decode(values, policy, **tags).images[0][..., 0]


class RuleTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('linear', 'LINEAR', lambda x: (x - 39.5) / 399 + 0.5),
    ('exact', 'LINEAR_EXACT', lambda x: (x - 40) / 400 + 0.5),
    ('sigmoid', 'SIGMOID', lambda x: 1 / (1 + np.exp(-4 * (x - 40) / 400))),
  )
  def test_first_window_with_its_function(self, function, formula):
    image = _image(
      _RAMP,
      WindowCenter=[40, 600],
      WindowWidth=[400, 2000],
      VOILUTFunction=function,
      RescaleSlope=2,
      RescaleIntercept=-100,
      Modality='CT',
    )
    real = _RAMP * 2.0 - 100
    np.testing.assert_allclose(image, np.clip(formula(real), 0, 1), atol=1e-5)

  def test_mr_is_not_rescaled_before_its_window(self):
    tags = dict(
      WindowCenter=0, WindowWidth=801, RescaleSlope=7, RescaleIntercept=3
    )
    plain = _image(_RAMP, WindowCenter=0, WindowWidth=801, Modality='MR')
    np.testing.assert_array_equal(_image(_RAMP, Modality='MR', **tags), plain)
    self.assertGreater(
      np.abs(_image(_RAMP, Modality='CT', **tags) - plain).max(), 0.2
    )

  def test_order_is_rescale_window_inversion_padding(self):
    values = _RAMP.copy()
    values[0, :3] = -2000
    image = _image(
      values,
      WindowCenter=0,
      WindowWidth=801,
      PhotometricInterpretation='MONOCHROME1',
      PixelPaddingValue=-2000,
    )
    expected = 1 - np.clip((values + 0.5) / 800 + 0.5, 0, 1)
    expected[0, :3] = 0
    np.testing.assert_allclose(image, expected, atol=1e-5)

  def test_padding_is_in_no_percentile(self):
    values = _RAMP.copy()
    values[:2] = -32000
    image = _image(values, PixelPaddingValue=-32000, Modality='CR')
    shown = values[2:]
    low, high = np.percentile(shown, (0.5, 99.5))
    expected = np.clip((shown - low) / (high - low), 0, 1)
    np.testing.assert_allclose(image[2:], expected, atol=1e-5)
    self.assertEqual(image[:2].max(), 0)

  def test_padding_range(self):
    image = _image(
      _RAMP,
      PixelPaddingValue=-400,
      PixelPaddingRangeLimit=-100,
      WindowCenter=-300,
      WindowWidth=2,
      PhotometricInterpretation='MONOCHROME2',
    )
    self.assertEqual(image[_RAMP <= -100].max(), 0)
    self.assertEqual(image[_RAMP > -100].min(), 1)

  @parameterized.parameters(0, -3, 1, 0.5)
  def test_window_that_shows_nothing(self, width):
    found = _decode(_RAMP, WindowCenter=0, WindowWidth=width)
    np.testing.assert_array_equal(found.images[0], _decode(_RAMP).images[0])
    self.assertIn('window', ' '.join(found.warnings))

  @parameterized.parameters(9, 12, 15)
  def test_bits_above_the_stored_ones_are_no_pixels(self, stored):
    values = np.arange(80, dtype=np.uint16).reshape(8, 10) * 6
    junk = values | np.uint16(1 << stored)
    tags = dict(WindowCenter=256, WindowWidth=512)
    np.testing.assert_array_equal(
      _image(junk, stored=stored, **tags), _image(values, **tags)
    )

  def test_sign_is_that_of_the_highest_stored_bit(self):
    stored = (_RAMP & 0x0FFF).astype(np.int16)  # 12 bits, without the sign.
    tags = dict(WindowCenter=0, WindowWidth=801)
    np.testing.assert_array_equal(
      _image(stored, stored=12, **tags), _image(_RAMP, **tags)
    )

  def test_stored_values_and_hounsfield_units(self):
    tags = dict(
      RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=9
    )
    values = np.arange(0, 4000, 50, dtype=np.uint16).reshape(8, 10)
    stored = _image(
      values, decoded.DecodingPolicy(dicom_values='stored'), stored=12, **tags
    )
    np.testing.assert_allclose(stored, values / 4095, atol=1e-6)
    policy = decoded.DecodingPolicy(
      dicom_values='hu', value_range=(-160.0, 240.0)
    )
    units = _image(values, policy, stored=12, **tags)
    real = values - 1024.0
    np.testing.assert_allclose(
      units, np.clip((real + 160) / 400, 0, 1), atol=1e-5
    )

  def test_lut_comes_before_the_window(self):
    item = dataset_lib.Dataset()
    item.add_new('LUTDescriptor', 'US', [4, 2, 8])
    item.add_new('LUTData', 'US', [0, 255, 51, 102])
    values = np.array([[0, 1, 2, 3], [4, 5, 6, 9]], np.uint8)
    image = _image(
      values,
      VOILUTSequence=sequence.Sequence([item]),
      WindowCenter=1,
      WindowWidth=2,
    )
    expected = [[0, 0, 0, 1], [0.2, 0.4, 0.4, 0.4]]
    np.testing.assert_allclose(image, expected, atol=1e-6)

  def test_each_frame_has_its_own_rescaling(self):
    groups = []
    for slope in (1, 2, 3):
      group, item = dataset_lib.Dataset(), dataset_lib.Dataset()
      item.RescaleSlope, item.RescaleIntercept = slope, -slope
      group.PixelValueTransformationSequence = sequence.Sequence([item])
      groups.append(group)
    values = np.stack([_RAMP] * 3)
    found = _decode(
      values,
      decoded.DecodingPolicy(frames='all'),
      PerFrameFunctionalGroupsSequence=sequence.Sequence(groups),
      WindowCenter=0,
      WindowWidth=801,
      Modality='CT',
    )
    for slope, image in zip((1, 2, 3), found.images):
      real = _RAMP * float(slope) - slope
      np.testing.assert_allclose(
        image[..., 0], np.clip((real + 0.5) / 800 + 0.5, 0, 1), atol=1e-5
      )

  def test_more_frames_than_are_stated_are_not_taken_in_silence(self):
    values = np.stack([_RAMP, _RAMP])
    with self.assertRaisesRegex(decoded.PolicyNeeded, 'has 2 frames'):
      _decode(values, NumberOfFrames=1)

  @parameterized.parameters('5', 'middle')
  def test_frame_by_number(self, choice):
    values = np.stack([np.full((4, 4), 10 * i, np.uint8) for i in range(11)])
    image = _image(
      values,
      decoded.DecodingPolicy(frames=choice),
      WindowCenter=128,
      WindowWidth=256,
    )
    self.assertAlmostEqual(image[0, 0], 50 / 255, delta=1e-6)

  def test_a_frame_that_is_not_there_is_a_bad_file(self):
    values = np.zeros((3, 4, 4), np.uint8)
    with self.assertRaisesRegex(decoded.BadFile, 'none is the frame 9'):
      _decode(values, decoded.DecodingPolicy(frames='9'))

  def test_colours(self):
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[:, :3] = (220, 20, 20)
    tags = dict(SamplesPerPixel=3, PlanarConfiguration=0)
    found = _decode(rgb, PhotometricInterpretation='RGB', **tags).images[0]
    np.testing.assert_allclose(found, rgb / 255, atol=1e-6)
    ybr = np.zeros((4, 6, 3), np.uint8)
    ybr[:, :3] = (80, 94, 228)  # BT.601 of that red.
    ybr[:, 3:] = (0, 128, 128)
    found = _decode(ybr, PhotometricInterpretation='YBR_FULL', **tags)
    np.testing.assert_allclose(found.images[0], rgb / 255, atol=0.01)


class RefusedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('short', {'Rows': 9}, 'cut short'),
    ('no_size', {'Rows': 0}, 'no image'),
    ('huge', {'Rows': 60000, 'Columns': 60000}, 'more than'),
    ('samples', {'SamplesPerPixel': 4}, '4 samples'),
    ('bits', {'BitsStored': 20, 'HighBit': 19}, '20 stored bits'),
  )
  def test_header(self, tags, message):
    with self.assertRaisesRegex(decoded.BadFile, message):
      _decode(_RAMP, **tags)

  def test_no_header_can_break_it(self):
    content = dicom_writing.content(_RAMP, WindowCenter=1, WindowWidth=9)
    rng = np.random.default_rng(0)
    path = pathlib.Path(self.create_tempdir().full_path, 'x.dcm')
    for _ in range(150):
      damaged = bytearray(content)
      for place in rng.integers(132, len(content), 4):
        damaged[place] = rng.integers(256)
      path.write_bytes(damaged)
      try:
        found = decoding.decode(path, _POLICY)
      except (decoded.BadFile, decoded.PolicyNeeded):
        continue
      for image in found.images:
        self.assertTrue(((image >= 0) & (image <= 1)).all())


class RealFilesTest(absltest.TestCase):
  """The files that pydicom tests itself on, which its package brings."""

  def test_most_are_read_and_none_breaks_it(self):
    folder = pathlib.Path(pydicom.__file__).parent / 'data' / 'test_files'
    files = sorted(glob.glob(f'{folder}/*.dcm'))
    self.assertNotEmpty(files)
    results = {}
    for file in files:
      try:
        image = decoding.decode(
          file, decoded.DecodingPolicy(frames='first')
        ).images[0]
        self.assertTrue(((image >= 0) & (image <= 1)).all(), file)
        results[os.path.basename(file)] = image
      except (decoded.BadFile, decoded.PolicyNeeded):
        pass
    self.assertGreater(len(results), len(files) * 0.6)
    # One image in six syntaxes, one of them behind the start of a TIFF.
    for name in results:
      if name.startswith('MR_small'):
        np.testing.assert_array_equal(results[name], results['MR_small.dcm'])

  def test_patients_are_told_apart_by_issuer_and_number(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    texts = []
    for i, tags in enumerate(
      (
        {'PatientID': '007 '},
        {'PatientID': '7'},
        {'PatientID': '7', 'IssuerOfPatientID': 'NORTH'},
        {},
      )
    ):
      path = folder / f'{i}.dcm'
      path.write_bytes(dicom_writing.content(_RAMP, **tags))
      texts.append(dicom_files.patient_id(str(path)))
    self.assertEqual(texts, ['007', '7', 'NORTH\0007', ''])


if __name__ == '__main__':
  absltest.main()
