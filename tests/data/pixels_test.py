"""Tests of pixels that are stored in a raw file."""

import concurrent.futures
import gc
import hashlib
import os
import pathlib
import signal
import threading
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical import _validate
from tff_medical.data import pixels

_SHAPE = (300, 5, 4, 3)


class StoredPixelsTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / 'train.raw'
    rng = np.random.default_rng(0)
    self.array = rng.integers(0, 256, _SHAPE, dtype=np.uint8)
    self.array.tofile(self.path)

  def _stored(self, **kwargs):
    return pixels.StoredPixels(self.path, _SHAPE, **kwargs)


def _index_cases():
  rng = np.random.default_rng(1)
  return (
    ('random', rng.permutation(300)[:50]),
    ('sorted', np.sort(rng.permutation(300)[:50])),
    ('repeated', rng.integers(0, 20, 100)),
    ('all_the_same', np.full(7, 299)),
    ('all', np.arange(300)),
    ('backwards', np.arange(300)[::-1]),
    ('neighbours_apart', np.array([10, 200, 11, 201, 12])),
    ('one', np.array([0])),
    ('none', np.zeros(0, np.int64)),
    ('table', rng.integers(0, 300, (6, 4))),
    ('int32', np.array([3, 1], np.int32)),
  )


class RowsTest(StoredPixelsTestCase):
  @parameterized.named_parameters(*_index_cases())
  def test_equal_those_of_the_array(self, indices):
    for row_limit in (1024, 3):
      with mock.patch.object(pixels, '_MAX_BUFFERS', row_limit):
        rows = self._stored().rows(indices)
      self.assertEqual(rows.dtype, np.uint8)
      np.testing.assert_array_equal(rows, self.array[indices])

  @parameterized.named_parameters(*_index_cases())
  def test_short_reads_are_gone_on_with(self, indices):
    preadv = os.preadv

    def short(descriptor, buffers, offset):
      # A read may fill the first buffers, and a part of the next one.
      few = [memoryview(b) for b in buffers[:2]]
      few[-1] = few[-1][: max(1, len(few[-1]) // 3)]
      return preadv(descriptor, few, offset)

    with mock.patch.object(os, 'preadv', short):
      rows = self._stored().rows(indices)
    np.testing.assert_array_equal(rows, self.array[indices])

  def test_neighbouring_rows_are_read_at_once(self):
    with mock.patch.object(os, 'preadv', wraps=os.preadv) as preadv:
      self._stored().rows(np.array([9, 5, 100, 7, 6, 8, 5]))
    self.assertCountEqual(
      [call.args[2] for call in preadv.mock_calls], [5 * 60, 100 * 60]
    )

  def test_by_several_threads(self):
    stored = self._stored()
    draws = np.random.default_rng(2).integers(0, 300, (40, 30))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      for indices, rows in zip(draws, pool.map(stored.rows, draws)):
        np.testing.assert_array_equal(rows, self.array[indices])

  @parameterized.parameters(-1, 300)
  def test_refuses_an_index_out_of_range(self, index):
    indices = np.array([4, index])
    for source in (self.array, self._stored()):
      with self.assertRaisesRegex(IndexError, r'must lie in 0\.\.299'):
        pixels.read(source, indices)

  def test_a_file_that_was_cut_while_in_use(self):
    stored = self._stored()
    os.truncate(self.path, 250 * 60 + 7)
    np.testing.assert_array_equal(stored.rows(np.arange(250)), self.array[:250])
    for indices in (np.array([250]), np.arange(0, 300, 2)):
      with self.assertRaisesRegex(
        _validate.InputError, r'train\.raw end at byte \d+: the file was cut'
      ):
        stored.rows(indices)

  def test_a_disk_that_fails(self):
    stored = self._stored()
    error = OSError(5, 'Input/output error')
    with mock.patch.object(os, 'preadv', side_effect=error):
      with self.assertRaisesRegex(
        _validate.InputError, r'train\.raw cannot be read: Input/output error'
      ):
        stored.rows(np.array([1, 3]))

  def test_no_read_outlives_a_failed_one(self):
    second = threading.Event()
    ended = []

    def preadv(unused_descriptor, buffers, offset):
      if not offset:
        second.wait()
        raise OSError(5, 'Input/output error')
      second.set()
      time.sleep(0.3)  # It would go on writing if nobody waited.
      ended.append(offset)
      return sum(map(len, buffers))

    with mock.patch.object(os, 'preadv', preadv):
      with self.assertRaisesRegex(_validate.InputError, 'Input/output'):
        self._stored().rows(np.array([0, 2, 4]))
      self.assertCountEqual(ended, [2 * 60, 4 * 60])

  def test_in_a_forked_process(self):
    stored = self._stored()
    stored.rows(np.array([0, 2]))  # This starts the threads.
    child = os.fork()
    if not child:
      signal.alarm(20)  # Otherwise the test would wait for missing threads.
      try:
        rows = stored.rows(np.array([7, 1]))
        os._exit(0 if np.array_equal(rows, self.array[[7, 1]]) else 1)
      finally:
        os._exit(2)
    self.assertEqual(os.waitpid(child, 0)[1], 0)


class OpeningTest(StoredPixelsTestCase):
  def test_says_what_it_holds(self):
    stored = self._stored(digest='abc')
    self.assertIsInstance(stored, pixels.Pixels)
    self.assertNotIsInstance(self.array, pixels.Pixels)
    self.assertLen(stored, 300)
    self.assertEqual(stored.shape, _SHAPE)
    self.assertEqual(stored.dtype, np.uint8)
    self.assertEqual(stored.digest, 'abc')

  @parameterized.parameters(-1, 1, 60)
  def test_refuses_a_file_of_another_size(self, change):
    size = self.array.nbytes + change
    os.truncate(self.path, size)
    with self.assertRaisesRegex(
      _validate.InputError,
      rf'train\.raw must have {self.array.nbytes} bytes for shape .*, got '
      f'{size}; prepare',
    ):
      self._stored()

  def test_refuses_what_is_no_file(self):
    self.path.unlink()
    with self.assertRaisesRegex(
      _validate.InputError, r'train\.raw cannot be read: No such file'
    ):
      self._stored()
    os.mkfifo(self.path)
    with self.assertRaisesRegex(_validate.InputError, 'not a regular file'):
      self._stored()

  @parameterized.parameters(
    ((300, 20, 3), 'shape must be'),
    ((-1, 5, 4, 3), 'images must be 0 or more'),
    ((300, 0, 4, 3), 'height must be positive'),
    ((300, 5, 4, 1.5), 'channels must be a whole number'),
  )
  def test_refuses_a_shape(self, shape, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      pixels.StoredPixels(self.path, shape)

  def test_an_empty_file_has_no_images(self):
    os.truncate(self.path, 0)
    stored = pixels.StoredPixels(self.path, (0, *_SHAPE[1:]))
    self.assertEqual(stored.rows(np.zeros(0, np.int64)).shape, (0, 5, 4, 3))

  def test_descriptors_are_closed(self):
    before = len(os.listdir('/proc/self/fd'))
    stored = [self._stored() for _ in range(5)]
    self.assertLen(os.listdir('/proc/self/fd'), before + 5)
    os.truncate(self.path, 1)
    with self.assertRaises(_validate.InputError):
      self._stored()
    del stored
    gc.collect()
    self.assertLen(os.listdir('/proc/self/fd'), before)


class ViewsTest(StoredPixelsTestCase):
  def test_a_selection_reads_nothing_before_it_is_read(self):
    stored = self._stored()
    indices = np.array([9, 3, 3, 250])
    with mock.patch.object(os, 'preadv') as preadv:
      part = pixels.select(stored, indices)
      again = pixels.select(part, np.array([True, False, False, True]))
    preadv.assert_not_called()
    self.assertIsInstance(part, pixels.Pixels)
    self.assertEqual(part.shape, (4, 5, 4, 3))
    self.assertLen(again, 2)
    drawn = np.array([[3, 0], [0, 2]])
    np.testing.assert_array_equal(part.rows(drawn), self.array[indices][drawn])
    np.testing.assert_array_equal(
      again.rows(np.arange(2)), self.array[[9, 250]]
    )
    with self.assertRaisesRegex(IndexError, r'0\.\.3'):
      part.rows(np.array([-1]))

  @parameterized.parameters(1, 7, 300, 1000, None)
  def test_batches_are_the_whole_in_order(self, batch_size):
    for source in (self.array, self._stored()):
      parts = list(pixels.batches(source, batch_size))
      np.testing.assert_array_equal(np.concatenate(parts), self.array)
      self.assertLessEqual(max(map(len, parts)), batch_size or 300)

  def test_batches_hold_few_bytes(self):
    with mock.patch.object(pixels, '_BATCH_BYTES', 200):
      sizes = [len(part) for part in pixels.batches(self._stored())]
    self.assertEqual(sizes, [3] * 100)

  def test_digest_is_that_of_the_bytes_in_memory_or_stored(self):
    content = hashlib.sha256(self.path.read_bytes()).hexdigest()
    self.assertEqual(pixels.digest(self.array), content)
    self.assertEqual(pixels.digest(self._stored()), content)
    view = self.array[:, ::-1][:, ::-1]
    self.assertEqual(pixels.digest(view), content)

  def test_a_digest_that_is_given_saves_the_reading(self):
    stored = self._stored(digest='given')
    with mock.patch.object(os, 'preadv') as preadv:
      self.assertEqual(pixels.digest(stored), 'given')
      parts = [pixels.select(stored, np.array(i)) for i in ([1], [2], [1])]
      digests = [pixels.digest(part) for part in parts]
    preadv.assert_not_called()
    self.assertEqual(digests[0], digests[2])
    self.assertLen({*digests, 'given'}, 3)


if __name__ == '__main__':
  absltest.main()
