"""The short form of `npz_faults`, and files that are unusual but sound."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests.faults import npz_faults
from tff_medical.data import medmnist
from tff_medical.data import medmnist_info


class NpzFaultsTest(parameterized.TestCase):
  def test_every_malformed_file_is_refused_in_one_line(self):
    cases = list(npz_faults.malformed_files(('train_images', 'test_labels')))
    self.assertGreaterEqual(len(cases), 140)
    self.assertLen({name for name, _, _ in cases}, len(cases))
    result = npz_faults.run(iter(cases))
    self.assertEqual(result.lost, [])
    self.assertEqual((result.tried, result.survived), (len(cases), len(cases)))
    # Less than what the smallest of those that ask for memory asks for.
    self.assertLess(result.growth_mib, 200)

  def test_a_file_that_is_loaded_is_seen(self):
    good = npz_faults.zipped({})
    case = ('good', '', lambda path: path.write_bytes(good))
    result = npz_faults.run(iter([case]))
    self.assertEqual(result.lost, ['good: was loaded'])

  @parameterized.parameters(*npz_faults.unusual_files())
  def test_other_ways_of_writing_are_read(self, name, content):
    path = self.create_tempfile(f'{name}.npz', content).full_path
    info = medmnist_info.BY_NAME['breastmnist']
    found = medmnist.read_npz(path, info, 28)
    arrays = npz_faults.arrays()
    for split, part in (
      ('train', 'train'),
      ('validation', 'val'),
      ('test', 'test'),
    ):
      pixels, labels = found[split]
      np.testing.assert_array_equal(pixels[..., 0], arrays[f'{part}_images'])
      np.testing.assert_array_equal(labels, arrays[f'{part}_labels'][:, 0])
      self.assertEqual((pixels.dtype, labels.dtype), (np.uint8, np.int64))


if __name__ == '__main__':
  absltest.main()
