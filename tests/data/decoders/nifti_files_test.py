"""Tests of NIfTI volumes: orientation, slices, scaling, refusals."""

import gzip

from absl.testing import absltest
from absl.testing import parameterized
import nibabel
from nibabel import orientations
import numpy as np

from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import nifti_files

# Left to right, back to front, foot to head.
_VOLUME = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
_RANGE = (0.0, 209.0)


def _content(volume=_VOLUME, code='RAS', affine=None):
  image = nibabel.Nifti1Image(
    volume, np.diag([1, 2, 3, 1]) if affine is None else affine
  )
  turn = orientations.ornt_transform(
    orientations.io_orientation(image.affine),
    orientations.axcodes2ornt(tuple(code)),
  )
  return (image.as_reoriented(turn) if affine is None else image).to_bytes()


def _policy(axis='axial', **changed):
  return decoded.DecodingPolicy(
    slice_axis=axis, **{'value_range': _RANGE, **changed}
  )


class NiftiTest(parameterized.TestCase):
  @parameterized.product(
    code=('RAS', 'LPS', 'ASR', 'SPL', 'PIR'), compressed=(False, True)
  )
  def test_slices_lie_as_radiologists_see_them(self, code, compressed):
    content = _content(code=code)
    if compressed:
      content = gzip.compress(content)
    # Rows from front to back or from the head down, the right side first.
    expected = {
      'axial': [_VOLUME[::-1, ::-1, z].T for z in range(7)],
      'coronal': [_VOLUME[::-1, y, ::-1].T for y in range(6)],
      'sagittal': [_VOLUME[x, ::-1, ::-1].T for x in range(5)],
    }
    for axis, slices in expected.items():
      found = nifti_files.decode(content, _policy(axis))
      self.assertLen(found.images, len(slices))
      for image, values in zip(found.images, slices):
        np.testing.assert_allclose(image[..., 0], values / _RANGE[1], atol=1e-6)

  @parameterized.parameters(('first', [0]), ('middle', [3]), ('6', [6]))
  def test_slices_by_choice(self, choice, numbers):
    found = nifti_files.decode(_content(), _policy(slices=choice))
    every = nifti_files.decode(_content(), _policy())
    self.assertLen(found.images, len(numbers))
    np.testing.assert_array_equal(found.images[0], every.images[numbers[0]])

  def test_range_is_that_of_the_volume(self):
    found = nifti_files.decode(_content(), _policy(value_range=None))
    low, high = np.percentile(_VOLUME, (0.5, 99.5))
    expected = np.clip((_VOLUME[::-1, ::-1, 2].T - low) / (high - low), 0, 1)
    np.testing.assert_allclose(found.images[2][..., 0], expected, atol=1e-5)
    self.assertEqual(found.value_range, _RANGE)

  def test_volumes_ask_for_choices(self):
    with self.assertRaisesRegex(decoded.PolicyNeeded, '5 x 6 x 7.*slice_axis'):
      nifti_files.decode(_content(), decoded.DecodingPolicy())
    series = np.stack([_VOLUME, _VOLUME[::-1]], -1)
    content = _content(series, affine=np.eye(4))
    with self.assertRaisesRegex(
      decoded.PolicyNeeded, '5 x 6 x 7 x 2.*--volume'
    ):
      nifti_files.decode(content, _policy())
    second = nifti_files.decode(content, _policy(volume=1))
    alone = nifti_files.decode(
      _content(_VOLUME[::-1], affine=np.eye(4)), _policy()
    )
    np.testing.assert_array_equal(second.images, alone.images)
    with self.assertRaisesRegex(decoded.BadFile, 'none is volume 2'):
      nifti_files.decode(content, _policy(volume=2))

  def test_damaged_files_are_refused(self):
    packed = gzip.compress(_content())
    for content in (packed[:-40], _content()[:-40]):
      with self.assertRaises(decoded.BadFile):
        nifti_files.decode(content, _policy())
    content = bytearray(_content(affine=np.eye(4)))
    content[280:328] = bytes(48)  # The rows of the sform.
    with self.assertRaisesRegex(decoded.BadFile, 'affine'):
      nifti_files.decode(bytes(content), _policy())


if __name__ == '__main__':
  absltest.main()
