"""The file of scores: what it holds, what it hides, and damaged ones."""

import io

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical import _validate
from tff_medical.scoring import scored


def _images(**changed):
  arguments = {
    'logits': np.array([[0.5, 1], [2, 3], [4, 5], [6, 7]], np.float32),
    'labels': np.array([0, 1, 1, 0]),
    'class_names': ('no', 'yes'),
    'sites': np.array([3, 0, 0, 3]),
    'clusters': np.array([4711, 4711, 1234, 99]),
    'split_name': 'validation',
  }
  return scored.ScoredImages(**{**arguments, **changed})


class ScoresFileTest(parameterized.TestCase):
  def test_holds_what_metrics_need(self):
    images = _images()
    again, digest = scored.ScoredImages.from_bytes(images.to_bytes('ab'), 'x')
    self.assertEqual(digest, 'ab')
    for name in ('logits', 'labels', 'sites'):
      np.testing.assert_array_equal(getattr(again, name), getattr(images, name))
    for name in ('class_names', 'multi_label', 'is_ordinal', 'split_name'):
      self.assertEqual(getattr(again, name), getattr(images, name))
    np.testing.assert_array_equal(again.groups, images.groups)
    self.assertTrue(again.pairs_with(images))

  def test_has_no_number_of_a_patient(self):
    """Groups are kept; their numbers are drawn anew each time."""
    clusters = np.random.default_rng(0).permutation(5000) + 10_000
    images = _images(
      logits=np.zeros((5000, 2)),
      labels=np.zeros(5000, int),
      sites=None,
      clusters=clusters,
    )
    stored = []
    for _ in range(2):
      with np.load(io.BytesIO(images.to_bytes(''))) as arrays:
        self.assertNotIn('sites', arrays)
        stored.append(arrays['clusters'])
    self.assertLess(stored[0].max(), 5000)
    for left, right in (stored, (stored[0], clusters)):
      self.assertLess(abs(np.corrcoef(left, right)[0, 1]), 0.1)

  @parameterized.parameters(b'', b'PK\x03\x04', b'no file of ours')
  def test_damaged(self, content):
    with self.assertRaisesRegex(_validate.InputError, 's.npz is damaged'):
      scored.ScoredImages.from_bytes(content, 's.npz')

  def test_cut_short_or_without_a_part(self):
    content = _images().to_bytes('ab')
    with self.assertRaisesRegex(_validate.InputError, 'is damaged'):
      scored.ScoredImages.from_bytes(content[:-40], 's.npz')
    part = io.BytesIO()
    np.savez(part, logits=np.zeros((1, 2)))
    with self.assertRaisesRegex(_validate.InputError, 'is damaged .*labels'):
      scored.ScoredImages.from_bytes(part.getvalue(), 's.npz')

  def test_objects_are_not_loaded(self):
    content = io.BytesIO()
    np.savez(content, logits=np.array([{}], dtype=object))
    with self.assertRaisesRegex(_validate.InputError, 'is damaged'):
      scored.ScoredImages.from_bytes(content.getvalue(), 's.npz')


class PairsTest(absltest.TestCase):
  def test_only_the_same_images_pair(self):
    images = _images()
    self.assertTrue(images.pairs_with(_images(clusters=np.array([7, 7, 1, 5]))))
    for changed in (
      {'labels': np.array([0, 1, 1, 1])},
      {'sites': None},
      {'clusters': np.array([1, 2, 3, 4])},
      {'class_names': ('a', 'b')},
    ):
      self.assertFalse(images.pairs_with(_images(**changed)), changed)


if __name__ == '__main__':
  absltest.main()
