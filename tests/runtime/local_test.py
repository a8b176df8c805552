import asyncio
import collections
import os
import threading
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical import runtime
from tff_medical.runtime import cohort
from tff_medical.runtime import devices
from tff_medical.runtime import plan

_CLIENTS_FLOAT = tff.FederatedType(np.float32, tff.CLIENTS)


def context_with(threads):
  """A context whose threads do not depend on when TensorFlow started."""
  placement = devices.Placement(('CPU:0',), threads, 'client_threads')
  return runtime.LocalContext(cohort.Cohort(placement))


def run_in(context, comp, *args):
  with tff.framework.get_context_stack().install(context):
    return comp(*args)


def mapped(function, type_spec=np.float32):
  """Returns the computation that maps `function` over clients."""

  @tff.federated_computation(tff.FederatedType(type_spec, tff.CLIENTS))
  def over_clients(value):
    return tff.federated_map(
      tff.tensorflow.computation(function, type_spec), value
    )

  return over_clients


class LocalContextTest(parameterized.TestCase):
  def test_is_the_default_once_it_is_set(self):
    before = tff.framework.get_context_stack().current
    self.addCleanup(tff.framework.set_default_context, before)
    runtime.set_local_context(client_threads=1)
    current = tff.framework.get_context_stack().current
    self.assertIsInstance(current, runtime.LocalContext)
    self.assertEqual(mapped(lambda x: x + 1)([1.0, 2.0]), [2.0, 3.0])

  def test_default_number_of_clients(self):
    @tff.federated_computation()
    def ones():
      return tff.federated_sum(tff.federated_value(1, tff.CLIENTS))

    context = runtime.create_local_context(
      client_threads=1, default_num_clients=7
    )
    self.assertEqual(run_in(context, ones), 7)

  def test_result_does_not_depend_on_threads(self):
    values = np.random.default_rng(0).normal(size=101).astype(np.float32)
    total = tff.federated_computation(tff.federated_sum, _CLIENTS_FLOAT)
    one = run_in(context_with(1), total, list(values))
    four = run_in(context_with(4), total, list(values))
    in_order = np.float32(0)
    for value in values:
      in_order += value
    self.assertEqual(one, in_order)
    self.assertEqual(four, in_order)

  def test_clients_with_variables_share_nothing(self):
    @tf.function
    def add_up(total, x):
      for _ in tf.range(50):
        total.assign_add(x + 1.0)
      return total.read_value()

    def function(x):
      total = tf.Variable(0.0)
      table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
      ready = table.insert(tf.constant([1], tf.int64), [x])
      with tf.control_dependencies([ready]):
        return add_up(total, x), table.lookup(tf.constant(1, tf.int64))

    comp = mapped(function)
    values = [float(i) for i in range(200)]
    found = run_in(context_with(4), comp, values)
    self.assertEqual(found, [(50 * (v + 1), v) for v in values])

  def test_tables_are_those_of_each_call_and_client(self):
    spec = [tff.TensorType(np.int64, [2]), tff.TensorType(np.int64)]

    @tff.tensorflow.computation(*spec)
    def look_up(numbers, key):
      keys = tf.constant([1, 2], tf.int64)
      init = tf.lookup.KeyValueTensorInitializer(keys, numbers)
      return tf.lookup.StaticHashTable(init, -1).lookup(key)

    @tff.federated_computation(
      *(tff.FederatedType(s, tff.CLIENTS) for s in spec)
    )
    def at_clients(numbers, keys):
      return tff.federated_map(look_up, (numbers, keys))

    context = context_with(4)
    for numbers in ([10, 20], [30, 40]):
      found = run_in(context, look_up, np.array(numbers), 2)
      self.assertEqual(found, numbers[1])
    for start in (0, 1000):
      numbers = [np.array([start + i, -i]) for i in range(200)]
      found = run_in(context, at_clients, numbers, [1, 2] * 100)
      self.assertEqual(found, [n[i % 2] for i, n in enumerate(numbers)])

  @parameterized.parameters(
    (lambda: tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1),),
    (
      lambda: tf.lookup.experimental.DenseHashTable(
        tf.int64, tf.int64, -1, empty_key=-2, deleted_key=-3
      ),
    ),
    (
      lambda: tf.lookup.experimental.MutableHashTable(
        tf.int64, tf.int64, tf.constant([-1, -1], tf.int64)
      ),
    ),
  )
  def test_tables_start_empty_at_every_call(self, make):
    def insert(key):
      table = make()
      value = tf.ones(table._value_shape, tf.int64) * key
      with tf.control_dependencies([table.insert(key, value)]):
        return table.size()

    comp = mapped(insert, np.int64)
    context = context_with(3)
    for start in (0, 100):
      keys = list(range(start, start + 20))
      self.assertEqual(run_in(context, comp, keys), [1] * 20)

  def test_graphs_are_compiled_once(self):
    total = tff.federated_computation(
      lambda v: tff.federated_mean(v), _CLIENTS_FLOAT
    )
    context = context_with(2)
    with mock.patch.object(
      tf.compat.v1, 'wrap_function', wraps=tf.compat.v1.wrap_function
    ) as wrap:
      run_in(context, total, [1.0, 2.0])
      compiled = wrap.call_count
      for size in (1, 5, 0, 30, 2):
        run_in(context, total, [1.0] * size)
      self.assertEqual(wrap.call_count, compiled)

  def test_client_values_are_computed_once_for_several_sums(self):
    noisy = tff.tensorflow.computation(
      lambda x: x + tf.random.normal([]), np.float32
    )

    @tff.federated_computation(_CLIENTS_FLOAT)
    def comp(value):
      drawn = tff.federated_map(noisy, value)
      mean = tff.federated_mean(drawn)
      less = tff.tensorflow.computation(lambda a, b: a - b)
      centered = tff.federated_map(less, (drawn, tff.federated_broadcast(mean)))
      return tff.federated_mean(centered), drawn, mean

    centered, drawn, mean = run_in(context_with(2), comp, [0.0] * 50)
    self.assertAlmostEqual(centered, 0.0, places=5)
    self.assertAlmostEqual(mean, np.mean(drawn), places=5)

  def test_async_context_in_a_federated_program(self):
    context = runtime.AsyncLocalContext(context_with(2))
    total = tff.federated_computation(tff.federated_sum, _CLIENTS_FLOAT)

    async def program():
      return await tff.program.materialize_value(total([1.0, 2.0]))

    with tff.framework.get_context_stack().install(
      tff.program.NativeFederatedContext(context)
    ):
      self.assertEqual(asyncio.run(program()), 3.0)


