"""Runs on machines where TensorFlow sees a GPU."""

import collections
from unittest import mock

from absl.testing import absltest
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments import benchmark
from tff_medical import runtime
from tff_medical.runtime import plan

_GPUS = tf.config.list_physical_devices('GPU')


def _round(context, process, datasets):
  with tff.framework.get_context_stack().install(context):
    return process.next(process.initialize(), datasets)


@absltest.skipUnless(_GPUS, 'TensorFlow sees no GPU: GPU tests did not run.')
class GpuTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.gpu = runtime.create_local_context(
      client_devices=[f'GPU:{i}' for i in range(len(_GPUS))]
    )

  def test_trains_as_on_the_cpu(self):
    cpu = runtime.create_local_context(client_threads=2)
    process = tff.learning.algorithms.build_unweighted_fed_avg(
      benchmark.model(), tff.learning.optimizers.build_sgdm(0.1)
    )
    work = benchmark.Workload(clients=5, images=40, batch_size=16)
    data = benchmark.client_data(work)
    ours = [runtime.tensor_dataset(d, batch_size=16) for d in data]
    plain = [tf.data.Dataset.from_tensor_slices(d).batch(16) for d in data]
    expected = _round(cpu, process, ours).state.global_model_weights
    for datasets in (ours, plain):
      found = _round(self.gpu, process, datasets).state.global_model_weights
      for a, b in zip(found.trainable, expected.trainable):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)

  def test_training_runs_on_the_gpu(self):
    spec = tff.SequenceType(tff.TensorType(np.float32, [None]))

    @tff.federated_computation(tff.FederatedType(spec, tff.CLIENTS))
    def comp(data):
      total = tff.tensorflow.computation(
        lambda d: d.reduce(np.float32(0), lambda s, b: s + tf.norm(b)), spec
      )
      return tff.federated_sum(tff.federated_map(total, data))

    devices = []
    call = plan.Step.__call__

    def recorded(step, *args, **kwargs):
      outputs = call(step, *args, **kwargs)
      devices.extend(o.device for o in outputs if o.dtype == tf.float32)
      return outputs

    ones = np.ones(8, np.float32)
    with mock.patch.object(plan.Step, '__call__', recorded):
      with tff.framework.get_context_stack().install(self.gpu):
        data = [runtime.tensor_dataset(ones, batch_size=4)] * 3
        self.assertAlmostEqual(comp(data), 12.0, places=3)
    self.assertTrue(any('GPU' in device for device in devices), devices)

  def test_variables_and_strings(self):
    @tff.tensorflow.computation(
      collections.OrderedDict(x=np.float32, s=np.str_)
    )
    def function(arg):
      return tf.Variable(arg['x']).read_value(), tf.strings.length(arg['s'])

    @tff.federated_computation(
      tff.FederatedType(function.type_signature.parameter, tff.CLIENTS)
    )
    def comp(value):
      return tff.federated_map(function, value)

    with tff.framework.get_context_stack().install(self.gpu):
      values = [collections.OrderedDict(x=float(i), s='ab') for i in range(4)]
      self.assertEqual(comp(values), [(float(i), 2) for i in range(4)])


if __name__ == '__main__':
  absltest.main()
