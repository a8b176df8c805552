"""Tests that a client's loop on a GPU does not wait for the CPU.

The counts come from the kernels that TensorFlow registers, not from a GPU.
"""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import tensorflow as tf

from experiments import benchmark
from experiments.measuring import device_copies
from tff_medical import runtime
from tff_medical.runtime import cohort
from tff_medical.runtime import devices
from tff_medical.runtime import graphs
from tff_medical.runtime import loops
from tff_medical.runtime import plan

_WORK = benchmark.Workload(clients=20, images=4, batch_size=2)


def _loop(cond, body, *values):
  """Returns a turn of a loop."""

  def loop():
    return tf.while_loop(cond, body, values)

  graph = tf.compat.v1.wrap_function(loop, []).graph
  (turn,) = device_copies.turns(graph)
  return turn


def _benchmark_turns():
  """Returns a turn of each loop of a round of DP-FedAvg."""
  compiled = []
  compile_step = plan.Step._compile

  def recorded(step, fed):
    function = compile_step(step, fed)
    compiled.append(function.graph)
    return function

  placement = devices.Placement(('CPU:0',), 1, 'client_threads')
  context = runtime.LocalContext(cohort.Cohort(placement))
  run = benchmark._local(_WORK, context, None)
  with mock.patch.object(plan.Step, '_compile', recorded):
    run()
  return [turn for graph in compiled for turn in device_copies.turns(graph)]


class CountsTest(parameterized.TestCase):
  def test_int32_counters_stay_on_the_cpu(self):
    turn = _loop(lambda i: i < 9, lambda i: (i + 1,), tf.constant(0))
    self.assertEqual(turn, device_copies.Turn())

  def test_int64_counters_are_waited_for(self):
    turn = _loop(lambda i: i < 9, lambda i: (i + 1,), tf.constant(0, tf.int64))
    self.assertEqual(turn.kernels, 2)
    self.assertLen(turn.to_cpu, 1)  # The end of the loop.

  def test_what_has_no_kernel_for_gpus_is_copied(self):
    def body(i, x):
      draws = tf.random.stateless_poisson([3], [1, 2], [2.0], tf.float32)
      return i + 1, x + tf.nn.relu(draws)

    turn = _loop(lambda i, _: i < 9, body, tf.constant(0), tf.zeros(3))
    self.assertEqual(turn.kernels, 2)
    self.assertLen(turn.to_gpu, 1)  # The draws.
    self.assertLen(turn.to_cpu, 1)  # The rate.

  def test_functions_inside_count(self):
    @tf.function
    def twice(x):
      return x + x

    turn = _loop(
      lambda i, _: i < 9,
      lambda i, x: (i + 1, twice(x)),
      tf.constant(0),
      tf.zeros(3),
    )
    self.assertEqual(turn, device_copies.Turn(kernels=1))


class ClientLoopTest(absltest.TestCase):
  def test_a_batch_waits_for_nothing(self):
    (turn,) = _benchmark_turns()
    self.assertEqual(turn.to_cpu, ())
    # What docs/gpu.md states.
    self.assertEqual((turn.kernels, len(turn.to_gpu)), (89, 3))

  def test_with_counters_of_64_bits_it_would(self):
    with mock.patch.object(loops, '_INDEX', tf.int64):
      (turn,) = _benchmark_turns()
    # What docs/gpu.md states.
    self.assertEqual((turn.kernels, len(turn.to_cpu)), (101, 7))

  def test_bodies_are_inlined_on_gpus(self):
    for name, options in {
      'CPU:0': graphs.Options(bodies_apart=True),
      'GPU:0': graphs.Options(bodies_apart=False),
    }.items():
      placement = devices.Placement((name,), 1, 'clients_per_device')
      context = runtime.LocalContext(cohort.Cohort(placement))
      plan_fn = context._compiled.__wrapped__
      self.assertEqual(plan_fn.args, (options,))


if __name__ == '__main__':
  absltest.main()
