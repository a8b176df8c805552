"""Tests that what the README shows can be run, and what pages name exists."""

import os
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import pandas as pd

from experiments.config import settings

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_README = _ROOT / 'README.md'
_PAGES = (
  _README,
  *(_ROOT / name for name in ('CONTRIBUTING.md', 'SECURITY.md')),
  *sorted((_ROOT / 'docs').glob('*.md')),
)
# Flags that are no settings are strings in the source of their command.
_COMMANDS = ''.join(
  path.read_text('utf-8')
  for folder in ('experiments', 'tools', 'tests/faults')
  for path in sorted((_ROOT / folder).glob('*.py'))
)
_OF_ALL_COMMANDS = {'flagfile', 'help'}


def _anchors(page):
  """Returns the anchors of the headings of a page, as GitHub makes them."""
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in re.findall(r'^#+ (.*)$', page.read_text('utf-8'), re.M)
  }


def _short(figure):
  """Returns a figure below 1 as the README writes it: .957."""
  return f'{figure:.3f}'.lstrip('0')


class PagesTest(parameterized.TestCase):
  @parameterized.parameters(*_PAGES)
  def test_flags_it_names_exist(self, page):
    named = set(re.findall(r'`--(\w+)[`=]', page.read_text('utf-8')))
    others = named - set(settings.names()) - _OF_ALL_COMMANDS
    self.assertEqual([n for n in others if f"'{n}'" not in _COMMANDS], [])

  @parameterized.parameters(*_PAGES)
  def test_files_it_names_exist(self, page):
    named = re.findall(  # The cache of the user has folders of these names.
      r'(?<![\w/])(?:tff_medical|experiments|tests|docs|results)/[\w/.]+(?![\w/.$])',
      page.read_text('utf-8'),
    )
    for path in named:
      if not re.search('[A-Z]{3,}', path):  # NAME stands for any.
        self.assertTrue((_ROOT / path.rstrip('.')).exists(), path)

  @parameterized.parameters(*_PAGES)
  def test_links_lead_somewhere(self, page):
    for path, anchor in re.findall(
      r'\]\(([\w/.-]*)(?:#([\w-]+))?\)', page.read_text('utf-8')
    ):
      target = page.parent / path if path else page
      self.assertTrue(target.exists(), path)
      if anchor:
        self.assertIn(anchor, _anchors(target))


class ReadmeTest(absltest.TestCase):
  def test_figures_are_those_of_the_results(self):
    text = ' '.join(_README.read_text('utf-8').split())
    presets = pd.read_csv(_ROOT / 'results' / 'presets.csv')
    (preset,) = re.findall(r'presets/(\w+)\.flags', text)
    runs = presets[presets['name'] == preset]
    auc, deviation = runs['auc'].mean(), runs['auc'].std()
    seconds = runs['seconds'].median()
    self.assertIn(f'AUC {_short(auc)} ± {_short(deviation)}', text)
    self.assertIn(f'in {seconds:.0f} seconds', text)
    sweep = pd.read_csv(_ROOT / 'results' / 'pneumonia_record' / 'results.csv')
    means = sweep.groupby(['kind', 'target_epsilon'])['auc'].mean()
    self.assertIn(f'AUC {_short(means["federated", 1.0])} on Pneumonia', text)
    alone = means['per_site', float('inf')]
    self.assertIn(f'they reach {_short(alone)} on average', text)

  def test_program_ends_at_its_budget(self):
    program = next(
      block
      for block in re.findall(
        r'```python\n(.*?)```', _README.read_text('utf-8'), re.S
      )
      if 'PrivacyLedger' in block
    )
    folder = pathlib.Path(self.create_tempdir().full_path)
    first, again = (
      subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(_ROOT)},
        check=False,
        capture_output=True,
        text=True,
      )
      for _ in range(2)
    )
    self.assertEqual((first.returncode, first.stderr), (0, ''))
    epsilon = float(
      re.fullmatch(r'ε ([\d.]+) after 20 rounds\n', first.stdout)[1]
    )
    self.assertBetween(epsilon, 3.9, 4.0)
    self.assertIn('BudgetExceededError: round 1 would bring', again.stderr)
    self.assertEqual(again.stdout, '')


if __name__ == '__main__':
  absltest.main()
