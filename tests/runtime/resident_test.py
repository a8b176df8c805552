"""Tests of client tensors on a device, where a CPU stands for a GPU."""

import gc

from absl.testing import absltest
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import runtime
from tff_medical.runtime import cohort
from tff_medical.runtime import devices
from tff_medical.runtime import resident


def _bytes(count):
  with tf.device('CPU:0'):
    return tf.zeros([count], tf.uint8)


class ResidentTest(absltest.TestCase):
  def test_a_tensor_is_copied_once_as_it_is(self):
    kept = resident.Resident('CPU:0')
    tensor = _bytes(10)
    copy = kept.placed(tensor)
    self.assertEndsWith(copy.device, 'CPU:0')
    self.assertEqual(copy.dtype, tf.uint8)
    self.assertIs(kept.placed(tensor), copy)
    self.assertEqual(kept.size, 10)

  def test_a_copy_goes_with_its_tensor(self):
    kept = resident.Resident('CPU:0')
    tensor = _bytes(10)
    kept.placed(tensor)
    del tensor
    gc.collect()
    self.assertEqual(kept.size, 0)
    self.assertEmpty(kept._copies)

  def test_what_has_no_room_stays(self):
    kept = resident.Resident('CPU:0', limit=15)
    first, second = _bytes(10), _bytes(10)
    kept.placed(first)
    self.assertIs(kept.placed(second), second)
    self.assertEqual(kept.size, 10)

  def test_types_of_the_cpu_stay(self):
    kept = resident.Resident('CPU:0')
    for tensor in (tf.constant(1), tf.constant('text')):
      self.assertIs(kept.placed(tensor), tensor)


class RoundsTest(absltest.TestCase):
  def test_clients_are_copied_in_their_first_round_alone(self):
    spec = tff.SequenceType(tff.TensorType(np.uint8, [None]))

    @tff.tensorflow.computation(spec)
    def total(data):
      return data.reduce(
        0.0, lambda s, b: s + tf.reduce_sum(tf.cast(b, tf.float32))
      )

    @tff.federated_computation(tff.FederatedType(spec, tff.CLIENTS))
    def comp(data):
      return tff.federated_sum(tff.federated_map(total, data))

    placement = devices.Placement(('CPU:0', 'CPU:0'), 1, 'clients_per_device')
    clients = cohort.Cohort(placement)
    self.assertIsNone(clients.placed_on(1))  # CPUs share their memory.
    clients._residents = [None, resident.Resident('CPU:0')]
    context = runtime.LocalContext(clients)
    ones = np.ones(6, np.uint8)
    data = [runtime.tensor_dataset(ones * i, batch_size=4) for i in range(4)]
    with tff.framework.get_context_stack().install(context):
      copied = []
      for _ in range(2):
        self.assertEqual(comp(data), 36.0)
        copied.append(dict(clients._residents[1]._copies))
    # Every other client runs on the second lane.
    self.assertLen(copied[0], 2)
    self.assertEqual([*copied[0]], [*copied[1]])
    for number, copy in copied[0].items():
      self.assertIs(copied[1][number], copy)
      self.assertEndsWith(copy.device, 'CPU:0')


if __name__ == '__main__':
  absltest.main()
