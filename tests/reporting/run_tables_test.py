"""Tests of the table of runs: types, files, statistics over seeds."""

import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pandas as pd
from scipy import stats

from tests import finished_sweeps
from tff_medical import _validate
from tff_medical.reporting import run_tables

_RESULTS = pathlib.Path(__file__).resolve().parents[2] / 'results'


class RunTablesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path, 'results.csv')

  def test_columns_are_typed(self):
    summary = finished_sweeps.summary(epsilon=math.inf, delta=None)
    runs = run_tables.table([run_tables.row('007', 1, summary)])
    self.assertEqual(tuple(runs.columns), run_tables.FIELDS)
    run_tables.write(self.path, runs)
    pd.testing.assert_frame_equal(run_tables.read(self.path), runs)
    self.assertEqual(runs['name'][0], '007')
    self.assertEqual(runs['seed'].dtype, 'Int64')
    self.assertEqual(runs['epsilon'][0], math.inf)
    self.assertTrue(math.isnan(runs['delta'][0]))
    self.assertTrue(math.isnan(runs['auc'][0]))

  def test_published_files_are_written_as_they_were_read(self):
    # Costs and bytes are no runs.
    no_runs = ('costs.csv', 'traffic.csv')
    paths = [p for p in _RESULTS.rglob('*.csv') if p.name not in no_runs]
    self.assertGreaterEqual(len(paths), 8)
    for path in paths:
      runs = run_tables.read(path)
      digits = '%.6g' if 'cell' in runs else None  # As sweeps are written.
      run_tables.write(self.path, runs, float_format=digits)
      self.assertEqual(self.path.read_bytes(), path.read_bytes(), path)

  def test_a_missing_file_is_an_empty_table(self):
    runs = run_tables.read(self.path)
    self.assertEmpty(runs)
    self.assertEqual(tuple(runs.columns), run_tables.FIELDS)

  @parameterized.parameters(
    'name,auc\na,high\n', 'name,auc\na,1,2\n', '', 'name,seed\na,1.5\n'
  )
  def test_a_damaged_file_is_one_line(self, text):
    self.path.write_text(text)
    with self.assertRaisesRegex(
      _validate.InputError, r'^.*results.csv is damaged \(.*\); restore it$'
    ):
      run_tables.read(self.path)

  def test_no_mean_of_the_runs_that_went_well(self):
    values = pd.Series([0.5, math.nan, 0.7])
    self.assertTrue(math.isnan(run_tables.mean(values)))
    self.assertEqual(run_tables.spread(values), 'nan ± nan')
    self.assertTrue(math.isnan(run_tables.half_width(values)))

  def test_differences_are_taken_seed_by_seed(self):
    def runs(**aucs):
      rows = [{'seed': int(s[1:]), 'auc': auc} for s, auc in aucs.items()]
      return run_tables.table(rows, ('seed', 'auc'))

    differences = run_tables.differences(
      runs(s0=0.5, s1=0.7, s2=0.1, s4=0.2),
      runs(s1=0.4, s0=0.4, s3=0.9, s4=None),
      'auc',
    )
    self.assertEqual(list(differences.index), [0, 1, 4])
    np.testing.assert_allclose(differences, [0.1, 0.3, math.nan])

  @parameterized.parameters(1, 5)
  def test_interval_is_that_of_scipy(self, comparisons):
    values = pd.Series([0.1, 0.3, 0.15])
    low, high = stats.t.interval(
      1 - 0.05 / comparisons, 2, loc=values.mean(), scale=stats.sem(values)
    )
    self.assertAlmostEqual(
      run_tables.half_width(values, comparisons), (high - low) / 2
    )

  def test_a_single_seed_has_no_interval(self):
    self.assertTrue(math.isnan(run_tables.half_width(pd.Series([0.1]))))
    self.assertEqual(run_tables.spread(pd.Series([0.1])), '0.100')

  @parameterized.parameters(
    (7.9911, 2, '8.00'),
    (8.0, 2, '8.00'),
    (0.1 + 0.2, 1, '0.4'),
    (1e-9, 3, '0.001'),
  )
  def test_epsilon_is_rounded_up(self, epsilon, digits, text):
    self.assertEqual(run_tables.round_up(epsilon, digits), text)


if __name__ == '__main__':
  absltest.main()
