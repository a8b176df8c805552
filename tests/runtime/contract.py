"""What every runtime of the project must give: the same as TFF's own runtime.

Each case is run by two runtimes on the same arguments. Nothing here is random.
"""

import collections
import contextlib

from absl.testing import parameterized
import grpc
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import runtime

_CASES = {}


def clients(type_spec):
  return tff.FederatedType(type_spec, tff.CLIENTS)


def server(type_spec):
  return tff.FederatedType(type_spec, tff.SERVER)


def case(function):
  _CASES[function.__name__] = function
  return function


def run_in(context, function, *args):
  with tff.framework.get_context_stack().install(context):
    return function(*args)


def plain(value):
  """Makes datasets comparable."""
  if isinstance(value, tf.data.Dataset):
    return [plain(element) for element in value.as_numpy_iterator()]
  if isinstance(value, dict):
    return type(value)((k, plain(v)) for k, v in value.items())
  if isinstance(value, (list, tuple)) and not hasattr(value, '_fields'):
    return type(value)(plain(v) for v in value)
  return value


def assert_same(test, actual, expected):
  tf.nest.assert_same_structure(plain(actual), plain(expected))
  pairs = zip(tf.nest.flatten(plain(actual)), tf.nest.flatten(plain(expected)))
  for a, b in pairs:
    test.assertIs(type(a), type(b))
    if isinstance(b, (np.ndarray, np.generic)):
      test.assertEqual(a.dtype, b.dtype)
      test.assertEqual(a.shape, b.shape)
    if isinstance(b, (float, np.floating)) or (
      isinstance(b, np.ndarray) and np.issubdtype(b.dtype, np.floating)
    ):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    else:
      np.testing.assert_array_equal(a, b)


# Computations without placement.


@case
def strings():
  comp = tff.tensorflow.computation(
    lambda x: (tf.strings.join([x, x]), tf.strings.length(x)),
    tff.TensorType(np.str_, [None]),
  )
  return comp(['a', 'bcd'])


@case
def nested_structures():
  point = collections.namedtuple('point', ['x', 'y'])
  comp = tff.tensorflow.computation(
    lambda p: collections.OrderedDict(z=[p.y, (p.x,)], a=point(p.x, ())),
    point(np.float32, tff.TensorType(np.int32, [2])),
  )
  return comp(point(1.5, np.array([1, 2], np.int32)))


@case
def no_argument():
  return tff.tensorflow.computation(lambda: tf.constant([True, False]))()


@case
def a_variable_starts_anew_at_every_call():
  @tff.tensorflow.computation(np.float32)
  def add(x):
    total = tf.Variable(10.0)
    total.assign_add(x)
    return total.read_value()

  return [add(1.0), add(2.0)]


@case
def a_lookup_table():
  @tff.tensorflow.computation(np.str_)
  def find(key):
    init = tf.lookup.KeyValueTensorInitializer(['a', 'b'], [1, 2])
    return tf.lookup.StaticHashTable(init, -1).lookup(key)

  return [find('a'), find('z')]


@case
def loops_and_conditions():
  @tf.function
  def collatz(n):
    steps = 0
    while n > 1:
      n = n // 2 if n % 2 == 0 else 3 * n + 1
      steps += 1
    return steps

  return tff.tensorflow.computation(collatz, np.int32)(27)


@tf.function
def _halvings(x):
  count = 0
  while x > 1:
    x = x // 2
    count += 1
  return count


@case
def several_computations_with_loops():
  number = np.int32
  halvings = tff.tensorflow.computation(_halvings, number)

  @tff.tensorflow.computation(number, number)
  @tf.function
  def accumulate(total, value):
    while value > 0:
      total += value
      value -= 1
    return total

  merge = tff.tensorflow.computation(lambda a, b: a + b, number, number)

  @tff.federated_computation(clients(number))
  def comp(value):
    counts = tff.federated_map(halvings, value)
    total = tff.federated_aggregate(counts, 0, accumulate, merge, halvings)
    return tff.federated_map(halvings, counts), total

  return comp([3, 20, 100])


