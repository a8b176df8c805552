"""Tests of what is published: files, tables, figure, and the README itself."""

import csv
import pathlib
from unittest import mock

from absl.testing import absltest

from experiments.running import results
from tests import finished_sweeps
from tff_medical import _validate
from tff_medical.program import run_folder
from tff_medical.reporting import sweeps
from tools import publish


def _line(kind, epsilon, auc):
  return {'kind': kind, 'target_epsilon': epsilon, 'auc': auc, 'cell': 'x'}


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
    results.write(self.results / 'presets.csv', [results.row('p', 0, summary)])
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
    folder = finished_sweeps.write(str(self.temp / 'my_study'))
    sweep = sweeps.read(folder)
    for cell in sweep.cells:
      if not cell.is_done:
        run = run_folder.RunFolder(folder / 'cells' / cell.name)
        run.path.mkdir(exist_ok=True)
        run.write_summary(finished_sweeps.summary(metrics={'auc': 0.9}))
    return folder

  def test_a_study_is_copied_and_fills_the_readme(self):
    text = self._main([self._sweep()])
    target = self.results / 'my_study'
    self.assertTrue((target / 'report.html').exists())
    self.assertTrue((target / 'plots' / 'tradeoff_auc.svg').exists())
    with open(target / 'results.csv', newline='') as file:
      self.assertNotEmpty(list(csv.DictReader(file)))
    self.assertTrue((self.results / 'tradeoff.png').exists())
    self.assertIn('| `my_study` |', text)
    self.assertIn('| `my_study` | 0.', self.more.read_text())
    self.assertIn('| ε 1 | ε 8 | no privacy | central | per site |', text)
    self.assertIn('| 0.810 ± 0.014 | 0.910 ± 0.014 |', text)
    self.assertIn('| `p` | record | 8.00 | 1.0e-03 | 0.900 ± 0.000 |', text)
    self.assertNotIn('old', text)
    self.assertStartsWith(text, '# Before\n<!-- presets -->\n| preset')
    self.assertEndsWith(text, '<!-- end -->\nafter\n')
    self.assertEqual(self._main(), text)  # From what lies in results alone.

  def test_refuses_a_study_that_is_not_done(self):
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
    (folder / 'comparison.svg').touch()
    lines = results.read(self.results / 'presets.csv')
    results.write(
      folder / 'results.csv', [{**lines[0], 'name': 'base', 'flags': ''}]
    )
    with self.assertRaisesRegex(_validate.InputError, '<!-- helps -->'):
      self._main([], [folder])
    self.assertFalse((self.results / 'helps').exists())
    with self.assertRaisesRegex(_validate.InputError, 'seeds are missing'):
      both = results.read(folder / 'results.csv')
      other = {**both[0], 'name': 'x', 'seed': 1}
      results.write(folder / 'results.csv', [*both, other])
      self._main([], [folder])
    results.write(folder / 'results.csv', both)
    self.more.write_text('<!-- helps -->\n<!-- end -->\n')
    self._main([], [folder])
    self.assertIn('| **base** |', self.more.read_text())

  def test_columns_are_ordered(self):
    lines = [
      _line(sweeps.CENTRAL, 'inf', '0.9'),
      _line(sweeps.FEDERATED, 'inf', '0.8'),
      _line(sweeps.FEDERATED, '10', '0.7'),
      _line(sweeps.FEDERATED, '2', '0.6'),
      _line(sweeps.PER_SITE, 'inf', ''),
    ]
    table = publish.study_table({'a': lines}, 'auc')
    self.assertEqual(
      table.splitlines()[0], '|  | ε 2 | ε 10 | no privacy | central |'
    )


class PagesTest(absltest.TestCase):
  def test_show_what_lies_in_results(self):
    """Else: python -m tools.publish."""
    found = publish.fill_pages(publish.PAGES, publish.blocks(publish.RESULTS))
    for page, text in found.items():
      self.assertEqual(text, page.read_text('utf-8'), str(page))


if __name__ == '__main__':
  absltest.main()
