"""Tests of feeds: the datasets of the units drawn for a round."""

import collections
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical import learning
from tff_medical import models
from tff_medical import runtime
from tff_medical.data import clients as clients_lib
from tff_medical.data import images
from tff_medical.data import units as units_lib
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import feeds

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

  def test_no_list_of_all_ids_is_made(self):
    with mock.patch.object(
      clients_lib.ImageClientData, 'client_ids', new_callable=mock.PropertyMock
    ) as looks:
      feed = self._feed()
      self.assertEqual(feed.num_units, 2)
      feed(np.array([0, 1]))
    looks.assert_not_called()

  def test_keeps_datasets_by_the_size_of_their_objects_too(self):
    arrays = 3 * (4 * 4 + 8)
    limit = 2 * arrays + feeds._DATASET_BYTES
    with mock.patch.object(feeds, '_MAX_KEPT_BYTES', limit):
      feed = self._feed()
      first, second = feed(np.array([0, 1]))
      self.assertIs(feed(np.array([0]))[0], first)
      self.assertIsNot(feed(np.array([1]))[0], second)

  def test_refuses(self):
    with self.assertRaisesRegex(_validate.InputError, 'client_batch_size'):
      self._feed(batch_size=0)


class OtherClientDataTest(parameterized.TestCase):
  """Tests with TFF's client data over files, some of them unreadable."""

  def setUp(self):
    super().setUp()
    self.split = _split()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    for client, rows in enumerate(_PARTITION):
      for row in rows:
        path = self.folder / f'{client}_{row}.png'
        tf.io.write_file(str(path), tf.io.encode_png(self.split.images[row]))

  def _dataset(self, client_id):
    """Returns the images of a client's PNG files, as a user would read them."""
    paths = sorted(self.folder.glob(f'{client_id}_*.png'))
    if not paths:
      raise FileNotFoundError(f'no images of client {client_id}')
    labels = [int(path.stem.split('_')[1]) for path in paths]

    def read(path, label):
      image = tf.io.decode_png(tf.io.read_file(path), channels=1)
      x = tf.ensure_shape(tf.cast(image, tf.float32) / 255, (2, 2, 1))
      return collections.OrderedDict(x=x, y=label)

    return tf.data.Dataset.from_tensor_slices(
      ([str(p) for p in paths], np.array(labels, np.int64))
    ).map(read)

  def _feed(self, client_ids=('0', '1'), create=None):
    create = create or self._dataset
    data = _FromFunction(client_ids, create, self._dataset('1').element_spec)
    return feeds.ClientFeed(data, batch_size=2)

  def test_the_list_of_all_ids_is_made_once(self):
    """Client data returns a new list at each look, of any number of ids."""
    feed = self._feed()
    with mock.patch.object(
      _FromFunction, 'client_ids', new_callable=mock.PropertyMock
    ) as looks:
      looks.return_value = ['0', '1']
      self.assertEqual(feed.num_units, 2)
      for _ in range(3):
        feed(np.array([0, 1]))
    self.assertEqual(looks.call_count, 1)

  def test_gives_what_image_client_data_gives(self):
    clients = clients_lib.ImageClientData(self.split, _PARTITION)
    ours = feeds.ClientFeed(clients, batch_size=2)(np.array([0, 1]))
    feed = self._feed()
    theirs = feed(np.array([0, 1]))
    for a, b in zip(ours, theirs):
      self.assertEqual(a.element_spec, b.element_spec)
      for batch, other in zip(a.as_numpy_iterator(), b.as_numpy_iterator()):
        np.testing.assert_allclose(batch['x'], other['x'], rtol=1e-6)
        np.testing.assert_array_equal(batch['y'], other['y'])
    self.assertIs(feed(np.array([1]))[0], theirs[1])

  def _damage(self, path):
    path.write_bytes(path.read_bytes()[:-20])

  def _remove(self, path):
    for other in path.parent.glob(f'{path.stem[0]}_*.png'):
      other.unlink()

  def _resize(self, path):
    tf.io.write_file(str(path), tf.io.encode_png(np.zeros((3, 2, 1), np.uint8)))

  @parameterized.parameters('_damage', '_remove', '_resize')
  def test_a_client_that_cannot_be_read_takes_part_without_data(self, fault):
    feed = self._feed()
    image = self.folder / '0_3.png'
    getattr(self, fault)(image)
    with self.assertLogs(level='WARNING') as logs:
      first, second = feed(np.array([0, 1]))
      feed(np.array([0]))
    self.assertLen(logs.output, 1)
    self.assertIn('client 0 cannot be read', logs.output[0])
    self.assertEmpty(_labels(first))
    self.assertEqual(first.element_spec, second.element_spec)
    self.assertEqual(_labels(second), [[1, 2], [5]])

  def test_a_client_that_is_mended_takes_part_again(self):
    feed = self._feed()
    image = self.folder / '0_3.png'
    whole = image.read_bytes()
    self._damage(image)
    feed(np.array([0]))
    image.write_bytes(whole)
    self.assertEqual(_labels(feed(np.array([0]))[0]), [[0, 3], [4]])

  def test_a_failing_generator_and_another_type(self):
    spec = self._dataset('1').element_spec

    def fail():
      raise RuntimeError('the scanner is off')
      yield

    def create(client_id):
      if client_id == 'a':
        return tf.data.Dataset.from_generator(fail, output_signature=spec)
      return self._dataset('1').map(
        lambda e: collections.OrderedDict(x=e['x'], y=tf.cast(e['y'], tf.int32))
      )

    feed = self._feed(('a', 'b'), create)
    self.assertEqual(list(map(_labels, feed(np.arange(2)))), [[], []])

  def test_if_nobody_can_be_read_it_is_not_the_clients(self):
    def create(client_id):
      raise OSError(f'not mounted ({client_id})')

    feed = self._feed(map(str, range(30)), create)
    self.assertEqual(list(map(_labels, feed(np.arange(9)))), [[]] * 9)
    with self.assertRaisesRegex(
      _validate.InputError, r'none of the 20 clients .* not mounted \(19\)'
    ):
      feed(np.arange(5, 20))

  def test_refuses_examples_of_any_size(self):
    spec = collections.OrderedDict(x=tf.TensorSpec((None, None, 1)))
    with self.assertRaisesRegex(_validate.InputError, 'one size'):
      feeds.ClientFeed(_FromFunction(['0'], self._dataset, spec), 2)

  @parameterized.named_parameters(
    (
      'ragged',
      lambda x, y: {'scan': {'x': tf.ragged.constant([[1], [1, 2]])}, 'y': y},
      'got scan/x as a RaggedTensorSpec',
    ),
    (
      'sparse',
      lambda x, y: (tf.sparse.from_dense(x), y),
      'got 0 as a SparseTensorSpec',
    ),
    ('nothing', lambda x, y: (x, (y, None)), 'got 1/1 as a NoneTensorSpec'),
  )
  def test_refuses_by_name_what_does_not_stack(self, make, message):
    example = make(np.eye(2, dtype=np.float32), np.arange(2))
    data = _nested_clients(lambda client_id: _slices(example))
    with self.assertRaisesRegex(_validate.InputError, message):
      feeds.ClientFeed(data, 2)

  def test_refuses_batches_by_name(self):
    data = _nested_clients(lambda client_id: _slices((np.eye(2),)).batch(2))
    with self.assertRaisesRegex(
      _validate.InputError, 'got 0 of shape .None, 2'
    ):
      feeds.ClientFeed(data, 2)

  def test_a_full_memory_is_no_client_s_fault(self):
    def create(client_id):
      raise tf.errors.ResourceExhaustedError(None, None, 'OOM')

    with self.assertRaises(tf.errors.ResourceExhaustedError):
      self._feed(create=create)(np.array([0]))


