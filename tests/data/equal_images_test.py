from absl.testing import absltest
import numpy as np

from tff_medical.data import equal_images


class DuplicatesTest(absltest.TestCase):
  def test_counts_within_and_across(self):
    one, two, three = (np.full([1, 4, 4, 1], v, np.uint8) for v in (1, 2, 3))
    report = equal_images.find_duplicates(
      {
        'train': np.concatenate([one, one, one, two]),
        'validation': np.concatenate([one, three]),
        'test': np.concatenate([three, three]),
      }
    )
    self.assertEqual(report.within, {'train': 2, 'validation': 0, 'test': 1})
    self.assertEqual(
      report.across,
      {
        ('train', 'validation'): 1,
        ('train', 'test'): 0,
        ('validation', 'test'): 1,
      },
    )
    self.assertTrue(report)
    self.assertEqual(
      str(report),
      '2 extra in train, 1 extra in test, 1 in both train and validation, '
      '1 in both validation and test',
    )

  def test_none(self):
    report = equal_images.find_duplicates(
      {'train': np.zeros([1, 2, 2, 1], np.uint8)}
    )
    self.assertFalse(report)
    self.assertEqual(str(report), 'none')


if __name__ == '__main__':
  absltest.main()
