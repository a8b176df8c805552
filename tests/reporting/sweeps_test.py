"""Tests of reading a sweep and of its table."""

import csv
import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from tests import finished_sweeps
from tff_medical import _validate
from tff_medical.reporting import sweeps


class SweepTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = finished_sweeps.write(
      pathlib.Path(self.create_tempdir().full_path, 'sweep')
    )

  def _rows(self):
    with open(sweeps.write_csv(sweeps.read(self.folder)), newline='') as file:
      return {row['cell']: row for row in csv.DictReader(file)}

  def test_a_row_a_cell_with_what_was_promised(self):
    rows = self._rows()
    self.assertLen(rows, 11)
    row = rows['eps_8_seed_1']
    self.assertEqual(tuple(row), sweeps.COLUMNS)
    self.assertEqual(row['unit'], 'client')
    self.assertEqual(row['mechanism'], 'dp_fed_avg')
    self.assertEqual(row['status'], 'completed')
    self.assertLen(row['ledger_sha256'], 64)
    for name, value in {
      'target_epsilon': 8,
      'epsilon': 7.99,
      'seed': 1,
      'delta': 0.001,
      'noise_multiplier': 0.375,
      'auc': 0.82,
      'accuracy': 0.72,
      'worst_class_sensitivity': 0.52,
      'site_accuracy_gap': 0.1,
      'seconds': 12.5,
    }.items():
      self.assertAlmostEqual(float(row[name]), value, places=5, msg=name)

  def test_nothing_is_promised_without_privacy(self):
    rows = self._rows()
    for name in ('eps_inf_seed_0', 'central_seed_0', 'per_site_seed_1'):
      self.assertEqual(rows[name]['epsilon'], 'inf')
      self.assertEqual(rows[name]['mechanism'], 'none')
      self.assertEqual(rows[name]['delta'], '')

  def test_a_cell_that_is_not_done_has_a_row_without_figures(self):
    row = self._rows()['eps_1_seed_2']
    self.assertEqual(row['status'], 'missing')
    self.assertEqual(row['auc'], '')

  def test_only_cells_that_ended_count(self):
    sweep = sweeps.read(self.folder)
    self.assertLen(sweep.measured(), 6)
    self.assertEqual(sweep.epsilons(), [1, 8, math.inf])
    path = self.folder / 'cells' / 'eps_1_seed_0' / 'summary.json'
    path.write_text(path.read_text().replace('completed', 'interrupted'))
    self.assertLen(sweeps.read(self.folder).measured(), 5)

  @parameterized.parameters('{"stop_reas', '{"stop_reason": "completed"}')
  def test_a_damaged_summary_is_no_cell_that_has_not_ended(self, content):
    path = self.folder / 'cells' / 'eps_1_seed_0' / 'summary.json'
    path.write_text(content)
    with self.assertRaisesRegex(_validate.InputError, 'summary.json.*damaged'):
      sweeps.read(self.folder)

  def test_parts_are_a_row_a_cell(self):
    values = sweeps.parts(
      sweeps.read(self.folder).measured(), sweeps.Cell.by_class
    )
    self.assertEqual(list(values.columns), sorted(finished_sweeps.CLASSES))
    self.assertEqual(
      list(values.index), ['ε 1', 'ε 1', 'ε 8', 'ε 8'] + ['no privacy'] * 2
    )
    self.assertEmpty(sweeps.parts([], sweeps.Cell.by_class))

  def test_parts(self):
    cell = sweeps.read(self.folder).measured()[0]
    self.assertEqual(list(cell.by_class()), list(finished_sweeps.CLASSES))
    self.assertEqual(list(cell.by_site()), list(finished_sweeps.SITES))
    self.assertAlmostEqual(cell.by_site()['1'], 0.5)

  def test_rounds_leave_out_what_was_not_measured(self):
    cell = sweeps.read(self.folder).measured()[0]
    self.assertLen(cell.rounds, 20)
    self.assertNotIn('validation/auc', cell.rounds[0])
    self.assertIn('validation/auc', cell.rounds[4])

  @parameterized.parameters('', '[]', '{"cells": 3}', None)
  def test_refuses_what_is_no_sweep(self, content):
    path = self.folder / 'sweep.json'
    if content is None:
      path.unlink()
    else:
      path.write_text(content)
    with self.assertRaisesRegex(
      _validate.InputError, 'sweep_dir .*tradeoff|sweep.json is damaged'
    ):
      sweeps.read(self.folder)


if __name__ == '__main__':
  absltest.main()