class _FromFunction(tff.simulation.datasets.ClientData):
  """Client data as a user might write it, from a function."""

  def __init__(self, client_ids, create, element_spec):
    self._ids = list(client_ids)
    self._create = create
    self._spec = element_spec

  @property
  def client_ids(self):
    return self._ids

  @property
  def element_type_structure(self):
    return self._spec

  @property
  def serializable_dataset_fn(self):
    return self._create

  def create_tf_dataset_for_client(self, client_id):
    return self._create(client_id)


def _slices(example):
  return tf.data.Dataset.from_tensor_slices(example)


def _nested_clients(create):
  """Client data as TFF makes it of a function."""
  return tff.simulation.datasets.ClientData.from_clients_and_tf_fn(
    ['0', '1'], create
  )


def _two_inputs(client_id):
  """Returns four examples of an image and an age, and a label."""
  # TFF also calls this function with a tensor, to trace it.
  offset = tf.strings.to_number(client_id)
  x = collections.OrderedDict(
    image=tf.reshape(tf.range(16.0), (4, 2, 2)) / 16 + offset,
    age=tf.reshape(tf.range(4.0), (4, 1)) / 4,
  )
  return _slices(collections.OrderedDict(x=x, y=tf.range(4) % 2))


class NestedClientDataTest(parameterized.TestCase):
  """Examples of several inputs, tuples and single tensors."""

  @parameterized.named_parameters(
    ('mapping', lambda e: e),
    ('pair', lambda e: (e['x']['image'], e['y'])),
    ('nested_pair', lambda e: ((e['x']['image'], e['x']['age']), e['y'])),
    ('tensor', lambda e: e['x']['image']),
    ('text', lambda e: (tf.as_string(e['y']), e['y'])),
  )
  def test_gives_the_structure_of_the_client_data(self, structure):
    data = _nested_clients(lambda c: _two_inputs(c).map(structure))
    feed = feeds.ClientFeed(data, batch_size=3)
    for client_id, dataset in zip(data.client_ids, feed(np.arange(2))):
      expected = data.create_tf_dataset_for_client(client_id).batch(3)
      self.assertEqual(dataset.element_spec, expected.element_spec)
      pairs = zip(dataset.as_numpy_iterator(), expected.as_numpy_iterator())
      for batch, other in pairs:
        tf.nest.map_structure(np.testing.assert_array_equal, batch, other)
    self.assertEmpty(list(feed.without_data()[0]))

  def test_a_client_of_another_structure_takes_part_without_data(self):
    spec = _two_inputs('0').element_spec

    def create(client_id):
      dataset = _two_inputs(client_id)
      return (
        dataset.map(lambda e: (e['x'], e['y']))
        if client_id == '1'
        else (dataset.map(lambda e: {'x': e['x']['image'], 'y': e['y']}))
      )

    feed = feeds.ClientFeed(_FromFunction(['0', '1'], create, spec), 2)
    for dataset in feed(np.arange(2)):
      self.assertEmpty(list(dataset))
      self.assertEqual(dataset.element_spec['x'].keys(), spec['x'].keys())

  def test_trains_a_model_of_two_inputs_as_tff_s_own_data_does(self):
    inputs = collections.OrderedDict(
      image=tf.keras.Input((2, 2)), age=tf.keras.Input((1,))
    )
    flat = tf.keras.layers.Flatten()(inputs['image'])
    joined = tf.keras.layers.Concatenate()([flat, inputs['age']])
    model = tf.keras.Model(
      inputs, tf.keras.layers.Dense(2, kernel_initializer='zeros')(joined)
    )
    data = _nested_clients(_two_inputs)
    feed = feeds.ClientFeed(data, batch_size=4)
    process = learning.build_dp_fed_avg(
      tff.learning.models.functional_model_from_keras(
        model, models.loss(False), feed.without_data()[0].element_spec
      ),
      mechanisms.GaussianMechanism(
        sampling=sampling.FullParticipation(2), clipping=None
      ),
      client_optimizer=tff.learning.optimizers.build_sgdm(0.5),
    )
    theirs = [
      data.create_tf_dataset_for_client(c).batch(4) for c in data.client_ids
    ]
    context = runtime.create_local_context(client_threads=1)
    with tff.framework.get_context_stack().install(context):
      state = process.initialize()
      trained = [
        process.get_model_weights(process.next(state, datasets).state)
        for datasets in (feed(np.arange(2)), theirs)
      ]
    first, second = (weights.trainable for weights in trained)
    tf.nest.map_structure(np.testing.assert_array_equal, first, second)
    self.assertGreater(np.abs(first[0]).max(), 0.0)


