"""Tests of the units of record- and patient-level privacy."""

from absl.testing import absltest
import numpy as np

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import units


def _split(patients=None, labels=None):
  pixels = np.arange(6, dtype=np.uint8)[:, None, None, None]
  return images.Split(
    images=np.tile(pixels, (1, 2, 2, 1)),
    labels=np.arange(6) % 3 if labels is None else labels,
    patients=patients,
  )


_PARTITION = (np.array([0, 3, 4]), np.array([1, 2, 5]))


class RecordUnitsTest(absltest.TestCase):
  def test_each_image_is_a_unit_of_its_client(self):
    found = units.record_units(_PARTITION)
    np.testing.assert_array_equal(found.rows[:, 0], np.arange(6))
    np.testing.assert_array_equal(found.clients, [0, 1, 1, 0, 0, 1])
    self.assertEqual(found.left_out, 0)

  def test_arrays_of_drawn_units(self):
    found = units.record_units(_PARTITION)
    drawn = np.array([1, 3, 5])
    first, second = found.by_client(drawn, 2)
    np.testing.assert_array_equal(first, [3])
    np.testing.assert_array_equal(second, [1, 5])
    arrays = found.arrays(_split(), second)
    self.assertEqual(arrays['x'].shape, (2, 1, 2, 2, 1))
    np.testing.assert_allclose(arrays['x'][:, 0, 0, 0, 0], [1 / 255, 5 / 255])
    np.testing.assert_array_equal(arrays['y'], [[1], [2]])
    np.testing.assert_array_equal(arrays['mask'], [[1], [1]])

  def test_no_unit_drawn(self):
    found = units.record_units(_PARTITION)
    empty = found.by_client(np.array([], np.int64), 2)
    arrays = found.arrays(_split(), empty[0])
    self.assertEqual(arrays['x'].shape, (0, 1, 2, 2, 1))
    self.assertEqual(arrays['y'].shape, (0, 1))

  def test_multi_label(self):
    labels = np.eye(6, 4, dtype=np.int64)
    found = units.record_units(_PARTITION)
    arrays = found.arrays(_split(labels=labels), np.array([2]))
    np.testing.assert_array_equal(arrays['y'], [[[0, 0, 1, 0]]])
    self.assertEqual(arrays['y'].dtype, np.float32)


class PatientUnitsTest(absltest.TestCase):
  def test_images_of_a_patient_stay_together(self):
    patients = np.array([7, 2, 2, 7, 7, 9])
    found = units.patient_units(_split(patients), _PARTITION, max_images=2)
    np.testing.assert_array_equal(found.rows, [[1, 2], [0, 3], [5, -1]])
    np.testing.assert_array_equal(found.clients, [1, 0, 1])
    self.assertEqual(found.left_out, 1)
    arrays = found.arrays(_split(patients), np.array([1, 2]))
    np.testing.assert_array_equal(arrays['mask'], [[1, 1], [1, 0]])
    np.testing.assert_array_equal(arrays['x'][1, 1], 0)

  def test_width_is_what_the_data_needs(self):
    patients = np.array([7, 2, 2, 7, 7, 9])
    found = units.patient_units(_split(patients), _PARTITION, max_images=50)
    self.assertEqual(found.rows.shape, (3, 3))
    self.assertEqual(found.left_out, 0)

  def test_refuses_a_patient_on_two_clients(self):
    # The message has no number, as that may identify the patient.
    with self.assertRaisesRegex(
      _validate.InputError, '^a patient is on several clients; use'
    ):
      units.patient_units(
        _split(np.array([7, 2, 1, 2, 7, 1])), _PARTITION, max_images=2
      )

  def test_refuses_data_without_patients(self):
    with self.assertRaisesRegex(_validate.InputError, 'patient'):
      units.patient_units(_split(), _PARTITION, max_images=2)


if __name__ == '__main__':
  absltest.main()
