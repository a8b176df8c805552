"""Tests of what is counted of a data set."""

from absl.testing import absltest
import numpy as np

from tff_medical.data import images
from tff_medical.data import overview


def _split(labels, sites=None, patients=None, values=None):
  values = np.arange(len(labels)) if values is None else np.array(values)
  stored = np.repeat(values.astype(np.uint8), 64).reshape(-1, 8, 8, 1)
  return images.Split(
    images=stored,
    labels=np.array(labels),
    sites=None if sites is None else np.array(sites),
    patients=None if patients is None else np.array(patients),
  )


class OverviewTest(absltest.TestCase):
  def test_counts_by_split_site_and_class(self):
    view = overview.of(
      images.ImageData(
        name='x',
        train=_split([0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 2]),
        validation=_split([0], [2], [3]),
        test=_split([1, 0], [2, 0], [4, 5]),
        class_names=('a', 'b'),
        site_names=('x', 'y', 'z', 'nobody'),
      )
    )
    self.assertEqual(
      view.counts.tolist(),
      [
        [[1, 1], [0, 2], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [1, 0], [0, 0]],
        [[1, 0], [0, 0], [0, 1], [0, 0]],
      ],
    )
    self.assertEqual(
      view.images.tolist(), [[2, 2, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]]
    )
    self.assertEqual(view.patients.tolist(), [2, 1, 2])
    self.assertCountEqual(view.images_of_patients, [3, 1])
    self.assertIsNone(view.grey[3])

  def test_findings_count_each_and_none_counts_too(self):
    split = _split([[1, 1], [0, 0], [0, 1]])
    view = overview.of(
      images.ImageData('x', split, split, split, ('a', 'b'), multi_label=True)
    )
    self.assertEqual(view.sites, (overview.ALL,))
    self.assertEqual(view.classes, ('a', 'b', overview.NO_FINDING))
    self.assertEqual(view.counts[0].tolist(), [[1, 2, 1]])
    self.assertEqual(view.images[0].tolist(), [3])
    self.assertIsNone(view.patients)

  def test_unknown_findings_count_for_nothing(self):
    split = _split([[1, -1], [0, -1], [-1, -1], [0, 0]])
    view = overview.of(
      images.ImageData('x', split, split, split, ('a', 'b'), multi_label=True)
    )
    self.assertEqual(view.counts[0].tolist(), [[1, 0, 1]])
    self.assertEqual(view.images[0].tolist(), [4])

  def test_grey_levels_are_those_of_all_values_of_a_site(self):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4, (6, 8, 8, 3), np.uint8) * 85
    stored[1] = 170
    split = images.Split(
      images=stored,
      labels=np.arange(6) % 2,
      sites=np.array([0, 1, 0, 1, 1, 0]),
    )
    view = overview.of(
      images.ImageData(
        'x', split, split, split, ('a', 'b'), site_names=('p', 'q')
      )
    )
    for site, grey in enumerate(view.grey):
      values = stored[split.sites == site].astype(float)
      self.assertAlmostEqual(grey.mean, values.mean())
      self.assertAlmostEqual(grey.deviation, values.std())
      self.assertAlmostEqual(grey.black, (values == 0).mean())
      self.assertAlmostEqual(grey.white, (values == 255).mean())
    self.assertEqual([grey.blank for grey in view.grey], [0, 3])


if __name__ == '__main__':
  absltest.main()