class ErrorTest(parameterized.TestCase):
  def test_names_computation_and_client(self):
    comp = mapped(lambda x: tf.debugging.check_numerics(x, 'not a number'))
    context = context_with(3)
    values = [1.0, 2.0, float('nan'), 4.0]
    with self.assertRaises(runtime.ClientError) as raised:
      run_in(context, comp, values)
    self.assertEqual(raised.exception.client_index, 2)
    self.assertIn('over_clients', str(raised.exception))
    self.assertIn('client 2 of 4', str(raised.exception))
    self.assertIn('not a number', str(raised.exception))
    self.assertEqual(run_in(context, comp, [1.0, 2.0]), [1.0, 2.0])

  def test_out_of_memory_names_the_knob(self):
    placement = devices.Placement(('CPU:0',), 1, 'clients_per_device')

    def work(index, slot):
      del index, slot
      raise tf.errors.ResourceExhaustedError(None, None, 'OOM')

    with self.assertRaisesRegex(
      runtime.ClientError, 'no memory left on CPU:0; lower clients_per_device'
    ):
      cohort.Cohort(placement).run(3, work, lambda *_: None, None)

  def test_not_a_tensorflow_computation(self):
    comp = tff.jax.computation(lambda x: x + 1, np.int32)
    with self.assertRaisesRegex(NotImplementedError, 'xla'):
      run_in(context_with(1), comp, 1)


class NoiseTest(absltest.TestCase):
  def test_is_fresh_for_each_client_and_round(self):
    comp = mapped(lambda x: x + tf.random.normal([]))
    context = context_with(2)
    drawn = run_in(context, comp, [0.0] * 20) + run_in(
      context, comp, [0.0] * 20
    )
    self.assertLen(set(drawn), 40)
    self.assertBetween(np.std(drawn), 0.5, 1.5)

  def test_a_value_that_is_used_twice_is_drawn_once(self):
    @tff.federated_computation()
    def twice():
      draw = tff.tensorflow.computation(lambda: tf.random.normal([]))
      value = draw()
      return value, value

    one, two = run_in(context_with(1), twice)
    self.assertEqual(one, two)


