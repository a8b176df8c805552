from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical.runtime.cluster import portions


def spans_of(tree):
  todo, spans = [tree.root], []
  while todo:
    span = todo.pop()
    spans.append(span)
    if span.end - span.first > 1:
      todo.extend(tree.children(span))
  return spans


class CutTest(parameterized.TestCase):
  @parameterized.parameters(*range(1, 30))
  def test_every_client_is_in_one_range(self, seed):
    rng = np.random.default_rng(seed)
    costs = list(1 + rng.pareto(1.0, size=rng.integers(1, 200)))
    number = int(rng.integers(1, 80))
    ranges = portions.cut(costs, number)
    self.assertLessEqual(len(ranges), number)
    self.assertTrue(all(ranges))
    self.assertEqual([i for r in ranges for i in r], list(range(len(costs))))

  def test_equal_costs_are_cut_evenly(self):
    sizes = [len(r) for r in portions.cut([1.0] * 1000, 64)]
    self.assertLen(sizes, 64)
    self.assertLessEqual(max(sizes) - min(sizes), 1)

  def test_no_range_has_more_than_its_share_but_for_one_client(self):
    costs = list(1 + np.random.default_rng(0).pareto(1.5, size=500))
    share = sum(costs) / 64
    for part in portions.cut(costs, 64):
      without_largest = sum(costs[i] for i in part) - max(
        costs[part[0]], costs[part[-1]]
      )
      self.assertLessEqual(without_largest, share)

  def test_no_clients(self):
    self.assertEqual(portions.cut([], 3), [])


class TreeTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3, 5, 8, 63, 64, 65)
  def test_halves_are_neighbours_that_cover_their_span(self, number):
    tree = portions.Tree(number)
    spans = spans_of(tree)
    self.assertLen(spans, 2 * number - 1)
    self.assertIsNone(tree.parent(tree.root))
    for span in spans:
      if span.end - span.first > 1:
        left, right = tree.children(span)
        self.assertEqual((left.first, left.end), (span.first, right.first))
        self.assertEqual(right.end, span.end)
        self.assertEqual({tree.parent(left), tree.parent(right)}, {span})

  def test_depth_is_logarithmic(self):
    tree = portions.Tree(1000)
    span, depth = portions.Span(0, 1), 0
    while (span := tree.parent(span)) is not None:
      depth += 1
    self.assertEqual(depth, 10)


class TotalsTest(parameterized.TestCase):
  @parameterized.parameters(*range(20))
  def test_the_order_of_arrival_does_not_matter(self, seed):
    """Merging is neither commutative nor associative here."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(1, 40))
    tree = portions.Tree(number)

    def expected(span):
      if span.end - span.first == 1:
        return str(span.first)
      return '({} {})'.format(*map(expected, tree.children(span)))

    totals = portions.Totals(tree, lambda left, right: f'({left} {right})')
    for i in rng.permutation(number):
      totals.add(portions.Span(i, i + 1), str(i))
    self.assertEqual(totals.spans, [tree.root])
    self.assertEqual(totals.take(tree.root), expected(tree.root))
    self.assertEqual(totals.spans, [])

  def test_few_totals_wait_in_a_block_of_neighbours(self):
    totals = portions.Totals(portions.Tree(1024), lambda left, right: None)
    most = 0
    for i in range(300, 800):
      totals.add(portions.Span(i, i + 1), None)
      most = max(most, len(totals.spans))
    self.assertLessEqual(most, 16)


class AssignmentTest(absltest.TestCase):
  def test_blocks_of_neighbours_without_homes(self):
    waiting = portions.Assignment([1] * 8, {}, ['a', 'b'])
    taken = [(w, waiting.take(w)) for w in 'ababab']
    self.assertEqual({p for w, p in taken if w == 'a'}, {0, 1, 2})
    self.assertEqual({p for w, p in taken if w == 'b'}, {4, 5, 6})

  def test_the_longest_comes_first(self):
    waiting = portions.Assignment([1, 5, 3], {}, ['a'])
    self.assertEqual([waiting.take('a') for _ in range(4)], [1, 2, 0, None])

  def test_homes_of_the_last_round_count(self):
    homes = {0: 'b', 1: 'a', 2: 'b', 3: 'a', 4: 'gone'}
    waiting = portions.Assignment([1] * 5, homes, ['a', 'b'])
    self.assertEqual({waiting.take('b'), waiting.take('b')}, {0, 2})
    # Nobody's portion comes before that of another worker.
    self.assertEqual([waiting.take('b') for _ in range(2)], [4, 1])

  def test_helps_the_worker_with_the_most_work(self):
    homes = {0: 'a', 1: 'a', 2: 'b', 3: 'b'}
    waiting = portions.Assignment([1, 1, 9, 9], homes, ['a', 'b', 'c'])
    self.assertEqual(waiting.take('c'), 2)

  def test_a_lost_portion_waits_again(self):
    waiting = portions.Assignment([1, 1], {}, ['a'])
    first = waiting.take('a')
    self.assertLen(waiting, 1)
    waiting.put_back(first)
    self.assertCountEqual([waiting.take('b'), waiting.take('b')], [0, 1])


if __name__ == '__main__':
  absltest.main()
