"""Tests of the forms in which values travel."""

import pickle

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical.runtime.cluster import wire


def _travelled(value):
  """Returns a shared value after its way, and the bytes that it took."""
  sent = pickle.dumps(wire.encode_shared(value), protocol=5)
  return wire.decode(pickle.loads(sent)), len(sent)


class WireTest(parameterized.TestCase):
  @parameterized.parameters('float32', 'float64', 'int32', 'bool', 'float16')
  def test_shared_zeros_travel_as_their_shape(self, dtype):
    for shape in ((0,), (1000, 30), (2, 3, 4)):
      value, size = _travelled(tf.zeros(shape, dtype))
      self.assertLess(size, 1000)
      self.assertEqual((value.shape, value.dtype.name), (shape, dtype))
      self.assertFalse(np.asarray(value).any())

  @parameterized.parameters(-0.0, 1e-45, np.nan)
  def test_an_array_with_one_other_number_travels_whole(self, other):
    array = np.zeros((10, 10), np.float32)
    array[9, 9] = other
    # Slices and transposed arrays are not contiguous.
    for sent in (array, array.T, array[:, ::-1]):
      value, size = _travelled(sent)
      self.assertGreater(size, sent.nbytes)
      self.assertEqual(np.asarray(value).tobytes(), sent.tobytes())

  def test_values_that_are_no_arrays_of_numbers_travel_as_they_are(self):
    for sent in (tf.constant(0.0), tf.constant(['', '']), tf.constant('')):
      value, _ = _travelled(sent)
      np.testing.assert_array_equal(value, sent.numpy())
      self.assertEqual(tf.convert_to_tensor(value).dtype, sent.dtype)


if __name__ == '__main__':
  absltest.main()
