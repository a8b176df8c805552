import collections
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import runtime
from tff_medical.runtime import cohort
from tff_medical.runtime import devices
from tff_medical.runtime import pipelines
from tff_medical.runtime import plan
from tff_medical.runtime import tensor_data

_CASES = 120
_SPEC = tff.SequenceType(tff.TensorType(np.int64, [None]))


@functools.cache
def _context():
  return runtime.LocalContext(
    cohort.Cohort(devices.Placement(('CPU:0',), 2, 'client_threads'))
  )


@functools.cache
def _reader(passes=1, loop=False):
  """Returns the computation that lists all batches of each client."""

  def add(state, batch):
    values, sizes = state
    size = tf.size(batch, tf.int64)
    return tf.concat([values, batch], 0), tf.concat([sizes, [size]], 0)

  def read(dataset):
    empty = tf.zeros([0], tf.int64)
    return dataset.reduce((empty, empty), add)

  @tf.function
  def read_in_loop(dataset):
    values = sizes = tf.zeros([0], tf.int64)
    for batch in dataset:
      tf.autograph.experimental.set_loop_options(
        shape_invariants=[
          (values, tf.TensorShape([None])),
          (sizes, tf.TensorShape([None])),
        ]
      )
      values, sizes = add((values, sizes), batch)
    return values, sizes

  @tff.tensorflow.computation(_SPEC)
  def work(dataset):
    return [(read_in_loop if loop else read)(dataset) for _ in range(passes)]

  return tff.federated_computation(
    lambda data: tff.federated_map(work, data),
    tff.FederatedType(_SPEC, tff.CLIENTS),
  )


def _split(values, sizes):
  ends = np.cumsum(sizes)
  return [list(values[e - s : e]) for s, e in zip(sizes, ends)]


def _read(datasets, passes=1, loop=False):
  """Returns the batches that the runtime reads: [client][pass][batch]."""
  with tff.framework.get_context_stack().install(_context()):
    clients = _reader(passes, loop)(datasets)
  return [[_split(*one) for one in client] for client in clients]


def _expected(dataset):
  return [list(batch) for batch in dataset.as_numpy_iterator()]


def _negated(batch):
  return -batch


def _scaled(batch):
  return batch * 3 + tf.size(batch, tf.int64)


