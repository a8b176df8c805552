"""Tests of what running clients on a GPU turns off."""

from unittest import mock

from absl.testing import absltest
import tensorflow as tf

from tff_medical.runtime import devices


class TensorFloat32Test(absltest.TestCase):
  def setUp(self):
    super().setUp()
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    switch = tf.config.experimental.enable_tensor_float_32_execution
    self.addCleanup(switch, before)
    switch(True)

  def _is_on_after(self, name):
    with mock.patch.object(devices, '_logical_devices', lambda *_: [name]):
      placement = devices.choose(None, [name], None)
    self.assertEqual(placement.devices, (name,))
    return tf.config.experimental.tensor_float_32_execution_enabled()

  def test_sums_of_clipped_gradients_are_float32_on_a_gpu(self):
    self.assertFalse(self._is_on_after('GPU:0'))

  def test_a_cpu_changes_nothing(self):
    self.assertTrue(self._is_on_after('CPU:0'))


if __name__ == '__main__':
  absltest.main()
