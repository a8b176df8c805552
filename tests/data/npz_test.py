"""Tests of refused claims; `faults.npz_faults` tests whole commands."""

from __future__ import annotations

import io
import pathlib
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests.faults import npz_faults
from tff_medical.data import npz


def _archive(content, method=zipfile.ZIP_DEFLATED):
  return npz.Archive(
    io.BytesIO(npz_faults.zipped({'val_labels': content}, method=method))
  )


class HeaderTest(parameterized.TestCase):
  """Tests of claims that `header` refuses, before an array is allocated."""

  @parameterized.parameters((10**15,), (10,), (0,))
  def test_a_claim_of_bytes_that_are_not_there(self, count):
    content = npz_faults.npy_of(npz_faults.claim(shape=(count,)), bytes(9))
    with self.assertRaisesRegex(
      npz.Error,
      rf'val_labels: its shape \[{count}\] of uint8 takes {count} bytes, but 9 ',
    ):
      _archive(content).header('val_labels')

  def test_a_bomb(self):
    size = 2**27
    content = npz_faults.npy_of(npz_faults.claim(shape=(size,)), bytes(size))
    with self.assertRaisesRegex(npz.Error, 'val_labels: .* would unpack to'):
      _archive(content).header('val_labels')
    stored = _archive(content, zipfile.ZIP_STORED).header('val_labels')
    self.assertEqual(stored.num_bytes, size)

  def test_an_encrypted_array(self):
    name = 'train_images_encrypted'
    cases = npz_faults.malformed_files(('train_images',))
    make = next(m for n, _, m in cases if n == name)
    path = self.create_tempfile('x.npz').full_path
    make(pathlib.Path(path))
    with open(path, 'rb') as file:
      with self.assertRaisesRegex(npz.Error, '^train_images: it is encrypted$'):
        npz.Archive(file).header('train_images')

  def test_objects_are_not_unpickled(self):
    content = npz_faults.npy(np.array([None] * 6))
    with self.assertRaisesRegex(npz.Error, 'val_labels: it holds Python obj'):
      _archive(content).header('val_labels')


class ReadTest(absltest.TestCase):
  def test_arrays_and_what_is_missing(self):
    archive = npz.Archive(io.BytesIO(npz_faults.zipped({'val_labels': None})))
    self.assertEqual(
      archive.missing(['val_labels', 'val_images']), ['val_labels']
    )
    for key, array in npz_faults.arrays().items():
      if key != 'val_labels':
        self.assertEqual(archive.header(key).shape, array.shape)
        np.testing.assert_array_equal(archive.read(key), array)


if __name__ == '__main__':
  absltest.main()