class UnitFeedTest(parameterized.TestCase):
  @parameterized.parameters(
    # Drawn units, cores, microbatch; the size of each dataset's batches.
    (0, 2, 2, [[]]),
    (3, 2, 8, [[3]]),
    (16, 2, 8, [[8, 8]]),
    (32, 1, 32, [[32]]),
    (33, 2, 32, [[17], [16]]),
    (64, 2, 30, [[16, 16], [16, 16]]),
    (64, 9, 16, [[16], [16], [16], [16]]),
  )
  def test_parts_for_every_core_in_equal_microbatches(
    self, drawn, cores, microbatch, sizes
  ):
    partition = tuple(np.arange(100).reshape(4, 25))
    split = images.Split(
      np.zeros((100, 2, 2, 1), np.uint8), labels=np.arange(100)
    )
    feed = feeds.UnitFeed(
      split, units_lib.record_units(partition), 4, microbatch_size=microbatch
    )
    self.assertEqual(feed.num_units, 100)
    indices = np.sort(
      np.random.default_rng(drawn).choice(100, drawn, replace=False)
    )
    with mock.patch.object(feeds.devices, 'available_cores', lambda: cores):
      labels = [_labels(dataset) for dataset in feed(indices)]
    self.assertEqual([[len(batch) for batch in d] for d in labels], sizes)
    every = [
      int(y[0]) for dataset in labels for batch in dataset for y in batch
    ]
    self.assertEqual(every, indices.tolist())

  def test_no_more_datasets_than_clients(self):
    split = images.Split(
      np.zeros((100, 2, 2, 1), np.uint8), labels=np.arange(100)
    )
    units = units_lib.record_units((np.arange(100),))
    feed = feeds.UnitFeed(split, units, 1, microbatch_size=64)
    with mock.patch.object(feeds.devices, 'available_cores', lambda: 8):
      self.assertLen(feed(np.arange(90)), 1)

  def test_all_units_are_read_once(self):
    split = _split()
    feed = feeds.UnitFeed(
      split, units_lib.record_units(_PARTITION), 2, microbatch_size=2
    )
    everyone = np.arange(6)
    first = [_labels(dataset) for dataset in feed(everyone)]
    split.labels[:] = 9  # Would be seen by another read.
    self.assertEqual([_labels(d) for d in feed(everyone)], first)
    self.assertEqual(_labels(feed(np.array([1]))[0]), [[[9]]])
    with mock.patch.object(feeds, '_MAX_KEPT_BYTES', 1):
      unkept = feeds.UnitFeed(split, feed.units, 2, microbatch_size=2)
      self.assertNotEqual([_labels(d) for d in unkept(everyone)], first)

  def test_refuses(self):
    units = units_lib.record_units(_PARTITION)
    with self.assertRaisesRegex(_validate.InputError, 'microbatch_size'):
      feeds.UnitFeed(_split(), units, 2, microbatch_size=0)


