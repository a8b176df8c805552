"""The report of one run: metrics with intervals, and figures of its scores.

The page is made from summary.json and scores.npz alone, again at any time, and
needs nothing else, as that of a sweep (see `report`). It shows no score of a
single image except as a point of a curve: in a small split, curves and counts
tell about single images, so that the page is published as test metrics are.
"""

from __future__ import annotations

import math
import pathlib

from tff_medical import _files
from tff_medical import _validate
from tff_medical.program import run_folder
from tff_medical.program import run_records
from tff_medical.reporting import plots
from tff_medical.reporting import report_style
from tff_medical.reporting import run_tables
from tff_medical.reporting import score_plots

_NOTE = (
  'Intervals are 95 % percentile bootstrap intervals over images, by patient '
  'where patients are known. They do not cover how a training varies with its '
  'seed and noise. "... at" is the sensitivity or specificity at a threshold that '
  'validation images gave, for the specificity in the table below.'
)
_FITTED_NOTE = (
  'Thresholds are probabilities. The temperature divides the logits; the exported '
  'model does not apply it. ε covers neither, as it covers no metric.'
)


def write(folder: run_folder.RunFolder) -> pathlib.Path:
  """Writes report.html and plots/ into the folder of a run; returns the file.

  Raises:
    InputError: The run has not ended, or a file is damaged.
  """
  try:
    summary = folder.read_summary()
  except FileNotFoundError:
    raise _validate.InputError(
      f'run_dir {folder.path} holds no run that has ended (no '
      f'{folder.summary.name}); give the --output_dir of experiments.train'
    ) from None
  images = folder.read_scores()
  figures = score_plots.all_plots(images) if images else []
  for plot in figures:
    plots.save(plot.figure, folder.path / 'plots', plot.name)
  sections = [
    report_style.section('Metrics', _metrics(summary)),
    report_style.section(
      'Figures',
      report_style.figures(
        [
          (plots.image(plot.figure, plot.name), plot.caption)
          for plot in figures
        ]
      ),
    ),
    report_style.section('Fitted on validation images', _fitted(summary)),
  ]
  page = report_style.page(
    title=f'Metrics on {summary.eval_split} images',
    subtitle=_subtitle(summary),
    body='\n'.join(filter(None, sections)),
  )
  path = folder.path / 'report.html'
  _files.write_bytes(path, page.encode())
  return path


def _subtitle(summary: run_records.Summary) -> str:
  if math.isinf(summary.epsilon):
    return f'{summary.rounds} rounds · no privacy'
  return (
    f'{summary.rounds} rounds · ε {run_tables.round_up(summary.epsilon, 3)} at δ '
    f'{summary.delta:.3g} per {summary.privacy_unit}'
  )


def _metrics(summary: run_records.Summary) -> str:
  """Returns a row a metric: those of all images, then those of sites."""
  rows = [
    [
      run_tables.title(name),
      '' if math.isnan(value) else f'{value:.3f}',
      run_tables.interval(summary.intervals.get(name)),
    ]
    for name, value in summary.metrics.items()
  ]
  if not rows:
    return ''
  table = report_style.table(('metric', 'value', '95 % over images'), rows)
  return table + report_style.note(_NOTE)


def _fitted(summary: run_records.Summary) -> str:
  if not summary.fitted:
    return ''
  rows = [
    [name.replace('/', ' '), f'{value:.3f}']
    for name, value in summary.fitted.items()
  ]
  return report_style.table(('', 'value'), rows) + report_style.note(
    _FITTED_NOTE
  )