# Transformations of examples or batches, each with a random number.
_STEPS = {
  'take': lambda d, n: d.take(n - 1),
  'skip': lambda d, n: d.skip(n // 2),
  'repeat': lambda d, n: d.repeat(n % 3 + 1),
  'shuffle': lambda d, n: d.shuffle(n + 1, seed=n),
  'shuffle_once': lambda d, n: d.shuffle(
    n + 1, seed=n, reshuffle_each_iteration=False
  ),
  'prefetch': lambda d, n: d.prefetch(n),
  'cache': lambda d, n: d.cache(),
  'negate': lambda d, n: d.map(_negated),
  'scale': lambda d, n: d.map(_scaled),
  'parallel': lambda d, n: d.map(_negated, num_parallel_calls=2),
  'filter': lambda d, n: d.filter(lambda x: tf.reduce_sum(x) % 3 != 0),
  'seeded_map': lambda d, n: d.map(
    lambda x: x + tf.random.uniform([], 0, 99, tf.int64, seed=n)
  ),
  'double': lambda d, n: d.concatenate(d),
}


def _chain(rng):
  """Returns names and numbers of a random chain of transformations."""
  names = sorted(_STEPS)
  before = [(rng.choice(names), int(n)) for n in rng.integers(0, 12, 3)]
  after = [(rng.choice(names), int(n)) for n in rng.integers(0, 12, 3)]
  return (
    int(rng.integers(0, 15)),
    before[: rng.integers(0, 4)],
    int(rng.integers(1, 6)),
    bool(rng.integers(2)),
    after[: rng.integers(0, 4)],
  )


def _build(chain):
  examples, before, batch_size, drop_remainder, after = chain
  dataset = tf.data.Dataset.from_tensor_slices(
    np.arange(examples, dtype=np.int64)
  )
  for name, number in before:
    dataset = _STEPS[name](dataset, number)
  dataset = dataset.batch(batch_size, drop_remainder)
  for name, number in after:
    dataset = _STEPS[name](dataset, number)
  return dataset


class ChainTest(parameterized.TestCase):
  @parameterized.parameters((False, 4096), (False, 6), (True, 6))
  @mock.patch.object(plan, '_MAX_FORMS', 64)
  def test_elements_and_order_are_those_of_tf_data(self, loop, chunk_rows):
    rng = np.random.default_rng(chunk_rows)
    chains = [_chain(rng) for _ in range(_CASES)]
    ours = [_build(chain) for chain in chains]
    theirs = [_build(chain) for chain in chains]
    with mock.patch.object(pipelines, '_CHUNK_ROWS', chunk_rows):
      forms = collections.Counter(
        type(pipelines.form_of(dataset)).__name__ for dataset in ours
      )
    for form in ('TensorBatches', 'RowChunks', 'NoneType'):
      self.assertGreater(forms[form], _CASES // 20, forms)
    for _ in range(2):  # A seeded shuffle goes on in the second iteration.
      read = _read(ours, loop=loop)
      for chain, (batches,), dataset in zip(chains, read, theirs):
        self.assertEqual(batches, _expected(dataset), chain)


def _numbers(count):
  return tf.data.Dataset.from_tensor_slices(np.arange(count, dtype=np.int64))


class FormTest(parameterized.TestCase):
  def assert_form(self, dataset, form):
    self.assertIsInstance(pipelines.form_of(dataset), form)

  def test_slices(self):
    numbers = _numbers(9)
    for dataset in (
      numbers.batch(4),
      numbers.cache().skip(1).take(7).prefetch(2).batch(4, drop_remainder=True),
      numbers.batch(2).cache().take(3).skip(1).repeat(5).prefetch(1),
      runtime.tensor_dataset(np.arange(9), batch_size=2),
      runtime.tensor_dataset(np.arange(9), batch_size=2).prefetch(2),
    ):
      self.assert_form(dataset, tensor_data.TensorBatches)

  def test_chunks(self):
    numbers = _numbers(9)
    for dataset in (
      numbers.repeat(2).shuffle(3, seed=1).batch(4).map(_negated).prefetch(2),
      numbers.filter(lambda x: x > 1).batch(4),
      numbers.batch(4).repeat(),
    ):
      self.assert_form(dataset, pipelines.RowChunks)

  def test_others_run_as_they_are(self):
    numbers = _numbers(9)
    table = tf.lookup.StaticHashTable(
      tf.lookup.KeyValueTensorInitializer(np.arange(9), np.arange(9) + 1), -1
    )
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    for dataset in (
      numbers.batch(4).with_options(options),
      numbers.with_options(options).batch(4),
      numbers.batch(4).map(lambda x: x + tf.random.uniform([], 0, 2, tf.int64)),
      numbers.batch(4).map(lambda x: table.lookup(x)),
      numbers.batch(4).map(lambda x: tf.py_function(np.negative, [x], x.dtype)),
      numbers.batch(4).filter(lambda x: tf.size(x) == 4),
      numbers.batch(4).shuffle(2),
      numbers.shuffle(2).batch(4).cache(),
      numbers.batch(4).repeat(2).take(3),
      numbers.batch(4, num_parallel_calls=2),
      numbers.batch(4).cache(self.create_tempfile().full_path),
      numbers.map(tf.strings.as_string).batch(4),
      tf.data.Dataset.from_generator(
        lambda: iter([[1], [1, 2]]), output_signature=tf.TensorSpec([None])
      ).batch(1),
      tf.data.Dataset.from_tensor_slices(
        tf.ragged.constant([[1], [2, 3]])
      ).batch(1),
      tf.data.Dataset.from_tensor_slices(tf.sparse.eye(3)).batch(1),
      numbers,
    ):
      self.assertIsNone(pipelines.form_of(dataset), dataset)

  @parameterized.parameters(
    *('_batch_size', '_drop_remainder', '_input_dataset', '_count'),
    *('_map_func', '_filename'),
  )
  def test_an_attribute_that_tensorflow_has_no_more(self, name):
    read = pipelines._read

    def without(value, *names):
      if name in names:
        raise pipelines._NotRecognisedError(name)
      return read(value, *names)

    rows = _numbers(9).cache()
    dataset = rows.batch(4).take(2).map(_negated).prefetch(1)
    slices = rows.batch(4)
    with mock.patch.object(pipelines, '_read', without):
      forms = [pipelines.form_of(dataset), pipelines.form_of(slices)]
    self.assertIn(None, forms)
    self.assertEqual(
      _read([dataset, slices]), [[_expected(dataset)], [_expected(slices)]]
    )

  def test_reads_an_attribute_only_where_it_is(self):
    with self.assertRaises(pipelines._NotRecognisedError):
      pipelines._read(_numbers(9), 'no_such_attribute')

  def test_classes_that_tensorflow_has_no_more(self):
    dataset = _numbers(9).batch(4)
    with mock.patch.object(pipelines, '_MODULES', 'elsewhere.'):
      self.assertIsNone(pipelines.form_of(dataset))

  def test_form_is_found_once(self):
    dataset = _numbers(9).shuffle(9).batch(4)
    self.assertIs(pipelines.form_of(dataset), pipelines.form_of(dataset))


class ShuffleTest(parameterized.TestCase):
  def test_each_pass_and_round_has_an_order_of_its_own(self):
    dataset = _numbers(20).shuffle(20).batch(4).map(_negated)
    orders = [
      np.concatenate(batches)
      for _ in range(3)
      for batches in _read([dataset] * 2, passes=2)[0]
    ]
    self.assertLen({tuple(order) for order in orders}, 6)
    for order in orders:
      np.testing.assert_array_equal(np.sort(-order), np.arange(20))

  @parameterized.parameters(
    (lambda d: d.repeat(3).batch(4),),
    (lambda d: d.batch(4).repeat(3),),
    (lambda d: d.repeat(3).map(_negated).batch(4).repeat(2),),
    (lambda d: d.take(7).batch(2, drop_remainder=True),),
  )
  def test_seeds_go_on_as_in_tf_data(self, finish):
    ours, theirs = [finish(_numbers(9).shuffle(4, seed=3)) for _ in range(2)]
    self.assertIsInstance(pipelines.form_of(ours), pipelines.RowChunks)
    for _ in range(3):
      self.assertEqual(_read([ours]), [[_expected(theirs)]])

  def test_an_order_that_is_kept(self):
    once = _numbers(20).shuffle(20, reshuffle_each_iteration=False).batch(4)
    cached = _numbers(20).shuffle(20).cache().batch(4)
    for dataset in (once, cached):
      first, second = [_read([dataset])[0][0] for _ in range(2)]
      self.assertEqual(first, second)
      self.assertEqual(_expected(dataset), first)


class MapTest(absltest.TestCase):
  def test_runs_anew_in_each_iteration_if_it_has_state(self):
    calls = []

    def count(x):
      calls.append(int(x))
      return x

    rows = _numbers(5).map(lambda x: tf.py_function(count, [x], tf.int64))
    rows = rows.map(lambda x: tf.ensure_shape(x, []))
    dataset = rows.batch(2)
    self.assertIsInstance(pipelines.form_of(dataset), pipelines.RowChunks)
    _read([dataset], passes=2)
    self.assertEqual(sorted(calls), sorted(2 * list(range(5))))

  def test_captured_tensors_are_those_of_each_client(self):
    datasets = []
    for number in range(5):
      offset = tf.fill([200], np.int64(10 * number))
      datasets.append(_numbers(3).batch(2).map(lambda x, o=offset: x + o[0]))
    digests = {m.digest for d in datasets for m in pipelines.form_of(d).maps}
    self.assertLen(digests, 1)
    expected = [[[[10 * n, 10 * n + 1], [10 * n + 2]]] for n in range(5)]
    self.assertEqual(_read(datasets), expected)

  def test_a_function_per_client_is_not_compiled_per_client(self):
    datasets = [
      _numbers(3).batch(2).map(lambda x, n=n: x + n) for n in range(20)
    ]
    compiled = []
    compile_step = plan.Step._compile

    def recorded(step, fed):
      compiled.append(step)
      return compile_step(step, fed)

    _reader.cache_clear()
    with mock.patch.object(plan.Step, '_compile', recorded):
      read = _read(datasets)
    self.assertLen(compiled, 9)
    self.assertEqual(read, [[[[n, n + 1], [n + 2]]] for n in range(20)])

  def test_a_pipeline_of_structures(self):
    def formatted(element):
      return collections.OrderedDict(
        y=tf.reshape(element['label'], [-1, 1]),
        x=tf.reshape(element['pixels'], [-1, 4]),
      )

    data = collections.OrderedDict(
      pixels=np.arange(40, dtype=np.float32).reshape([10, 2, 2]),
      label=np.arange(10, dtype=np.int32),
    )

    def build():
      rows = tf.data.Dataset.from_tensor_slices(data)
      rows = rows.repeat(2).shuffle(100, seed=1)
      return rows.batch(3).map(formatted).prefetch(10)

    dataset, usual = build(), build()
    form = pipelines.form_of(dataset)
    self.assertIsInstance(form, pipelines.RowChunks)
    spec = tff.types.tensorflow_to_type(dataset.element_spec)

    @tff.tensorflow.computation(tff.SequenceType(spec))
    def work(elements):
      def add(state, element):
        weight = tf.cast(element['y'], tf.float32) + 1.0
        return 0.5 * state + tf.reduce_sum(element['x'] * weight)

      return elements.reduce(0.0, add)

    with tff.framework.get_context_stack().install(_context()):
      total = work(dataset)
    expected = np.float32(0)
    for element in usual.as_numpy_iterator():
      weight = element['y'].astype(np.float32) + 1
      expected = 0.5 * expected + (element['x'] * weight).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)


class SliceTest(absltest.TestCase):
  def test_clients_with_rows_of_different_widths(self):
    spec = tff.SequenceType(tff.TensorType(np.float32, [None, None]))

    @tff.tensorflow.computation(spec)
    def work(dataset):
      return dataset.reduce(0.0, lambda s, b: s + tf.reduce_sum(b))

    comp = tff.federated_computation(
      lambda data: tff.federated_map(work, data),
      tff.FederatedType(spec, tff.CLIENTS),
    )
    ones = [np.ones([3, width], np.float32) for width in range(1, 13)]
    plain = [tf.data.Dataset.from_tensor_slices(x).batch(2) for x in ones]
    ours = [runtime.tensor_dataset(x, batch_size=2) for x in ones]
    with tff.framework.get_context_stack().install(_context()):
      for datasets in (plain, ours):
        self.assertEqual(comp(datasets), [3.0 * len(x[0]) for x in ones])


class ChunkTest(parameterized.TestCase):
  def test_endless_data(self):
    @tff.tensorflow.computation(_SPEC)
    def first(dataset):
      return dataset.take(3).reduce(np.int64(0), lambda s, b: s + b[0])

    with tff.framework.get_context_stack().install(_context()):
      for dataset in (
        _numbers(5).repeat().batch(2),
        _numbers(5).shuffle(5).batch(2).repeat(),
      ):
        self.assertIsInstance(pipelines.form_of(dataset), pipelines.RowChunks)
        first(dataset)
    endless = _numbers(5).repeat().batch(2).take(3)
    self.assertEqual(_read([endless]), [[[[0, 1], [2, 3], [4, 0]]]])

  @parameterized.parameters(
    ([], 1, 4096), ([], 5000, 5000), ([1024], 32, 2048), ([2**22], 3, 3)
  )
  def test_memory_of_a_chunk_is_bounded(self, shape, batch_size, expected):
    rows = tf.data.Dataset.from_tensors(tf.zeros(shape)).repeat(10**9)
    form = pipelines.form_of(rows.batch(batch_size))
    self.assertEqual(form.options[1], expected)

  def test_no_more_is_read_than_two_chunks(self):
    pulled = []

    # Unlike a map, which TensorFlow runs ahead in threads of its own.
    def pull():
      for number in range(100):
        pulled.append(number)
        yield number

    rows = tf.data.Dataset.from_generator(
      pull, output_signature=tf.TensorSpec([], tf.int64)
    )
    ahead = []

    def note(x, _):
      ahead.append(len(pulled) - int(x))
      return np.int64(0)

    @tff.tensorflow.computation(_SPEC)
    def work(dataset):
      return dataset.reduce(
        np.int64(0),
        lambda s, b: s + tf.numpy_function(note, [b[0], s], tf.int64),
      )

    with mock.patch.object(pipelines, '_CHUNK_ROWS', 8):
      pipelines.form_of(dataset := rows.batch(2))
    with tff.framework.get_context_stack().install(_context()):
      work(dataset)
    self.assertLen(ahead, 50)
    self.assertLessEqual(max(ahead), 2 * 8)


if __name__ == '__main__':
  absltest.main()