@case
def epochs_in_a_loop():
  spec = tff.SequenceType(
    collections.OrderedDict(x=tff.TensorType(np.float32, [None, 1]))
  )

  @tff.tensorflow.computation(spec)
  def work(dataset):
    weight = tf.Variable(1.0)

    @tf.function
    def train():
      batches = 0
      for _ in tf.range(3):
        batches = dataset.reduce(batches, lambda n, _: n + 1)
        for batch in dataset:
          weight.assign_add(tf.reduce_sum(batch['x']))
      return weight.read_value(), batches

    return train()

  data = [{'x': np.arange(n, dtype=np.float32)[:, None]} for n in (3, 5)]
  comp = tff.federated_computation(
    lambda x: tff.federated_map(work, x), clients(spec)
  )
  return [
    comp([tf.data.Dataset.from_tensor_slices(d).batch(2) for d in data]),
    comp([runtime.tensor_dataset(d, batch_size=2) for d in data]),
  ]


@case
def loops_over_sequences():
  spec = tff.SequenceType(np.int32)

  @tff.tensorflow.computation(np.int32, np.int32)
  def fold(total, value):
    extra = tf.Variable(1)
    extra.assign_add(_halvings(value))
    return _halvings(total) + extra.read_value()

  @tff.federated_computation(clients(spec))
  def comp(data):
    inner = tff.federated_computation(
      lambda s: tff.sequence_reduce(s, 0, fold), spec
    )
    return tff.federated_map(inner, data)

  return comp([[100, 20, 3], [7], []])


@case
def a_function_as_argument():
  increment = tff.tensorflow.computation(lambda x: x + 1, np.int32)
  twice = tff.federated_computation(
    lambda f, x: f(f(x)), tff.FunctionType(np.int32, np.int32), np.int32
  )
  return twice(increment, 3)


# Sequences.


@case
def sequences():
  spec = tff.SequenceType(np.int32)
  total = tff.tensorflow.computation(
    lambda d: d.reduce(np.int32(0), lambda a, b: 2 * a + b), spec
  )
  dataset = tf.data.Dataset.from_tensor_slices(np.arange(5, dtype=np.int32))
  return [total([1, 2, 3]), total(dataset), total(dataset.take(0))]


@case
def infinite_sequences():
  total = tff.tensorflow.computation(
    lambda d: d.take(10).reduce(np.int64(0), lambda a, b: a + b),
    tff.SequenceType(np.int64),
  )
  repeat = tff.tensorflow.computation(lambda: tf.data.Dataset.range(3).repeat())
  return total(tf.data.Dataset.range(7).repeat()), repeat().take(8)


@case
def sequences_as_results():
  comp = tff.tensorflow.computation(
    lambda d: d.map(lambda x: collections.OrderedDict(b=2 * x, a=x)),
    tff.SequenceType(np.int32),
  )
  return comp([1, 2, 3])


@case
def sequences_of_batches_as_results():
  row = collections.OrderedDict(
    x=tff.TensorType(np.float32, [2]), y=tff.TensorType(np.int32)
  )

  @tff.tensorflow.computation(tff.SequenceType(row), np.int64)
  def batched(dataset, size):
    return collections.OrderedDict(
      known=dataset.batch(2, drop_remainder=True),
      unknown=[dataset.batch(size), dataset.batch(2).batch(1)],
    )

  @tff.federated_computation(clients(tff.SequenceType(row)))
  def at_clients(data):
    batches = tff.tensorflow.computation(
      lambda d: d.batch(2), tff.SequenceType(row)
    )
    return tff.federated_map(batches, data)

  rows = [
    collections.OrderedDict(x=np.full([2], i, np.float32), y=np.int32(i))
    for i in range(3)
  ]
  results = [batched(rows, 2), at_clients([rows, rows[:1]])]
  datasets = tf.nest.flatten(results)
  return results, [str(dataset.element_spec) for dataset in datasets]


