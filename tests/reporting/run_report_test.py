"""The report of one run, made from its summary and its scores."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests import finished_sweeps
from tff_medical import _validate
from tff_medical.program import run_folder
from tff_medical.reporting import run_report
from tff_medical.reporting import score_plots
from tff_medical.scoring import evaluation
from tff_medical.scoring import metrics
from tff_medical.scoring import scored

_CLASSES = ('normal', '<b>ill</b>')


def _images(classes=_CLASSES, multi_label=False, **changed):
  rng = np.random.default_rng(0)
  count = len(classes)
  labels = rng.integers(0, count, 90)
  logits = rng.normal(size=(90, count)) + np.eye(count)[labels]
  if multi_label:
    labels = rng.integers(-1, 2, (90, count))
  return scored.ScoredImages(
    logits.astype(np.float32), labels, classes, multi_label, **changed
  )


class RunReportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    path = pathlib.Path(self.create_tempdir().full_path)
    self.folder = run_folder.RunFolder(path)

  def _end(self, images, weights='ab', **changed):
    result = evaluation.evaluate(images, images)
    self.folder.write_summary(
      finished_sweeps.summary(
        metrics=result.metrics,
        intervals=result.intervals,
        fitted=result.fitted,
        weights_sha256='ab',
        **changed,
      )
    )
    self.folder.write_scores(images, weights)
    return result

  def test_shows_metrics_intervals_and_figures_again(self):
    result = self._end(_images(sites=np.arange(90) % 2))
    page = run_report.write(self.folder).read_text('utf-8')
    self.assertEqual(run_report.write(self.folder).read_text('utf-8'), page)
    low, high = result.intervals['auc']
    self.assertIn(f'{result.metrics["auc"]:.3f}', page)
    self.assertIn(f'[{low:.3f}, {high:.3f}]', page)
    self.assertIn('threshold &lt;b&gt;ill', page)
    self.assertNotIn('<b>', page)
    self.assertEqual(page.count('<figure>'), 4)
    self.assertCountEqual(
      [path.stem for path in (self.folder.path / 'plots').iterdir()],
      ['roc', 'roc_sites', 'reliability', 'confusion'],
    )

  def test_scores_of_another_model_are_not_shown(self):
    self._end(_images(), weights='cd')
    self.assertIsNone(self.folder.read_scores())
    self.assertNotIn('<figure>', run_report.write(self.folder).read_text())
    self._end(_images(split_name='validation'))
    self.assertIsNone(self.folder.read_scores())

  def test_a_run_that_has_not_ended(self):
    with self.assertRaisesRegex(_validate.InputError, 'has ended'):
      run_report.write(self.folder)

  def test_summary_keeps_intervals(self):
    result = self._end(_images())
    summary = self.folder.read_summary()
    self.assertEqual(summary.intervals, result.intervals)
    self.assertEqual(summary.fitted, result.fitted)
    for bad in ('[0.1]', '0.5', '[0.1, "x"]'):
      text = self.folder.summary.read_text()
      self.folder.summary.write_text(
        text.replace('"intervals": {', f'"intervals": {{"bad": {bad},', 1)
      )
      with self.assertRaisesRegex(_validate.InputError, 'damaged'):
        self.folder.read_summary()
      self.folder.summary.write_text(text)


class ScorePlotsTest(absltest.TestCase):
  def test_roc_is_the_curve_of_class_1(self):
    images = _images()
    axes = score_plots.roc(images).figure.axes[0]
    xs, ys = axes.lines[0].get_data()
    self.assertAlmostEqual(np.trapz(ys, xs), metrics.metrics(images)['auc'])

  def test_confusion_counts_images(self):
    images = _images(('a', 'b', 'c'))
    texts = score_plots.confusion(images).figure.axes[0].texts
    self.assertEqual(sum(int(text.get_text()) for text in texts), 90)

  def test_findings_have_no_confusion(self):
    names = [
      plot.name
      for plot in score_plots.all_plots(_images(('a', 'b', 'c'), True))
    ]
    self.assertEqual(names, ['roc', 'reliability'])

  def test_a_diverged_model_has_no_figure(self):
    images = _images()
    images.logits[0, 0] = np.nan
    self.assertEqual(score_plots.all_plots(images), [])


if __name__ == '__main__':
  absltest.main()
