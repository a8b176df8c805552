"""Tests of the file that prepared pixels are written to."""

import pathlib
import resource
import subprocess
import sys

from absl.testing import absltest
import numpy as np

from tff_medical.data import pixels
from tff_medical.data.preparing import pixel_file

_ROOT = pathlib.Path(__file__).resolve().parents[3]
# Writes a file of 512 MiB with room for 128 MiB more than Python and NumPy need.
_PROGRAM = """
import pathlib, resource, sys
import numpy as np
from tff_medical.data.preparing import pixel_file
pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
limit = pages * resource.getpagesize() + 2**27
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
batch = np.ones((32, 512, 512, 1), np.uint8)
with pixel_file.PixelFile(pathlib.Path(sys.argv[1]), (2048, 512, 512, 1)) as f:
  for start in range(0, 2048, 32):
    f.put(np.arange(start, start + 32), batch)
"""


class PixelFileTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'pixels.raw'

  def test_images_are_in_their_rows_in_whatever_order_they_come(self):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 3, 5, 3), np.uint8)
    order = rng.permutation(40)
    # Some neighbours in order, and a view that is not contiguous.
    order = np.concatenate([np.sort(order[:20]), order[20:]])
    wide = np.zeros((40, 3, 5, 4), np.uint8)
    wide[..., :3] = images
    with pixel_file.PixelFile(self.path, images.shape) as file:
      for part in np.split(order, [7, 7, 31]):
        file.put(part, wide[part][..., :3])
    stored = pixels.StoredPixels(self.path, images.shape)
    np.testing.assert_array_equal(stored.rows(np.arange(40)), images)

  def test_a_row_that_is_not_put_is_black(self):
    with pixel_file.PixelFile(self.path, (3, 2, 2, 1)) as file:
      file.put(np.array([1]), np.full((1, 2, 2, 1), 9, np.uint8))
    self.assertEqual(
      self.path.read_bytes(), b'\0' * 4 + b'\x09' * 4 + b'\0' * 4
    )

  def test_a_file_may_be_larger_than_the_memory(self):
    subprocess.run(
      [sys.executable, '-c', _PROGRAM, str(self.path)],
      cwd=_ROOT, check=True, timeout=120,
    )  # fmt: skip
    self.assertEqual(self.path.stat().st_size, 2**29)

  def test_a_disk_without_room_is_an_error_of_the_disk(self):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    with self.assertRaises(OSError):
      with pixel_file.PixelFile(self.path, (2, 1024, 1024, 1)) as file:
        file.put(np.array([1]), np.zeros((1, 1024, 1024, 1), np.uint8))


if __name__ == '__main__':
  absltest.main()
