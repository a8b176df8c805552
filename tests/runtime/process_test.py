"""What can only be seen in a process of its own: memory, signals, devices."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

from absl.testing import absltest
from absl.testing import parameterized

_ROOT = pathlib.Path(__file__).resolve().parents[2]

_PRELUDE = """
import collections, json, os, resource, sys
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tff_medical import runtime

def clients(type_spec):
  return tff.FederatedType(type_spec, tff.CLIENTS)

def map_and_add(function):
  @tff.federated_computation(clients(np.float32))
  def comp(value):
    fn = tff.tensorflow.computation(function, np.float32)
    return tff.federated_sum(tff.federated_map(fn, value))
  return comp

def report(**values):
  print('REPORT' + json.dumps(values), flush=True)

def resident_mib():
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20

def peak_mib():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
"""


def start(script):
  return subprocess.Popen(
    [sys.executable, '-c', _PRELUDE + textwrap.dedent(script)],
    cwd=_ROOT,
    env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def parse(line):
  return json.loads(line.removeprefix('REPORT'))


def run(script):
  process = start(script)
  output, errors = process.communicate(timeout=300)
  if process.returncode:
    raise AssertionError(errors)
  lines = [x for x in output.splitlines() if x.startswith('REPORT')]
  return parse(lines[-1])


class ProcessTest(parameterized.TestCase):
  def test_peak_memory_does_not_grow_with_the_cohort(self):
    found = run("""
        runtime.set_local_context(client_threads=2)
        comp = map_and_add(lambda x: x * tf.ones([1_000_000]))
        comp([1.0] * 20)
        few = peak_mib()
        result = comp([1.0] * 1000)
        report(few=few, many=peak_mib(), result=float(result[0]))
    """)
    self.assertEqual(found['result'], 1000.0)
    self.assertLess(found['many'], 1.2 * found['few'])

  def test_memory_does_not_grow_over_300_rounds(self):
    found = run("""
        runtime.set_local_context(client_threads=2)
        spec = collections.OrderedDict(
            x=tf.TensorSpec([None, 64]), y=tf.TensorSpec([None], tf.int32))
        model = tff.learning.models.functional_model_from_keras(
            tf.keras.Sequential([
                tf.keras.layers.Input((64,)),
                tf.keras.layers.Dense(128, 'relu'),
                tf.keras.layers.Dense(4)]),
            tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            spec)
        process = tff.learning.algorithms.build_unweighted_fed_avg(
            model, tff.learning.optimizers.build_sgdm(0.1),
            model_aggregator=tff.aggregators.DifferentiallyPrivateFactory
            .gaussian_adaptive(0.5, 10.0))
        rng = np.random.default_rng(0)
        data = [
            collections.OrderedDict(
                x=rng.normal(size=(16, 64)).astype(np.float32),
                y=np.zeros(16, np.int32))
            for _ in range(20)]
        ours = [runtime.tensor_dataset(d, batch_size=8) for d in data]
        plain = [tf.data.Dataset.from_tensor_slices(d).batch(8) for d in data]
        state = process.initialize()
        for number in range(300):
          cohort = ours if number % 3 else plain
          state = process.next(state, cohort[:number * 7 % 20]).state
          if number == 100:
            early = resident_mib()
        report(early=early, late=resident_mib())
    """)
    self.assertLess(found['late'], 1.05 * found['early'])

  def test_no_process_is_left_behind(self):
    found = run("""
        runtime.set_local_context(client_threads=2)
        map_and_add(lambda x: x)([1.0, 2.0])
        children = []
        for task in os.listdir('/proc/self/task'):
          with open(f'/proc/self/task/{task}/children') as file:
            children += file.read().split()
        report(children=children)
    """)
    self.assertEmpty(found['children'])

  def test_interrupt_stops_a_round(self):
    process = start("""
        runtime.set_local_context(client_threads=2)

        def step(i, x):
          return i + 1, tf.matmul(tf.fill([300, 300], x), tf.eye(300))[0, 0]

        def slow(x):
          return tf.while_loop(lambda i, _: i < 10, step, (0, x))[1]

        comp = map_and_add(slow)
        comp([1.0])
        try:
          report(ready=True)
          comp([1.0] * 1_000_000)
        except KeyboardInterrupt:
          report(stopped=True, again=float(comp([0.0, 0.0])))
    """)
    while not process.stdout.readline().startswith('REPORT'):
      self.assertIsNone(process.poll())
    time.sleep(1)  # to be in the middle of the round
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    self.assertEqual(process.returncode, 0, errors)
    self.assertEqual(parse(output.strip()), {'stopped': True, 'again': 0.0})

  def test_a_seed_of_tensorflow_does_not_repeat_the_noise(self):
    script = """
        tf.random.set_seed(7)
        runtime.set_local_context(client_threads=1)
        factory = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(
            1.0, 10.0, 1.0)
        tf.random.set_seed(7)
        process = factory.create(tff.TensorType(np.float32, [3]))
        state = process.initialize()
        tf.random.set_seed(7)
        zeros = [np.zeros(3, np.float32)] * 2
        drawn = process.next(state, zeros).result.tolist()
        inner = tff.tensorflow.computation(
            tf.function(lambda x: x + tf.random.normal([])), np.float32)
        drawn.append(float(inner(0.0)))
        report(drawn=drawn)
    """
    one, two = run(script)['drawn'], run(script)['drawn']
    self.assertLen(set(one + two), 8, 'noise was drawn twice')

  @parameterized.parameters(
    ("client_devices=['CPU:0'], clients_per_device=3", 3),
    ('clients_per_device=2', 2),
  )
  def test_logical_devices(self, arguments, lanes):
    found = run(f"""
        context = runtime.create_local_context({arguments})
        tff.framework.set_default_context(context)

        @tff.federated_computation(clients(np.float32))
        def comp(value):
          count = tff.tensorflow.computation(
              lambda x: tf.Variable(x).read_value() + 1.0, np.float32)
          counted = tff.federated_map(count, value)
          return tff.federated_sum(counted), counted

        total, each = comp([float(i) for i in range(10)])
        state = runtime.create_local_context({arguments})
        report(total=float(total), each=[float(x) for x in each],
               devices=[d.name for d in tf.config.list_logical_devices()])
    """)
    self.assertEqual(found['total'], 55.0)
    self.assertEqual(found['each'], [float(i + 1) for i in range(10)])
    self.assertLen(found['devices'], lanes)

  def test_threads_are_split_among_clients(self):
    found = run("""
        import absl.logging
        from unittest import mock
        with mock.patch.object(os, 'sched_getaffinity',
                               lambda _: set(range(8))):
          runtime.create_local_context(client_threads=4)
        threads = tf.config.threading.get_intra_op_parallelism_threads()
        tf.constant(1.0).numpy()
        with mock.patch.object(absl.logging, 'warning') as warning:
          runtime.create_local_context(client_threads=7)
        report(threads=threads, warned=warning.called)
    """)
    self.assertEqual(found, {'threads': 2, 'warned': True})


if __name__ == '__main__':
  absltest.main()
