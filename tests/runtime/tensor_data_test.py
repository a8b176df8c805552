from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import runtime
from tff_medical.runtime import loops
from tff_medical.runtime import tensor_data


def _data(examples):
  return {
    'y': np.arange(examples, dtype=np.int32),
    'x': np.arange(2 * examples, dtype=np.float32).reshape(examples, 2),
  }


class TensorDatasetTest(parameterized.TestCase):
  @parameterized.product(
    examples=[0, 1, 6, 7], epochs=[1, 3], drop_remainder=[False, True]
  )
  def test_equals_its_slices_and_the_usual_dataset(
    self, examples, epochs, drop_remainder
  ):
    data = _data(examples)
    dataset = runtime.tensor_dataset(
      data, batch_size=3, epochs=epochs, drop_remainder=drop_remainder
    )
    usual = tf.data.Dataset.from_tensor_slices(data)
    usual = usual.batch(3, drop_remainder).repeat(epochs)
    self.assertEqual(dataset.element_spec, usual.element_spec)
    expected = [tf.nest.flatten(e) for e in usual.as_numpy_iterator()]
    found = [tf.nest.flatten(e) for e in dataset.as_numpy_iterator()]
    behind = tensor_data.batches_of(dataset)
    slices = loops.Slices(behind.components, *behind.options)
    spec = tuple(tf.nest.flatten(dataset.element_spec))
    variant = tf.data.experimental.from_variant(slices.to_variant(), spec)
    for actual in (found, list(variant.as_numpy_iterator())):
      self.assertLen(actual, len(expected))
      for a, b in zip(actual, expected):
        for component, other in zip(a, b):
          np.testing.assert_array_equal(component, other)

  def test_derived_datasets_are_ordinary(self):
    dataset = runtime.tensor_dataset(_data(4), batch_size=2)
    self.assertIsNotNone(tensor_data.batches_of(dataset))
    self.assertIsNone(tensor_data.batches_of(dataset.take(1)))
    self.assertIsNone(tensor_data.batches_of(tf.data.Dataset.range(3)))

  @parameterized.parameters(
    ({'batch_size': 0},), ({'batch_size': 2, 'epochs': 0},)
  )
  def test_wrong_values(self, arguments):
    with self.assertRaises(_validate.InputError):
      runtime.tensor_dataset(_data(4), **arguments)


if __name__ == '__main__':
  absltest.main()
