"""Tests of the scaling and the layout of examples."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical.data import examples
from tff_medical.data import images

_PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 2, 1), np.uint8)


def _split(multi_label=False):
  labels = np.eye(6, 4, dtype=np.int64) if multi_label else np.arange(6)
  return images.Split(_PIXELS, labels)


class ScaledTest(absltest.TestCase):
  def test_every_value_is_the_nearest_float_of_its_255th(self):
    values = examples.scaled(np.arange(256, dtype=np.uint8))
    self.assertEqual(values.dtype, np.float32)
    np.testing.assert_array_equal(
      values, (np.arange(256, dtype=np.float64) / 255).astype(np.float32)
    )


class ExamplesTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_images(self, multi_label):
    split = _split(multi_label)
    rows = np.array([4, 0, 4])
    found = examples.of_images(split, rows)
    self.assertEqual(list(found), ['x', 'y'])
    np.testing.assert_array_equal(found['x'], examples.scaled(_PIXELS[rows]))
    np.testing.assert_array_equal(found['y'], split.labels[rows])
    self.assertEqual(found['y'].dtype, examples.y_dtype(split))

  @parameterized.parameters(False, True)
  def test_units(self, multi_label):
    split = _split(multi_label)
    rows = np.array([[5, 1], [3, examples.PADDING]])
    found = examples.of_units(split, rows)
    self.assertEqual(list(found), ['x', 'y', 'mask'])
    np.testing.assert_array_equal(found['mask'], [[1, 1], [1, 0]])
    x = examples.scaled(_PIXELS[rows])
    x[1, 1] = 0
    np.testing.assert_array_equal(found['x'], x)
    np.testing.assert_array_equal(found['y'][0], split.labels[[5, 1]])
    self.assertEqual(found['y'].dtype, examples.y_dtype(split))
    self.assertEqual([v.dtype for v in found.values()][::2], [np.float32] * 2)

  def test_padding_is_not_read(self):
    split = mock.Mock(wraps=_split())
    split.labels, split.input_shape = np.arange(6), (3, 2, 1)
    split.features = None
    examples.of_units(split, np.array([[2, examples.PADDING], [4, 5]]))
    ((rows,), _) = split.rows.call_args
    np.testing.assert_array_equal(rows, [2, 4, 5])

  def test_units_of_one_image_are_those_of_the_images(self):
    rows = np.array([3, 1])
    found = examples.of_single_images(**examples.of_images(_split(), rows))
    for name, values in examples.of_units(_split(), rows[:, None]).items():
      np.testing.assert_array_equal(found[name], values)
      self.assertEqual(found[name].dtype, values.dtype)


if __name__ == '__main__':
  absltest.main()
