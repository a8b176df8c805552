"""Tests of near copies, against a comparison of every pair."""

import itertools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical.data import equal_images
from tff_medical.data.preparing import near_duplicates

_SIDE = 20


def _noise(count, seed=0):
  """Returns images without copies among them."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, _SIDE, _SIDE, 1), np.uint8)


def _brute_force(images):
  """Returns the pairs of near copies, each pair compared in all positions."""
  flat = near_duplicates.signatures(images)
  pairs = set()
  for a, b in itertools.combinations(range(len(images)), 2):
    positions = [np.rot90(flat[b], k) for k in range(4)]
    positions += [np.fliplr(p) for p in positions]
    product = max((flat[a] * p).sum() for p in positions)
    if product >= near_duplicates.LEAST_PRODUCT:
      pairs.add((a, b))
  return pairs


class NearDuplicatesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    *((f'turned_{k}', lambda x, k=k: np.rot90(x, k, (1, 2))) for k in range(4)),
    ('mirrored', lambda x: x[:, :, ::-1]),
    ('upside_down_turned', lambda x: np.rot90(x, 1, (1, 2))[:, ::-1]),
    ('darker', lambda x: x // 2 + 9),
  )
  def test_finds_an_image_that_is(self, changed):
    train = _noise(30)
    test = np.concatenate([_noise(3, seed=1), changed(train[4:6])])
    copies = near_duplicates.find({'train': train, 'test': test})
    is_equal = np.array_equal(test[3], train[4])
    counted = copies.num_equal if is_equal else copies.num_near
    self.assertEqual(counted('train', 'test'), 2)
    self.assertEqual(copies.num_near_before('test'), 0 if is_equal else 2)
    np.testing.assert_array_equal(copies.groups, [*range(30), 30, 31, 32, 4, 5])
    self.assertTrue(copies.is_complete)

  @parameterized.parameters(False, True)
  def test_finds_what_comparing_every_pair_finds(self, is_symmetric):
    # A walk in small steps, so that products lie on both sides of the limit.
    rng = np.random.default_rng(2)
    walk = [rng.normal(128, 40, (_SIDE, _SIDE))]
    for _ in range(150):
      step = rng.normal(0, rng.choice([1, 4, 8]), (_SIDE, _SIDE))
      if is_symmetric:  # Then the mean over positions tells images apart.
        step = sum(np.rot90(step, k) for k in range(4)) / 2
        step = (step + step[::-1]) / 2**0.5
      walk.append(np.rot90(walk[-1] + step, rng.integers(4)))
    images = np.clip(np.stack(walk), 0, 255).astype(np.uint8)[..., np.newaxis]
    expected = _brute_force(images)
    with mock.patch.multiple(near_duplicates, _BATCH=16, _CANDIDATES=5):
      stack = near_duplicates.signatures(images)
      pairs = np.concatenate(list(near_duplicates._pairs(stack)))
    self.assertGreater(len(expected), 100)
    self.assertLess(len(expected), 150 * 149 / 4)
    self.assertEqual({tuple(sorted(p)) for p in pairs.tolist()}, expected)
    self.assertLen(pairs, len(expected))

  def test_a_copy_of_a_copy_is_in_the_group(self):
    first = _noise(1)
    rng = np.random.default_rng(3)
    chain = [first.astype(float)]
    for _ in range(12):
      chain.append(chain[-1] + rng.normal(0, 6, first.shape))
    images = np.clip(np.concatenate(chain), 0, 255).astype(np.uint8)
    self.assertNotIn((0, 12), _brute_force(images))
    copies = near_duplicates.find({'train': images})
    self.assertEqual(copies.group_sizes('train').tolist(), [13])

  def test_equal_images_are_no_near_copies_and_blank_ones_neither(self):
    images = _noise(4)
    images[2:] = 7
    stored = np.concatenate([images, images[:1], np.full_like(images[:1], 9)])
    copies = near_duplicates.find({'train': stored})
    self.assertEqual(copies.num_near('train', 'train'), 0)
    self.assertEqual(copies.num_equal('train', 'train'), 4)
    self.assertEqual(copies.groups.tolist(), [0, 1, 2, 2, 0, 5])
    self.assertCountEqual(copies.group_sizes('train'), [2, 1, 2, 1])

  def test_mended_splits_divide_no_group(self):
    train = _noise(10)
    test = np.concatenate([train[2:3, ::-1], _noise(2, seed=1)])
    copies = near_duplicates.find(
      {'train': train, 'validation': train[:0], 'test': test}
    )
    self.assertEqual(copies.mended_splits().tolist(), [0] * 11 + [2, 2])

  def test_of_many_images_a_part_is_compared(self):
    images = _noise(40)
    with mock.patch.object(near_duplicates, 'MAX_IMAGES', 30):
      copies = near_duplicates.find({'train': images, 'test': images[:, ::-1]})
    self.assertEqual(copies.compared, 30)
    self.assertFalse(copies.is_complete)
    self.assertBetween(copies.num_near('train', 'test'), 1, 20)

  def test_splits_may_be_chosen_after_comparing(self):
    rng = np.random.default_rng(5)
    kinds = _noise(8)[rng.integers(0, 8, 40)]
    kinds[::3] = kinds[::3, ::-1] // 2
    splits = rng.integers(0, 3, 40)
    names = ('a', 'b', 'c')
    by_split = {name: kinds[splits == i] for i, name in enumerate(names)}
    expected = near_duplicates.find(by_split)
    comparison = near_duplicates.compare([kinds[:15], kinds[15:]])
    copies = comparison.in_splits(names, splits)
    for a, b in itertools.product(names, names):
      self.assertEqual(copies.num_equal(a, b), expected.num_equal(a, b))
      self.assertEqual(copies.num_near(a, b), expected.num_near(a, b))
    duplicates = comparison.duplicates(names, splits)
    self.assertTrue(duplicates)
    self.assertEqual(duplicates, equal_images.find_duplicates(by_split))

  def test_of_one_image(self):
    copies = near_duplicates.find({'train': _noise(1)})
    self.assertEqual(copies.groups.tolist(), [0])
    self.assertEmpty(copies.examples)


class ManyCopiesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    blocks = rng.integers(20, 230, (30, 7, 7, 1))
    self.images = np.kron(blocks, np.ones((1, 4, 4, 1))).astype(np.uint8)

  def _count(self, later):
    copies = near_duplicates.find({'train': self.images, 'test': later})
    return copies.num_near_before('test')

  @parameterized.product(turns=(0, 1, 2, 3), mirrored=(False, True))
  def test_turned_mirrored_and_darker_copies(self, turns, mirrored):
    later = np.rot90(self.images[:5], turns, axes=(1, 2))
    later = later[:, :, ::-1] if mirrored else later
    later = (later * 0.6 + 20).astype(np.uint8)
    self.assertEqual(self._count(later), 5)

  def test_other_images_do_not_count(self):
    self.assertEqual(self._count(255 - self.images), 0)
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 255, self.images.shape).astype(np.uint8)
    self.assertEqual(self._count(noise), 0)

  def test_equal_images_do_not_count_twice(self):
    darker = (self.images[:3] * 0.6).astype(np.uint8)
    later = np.concatenate([self.images[:2], darker])
    self.assertEqual(self._count(later), 3)

  def test_images_of_one_value_are_like_no_other(self):
    flat = np.full((4, 28, 28, 1), 7, np.uint8)
    copies = near_duplicates.find({'train': flat, 'test': flat + 1})
    self.assertEqual(copies.num_near_before('test'), 0)


if __name__ == '__main__':
  absltest.main()
