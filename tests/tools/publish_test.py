"""Tests of published files, tables and figure, and of the pages themselves."""

import csv
import pathlib
from unittest import mock

from absl.testing import absltest
import numpy as np
import pandas as pd

from tests import finished_sweeps
from tff_medical import _validate
from tff_medical.program import run_folder
from tff_medical.reporting import run_tables
from tff_medical.reporting import sweeps
from tools import publish


def _row(kind, epsilon, auc, **changed):
  return {
    'cell': 'x',
    'kind': kind,
    'unit': 'none',
    'target_epsilon': epsilon,
    'auc': auc,
    'status': 'completed',
    **changed,
  }


class PublishTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.results = self.temp / 'results'
    self.readme = self.temp / 'README.md'
    self.readme.write_text(
      '# Before\n<!-- presets -->old<!-- end -->\n'
      'between <!-- studies -->\nold\n<!-- end -->\nafter\n'
    )
    self.more = self.temp / 'results.md'
    self.more.write_text('<!-- studies_balanced_accuracy --><!-- end -->\n')
    self.results.mkdir()
    summary = finished_sweeps.summary(
      epsilon=7.991,
      metrics={'auc': 0.9, 'accuracy': 0.8, 'balanced_accuracy': 0.7},
    )
    self.presets = run_tables.table([run_tables.row('p', 0, summary)])
    run_tables.write(self.results / 'presets.csv', self.presets)
    for name, value in (
      ('RESULTS', self.results),
      ('PAGES', (self.readme, self.more)),
    ):
      self.enter_context(mock.patch.object(publish, name, value))

  def _main(self, sweeps_at=(), comparisons_at=()):
    publish.main(
      mock.Mock(
        sweep_dirs=[str(p) for p in sweeps_at],
        comparison_dirs=[str(p) for p in comparisons_at],
      )
    )
    return self.readme.read_text()

  def _sweep(self):
    """Returns the folder of a sweep of which every cell is done."""
    folder = finished_sweeps.write(str(self.temp / 'my_sweep_client'))
    sweep = sweeps.read(folder)
    for cell in sweep.cells:
      if not cell.is_done:
        run = run_folder.RunFolder(folder / 'cells' / cell.name)
        run.path.mkdir(exist_ok=True)
        metrics = {'auc': 0.9, 'balanced_accuracy': 0.7}
        run.write_summary(finished_sweeps.summary(metrics=metrics))
    return folder

  def test_a_sweep_is_copied_and_fills_the_readme(self):
    text = self._main([self._sweep()])
    target = self.results / 'my_sweep_client'
    self.assertTrue((target / 'report.html').exists())
    self.assertFalse((target / 'plots').exists())  # The report holds them.
    with open(target / 'results.csv', newline='') as file:
      self.assertNotEmpty(list(csv.DictReader(file)))
    self.assertTrue((self.results / 'tradeoff.png').exists())
    self.assertIn('| `my_sweep_client` |', text)
    self.assertIn('| `my_sweep_client` | 0.', self.more.read_text())
    self.assertIn('| ε 1 | ε 8 | no privacy | central | per site |', text)
    self.assertIn('| 0.810 ± 0.014 | 0.910 ± 0.014 |', text)
    self.assertIn('| `p` | record | 8.00 | 1.0e-03 | 0.900 |', text)
    self.assertNotIn('old', text)
    self.assertStartsWith(text, '# Before\n<!-- presets -->\n| preset')
    self.assertEndsWith(text, '<!-- end -->\nafter\n')
    self.assertEqual(self._main(), text)  # From what lies in results alone.

  def test_a_separate_sweep_has_tables_of_its_own(self):
    self._main([self._sweep()])
    before, figure = self.readme.read_text(), self.results / 'tradeoff.png'
    with open(self.more, 'a', encoding='utf-8') as file:
      file.write('<!-- mine --><!-- end -->\n<!-- mine_costs --><!-- end -->\n')
    target = self.results / 'mine'
    folder = self.temp / 'mine'
    self._sweep().rename(folder)
    with mock.patch.object(publish, 'SEPARATE', ('mine',)):
      with self.assertRaisesRegex(_validate.InputError, 'mine cost'):
        self._main([folder])
      target.mkdir()
      (target / 'costs.csv').write_text(
        'phase,seconds,peak_bytes\nfeatures,12,1500000000\n'
      )
      figure.unlink()
      self.assertEqual(self._main([folder]), before)
    self.assertFalse((target / 'report.html').exists())
    self.assertTrue(figure.exists())
    text = self.more.read_text()
    self.assertIn('| ε 1 | ', text)
    self.assertIn('| features | 12 | 1.50 GB |', text)

  def test_refuses_a_sweep_that_is_not_done(self):
    folder = finished_sweeps.write(str(self.temp / 'half'))
    with self.assertRaisesRegex(_validate.InputError, '1 cells to do'):
      self._main([folder])
    self.assertFalse((self.results / 'half').exists())

  def test_refuses_other_folders(self):
    for sweeps_at, comparisons_at in (([self.temp], []), ([], [self.temp])):
      with self.assertRaises(_validate.InputError):
        self._main(sweeps_at, comparisons_at)

  def test_a_comparison_needs_its_place(self):
    folder = self.temp / 'helps'
    folder.mkdir()
    (folder / 'comparison.png').touch()
    base = self.presets.assign(name='base', flags='')
    run_tables.write(folder / 'results.csv', base)
    with self.assertRaisesRegex(_validate.InputError, '<!-- helps -->'):
      self._main([], [folder])
    self.assertFalse((self.results / 'helps').exists())
    with self.assertRaisesRegex(_validate.InputError, 'seeds are missing'):
      other = base.assign(name='x', seed=1)
      run_tables.write(folder / 'results.csv', pd.concat([base, other]))
      self._main([], [folder])
    run_tables.write(folder / 'results.csv', base)
    self.more.write_text('<!-- helps -->\n<!-- end -->\n')
    self._main([], [folder])
    self.assertIn('| **base** |', self.more.read_text())

  def test_columns_are_ordered(self):
    rows = [
      _row(sweeps.CENTRAL, 'inf', 0.9),
      _row(sweeps.FEDERATED, 'inf', 0.8),
      _row(sweeps.FEDERATED, 10, 0.7),
      _row(sweeps.FEDERATED, 2, 0.6),
      _row(sweeps.PER_SITE, 'inf', None, status='skipped'),
    ]
    table = publish.sweep_table({'a': run_tables.table(rows)}, 'auc')
    self.assertEqual(
      table.splitlines()[0], '|  | ε 2 | ε 10 | no privacy | central |'
    )

  def test_the_interval_over_images_is_the_mean_of_the_seeds(self):
    rows = [
      _row(sweeps.FEDERATED, 2, 0.6, auc_low=0.5, auc_high=0.7),
      _row(sweeps.FEDERATED, 2, 0.7, auc_low=0.6, auc_high=0.8),
    ]
    table = publish.sweep_table({'a': run_tables.table(rows)}, 'auc')
    self.assertIn('| 0.650 ± 0.071 [0.550, 0.750] |', table)

  def test_validation_figures_are_not_published(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    finished_sweeps.write(folder, eval_split='validation')
    with self.assertRaisesRegex(
      _validate.InputError, 'has metrics on validation images.*eval_split=test'
    ):
      publish.check_sweep(folder)

  def test_a_run_that_diverged_leaves_no_mean(self):
    rows = [
      _row(sweeps.FEDERATED, 2, 0.6),
      _row(sweeps.FEDERATED, 2, None, status='diverged'),
    ]
    table = publish.sweep_table({'a': run_tables.table(rows)}, 'auc')
    self.assertIn('| nan ± nan |', table)

  def test_the_figure_has_a_panel_a_data_set_and_a_line_a_unit(self):
    def sweep(unit, auc):
      return run_tables.table(
        [
          _row(sweeps.FEDERATED, 1, auc, unit=unit),
          _row(sweeps.FEDERATED, 1, auc + 0.02, unit=unit),
          _row(sweeps.FEDERATED, 'inf', auc + 0.1),
          _row(sweeps.CENTRAL, 'inf', 0.9),
        ]
      )

    tables = {
      'retina_client': sweep('client', 0.5),
      'retina_record': sweep('record', 0.6),
      'pneumonia_client': sweep('client', 0.8),
    }
    with mock.patch.object(publish.plots, 'save') as save:
      publish.draw(tables, self.temp)
    figure = save.call_args[0][0]
    self.assertEqual(
      [axes.get_title('left') for axes in figure.axes], ['Pneumonia', 'Retina']
    )
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    for unit, mean in (('client', 0.51), ('record', 0.61)):
      line = lines[f'federated, ε per {unit}']
      np.testing.assert_allclose(line.get_ydata(), [mean, mean + 0.09])
    pneumonia, retina = (axes.get_ylim() for axes in figure.axes)
    self.assertGreater(pneumonia[0], 0.75)
    self.assertLess(retina[0], 0.5)
    self.assertIn(
      'federated, ε per record',
      [text.get_text() for text in figure.legends[0].get_texts()],
    )


class PagesTest(absltest.TestCase):
  def test_show_what_lies_in_results(self):
    """Else: python -m tools.publish."""
    texts = publish.fill_pages(publish.PAGES, publish.blocks(publish.RESULTS))
    for page, text in texts.items():
      self.assertEqual(text, page.read_text('utf-8'), str(page))


if __name__ == '__main__':
  absltest.main()
