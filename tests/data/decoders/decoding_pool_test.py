"""Tests of the workers that decode files, with faults that are injected."""

import os
import pathlib
import signal
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image

from tff_medical import _validate
from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import decoding_pool
from tff_medical.data.decoders import decoding_worker

_TASK = decoding_worker.Task(decoded.DecodingPolicy(), 8, 1)


class PoolTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)

  def _images(self, count):
    paths = []
    for i in range(count):
      paths.append(str(self.temp / f'{i}.png'))
      Image.fromarray(np.full((12, 9), 10 * i, np.uint8)).save(paths[-1])
    return paths

  def _pool(self, workers=2, seconds=60.0):
    return decoding_pool.Pool(_TASK, workers=workers, file_seconds=seconds)

  def test_decodes_every_file_once(self):
    paths = self._images(9)
    with self._pool() as pool:
      found = dict(pool.outcomes(enumerate(paths)))
      workers = pool.process_ids
    self.assertCountEqual(found, range(9))
    for number, outcome in found.items():
      self.assertEqual(outcome.images.shape, (1, 8, 8, 1))
      self.assertTrue((outcome.images == 10 * number).all())
    self.assertLen(workers, 2)
    for worker in workers:  # None is left.
      with self.assertRaises(ProcessLookupError):
        os.kill(worker, 0)

  def test_a_killed_worker_costs_the_file_that_it_was_at(self):
    paths = self._images(8)
    found = {}
    with self._pool(workers=1) as pool:
      for number, outcome in pool.outcomes(enumerate(paths)):
        found[number] = outcome
        if number == 3:
          # It is asked for the next file only when this body is left.
          os.kill(pool.process_ids[0], signal.SIGKILL)
    self.assertCountEqual(found, range(8))
    bad = {n: o.reason for n, o in found.items() if o.reason}
    self.assertEqual(list(bad), [4])
    self.assertIn('makes its decoder die', bad[4])

  def test_a_stopped_worker_is_given_up_after_its_time(self):
    paths = self._images(6)
    found = {}
    with self._pool(workers=1, seconds=1) as pool:
      for number, outcome in pool.outcomes(enumerate(paths)):
        found[number] = outcome
        if number == 1:
          os.kill(pool.process_ids[0], signal.SIGSTOP)
    bad = {n: o.reason for n, o in found.items() if o.reason}
    self.assertEqual(bad, {2: 'takes more than 1 s to decode'})
    self.assertCountEqual(found, range(6))

  def test_workers_end_with_the_process_that_started_them(self):
    pool = self._pool(workers=1)
    list(pool.outcomes(enumerate(self._images(1))))
    (worker,) = pool._workers
    worker.pipe.close()
    self.assertEqual(worker.process.wait(timeout=60), 0)

  def test_workers_that_cannot_start_are_an_error(self):
    program = 'raise SystemExit(3)'
    with mock.patch.object(decoding_pool, '_PROGRAM', program):
      with self._pool(workers=1) as pool:
        with self.assertRaisesRegex(_validate.InputError, 'exit code 3'):
          list(pool.outcomes(enumerate(self._images(9))))

  def test_bad_files_and_choices_are_told_apart(self):
    frames = [Image.new('L', (4, 4), v) for v in (0, 200)]
    frames[0].save(
      self.temp / 'two.tif', save_all=True, append_images=frames[1:]
    )
    (self.temp / 'no.png').write_bytes(b'no image')
    paths = [str(self.temp / name) for name in ('two.tif', 'no.png', 'lost')]
    with self._pool() as pool:
      found = dict(pool.outcomes(enumerate(paths)))
    self.assertTrue(found[0].needs_policy)
    self.assertFalse(found[1].needs_policy)
    self.assertIn('no image', found[1].reason)
    self.assertIn('cannot be read', found[2].reason)

  def test_a_fifo_is_not_waited_for(self):
    os.mkfifo(self.temp / 'fifo')
    with self._pool(workers=1, seconds=100) as pool:
      ((_, outcome),) = pool.outcomes([(0, str(self.temp / 'fifo'))])
    self.assertIn('cannot be read', outcome.reason)


if __name__ == '__main__':
  absltest.main()