@case
def a_reduction_of_a_reduction():
  spec = tff.SequenceType(tff.TensorType(np.float32, [None]))

  @tff.tensorflow.computation(spec)
  def variance(dataset):
    def add(s, b):
      return (s[0] + tf.reduce_sum(b), s[1] + tf.size(b))

    total, size = dataset.reduce((0.0, 0), add)
    mean = total / tf.cast(size, tf.float32)

    def far(s, b):
      return s + tf.reduce_sum(tf.square(b - mean))

    return dataset.map(lambda b: 2 * b).reduce(0.0, far)

  return variance(tf.data.Dataset.range(7, output_type=tf.float32).batch(3))


@case
def sequence_reduce_at_clients():
  fold = tff.tensorflow.computation(lambda a, b: 2 * a + b, np.int32, np.int32)
  spec = tff.SequenceType(np.int32)

  @tff.federated_computation(clients(spec))
  def comp(data):
    inner = tff.federated_computation(
      lambda s: tff.sequence_reduce(s, 0, fold), spec
    )
    return tff.federated_map(inner, data)

  return comp([[1, 2], [3], []])


# Federated computations.


@case
def sums_and_means():
  spec = collections.OrderedDict(
    b=np.float32, a=tff.TensorType(np.float32, [2])
  )

  @tff.federated_computation(clients(spec), clients(np.float32))
  def comp(value, weight):
    return (
      tff.federated_sum(value),
      tff.federated_mean(value),
      tff.federated_mean(value, weight),
      tff.federated_max(weight),
      tff.federated_min(weight),
    )

  values = [
    collections.OrderedDict(b=float(i), a=np.array([i, -i], np.float32))
    for i in range(5)
  ]
  return comp(values, [1.0, 2.0, 3.0, 4.0, 5.0])


@case
def an_empty_cohort():
  @tff.federated_computation(clients(np.float32))
  def comp(value):
    return tff.federated_sum(value), tff.federated_mean(value)

  return comp([])


@case
def clients_values_come_back():
  @tff.federated_computation(clients(np.int32), server(np.int32))
  def comp(value, offset):
    add = tff.tensorflow.computation(lambda a, b: a + b)
    sent = tff.federated_broadcast(offset)
    return value, tff.federated_map(add, (value, sent)), sent

  return comp([1, 2, 3], 10)


@case
def the_order_of_accumulation():
  number = np.int32
  accumulate = tff.tensorflow.computation(
    lambda a, v: 2 * a + v, number, number
  )
  merge = tff.tensorflow.computation(lambda a, b: a + b, number, number)
  report = tff.tensorflow.computation(lambda a: (a, -a), number)

  @tff.federated_computation(clients(number))
  def comp(value):
    return tff.federated_aggregate(value, 0, accumulate, merge, report)

  return comp(list(range(1, 12)))


@case
def a_zip_of_twenty_values():
  comp = tff.federated_computation(
    lambda x: tff.federated_zip(x), [clients(np.int32)] * 20
  )
  return comp([[1, 2]] * 20)


@case
def two_passes_over_the_clients():
  far = tff.tensorflow.computation(lambda v, m: (v - m) ** 2)

  @tff.federated_computation(clients(np.float32))
  def comp(value):
    doubled = tff.federated_map(
      tff.tensorflow.computation(lambda x: 2 * x), value
    )
    mean = tff.federated_broadcast(tff.federated_mean(doubled))
    return tff.federated_mean(tff.federated_map(far, (doubled, mean))), doubled

  return comp([1.0, 2.0, 6.0])


