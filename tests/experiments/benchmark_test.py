import dataclasses
import json
import statistics
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import tensorflow as tf
import tensorflow_federated as tff

from experiments import benchmark
from experiments.measuring import bare_tensorflow
from experiments.measuring import networks
from tff_medical import _validate
from tff_medical import runtime
from tff_medical.learning import client_training

_SMALL = benchmark.Workload(clients=6, images=8, batch_size=4)


def _values(**changed):
  """Returns the values of the flags."""
  values = dict(
    rounds=1,
    warm_up=0,
    contenders=['floor'],
    workloads=['common'],
    json=None,
    client_threads=None,
    client_devices=None,
    clients_per_device=None,
    cluster_address='auto',
  )
  return types.SimpleNamespace(**{**values, **changed})


class BenchmarkTest(parameterized.TestCase):
  def test_ratios_are_medians_within_rounds(self):
    seconds = {'local': [1.0, 2.0, 9.0], 'tff': [4.0, 4.0, 9.0]}
    seconds['floor'] = [1.0, 1.0, 9.0]
    seconds['local_tutorial'] = [3.0, 1.0, 18.0]
    summary = benchmark.summarize(_SMALL, seconds)
    self.assertEqual(summary['local_secs'], 2.0)
    self.assertEqual(
      summary['local_to_tff'], statistics.median([0.25, 0.5, 1.0])
    )
    self.assertEqual(summary['local_to_floor'], 1.0)
    self.assertEqual(summary['local_tutorial_to_floor'], 2.0)
    self.assertEqual(summary['millis_a_client_over_floor'], 0.0)

  def test_whole_command(self):
    path = self.create_tempfile('benchmark.json').full_path
    values = _values(
      workloads=['common'],
      contenders=[
        *('local', 'local_plain', 'local_tutorial', 'local_iterator'),
        *('local_batched', 'floor'),
      ],
      json=path,
    )
    work = dataclasses.replace(_SMALL, batch_size=8)  # One step.
    with mock.patch.dict(benchmark.WORKLOADS, common=work):
      benchmark.main(values)
    with open(path, encoding='utf-8') as file:
      report = json.load(file)
    self.assertEqual(report['rounds'], 1)
    self.assertContainsSubset(
      ['local_secs', 'local_to_local_batched', 'local_to_floor'],
      report['results']['common'],
    )

  def test_bfloat16_is_compared_with_the_float32_floor(self):
    seconds = {'local_bfloat16': [1.0, 3.0, 9.0], 'floor': [2.0, 4.0, 9.0]}
    summary = benchmark.summarize(_SMALL, seconds)
    self.assertEqual(summary['local_bfloat16_to_floor'], 0.75)

  def test_bfloat16_marks_the_steps_of_clients(self):
    context = runtime.create_local_context(1)
    create = mock.patch.object(
      benchmark.runtime, 'create_local_context', return_value=context
    )
    build = mock.patch.object(benchmark, 'learning_process')
    with create as created, build as built:
      benchmark._bfloat16(_SMALL, None, 2)()
    created.assert_called_once_with(2, precision='bfloat16')
    self.assertIs(
      built.call_args.kwargs['wrapped'], client_training.in_marked_steps
    )
    built.return_value.next.assert_called_once()

  @parameterized.parameters(
    ({'rounds': 0}, 'rounds'),
    ({'contenders': ['flwr']}, 'contenders'),
    ({'workloads': ['commn']}, "did you mean 'common'"),
  )
  def test_wrong_flags(self, flags, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      benchmark.main(_values(**flags))

  def test_floor_does_the_arithmetic_of_tff(self):
    model = networks.cnn()
    initial = [v.numpy() for v in model.trainable_variables]
    data = benchmark.client_data(_SMALL)
    little_noise = 1e-5
    floor = bare_tensorflow.Training(model, data, 4, little_noise, threads=2)
    with mock.patch.object(networks, 'cnn', lambda hidden: model):
      process = benchmark.learning_process(_SMALL.clients, little_noise)
    context = runtime.create_local_context(client_threads=2)
    with tff.framework.get_context_stack().install(context):
      state = process.initialize()
      datasets = [tf.data.Dataset.from_tensor_slices(d).batch(4) for d in data]
      for _ in range(2):
        floor.next_round()
        output = process.next(state, datasets)
        state = output.state
    expected = process.get_model_weights(state).trainable
    step = [b - a for a, b in zip(initial, expected)]
    error = [b - a for a, b in zip(floor.weights, expected)]
    self.assertGreater(tf.linalg.global_norm(step), 0.05)
    self.assertLess(
      tf.linalg.global_norm(error), 0.05 * tf.linalg.global_norm(step)
    )
    # The noise of the count moves the clip by about a hundredth.
    clip = output.metrics['aggregator']['dp_query_metrics']['clip']
    self.assertAlmostEqual(float(floor.clip), float(clip), delta=0.006)


if __name__ == '__main__':
  absltest.main()
