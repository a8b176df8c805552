"""Tests of the datasets that a round's units train on."""

import collections

from absl.testing import absltest
import numpy as np

from tff_medical import _validate
from tff_medical import feeds
from tff_medical.data import clients as clients_lib
from tff_medical.data import images
from tff_medical.data import units as units_lib
from tff_medical.privacy import local_mechanism

_PARTITION = (np.array([0, 3, 4]), np.array([1, 2, 5]))


def _split():
  pixels = np.arange(6, dtype=np.uint8)[:, None, None, None]
  return images.Split(images=np.tile(pixels, (1, 2, 2, 1)), labels=np.arange(6))


def _labels(dataset):
  return [batch['y'].tolist() for batch in dataset.as_numpy_iterator()]


class ClientFeedTest(absltest.TestCase):
  def _feed(self, **changed):
    clients = clients_lib.ImageClientData(_split(), _PARTITION)
    return feeds.ClientFeed(clients, **{'batch_size': 2, **changed})

  def test_all_images_of_the_clients_drawn_in_batches(self):
    feed = self._feed(epochs=2)
    self.assertEqual(feed.num_units, 2)
    (second,) = feed(np.array([1]))
    self.assertEqual(_labels(second), [[1, 2], [5], [1, 2], [5]])
    self.assertEmpty(feed(np.array([], np.int64)))

  def test_elements_are_what_the_client_data_says(self):
    feed = self._feed()
    (first,) = feed(np.array([0]))
    self.assertIs(feed(np.array([0]))[0], first)
    batch = next(first.as_numpy_iterator())
    self.assertIsInstance(batch, collections.OrderedDict)
    np.testing.assert_allclose(batch['x'][:, 0, 0, 0], [0, 3 / 255])

  def test_refuses(self):
    with self.assertRaisesRegex(_validate.InputError, 'client_batch_size'):
      self._feed(batch_size=0)


class UnitFeedTest(absltest.TestCase):
  def test_a_dataset_for_every_client_of_its_drawn_units(self):
    feed = feeds.UnitFeed(
      _split(), units_lib.record_units(_PARTITION), 2, microbatch_size=2
    )
    self.assertEqual(feed.num_units, 6)
    first, second = feed(np.array([1, 2, 5]))
    self.assertEqual(_labels(first), [])
    self.assertEqual(_labels(second), [[[1], [2]], [[5]]])

  def test_refuses(self):
    units = units_lib.record_units(_PARTITION)
    with self.assertRaisesRegex(_validate.InputError, 'microbatch_size'):
      feeds.UnitFeed(_split(), units, 2, microbatch_size=0)


class LocalStepsFeedTest(absltest.TestCase):
  def test_a_batch_for_every_step_padded_to_one_size(self):
    sampling = local_mechanism.LocalPoissonSampling(6, rate=0.5, steps=2)
    feed = feeds.LocalStepsFeed(
      _split(), units_lib.record_units(_PARTITION), 2, sampling
    )
    self.assertEqual(feed.num_units, 6)
    # Units 1, 2 and 5 in the first step, 2 and 3 in the second.
    first, second = feed(np.array([1, 2, 5, 6 + 2, 6 + 3]))
    self.assertEqual(_masked(first), [[], [3]])
    self.assertEqual(_masked(second), [[1, 2, 5], [2]])
    batch = next(second.as_numpy_iterator())
    np.testing.assert_array_equal(batch['expected_units'], [1.5] * 3)


def _masked(dataset):
  return [
    batch['y'][batch['mask'] == 1].tolist()
    for batch in dataset.as_numpy_iterator()
  ]


if __name__ == '__main__':
  absltest.main()
