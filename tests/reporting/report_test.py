"""Tests of the report: what it says, that it is whole, how browsers see it."""

import functools
import html
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree as ET

from absl.testing import absltest
import numpy as np
from PIL import Image

from tests import finished_sweeps
from tff_medical.program import run_folder
from tff_medical.reporting import plots
from tff_medical.reporting import report
from tff_medical.reporting import sweep_plots
from tff_medical.reporting import sweeps

_CHROMIUM = next(
  filter(
    None,
    map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')),
  ),
  None,
)
_FLAGS = (
  '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run '
  '--disable-background-networking --disable-component-update --disable-sync '
  '--enable-logging=stderr --v=0 --hide-scrollbars'
).split()
_PLOTS = (
  'tradeoff_auc',
  'tradeoff_balanced_accuracy',
  'classes',
  'sites',
  'gaps',
  'path_auc',
  'path_clip_norm',
  'path_epsilon',
  'audits',
)


@functools.lru_cache(maxsize=1)
def _report():
  """Returns the file of a report, made once."""
  folder = finished_sweeps.write(
    tempfile.mkdtemp(), command='python -m x --data_dir="<b>&"'
  )
  return report.write(sweeps.read(folder))


def _chromium(url, *arguments):
  """Opens a page; returns the browser's messages and what it prints."""
  with tempfile.TemporaryDirectory() as profile:
    done = subprocess.run(
      [
        _CHROMIUM,
        *_FLAGS,
        f'--user-data-dir={profile}',
        *arguments,
        url,
      ],
      check=True,
      capture_output=True,
      text=True,
      timeout=120,
    )
  return re.findall('.*CONSOLE.*', done.stderr), done.stdout