@case
def federated_select():
  row = tff.TensorType(np.float32, [3])
  gather = tff.tensorflow.computation(
    lambda s, k: tf.gather(s, k), row, np.int32
  )
  total = tff.tensorflow.computation(
    lambda d: d.reduce(np.float32(0), lambda a, b: a + b),
    tff.SequenceType(np.float32),
  )

  @tff.federated_computation(
    clients(tff.TensorType(np.int32, [2])), server(row)
  )
  def comp(keys, value):
    size = tff.federated_value(3, tff.SERVER)
    rows = tff.federated_select(keys, size, value, gather)
    return tff.federated_map(total, rows)

  return comp(
    [np.array([0, 1], np.int32), np.array([2, 2], np.int32)],
    np.array([1, 10, 100], np.float32),
  )


@case
def federated_select_with_a_loop():
  row = tff.TensorType(np.float32, [3])

  @tff.tensorflow.computation(row, np.int32)
  @tf.function
  def sum_up_to(values, key):
    total = 0.0
    for i in tf.range(key + 1):
      total += values[i]
    return total

  @tff.federated_computation(
    clients(tff.TensorType(np.int32, [2])), server(row)
  )
  def comp(keys, value):
    size = tff.federated_value(3, tff.SERVER)
    return tff.federated_select(keys, size, value, sum_up_to)

  return comp(
    [np.array([0, 1], np.int32), np.array([2, 2], np.int32)],
    np.array([1, 10, 100], np.float32),
  )


@case
def a_data_descriptor():
  @tff.federated_computation(clients(np.int32))
  def more(value):
    add = tff.tensorflow.computation(lambda x: x + 1, np.int32)
    return tff.federated_map(add, value)

  comp = tff.federated_computation(tff.federated_sum, clients(np.int32))
  data = tff.framework.DataDescriptor(more, [1, 2, 3], clients(np.int32), 3)
  return comp(data)


# Aggregators.


def aggregate(factory, values):
  value_type = tff.TensorType(np.float32, [3])
  process = factory.create(value_type)
  state = process.initialize()
  results = []
  for _ in range(2):
    output = process.next(state, values)
    state = output.state
    results.append((output.result, output.measurements))
  return results


def _vectors():
  return [np.array([1, 2, i], np.float32) for i in range(4)]


@case
def clipping_and_zeroing():
  estimate = tff.aggregators.PrivateQuantileEstimationProcess.no_noise(
    1.0, 0.5, 1.0
  )
  factory = tff.aggregators.zeroing_factory(
    5.0,
    tff.aggregators.clipping_factory(estimate, tff.aggregators.SumFactory()),
  )
  return aggregate(factory, _vectors())


@case
def quantized():
  factory = tff.aggregators.EncodedSumFactory.quantize_above_threshold(
    quantization_bits=8, threshold=100
  )
  return aggregate(factory, _vectors())


@case
def private_without_noise():
  factory = tff.aggregators.DifferentiallyPrivateFactory.gaussian_adaptive(
    1e-4, 4.0, clipped_count_stddev=1e-3
  )
  return [measured for _, measured in aggregate(factory, _vectors())][:1]


@case
def tree_aggregation_without_noise():
  factory = tff.aggregators.DifferentiallyPrivateFactory.tree_aggregation(
    0.0, 4.0, 1.0, [tf.TensorSpec([3])], True, 0
  )
  process = factory.create(tff.types.tensorflow_to_type([tf.TensorSpec([3])]))
  output = process.next(process.initialize(), [[v] for v in _vectors()])
  return output.result


# Learning algorithms.


def _keras_model():
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input((3,)),
      tf.keras.layers.Dense(4, 'relu', kernel_initializer='ones'),
      tf.keras.layers.Dense(2, kernel_initializer='ones'),
    ]
  )


_SPEC = collections.OrderedDict(
  x=tf.TensorSpec([None, 3]), y=tf.TensorSpec([None], tf.int32)
)


