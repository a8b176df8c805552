"""Results of the trials: which have ended, the table and the figure."""

from __future__ import annotations

from collections.abc import Sequence
import math
import pathlib

import pandas as pd

from experiments.running import cells
from experiments.tuning import search as search_lib
from tff_medical.program import run_folder
from tff_medical.program import run_records
from tff_medical.reporting import plots


def ended(training: cells.Training) -> run_records.Summary | None:
  """Returns the summary of a trial; None if it has not ended."""
  folder = run_folder.RunFolder(pathlib.Path(training.flags.output_dir or ''))
  try:
    summary = folder.read_summary()
  except FileNotFoundError:
    return None
  return summary if summary.has_ended else None


def table(
  search: search_lib.Search,
  trials: Sequence[search_lib.Candidate],
  summaries: Sequence[run_records.Summary],
) -> pd.DataFrame:
  """Returns the trials, the best first."""
  rows = [
    {
      'trial': number,
      **dict(candidate),
      search.metric: summary.metrics.get(search.metric, math.nan),
      'score': search.score(summary),
      'epsilon': summary.epsilon,
      'noise_multiplier': summary.noise_multiplier,
      'rounds': summary.rounds,
      'seconds': summary.seconds,
    }
    for number, (candidate, summary) in enumerate(
      zip(trials, summaries), start=1
    )
  ]
  runs = pd.DataFrame(rows)
  # Of equal trials the first is the best.
  return runs.sort_values('score', ascending=False, kind='stable')


def draw(
  search: search_lib.Search, runs: pd.DataFrame, folder: pathlib.Path
) -> None:
  """Writes tuning.png: the metric by the values of each flag."""
  names = list(search.values)
  figure, panels = plots.grid(names, columns=min(3, len(names)))
  for name, axes in zip(names, panels):
    values = list(search.values[name])
    places = [values.index(value) for value in runs[name]]
    axes.plot(places, runs[search.metric], 'o', color=plots.color(0), alpha=0.6)
    best = runs.iloc[:1]
    axes.plot(
      places[:1], best[search.metric], 'o', color=plots.color(1), label='best'
    )
    axes.set_xticks(range(len(values)), values)
    axes.set_ylabel(f'validation {search.metric}')
  plots.save(figure, folder, 'tuning')