class ReportTest(absltest.TestCase):
  def test_says_what_each_budget_costs(self):
    lines = report.headlines(sweeps.read(_report().parent))
    text = '\n'.join(lines)
    self.assertIn('ε 1: test AUC 0.610 (0.600 to 0.620), 0.300 below', text)
    self.assertIn('ε 8: test AUC 0.810 (0.800 to 0.820), 0.100 below', text)
    self.assertIn('no privacy: test AUC 0.910', text)
    self.assertIn('central, no federation, no privacy: test AUC 0.930', text)
    self.assertIn('10 of 11 cells are done', text)
    page = _report().read_text(encoding='utf-8')
    for line in lines:
      self.assertIn(html.escape(line), page)

  def test_names_who_is_hurt_most(self):
    folder = finished_sweeps.write(self.create_tempdir().full_path)
    path = folder / 'cells' / 'eps_1_seed_0' / 'summary.json'
    summary = json.loads(path.read_text())
    summary['metrics']['sensitivity/normal'] = 0.0
    path.write_text(json.dumps(summary))
    text = ' '.join(report.headlines(sweeps.read(folder)))
    self.assertIn("ε 1 costs the class 'normal' most", text)

  def test_skipped_references_say_why(self):
    folder = finished_sweeps.write(self.create_tempdir().full_path)
    for seed in (0, 1):
      cell = run_folder.RunFolder(folder / 'cells' / f'per_site_seed_{seed}')
      cell.write_summary(
        run_folder.Summary(
          rounds=0,
          stop_reason='skipped',
          stop_message='too few',
          epsilon=float('inf'),
          metrics={},
        )
      )
    text = ' '.join(report.headlines(sweeps.read(folder)))
    self.assertIn('per site was skipped: too few.', text)
    self.assertNotIn('per site, no federation', text)

  def test_an_empty_sweep_has_a_report(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / 'sweep.json').write_text('{"cells": []}')
    page = report.write(sweeps.read(folder)).read_text(encoding='utf-8')
    self.assertIn('</html>', page)
    self.assertNotIn('<figure>', page)

  def test_every_plot_stands_beside_it(self):
    folder = _report().parent / 'plots'
    page = _report().read_text(encoding='utf-8')
    self.assertEqual(page.count('<figure>'), len(_PLOTS))
    for name in _PLOTS:
      with Image.open(folder / f'{name}.png') as image:
        self.assertGreater(np.asarray(image.convert('L')).std(), 5)
      root = ET.parse(folder / f'{name}.svg').getroot()
      self.assertEndsWith(root.tag, 'svg')

  def test_plots_show_the_figures(self):
    """The dots of the trade-off are where the cells' metrics are."""
    sweep = sweeps.read(_report().parent)
    axes = sweep_plots.tradeoff(sweep, 'auc', 'AUC').figure.axes[0]
    line = next(x for x in axes.lines if x.get_label() == 'federated')
    np.testing.assert_allclose(line.get_xdata(), [0, 3, 4])
    np.testing.assert_allclose(line.get_ydata(), [0.61, 0.81, 0.91])
    self.assertIn('central', [t.get_text() for t in axes.texts])

  def test_plot_of_gaps(self):
    sweep = sweeps.read(_report().parent)
    axes = sweep_plots.gaps(sweep).figure.axes[0]
    lines = {x.get_label(): x.get_ydata() for x in axes.lines}
    np.testing.assert_allclose(lines['sensitivity of classes'], [0.3] * 3)
    np.testing.assert_allclose(lines['accuracy of sites'], [0.1] * 3)

  def test_what_comes_from_files_is_escaped(self):
    page = _report().read_text(encoding='utf-8')
    self.assertNotIn('<script', page)
    self.assertNotIn('<b>', page)
    self.assertIn('pneumonia &lt;b&gt;', page)
    self.assertIn('--data_dir=&quot;&lt;b&gt;&amp;&quot;', page)

  def test_audit_with_unknown_keys(self):
    page = _report().read_text(encoding='utf-8')
    self.assertIn('What an attacker gets', page)
    self.assertIn('<th>ε at least</th>', page)
    self.assertIn('<td>1.25</td>', page)
    self.assertIn('All of the audit of eps_8_seed_0', page)
    self.assertIn('membership.attack_auc', page)
    self.assertNotIn('ssim_raw', page)
    self.assertIn('&lt;script&gt;alert(1)', page)

  def test_holds_command_versions_and_digests(self):
    page = _report().read_text(encoding='utf-8')
    for cell in sweeps.read(_report().parent).measured():
      self.assertIn(cell.summary.ledger_sha256, page)
    self.assertIn('md5:123', page)
    self.assertIn('python -m x', page)

  def test_needs_nothing_else(self):
    page = _report().read_text(encoding='utf-8')
    self.assertEmpty(re.findall(r'(?:src|href)="(?!#)[^"]*"', page))
    self.assertNotIn('@import', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    self.assertLen(set(ids), len(ids))
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', page):
      self.assertIn(target, ids)

  def test_follows_the_page_in_light_and_dark(self):
    page = _report().read_text(encoding='utf-8')
    body = page[page.index('<body>') :]
    self.assertNotIn(plots.SERIES[0], body)
    self.assertIn('var(--series-0)', body)
    self.assertIn('currentColor', body)


@unittest.skipUnless(_CHROMIUM, 'no chromium found; apt-get install chromium')
class BrowserTest(absltest.TestCase):
  def test_renders_without_a_console_message(self):
    shot = pathlib.Path(self.create_tempdir().full_path, 'shot.png')
    messages, _ = _chromium(
      _report().as_uri(), f'--screenshot={shot}', '--window-size=1100,2400'
    )
    self.assertEmpty(messages)
    with Image.open(shot) as image:
      self.assertEqual(image.size, (1100, 2400))
      self.assertGreater(np.asarray(image.convert('L')).std(), 15)

  def test_its_policy_refuses_a_script_and_the_console_says_so(self):
    """So an empty console above means something."""
    page = _report().read_text(encoding='utf-8')
    path = pathlib.Path(self.create_tempdir().full_path, 'page.html')
    path.write_text(page.replace('</body>', '<script>1</script></body>'))
    messages, _ = _chromium(path.as_uri(), '--dump-dom')
    self.assertLen(messages, 1)
    self.assertIn('Content Security Policy', messages[0])

  def test_fits_a_phone(self):
    """The page is as wide as a phone's screen; only tables scroll inside."""
    framed = html.escape(
      re.sub('<meta http-equiv[^>]*>', '', _report().read_text('utf-8'))
    )
    path = pathlib.Path(self.create_tempdir().full_path, 'phone.html')
    path.write_text(
      f'<iframe style="width:390px;height:800px;border:0" srcdoc="{framed}">'
      '</iframe><script>onload = () => {'
      'const page = document.querySelector("iframe").contentDocument;'
      'const sizes = [...page.querySelectorAll("figure svg text")].map('
      't => t.getBoundingClientRect().height);'
      'document.body.textContent = JSON.stringify({'
      'page: page.documentElement.scrollWidth, text: Math.min(...sizes)});'
      '}</script>'
    )
    messages, printed = _chromium(path.as_uri(), '--dump-dom')
    self.assertEmpty(messages)
    measured = json.loads(re.search(r'\{"page".*?\}', printed).group())
    self.assertEqual(measured['page'], 390)
    self.assertGreater(measured['text'], 8)

  def test_dark(self):
    shots = {}
    for mode, flags in (
      ('light', ()),
      ('dark', ('--blink-settings=preferredColorScheme=0',)),
    ):
      shot = pathlib.Path(self.create_tempdir().full_path, f'{mode}.png')
      _chromium(_report().as_uri(), f'--screenshot={shot}', *flags)
      with Image.open(shot) as image:
        shots[mode] = np.asarray(image.convert('L'))
    self.assertGreater(shots['light'].mean(), 200)
    self.assertLess(shots['dark'].mean(), 60)


if __name__ == '__main__':
  absltest.main()
