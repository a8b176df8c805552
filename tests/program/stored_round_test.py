"""Tests of training on images that are stored in a file."""

import json
import os
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical.data import clients as clients_lib
from tff_medical.data import images
from tff_medical.data import pixels
from tff_medical.data import units as units_lib
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.program import feeds

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CLIENTS = 3
_COUNT = 60


class SameBatchesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (_COUNT, 9, 8, 3), dtype=np.uint8)
    path = pathlib.Path(self.create_tempdir().full_path, 'train.raw')
    array.tofile(path)
    columns = dict(
      labels=rng.integers(0, 4, _COUNT),
      patients=np.sort(rng.integers(0, 20, _COUNT)),
    )
    self.splits = (
      images.Split(array, **columns),
      images.Split(pixels.StoredPixels(path, array.shape), **columns),
    )
    owners = columns['patients'] % _CLIENTS
    self.partition = tuple(np.flatnonzero(owners == c) for c in range(_CLIENTS))

  def _assert_same(self, feed_of, *draws):
    """Asserts that two splits give datasets that are equal bit for bit."""
    in_memory, stored = map(feed_of, self.splits)
    for drawn in draws:
      first, second = in_memory(drawn), stored(drawn)
      self.assertLen(second, len(first))
      for pair in zip(first, second):
        self._assert_same_dataset(*pair)

  def _assert_same_dataset(self, first, second):
    self.assertEqual(first.element_spec, second.element_spec)
    batches = [list(dataset.as_numpy_iterator()) for dataset in (first, second)]
    self.assertLen(batches[1], len(batches[0]))
    for batch, other in zip(*batches):
      self.assertEqual(list(batch), list(other))
      for name, values in batch.items():
        np.testing.assert_array_equal(values, other[name])

  @parameterized.parameters('record', 'patient')
  def test_units(self, unit):
    def feed_of(split):
      units = (
        units_lib.record_units(self.partition)
        if unit == 'record'
        else units_lib.patient_units(split, self.partition, max_images=3)
      )
      return feeds.UnitFeed(split, units, _CLIENTS, microbatch_size=4)

    rng = np.random.default_rng(1)
    count = feed_of(self.splits[0]).num_units
    self._assert_same(
      feed_of,
      np.zeros(0, np.int64),
      np.arange(count),
      *(np.flatnonzero(rng.random(count) < 0.3) for _ in range(5)),
    )

  def test_local_steps(self):
    sampling = local_dp_sgd_mechanism.LocalDpSgdSampling(
      _COUNT, rate=0.2, steps=3
    )
    units = units_lib.record_units(self.partition)
    self._assert_same(
      lambda split: feeds.LocalStepsFeed(split, units, _CLIENTS, sampling),
      sampling.draw(5, 1, 1),
    )

  def test_clients(self):
    def feed_of(split):
      data = clients_lib.ImageClientData(split, self.partition)
      return feeds.ClientFeed(data, batch_size=4)

    self._assert_same(feed_of, np.array([2, 0]))

  def test_clients_in_a_graph(self):
    first, second = (
      clients_lib.ImageClientData(split, self.partition).dataset_computation
      for split in self.splits
    )
    self._assert_same_dataset(first('client_1'), second('client_1'))


class MillionImagesTest(absltest.TestCase):
  def test_memory_and_reading_of_a_round(self):
    folder = self.create_tempdir().full_path
    done = subprocess.run(
      [sys.executable, '-m', 'tests.program.stored_round']
      + [folder, '1_000_000', '64'],
      cwd=_ROOT,
      env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2'},
      check=False,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    cost = json.loads(done.stdout.splitlines()[-1])
    self.assertBetween(cost['drawn'], 150, 400)
    self.assertLess(cost['peak_mib'], 1.5 * 2**10)
    # The images of the round and of the test split have 5 MiB, all 3,906 MiB.
    self.assertLess(cost['read_mib'], 100)


if __name__ == '__main__':
  absltest.main()