class LocalStepsFeedTest(absltest.TestCase):
  def test_a_batch_for_every_step_padded_to_one_size(self):
    sampling = local_dp_sgd_mechanism.LocalDpSgdSampling(6, rate=0.5, steps=2)
    feed = feeds.LocalStepsFeed(
      _split(), units_lib.record_units(_PARTITION), 2, sampling
    )
    self.assertEqual(feed.num_units, 6)
    # The first step has units 1, 2 and 5; the second has units 2 and 3.
    first, second = feed(np.array([1, 2, 5, 6 + 2, 6 + 3]))
    self.assertEqual(_masked(first), [[], [3]])
    self.assertEqual(_masked(second), [[1, 2, 5], [2]])
    batch = next(second.as_numpy_iterator())
    np.testing.assert_array_equal(batch['expected_units'], [1.5] * 3)

  def test_all_units_of_all_steps_are_read_once(self):
    sampling = local_dp_sgd_mechanism.LocalDpSgdSampling(6, rate=1.0, steps=2)
    split = _split()
    feed = feeds.LocalStepsFeed(
      split, units_lib.record_units(_PARTITION), 2, sampling
    )
    everyone = sampling.draw(0, 1, 1)
    first = [_masked(dataset) for dataset in feed(everyone)]
    self.assertEqual(sum(map(len, first[0] + first[1])), 12)
    split.labels[:] = 9  # Would be seen by another read.
    self.assertEqual([_masked(d) for d in feed(everyone)], first)
    self.assertEqual(
      [_masked(d) for d in feed.without_data()], [[[], []], [[], []]]
    )
    with mock.patch.object(feeds, '_MAX_KEPT_BYTES', 1):
      unkept = feeds.LocalStepsFeed(split, feed.units, 2, sampling)
      unkept(everyone)
      split.labels[:] = 8
      self.assertNotEqual(_masked(unkept(everyone)[0]), first[0])
      self.assertIn(8, np.concatenate(_masked(unkept(everyone)[0])))


def _masked(dataset):
  return [
    batch['y'][batch['mask'] == 1].tolist()
    for batch in dataset.as_numpy_iterator()
  ]


if __name__ == '__main__':
  absltest.main()
