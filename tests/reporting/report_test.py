"""Tests of the report: its text, its completeness, its look in a browser."""

import base64
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
from tff_medical.program import run_records
from tff_medical.reporting import report
from tff_medical.reporting import sweep_plots
from tff_medical.reporting import sweeps
from tff_medical.scoring import scored

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
  'path_validation_auc',
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


def _images(page):
  """Returns the images of a page, each as the text of its SVG."""
  return [
    base64.b64decode(data).decode()
    for data in re.findall('src="data:image/svg.xml;base64,([^"]*)"', page)
  ]


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
    self.assertIn(
      'ε 1 the test AUC is 0.610 ± 0.014, 0.300 ± 0.000 below', text
    )
    self.assertIn(
      'ε 8 the test AUC is 0.810 ± 0.014, 0.100 ± 0.000 below', text
    )
    self.assertIn('Without privacy the test AUC is 0.910', text)
    self.assertIn(
      'Central training on pooled images, without privacy, reaches a test AUC '
      'of 0.930',
      text,
    )
    self.assertIn('10 of 11 cells are done', text)
    page = _report().read_text(encoding='utf-8')
    for line in lines:
      self.assertIn(html.escape(line), page)

  def _headlines(self, **metrics_of):
    """Returns the findings after metrics of cells were changed."""
    folder = finished_sweeps.write(self.create_tempdir().full_path)
    for cell, metrics in metrics_of.items():
      path = folder / 'cells' / cell / 'summary.json'
      summary = json.loads(path.read_text())
      summary['metrics'].update(metrics)
      path.write_text(json.dumps(summary))
    return '\n'.join(report.headlines(sweeps.read(folder)))

  def test_names_who_is_hurt_most(self):
    text = self._headlines(
      eps_1_seed_0={'sensitivity/normal': 0.1},
      eps_1_seed_1={'sensitivity/normal': 0.12},
    )
    self.assertIn(
      "At ε 1 the class 'normal' loses most: its sensitivity falls by 0.80 ± "
      '0.00 to 0.11',
      text,
    )

  def test_a_difference_within_the_spread_of_seeds_is_no_finding(self):
    text = self._headlines(
      # Differences of 0 and .1: Student's half width is 12.7 * .0707 / sqrt(2).
      eps_8_seed_0={'auc': 0.9},
      eps_8_seed_1={'auc': 0.82},
      # The classes lose .3 and .4, and -.1 and .4: intervals hold for both.
      eps_1_seed_0={
        'sensitivity/normal': 0.6,
        'sensitivity/pneumonia <b>': 0.7,
      },
      eps_1_seed_1={'sensitivity/normal': 0.52},
    )
    self.assertIn(
      'At ε 8 the test AUC is 0.860 ± 0.057, not distinguishable from no '
      'privacy (difference -0.050 ± 0.635)',
      text,
    )
    self.assertIn('0.300 ± 0.000 below', text)
    self.assertIn(
      'No loss of sensitivity to a class at ε 1 is distinguishable from chance '
      '(seeds: 2)',
      text,
    )

  def test_a_difference_within_the_spread_of_images_is_no_finding(self):
    for count, text in ((4000, 'below no privacy'), (40, 'not distinguish')):
      folder = finished_sweeps.write(self.create_tempdir().full_path)
      for cell in sweeps.read(folder).measured():
        labels = np.arange(count) % 2
        strength = 1.0 if cell.epsilon == 8 else 1.2
        rng = np.random.default_rng(int(10 * strength))
        noise = rng.normal(size=(count, 2))
        run = run_folder.RunFolder(folder / 'cells' / cell.name)
        run.write_scores(
          scored.ScoredImages(
            noise + strength * np.eye(2)[labels], labels, ('a', 'b')
          ),
          run.read_summary().weights_sha256,
        )
      lines = report.headlines(sweeps.read(folder))
      line = next(line for line in lines if line.startswith('At ε 8'))
      self.assertIn(text, line)
      self.assertIn('over images [', line)

  def test_a_run_that_diverged_is_not_left_out_of_its_mean(self):
    text = self._headlines(eps_8_seed_0={'auc': None})
    self.assertIn('At ε 8 the test AUC is nan ± nan', text)

  def test_skipped_references_say_why(self):
    folder = finished_sweeps.write(self.create_tempdir().full_path)
    for seed in (0, 1):
      cell = run_folder.RunFolder(folder / 'cells' / f'per_site_seed_{seed}')
      cell.write_summary(
        run_records.Summary(
          rounds=0,
          stop_reason='skipped',
          stop_message='too few',
          epsilon=float('inf'),
          metrics={},
        )
      )
    text = ' '.join(report.headlines(sweeps.read(folder)))
    self.assertIn('Training by each site alone was skipped: too few.', text)
    self.assertNotIn('by each site alone, without privacy', text)

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
    self.assertLen(_images(page), len(_PLOTS))
    for svg in _images(page):
      self.assertEndsWith(ET.fromstring(svg).tag, 'svg')

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

  def test_dots_of_gaps_are_drawn_whole(self):
    """Values in a narrow range far from 0, or at 0, are within the axes."""
    for gap in (0.8, 0.0):
      folder = finished_sweeps.write(self.create_tempdir().full_path)
      for path in folder.glob('cells/eps_*/summary.json'):
        summary = json.loads(path.read_text())
        for index, name in enumerate(finished_sweeps.CLASSES):
          summary['metrics'][f'sensitivity/{name}'] = 0.9 - gap * index
        path.write_text(json.dumps(summary))
      figure = sweep_plots.gaps(sweeps.read(folder)).figure
      figure.draw_without_rendering()
      axes = figure.axes[0]
      radius = axes.lines[0].get_markersize() / 2 * figure.dpi / 72
      for line in axes.lines:
        for _, y in axes.transData.transform(line.get_xydata()):
          self.assertGreater(y - radius, axes.bbox.y0)
          self.assertLess(y + radius, axes.bbox.y1)

  def test_what_comes_from_files_is_escaped(self):
    page = _report().read_text(encoding='utf-8')
    self.assertNotIn('<script', page)
    self.assertNotIn('<b>', page)
    self.assertIn('pneumonia &lt;b&gt;', page)
    self.assertIn('--data_dir=&quot;&lt;b&gt;&amp;&quot;', page)

  def test_audit_with_unknown_keys(self):
    page = _report().read_text(encoding='utf-8')
    self.assertIn('What an attacker gets', page)
    self.assertIn('<th>ε proven</th>', page)
    self.assertIn('<td>1.25</td>', page)
    self.assertIn('All values of the audit of eps_8_seed_0', page)
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
    self.assertEmpty(re.findall(r'(?:src|href)="(?!data:)[^"]*"', page))
    self.assertNotIn('@import', page)
    for svg in _images(page):
      self.assertEmpty(re.findall(r'(?:href="|url\()(?!#)[^")]*', svg))

  def test_figures_have_a_counterpart_of_each_colour_in_dark_mode(self):
    for svg in _images(_report().read_text(encoding='utf-8')):
      style, drawing = re.fullmatch(
        '.*<style>(.*)</style>(.*)', svg, re.DOTALL
      ).groups()
      _, dark = style.split('@media (prefers-color-scheme: dark)')
      used = re.findall('(?:fill|stroke): #[0-9a-f]{6}', drawing)
      self.assertNotEmpty(set(used) - {'fill: #1b1f24', 'stroke: #1b1f24'})
      for declaration in used:
        self.assertIn(f'[style*="{declaration}"]', dark)


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
    measured = self._measure(
      390,
      """
      const sizes = [];
      for (const image of page.querySelectorAll('figure img')) {
        const figure = image.parentNode;
        figure.innerHTML = atob(image.src.split(',')[1]);
        figure.querySelector('svg').setAttribute('width', '100%');
        for (const text of figure.querySelectorAll('text'))
          sizes.push(text.getBoundingClientRect().height);
      }
      return {page: page.documentElement.scrollWidth,
              text: Math.min(...sizes)};""",
    )
    self.assertEqual(measured['page'], 390)
    self.assertGreater(measured['text'], 8)

  def test_tables_fit_a_screen(self):
    """The attacker's table has all its columns, and none of them is hidden."""
    folder = finished_sweeps.write(self.create_tempdir().full_path)
    audit = {
      'upper_bound': 7.99068,
      'lower_bound': 1.91234,
      'confidence': 0.95,
      'epsilon_estimate': 2.54321,
      'exceeds_upper_bound': False,
      'canary_auc': {'every_round': 0.73456, 'final_model': 0.55123},
      'attack_auc': 0.51345,
      'tpr_at_1_fpr': 0.01234,
    }
    (folder / 'cells' / 'eps_8_seed_0' / 'audit.json').write_text(
      json.dumps(audit)
    )
    page = report.write(sweeps.read(folder)).read_text('utf-8')
    hidden = self._measure(
      1280,
      """
      return {widths: [...page.querySelectorAll('section > .table')].map(
          table => table.scrollWidth - table.clientWidth)};""",
      page,
    )['widths']
    self.assertGreaterEqual(len(hidden), 4)
    self.assertEqual(hidden, [0] * len(hidden))

  def test_prints_whole(self):
    """On A4, two figures stand side by side, and closed details are shown."""
    page = _report().read_text('utf-8')
    measured = self._measure(
      718,
      """
      const figures = [...page.querySelectorAll('figure')].map(
          f => f.getBoundingClientRect());
      const details = [...page.querySelectorAll('details:not([open]) td')];
      return {
        beside: figures[0].top == figures[1].top,
        details: details.length,
        shown: details.filter(td => td.checkVisibility(
            {contentVisibilityAuto: true})).length,
        height: Math.min(...details.map(
            td => td.getBoundingClientRect().height)),
      };""",
      page.replace('@media print', '@media screen'),
    )
    self.assertTrue(measured['beside'])
    self.assertGreaterEqual(measured['details'], 20)
    self.assertEqual(measured['shown'], measured['details'])
    self.assertGreater(measured['height'], 8)

  def _measure(self, width, script, page=None):
    """Returns what a script returns about the `page` in a window of a width."""
    page = page or _report().read_text('utf-8')
    framed = html.escape(re.sub('<meta http-equiv[^>]*>', '', page))
    path = pathlib.Path(self.create_tempdir().full_path, 'frame.html')
    path.write_text(
      f'<iframe style="width:{width}px;height:800px;border:0" '
      f'srcdoc="{framed}"></iframe><script>onload = () => {{'
      'const page = document.querySelector("iframe").contentDocument;'
      f'const measure = () => {{ {script} }};'
      'document.body.textContent = `<<${JSON.stringify(measure())}>>`; };'
      '</script>'
    )
    messages, printed = _chromium(
      path.as_uri(), '--dump-dom', '--window-size=1400,900'
    )
    self.assertEmpty(messages)
    body = printed[printed.index('<body') :]
    return json.loads(re.search('&lt;&lt;(.*)&gt;&gt;', body)[1])

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
