"""Tests of the feed of groups of clients."""

import collections
import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import runtime
from tff_medical.data import clients as clients_lib
from tff_medical.data import images
from tff_medical.learning import batched_clients
from tff_medical.program import client_groups
from tff_medical.program import feeds

_SIZES = (3, 1, 0, 3, 2)


class _Broken(clients_lib.ImageClientData):
  """Client data whose second client cannot be read."""

  def client_arrays(self, client_id):
    if client_id == 'client_1':
      raise OSError('the file is damaged')
    return super().client_arrays(client_id)


def _feed(kind=clients_lib.ImageClientData, clients=2, images_at_once=6):
  count = sum(_SIZES)
  split = images.Split(
    images=np.arange(4 * count, dtype=np.uint8).reshape((count, 2, 2, 1)),
    labels=np.arange(count) % 2,
  )
  parts = tuple(np.split(np.arange(count), np.cumsum(_SIZES)[:-1]))
  return client_groups.ClientGroupFeed(
    feeds.ClientFeed(kind(split, parts), batch_size=1),
    batched_clients.GroupSize(clients, images_at_once),
  )


def _rows(datasets):
  """Returns the images of each client of each group, without padding."""
  found = []
  for dataset in datasets:
    (batch,) = list(dataset)
    for x, y, mask in zip(batch['x'], batch['y'], batch['mask']):
      rows = (255 * x[mask > 0][:, 0, 0, 0] / 4).numpy().round().astype(int)
      np.testing.assert_array_equal(y[mask > 0], rows % 2)
      np.testing.assert_array_equal(x[mask == 0], 0)
      found.append(rows.tolist())
  return found


class ClientGroupFeedTest(parameterized.TestCase):
  def test_each_client_is_in_one_group_with_all_its_images(self):
    feed = _feed()
    self.assertEqual(feed.num_units, 5)
    datasets = feed(np.arange(5))
    self.assertLen(datasets, 3)
    self.assertEqual(
      sorted(_rows(datasets)), [[], [0, 1, 2], [3], [4, 5, 6], [7, 8]]
    )
    self.assertEqual(_rows(feed(np.array([3, 0]))), [[4, 5, 6], [0, 1, 2]])
    self.assertEmpty(feed(np.zeros(0, np.int64)))

  @parameterized.parameters((1, 1), (2, 2), (5, 5), (9, 5))
  def test_there_are_as_many_groups_as_train_at_once(self, at_once, groups):
    feed = dataclasses.replace(
      _feed(clients=100, images_at_once=100), at_once=at_once
    )
    datasets = feed(np.arange(5))
    self.assertLen(datasets, groups)
    self.assertEqual(
      sorted(_rows(datasets)), [[], [0, 1, 2], [3], [4, 5, 6], [7, 8]]
    )

  def test_a_client_that_cannot_be_read_takes_part_without_data(self):
    with self.assertLogs(level='WARNING'):
      datasets = _feed(_Broken)(np.array([0, 1]))
    self.assertCountEqual(_rows(datasets), [[0, 1, 2], []])

  def test_a_round_without_data_has_one_client(self):
    self.assertEqual(_rows(_feed().without_data()), [[]])

  def test_refuses_datasets_without_tensors(self):
    dataset = tf.data.Dataset.range(3)
    with self.assertRaisesRegex(_validate.InputError, 'tensor_dataset, got'):
      client_groups.in_groups([dataset], batched_clients.GroupSize(1, 1))

  def test_takes_pairs(self):
    client = runtime.tensor_dataset(
      (np.ones((2, 3), np.float32), np.array([1, 0])), batch_size=2
    )
    (group,) = client_groups.in_groups(
      [client], batched_clients.GroupSize(1, 1)
    )
    self.assertEqual(
      {name: spec.shape[1:].rank for name, spec in group.element_spec.items()},
      collections.OrderedDict(x=2, y=1, mask=1),
    )

  @parameterized.parameters((1, 100), (3, 100), (100, 8), (100, 1), (2, 5))
  def test_no_group_is_too_large(self, clients, images_at_once):
    sizes = np.random.default_rng(0).integers(0, 9, 50)
    limit = batched_clients.GroupSize(clients, images_at_once)
    groups = list(client_groups.groups_of_like_size(sizes, limit))
    self.assertCountEqual(np.concatenate(groups), np.arange(50))
    for group in groups:
      self.assertLessEqual(len(group), clients)
      if len(group) > 1:
        self.assertLessEqual(
          len(group) * max(1, sizes[group].max()), images_at_once
        )


if __name__ == '__main__':
  absltest.main()
