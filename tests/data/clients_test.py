import collections
import time
import tracemalloc

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.data import clients
from tff_medical.data import images
from tff_medical.data import partition


def _split(n=6, multi_label=False):
  rng = np.random.default_rng(0)
  labels = rng.integers(2, size=[n, 3]) if multi_label else np.arange(n) % 3
  return images.Split(
    images=rng.integers(256, size=[n, 4, 4, 1]).astype(np.uint8),
    labels=labels.astype(np.int64),
  )


_PARTITION = (np.array([0, 3]), np.array([1]), np.array([2, 4, 5]))


def _assert_same(dataset, arrays):
  """Checks that a dataset yields the rows of `arrays`, in order."""
  elements = list(dataset.as_numpy_iterator())
  for name, values in arrays.items():
    read = np.stack([element[name] for element in elements])
    np.testing.assert_array_equal(read, values)


class ImageClientDataTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.split = _split()
    self.data = clients.ImageClientData(self.split, _PARTITION)

  def test_ids_and_sizes(self):
    self.assertIsInstance(self.data, tff.simulation.datasets.ClientData)
    self.assertEqual(self.data.client_ids, ['client_0', 'client_1', 'client_2'])
    self.assertEqual(list(self.data.num_examples.values()), [2, 1, 3])

  def test_client_arrays(self):
    arrays = self.data.client_arrays('client_2')
    self.assertEqual(list(arrays), ['x', 'y'])
    np.testing.assert_allclose(
      arrays['x'], self.split.images[[2, 4, 5]] / 255, rtol=1e-6
    )
    np.testing.assert_array_equal(arrays['y'], [2, 1, 2])
    self.assertEqual(arrays['x'].dtype, np.float32)
    arrays['x'][:] = 0  # The array belongs to the caller.
    self.assertGreater(self.data.client_arrays('client_2')['x'].max(), 0)

  @parameterized.parameters(False, True)
  def test_dataset_has_the_arrays_and_the_type_stated(self, multi_label):
    data = clients.ImageClientData(_split(multi_label=multi_label), _PARTITION)
    dataset = data.create_tf_dataset_for_client('client_2')
    self.assertEqual(dataset.element_spec, data.element_type_structure)
    y = data.element_type_structure['y']
    expected = ([3], tf.float32) if multi_label else ([], tf.int64)
    self.assertEqual((y.shape.as_list(), y.dtype), expected)
    _assert_same(dataset, data.client_arrays('client_2'))

  @parameterized.parameters(False, True)
  def test_dataset_computation_runs_on_tff(self, multi_label):
    data = clients.ImageClientData(_split(multi_label=multi_label), _PARTITION)
    for name in data.client_ids:
      rows = list(data.dataset_computation(name))
      arrays = data.client_arrays(name)
      np.testing.assert_array_equal([r['x'] for r in rows], arrays['x'])
      np.testing.assert_array_equal([r['y'] for r in rows], arrays['y'])

  def test_preprocess(self):
    batched = self.data.preprocess(lambda dataset: dataset.batch(2))
    sizes = [
      len(b['y']) for b in batched.create_tf_dataset_for_client('client_2')
    ]
    self.assertEqual(sizes, [2, 1])
    batches = list(batched.dataset_computation('client_0'))
    np.testing.assert_array_equal(
      batches[0]['x'], self.data.client_arrays('client_0')['x']
    )

  def test_all_clients_in_one_dataset(self):
    dataset = self.data.create_tf_dataset_from_all_clients(seed=1)
    self.assertEqual(
      sorted(e['y'] for e in dataset.as_numpy_iterator()),
      sorted(self.split.labels),
    )

  def test_serializable_fn_takes_eager_tensors(self):
    dataset = self.data.serializable_dataset_fn(tf.constant('client_0'))
    _assert_same(dataset, self.data.client_arrays('client_0'))

  def test_train_test_client_split_keeps_the_arrays(self):
    train, test = clients.ImageClientData.train_test_client_split(
      self.data, num_test_clients=1, seed=0
    )
    self.assertLen(test.client_ids, 1)
    self.assertCountEqual(
      train.client_ids + test.client_ids, self.data.client_ids
    )
    name = test.client_ids[0]
    np.testing.assert_array_equal(
      test.client_arrays(name)['x'], self.data.client_arrays(name)['x']
    )

  def test_tffs_own_split_works_too(self):
    parts = tff.simulation.datasets.ClientData.train_test_client_split(
      self.data.preprocess(lambda dataset: dataset.batch(1)), 2, seed=0
    )
    self.assertEqual([len(p.client_ids) for p in parts], [1, 2])

  def test_subset(self):
    part = self.data.subset(['client_2'])
    self.assertEqual(part.client_ids, ['client_2'])
    with self.assertRaisesRegex(_validate.InputError, "got 'client_0'"):
      part.client_arrays('client_0')

  def test_trains_with_tff(self):
    model = tff.learning.models.functional_model_from_keras(
      tf.keras.Sequential(
        [
          tf.keras.layers.InputLayer([4, 4, 1]),
          tf.keras.layers.Flatten(),
          tf.keras.layers.Dense(3),
        ]
      ),
      tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      self.data.preprocess(lambda d: d.batch(2)).element_type_structure,
    )
    process = tff.learning.algorithms.build_unweighted_fed_avg(
      model,
      client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
      server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    )
    datasets = [
      self.data.create_tf_dataset_for_client(name).batch(2)
      for name in self.data.client_ids
    ]
    output = process.next(process.initialize(), datasets)
    self.assertIn('client_work', output.metrics)

  @parameterized.parameters(
    lambda data: data.client_arrays('nobody'),
    lambda data: data.create_tf_dataset_for_client('nobody'),
    lambda data: data.serializable_dataset_fn('nobody'),
  )
  def test_unknown_client(self, read):
    with self.assertRaisesRegex(_validate.InputError, "got 'nobody'"):
      read(self.data)

  def test_unknown_client_in_a_graph(self):
    dataset_fn = self.data.serializable_dataset_fn

    @tf.function
    def count(name):
      return dataset_fn(name).reduce(0, lambda n, _: n + 1)

    self.assertEqual(int(count(tf.constant('client_2'))), 3)
    with self.assertRaisesRegex(tf.errors.InvalidArgumentError, 'Not a client'):
      count(tf.constant('nobody'))

  def test_names_given(self):
    data = clients.ImageClientData(self.split, _PARTITION, ['b', 'a', 'c'])
    self.assertEqual(data.client_ids, ['b', 'a', 'c'])
    np.testing.assert_array_equal(data.client_arrays('a')['y'], [1])

  def test_ids_by_number(self):
    data = clients.ImageClientData(_split(12), np.arange(12)[:, np.newaxis])
    self.assertEqual(list(data.ids), data.client_ids)
    self.assertEqual(data.client_ids, sorted(data.client_ids))
    self.assertEqual(data.ids[-1], 'client_11')
    for row, name in enumerate(data.client_ids):
      self.assertEqual(data.client_arrays(name)['y'].tolist(), [row % 3])
    for name in (
      'client_12', 'client_1', 'client_001', 'client_-1', 'client_', '', '11',
      'clinic_11', 'client_1١', 'client_1²',
    ):  # fmt: skip
      with self.assertRaisesRegex(_validate.InputError, 'one of the 12'):
        data.client_arrays(name)

  def test_a_client_costs_no_objects(self):
    number = 100_000
    split = images.Split(
      images=np.zeros([number, 1, 1, 1], np.uint8),
      labels=np.zeros(number, np.int64),
    )
    rows = partition.iid(split, number, np.random.default_rng(0))
    tracemalloc.start()
    try:
      data = clients.ImageClientData(split, rows)
      self.assertLen(data.client_arrays(data.ids[number - 1])['y'], 1)
      peak = tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()
    self.assertLess(peak, 100_000)

  @parameterized.parameters((['a', 'b'],), (['a', 'b', 'b'],))
  def test_rejects_names(self, names):
    with self.assertRaisesRegex(_validate.InputError, '2 ids for 3 clients'):
      clients.ImageClientData(self.split, _PARTITION, names)

  def test_too_large_for_a_graph(self):
    self.enter_context(
      absltest.mock.patch.object(clients, '_MAX_GRAPH_BYTES', 10)
    )
    self.data.create_tf_dataset_for_client('client_0')
    with self.assertRaisesRegex(
      _validate.InputError, 'create_tf_dataset_for_client'
    ):
      _ = self.data.dataset_computation

  def test_many_clients_are_fast(self):
    split = _split(20_000)
    indices = tuple(np.array_split(np.arange(20_000), 2_000))
    start = time.perf_counter()
    data = clients.ImageClientData(split, indices)
    for name in data.client_ids:
      data.client_arrays(name)
    self.assertLess(time.perf_counter() - start, 2.0)


class ToArraysTest(absltest.TestCase):
  def test_whole_split(self):
    split = _split()
    arrays = clients.to_arrays(split)
    self.assertIsInstance(arrays, collections.OrderedDict)
    np.testing.assert_allclose(arrays['x'], split.images / 255, rtol=1e-6)
    np.testing.assert_array_equal(arrays['y'], split.labels)


if __name__ == '__main__':
  absltest.main()