def _model():
  """A model with variables."""
  return tff.learning.models.from_keras_model(
    _keras_model(),
    loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    input_spec=_SPEC,
    metrics=[tf.keras.metrics.SparseCategoricalAccuracy()],
  )


def _functional_model():
  return tff.learning.models.functional_model_from_keras(
    _keras_model(),
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    _SPEC,
    metrics_constructor=lambda: collections.OrderedDict(
      accuracy=tf.keras.metrics.SparseCategoricalAccuracy()
    ),
  )


def _arrays(clients_number=5):
  rng = np.random.default_rng(1)
  return [
    collections.OrderedDict(
      x=rng.normal(size=(4 + i, 3)).astype(np.float32),
      y=rng.integers(2, size=4 + i).astype(np.int32),
    )
    for i in range(clients_number)
  ]


def _datasets():
  datasets = [
    tf.data.Dataset.from_tensor_slices(a).batch(2).repeat(2) for a in _arrays(3)
  ]
  return [
    *datasets,
    *(runtime.tensor_dataset(a, batch_size=3, epochs=2) for a in _arrays()[3:]),
    datasets[0].take(0),
  ]


def train(process):
  state = process.initialize()
  metrics = []
  for size in (5, 0, 6):
    output = process.next(state, _datasets()[:size])
    state = output.state
    metrics.append(output.metrics)
  return process.get_model_weights(state).trainable, metrics


_CLIENT = tff.learning.optimizers.build_adam(0.1)
_SERVER = tff.learning.optimizers.build_sgdm(1.0, 0.9)
_ITERATOR = tff.learning.LoopImplementation.DATASET_ITERATOR


@case
def weighted_fed_avg():
  return train(
    tff.learning.algorithms.build_weighted_fed_avg(_model, _CLIENT, _SERVER)
  )


@case
def weighted_fed_avg_of_a_functional_model():
  return train(
    tff.learning.algorithms.build_weighted_fed_avg(
      _functional_model(), _CLIENT, _SERVER
    )
  )


@case
def fed_avg_with_an_iterator():
  return train(
    tff.learning.algorithms.build_unweighted_fed_avg(
      _model, _CLIENT, _SERVER, loop_implementation=_ITERATOR
    )
  )


@case
def fed_avg_of_a_functional_model_with_an_iterator():
  return train(
    tff.learning.algorithms.build_unweighted_fed_avg(
      _functional_model(), _CLIENT, _SERVER, loop_implementation=_ITERATOR
    )
  )


@case
def fed_avg_with_robust_aggregation():
  return train(
    tff.learning.algorithms.build_weighted_fed_avg(
      _functional_model(),
      _CLIENT,
      _SERVER,
      model_aggregator=tff.learning.robust_aggregator(),
    )
  )


@case
def fed_prox():
  return train(
    tff.learning.algorithms.build_weighted_fed_prox(
      _model, 0.5, _CLIENT, _SERVER
    )
  )


@case
def fed_sgd():
  return train(
    tff.learning.algorithms.build_fed_sgd(_functional_model(), _SERVER)
  )


@case
def mime_lite():
  return train(
    tff.learning.algorithms.build_weighted_mime_lite(
      _functional_model(), tff.learning.optimizers.build_sgdm(0.1, 0.9)
    )
  )


@case
def scheduled_learning_rates():
  def schedule(round_num):
    return 0.1 / tf.cast(round_num + 1, tf.float32)

  return train(
    tff.learning.algorithms.build_weighted_fed_avg_with_optimizer_schedule(
      _functional_model(),
      schedule,
      tff.learning.optimizers.build_sgdm,
      _SERVER,
    )
  )


@case
def federated_evaluation():
  process = tff.learning.algorithms.build_fed_eval(_model)
  state = process.initialize()
  output = process.next(state, _datasets()[:5])
  return output.metrics


