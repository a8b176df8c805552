from absl.testing import absltest
import numpy as np

from tff_medical import _validate
from tff_medical.data import label_values


class LabelValuesTest(absltest.TestCase):
  def test_files_hold_unknown_findings_only_where_that_is_said(self):
    labels = np.array([[0, 1], [-1, 1]])
    label_values.check_labels('x', labels, 2, True, may_be_unknown=True)
    with self.assertRaisesRegex(
      _validate.InputError, r'in 0..1, got \[-1, 1\]'
    ):
      label_values.check_labels('x', labels, 2, True)
    with self.assertRaisesRegex(_validate.InputError, 'in 0..1, got -1 in'):
      label_values.check_labels('x', labels[1], 2, False, may_be_unknown=True)


if __name__ == '__main__':
  absltest.main()
