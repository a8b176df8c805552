"""Times of starting commands, of charges and of drawn cohorts."""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from experiments.measuring import timing
from tff_medical import _validate
from tff_medical.privacy import ledger
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_PRESETS = pathlib.Path(__file__).parents[1] / 'presets'
_POPULATION = 1000
_NOISE_MULTIPLIER = 1.0
_COHORT = 100
# Shorter than any round of the presets.
_ROUND_SECS = 0.01
_POPULATIONS = (10_000, 1_000_000, 100_000_000)
_DRAWS = 20
_LINE_BYTES = 400


def commands(preset: str, turns: int) -> dict[str, float]:
  """Returns the median seconds of starting and running `experiments.train`.

  Args:
    preset: Name of a preset that needs no download.
    turns: Number of runs of each command, which take turns.

  Raises:
    InputError: There is no such preset.
  """
  path = _PRESETS / f'{preset}.flags'
  if not path.is_file():
    names = {p.stem for p in _PRESETS.glob('*.flags')}
    _validate.one_of(names, preset=preset)

  def train(*arguments: str) -> None:
    _python('-m', 'experiments.train', *arguments)

  def run_preset() -> None:
    with tempfile.TemporaryDirectory() as folder:
      train(f'--flagfile={path}', f'--output_dir={folder}/run')

  seconds = timing.measure(
    {
      'help': lambda: train('--help'),
      'refused_flag': lambda: train('--clip_norm=-1'),
      'imports': lambda: _python('-c', 'import experiments.train'),
      preset: run_preset,
    },
    warm_up=0,
    turns=turns,
  )
  return {
    f'{name}_secs': statistics.median(values)
    for name, values in seconds.items()
  }


def _python(*arguments: str) -> None:
  subprocess.run(
    [sys.executable, *arguments],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    check=False,
  )


def charges(count: int) -> dict[str, float]:
  """Returns the milliseconds that a training spends on a charge, and one fsync.

  They are those of `charge` and of `flush`, the wait for the disk after a round
  of `_ROUND_SECS`. Means over the whole run are stated, and medians.

  Args:
    count: Number of charges of each run.
  """
  results = {}
  samplers: dict[str, sampling.Sampling] = {
    'poisson': sampling.PoissonSampling(_POPULATION, _POPULATION / 100),
    'all': sampling.FullParticipation(_POPULATION),
  }
  with tempfile.TemporaryDirectory() as folder:
    for name, sampler in samplers.items():
      mechanism = mechanisms.GaussianMechanism(
        sampling=sampler,
        clipping=mechanisms.FixedClipping(1.0),
        noise_multiplier=_NOISE_MULTIPLIER,
      )
      path = pathlib.Path(folder, name)
      with ledger.PrivacyLedger(path, mechanism, delta=1e-5) as book:
        seconds = [_charge_secs(book, n + 1) for n in range(count)]
      charging, waiting = zip(*seconds)
      both = [sum(pair) for pair in seconds]
      results[f'{name}_millis'] = 1000 * statistics.mean(both)
      results[f'{name}_median_millis'] = 1000 * statistics.median(both)
      results[f'{name}_charge_millis'] = 1000 * statistics.mean(charging)
      results[f'{name}_flush_millis'] = 1000 * statistics.mean(waiting)
    results['fsync_millis'] = _fsync_millis(
      pathlib.Path(folder, 'lines'), count
    )
  return results


def _charge_secs(
  book: ledger.PrivacyLedger, round_num: int
) -> tuple[float, float]:
  """Returns the seconds of a charge, and of the wait after its round."""
  started = time.perf_counter()
  book.charge(round_num, wait=False)
  charged = time.perf_counter()
  time.sleep(_ROUND_SECS)  # The round needs neither disk nor interpreter.
  computed = time.perf_counter()
  book.flush()
  return charged - started, time.perf_counter() - computed


def _fsync_millis(path: pathlib.Path, count: int) -> float:
  """Returns the mean milliseconds of a written line that is on disk."""
  with open(path, 'ab', buffering=0) as file:
    started = time.perf_counter()
    for _ in range(count):
      file.write(b'x' * _LINE_BYTES)
      os.fsync(file.fileno())
  return 1000 * (time.perf_counter() - started) / count


def draws() -> dict[str, float]:
  """Returns the median milliseconds of a draw, by the population."""
  results = {}
  for population in _POPULATIONS:
    sampler = sampling.PoissonSampling(population, _COHORT)
    seconds = []
    for attempt in range(_DRAWS):
      started = time.perf_counter()
      sampler.draw(0, 1, attempt)
      seconds.append(time.perf_counter() - started)
    results[f'{_COHORT}_of_{population}_millis'] = 1000 * statistics.median(
      seconds
    )
  return results
