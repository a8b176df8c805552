from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import runtime
from tff_medical.runtime import loops
from tff_medical.runtime import pipelines


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
    form = pipelines.form_of(dataset)
    first, end, *numbers, drop = form.options
    self.assertEqual([first, end], [0, examples])
    slices = loops.Slices(form.components, *numbers, drop > 0)
    spec = tuple(tf.nest.flatten(dataset.element_spec))
    variant = tf.data.experimental.from_variant(slices.to_variant(), spec)
    for actual in (found, list(variant.as_numpy_iterator())):
      self.assertLen(actual, len(expected))
      for a, b in zip(actual, expected):
        for component, other in zip(a, b):
          np.testing.assert_array_equal(component, other)

  def test_is_built_when_it_is_read(self):
    arrays = _data(4)
    dataset = runtime.tensor_dataset(arrays, batch_size=2)
    spec = dataset.element_spec
    self.assertNotIn('built', vars(dataset))
    arrays['y'][:] = -1  # The caller may use the arrays for something else.
    self.assertLen(dataset, 2)
    self.assertIn('built', vars(dataset))
    self.assertEqual(dataset.built.element_spec, spec)
    read = [list(e['y']) for e in dataset.as_numpy_iterator()]
    self.assertEqual(read, [[0, 1], [2, 3]])

  def test_is_an_ordinary_dataset(self):
    dataset = runtime.tensor_dataset(_data(5), batch_size=2)
    self.assertIsInstance(dataset, tf.data.Dataset)
    self.assertEqual(dataset.options(), tf.data.Options())
    self.assertEqual(int(dataset.cardinality()), 3)
    self.assertIn('TensorSpec', repr(dataset))
    derived = (
      dataset.skip(1)
      .map(lambda e: e['y'] + 1)
      .concatenate(
        tf.data.Dataset.zip((dataset, dataset)).map(lambda a, b: b['y'])
      )
    )
    read = [list(e) for e in derived.as_numpy_iterator()]
    self.assertEqual(read, [[3, 4], [5], [0, 1], [2, 3], [4]])

    @tf.function
    def total(data):
      return data.reduce(0, lambda s, e: s + tf.reduce_sum(e['y']))

    self.assertEqual(total(dataset), 10)
    with self.assertRaises(AttributeError):
      dataset.no_such_attribute  # noqa: B018

  def test_tuples(self):
    arrays = tuple(_data(3).values())
    dataset = runtime.tensor_dataset(arrays, batch_size=2, drop_remainder=True)
    self.assertEqual(dataset.element_spec, dataset.built.element_spec)
    self.assertIsInstance(dataset.element_spec, tuple)

  @parameterized.parameters(
    ({'batch_size': 0},), ({'batch_size': 2, 'epochs': 0},)
  )
  def test_wrong_values(self, arguments):
    with self.assertRaises(_validate.InputError):
      runtime.tensor_dataset(_data(4), **arguments)

  @parameterized.parameters(
    ({},), (3.0,), ({'x': np.zeros([3]), 'y': np.zeros([4])},)
  )
  def test_wrong_arrays(self, arrays):
    with self.assertRaisesRegex(_validate.InputError, 'tensors must be'):
      runtime.tensor_dataset(arrays, batch_size=2)


if __name__ == '__main__':
  absltest.main()
