"""Tests of what is searched: values, draws and scores."""

import dataclasses
import math

from absl.testing import absltest
from absl.testing import parameterized

from experiments.tuning import search as search_lib
from tests import finished_sweeps
from tff_medical import _validate

_VALUES = {'server_learning_rate': ['0.1', '0.5'], 'clip_norm': ['0.5', '1']}
_SECRET = search_lib.Search(
  _VALUES, 'random', trials=2.0, price=search_lib.PAPERNOT_STEINKE
)


class SearchTest(parameterized.TestCase):
  @parameterized.parameters(
    'rounds', '=1,2', 'rounds=', 'rounds=1,,2', 'rounds=1,1', 'seed=1,2',
    'target_epsilon=1,2', 'noise_multiplier=1,2', 'eval_split=test',
    'data_ledger=a,b', 'dataset=synthetic', 'privacy_unit=record',
    'image_size=28,64', 'dirichlet_alpha=0.1,1', 'label_columns=a,b',
  )  # fmt: skip
  def test_refuses_a_search(self, text):
    with self.assertRaisesRegex(_validate.InputError, '^search '):
      search_lib.parse_search([text])

  def test_refuses_no_search_and_a_flag_named_twice(self):
    with self.assertRaisesRegex(_validate.InputError, 'must be given'):
      search_lib.parse_search([])
    with self.assertRaisesRegex(_validate.InputError, 'each flag'):
      search_lib.parse_search(['rounds=1,2', 'rounds=3'])

  @parameterized.parameters(
    ({'strategy': 'bayes'}, 'strategy'),
    ({'price': 'free'}, 'price'),
    ({'trials': 2.0}, 'strategy=random alone'),
    ({'strategy': 'random'}, 'strategy=random alone'),
    ({'strategy': 'random', 'trials': 5.0}, 'up to the 4 candidates'),
    ({'strategy': 'random', 'trials': 1.5}, 'whole number'),
    ({'trials_shape': 1.0}, 'would be ignored'),
    ({'price': 'papernot_steinke'}, 'strategy must be random'),
    (
      {'price': 'papernot_steinke', 'strategy': 'random', 'trials': 1.0},
      'trials must lie between',
    ),
  )
  def test_refuses_what_does_not_fit_together(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      search_lib.Search(_VALUES, **changed)

  def test_a_grid_has_all_candidates(self):
    candidates = search_lib.Search(_VALUES).draw(seed=0)
    self.assertLen(set(candidates), 4)
    self.assertIn((('server_learning_rate', '0.5'), ('clip_norm', '1')),
                  candidates)  # fmt: skip

  def test_a_random_search_is_repeatable_and_tries_nothing_twice(self):
    search = search_lib.Search(_VALUES, 'random', trials=3)
    self.assertEqual(search.draw(seed=1), search.draw(seed=1))
    self.assertLen(set(search.draw(seed=1)), 3)
    self.assertNotEqual(search.draw(seed=1), search.draw(seed=2))

  def test_a_secret_search_draws_anew_and_may_try_a_candidate_twice(self):
    search = dataclasses.replace(_SECRET, trials=30.0)
    draws = [tuple(search.draw(seed=0)) for _ in range(20)]
    self.assertGreater(len({len(draw) for draw in draws}), 1)
    self.assertTrue(any(len(set(draw)) < len(draw) for draw in draws))

  def test_test_metrics_never_choose(self):
    search = search_lib.Search(_VALUES)
    summary = finished_sweeps.summary(metrics={'auc': 0.9}, eval_split='test')
    with self.assertRaisesRegex(_validate.InputError, 'on test images'):
      search.score(summary)

  def test_scores(self):
    def score(metric, value):
      summary = finished_sweeps.summary(
        metrics={metric: value}, eval_split='validation'
      )
      return search_lib.Search(_VALUES, metric=metric).score(summary)

    self.assertGreater(score('auc', 0.9), score('auc', 0.8))
    self.assertGreater(score('loss', 0.1), score('loss', 0.2))
    self.assertEqual(score('auc', math.nan), -math.inf)
    with self.assertRaisesRegex(_validate.InputError, 'is not among'):
      search_lib.Search(_VALUES, metric='aucs').score(
        finished_sweeps.summary(metrics={'auc': 0.9}, eval_split='validation')
      )


if __name__ == '__main__':
  absltest.main()