class CohortTest(parameterized.TestCase):
  @parameterized.parameters((1, 1), (1, 4), (3, 1), (2, 3))
  def test_folds_in_order_and_bounds_what_waits(self, lanes, threads):
    placement = devices.Placement(('CPU:0',) * lanes, threads, 'x')
    finished, folded, waiting = [], [], []
    lock = threading.Lock()

    def work(index, slot):
      self.assertEqual(slot.lane, index % lanes)
      if index == 0:
        time.sleep(0.2)  # all others are held up by the first
      with lock:
        finished.append(index)
        waiting.append(len(finished) - len(folded))
      return index

    def fold(lane, total, result):
      del lane
      with lock:
        folded.append(result)
      return [*total, result]

    totals = cohort.Cohort(placement).run(100, work, fold, [])
    for lane, total in enumerate(totals):
      self.assertEqual(total, list(range(lane, 100, lanes)))
    self.assertLessEqual(max(waiting), 5 * threads * lanes)

  def test_stops_after_an_error_and_lets_others_end(self):
    placement = devices.Placement(('CPU:0',), 2, 'x')
    done = []

    def work(index, slot):
      del slot
      if index == 5:
        raise ValueError('broken')
      done.append(index)
      return index

    runner = cohort.Cohort(placement)
    with self.assertRaisesRegex(runtime.ClientError, 'client 5 of 1000'):
      runner.run(1000, work, lambda lane, total, result: total, 0)
    self.assertContainsSubset(range(5), done)
    self.assertLess(len(done), 1000)

    def add(lane, total, result):
      return total + result

    self.assertEqual(runner.run(5, work, add, 0), [10])

  def test_no_client(self):
    placement = devices.Placement(('CPU:0',), 2, 'x')
    run = cohort.Cohort(placement).run
    self.assertEqual(run(0, lambda *_: 1, lambda *_: 1, 0), [])


class LoopTest(absltest.TestCase):
  def test_reduction_of_client_data_becomes_a_loop(self):
    spec = tff.SequenceType(
      collections.OrderedDict(
        b=tff.TensorType(np.float32, [None]), a=tff.TensorType(np.int32, [None])
      )
    )

    def total(dataset):
      return dataset.reduce(
        np.float32(0), lambda s, e: s + tf.reduce_sum(e['b'])
      )

    data = collections.OrderedDict(
      b=np.arange(7, dtype=np.float32), a=np.arange(7, dtype=np.int32)
    )
    plain = tf.data.Dataset.from_tensor_slices(data).batch(3)
    chunked = tf.data.Dataset.from_tensor_slices(data).shuffle(1).batch(3)
    iterated = plain.filter(lambda _: True)
    ours = runtime.tensor_dataset(data, batch_size=3)
    functions = []
    compile_step = plan.Step._compile

    def recorded(step, fed):
      functions.append(compile_step(step, fed))
      return functions[-1]

    with mock.patch.object(plan.Step, '_compile', recorded):
      comp = mapped(total, spec)
      found = run_in(context_with(1), comp, [plain, chunked, iterated, ours])
    self.assertEqual(found, [21.0] * 4)
    self.assertLen(functions, 3)  # The first and the last share one.
    for function in functions:
      ops = [node.op for node in function.graph.as_graph_def().node]
      self.assertNotIn('ReduceDataset', ops)
      self.assertTrue({'While', 'StatelessWhile'} & set(ops), ops)


class DevicesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'client_threads': 0}, 'client_threads'),
    ({'client_threads': 1, 'clients_per_device': 2}, 'leave it out'),
    ({'client_threads': 1, 'client_devices': ['CPU:0']}, 'leave it out'),
    ({'client_devices': []}, 'must name a device'),
    ({'client_devices': ['TPU:9']}, 'client_devices must be one of'),
    ({'clients_per_device': 0}, 'clients_per_device'),
    (
      {'client_devices': ['TPU:9'], 'clients_per_device': 2},
      'client_devices must be one of',
    ),
  )
  def test_wrong_values(self, arguments, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      runtime.create_local_context(**arguments)

  @parameterized.parameters((None, True), ('7', True), ('1', False))
  def test_warns_with_the_remedy_once_tensorflow_runs(self, variable, warns):
    tf.constant(1).numpy()
    environment = (
      {} if variable is None else {'TF_NUM_INTRAOP_THREADS': variable}
    )
    threads = devices.available_cores() + 1  # Not the number in use.
    with mock.patch.dict(os.environ, environment):
      if variable is None:
        os.environ.pop('TF_NUM_INTRAOP_THREADS', None)
      with mock.patch.object(devices.logging, 'warning') as warning:
        runtime.create_local_context(client_threads=threads)
    self.assertEqual(warning.called, warns)
    if warns:
      message = warning.call_args.args[0] % warning.call_args.args[1:]
      self.assertIn('before models and learning processes are built', message)
      self.assertIn('TF_NUM_INTRAOP_THREADS=1', message)

  def test_cannot_divide_a_device_in_use(self):
    tf.constant(1).numpy()
    with self.assertRaisesRegex(RuntimeError, 'before any operation'):
      runtime.create_local_context(
        client_devices=['CPU:0'], clients_per_device=3
      )


if __name__ == '__main__':
  absltest.main()