@case
def k_means():
  process = tff.learning.algorithms.build_fed_kmeans(
    2, (3,), random_seed=(1, 2)
  )
  points = [
    tf.data.Dataset.from_tensor_slices(a['x']).map(tf.identity)
    for a in _arrays()
  ]
  state = process.initialize()
  for _ in range(2):
    state = process.next(state, points).state
  return process.get_model_weights(state)


@case
def reconstruction():
  def model():
    keras_model = _keras_model()
    return tff.learning.models.ReconstructionModel.from_keras_model_and_layers(
      keras_model=keras_model,
      global_layers=keras_model.layers[:1],
      local_layers=keras_model.layers[1:],
      input_spec=_SPEC,
    )

  process = tff.learning.algorithms.build_fed_recon(
    model,
    loss_fn=lambda: tf.keras.losses.SparseCategoricalCrossentropy(
      from_logits=True
    ),
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
    reconstruction_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
  )
  return train(process)


class Contract(parameterized.TestCase):
  """Test of one runtime against another; subclasses name them.

  Attributes:
    context: Context of the runtime that is tested.
    reference: Context whose results count.
    with_secure_sums: Context that has secure sums, whose results count for them.
  """

  context = None
  reference = None
  with_secure_sums = None

  def one_after_another(self):
    """Has the runtime add up all clients in their order, in the block."""
    return contextlib.nullcontext()

  @parameterized.named_parameters((name, name) for name in sorted(_CASES))
  def test_same_as_reference(self, name):
    function = _CASES[name]
    expected = run_in(self.reference, function)
    in_order = name == the_order_of_accumulation.__name__
    with self.one_after_another() if in_order else contextlib.nullcontext():
      assert_same(self, run_in(self.context, function), expected)

  @parameterized.parameters('secure_sum', 'bitwidth')
  def test_secure_sum_is_a_plain_sum(self, name):
    @tff.federated_computation(clients(np.int32))
    def comp(value):
      if name == 'secure_sum':
        return tff.federated_secure_sum(value, 10)
      return tff.federated_secure_sum_bitwidth(value, 4)

    values = [1, 2, 3]
    expected = run_in(self.with_secure_sums, comp, values)
    self.assertEqual(expected, run_in(self.context, comp, values))

  def test_fed_avg_with_secure_sums(self):
    def function():
      return train(
        tff.learning.algorithms.build_weighted_fed_avg(
          _functional_model(),
          _CLIENT,
          _SERVER,
          model_aggregator=tff.learning.secure_aggregator(),
        )
      )

    expected = run_in(self.with_secure_sums, function)
    assert_same(self, run_in(self.context, function), expected)

  @parameterized.parameters(
    (np.int32, 2.5),
    (tff.TensorType(np.int32, [2]), np.zeros(3, np.int32)),
    (clients(np.int32), 3),
    ([clients(np.int32), clients(np.int32)], [[1], [1, 2]]),
  )
  def test_wrong_arguments_are_refused_alike(self, type_spec, value):
    comp = tff.federated_computation(lambda x: x, type_spec)
    with self.assertRaises((TypeError, ValueError)) as expected:
      run_in(self.reference, comp, value)
    with self.assertRaises((TypeError, ValueError)) as actual:
      run_in(self.context, comp, value)
    self.assertIsInstance(expected.exception, type(actual.exception))

  def test_a_failing_computation_is_an_rpc_error(self):
    @tff.tensorflow.computation(np.int32)
    def check(x):
      with tf.control_dependencies([tf.debugging.assert_less(x, 3, 'large')]):
        return tf.identity(x)

    at_server = tff.federated_computation(
      lambda x: tff.federated_map(check, x), server(np.int32)
    )
    at_clients = tff.federated_computation(
      lambda x: tff.federated_map(check, x), clients(np.int32)
    )
    for comp, value in ((check, 5), (at_server, 5), (at_clients, [1, 5])):
      for context in (self.context, self.reference):
        with self.assertRaisesRegex(grpc.RpcError, 'large'):
          run_in(context, comp, value)
