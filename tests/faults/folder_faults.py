"""Damaged folders, given to the commands that read what runs have left.

    python -m tests.faults.folder_faults

`report`, `compare`, `audit` and `references` are run on sound folders in which
one file or folder is damaged. Each must do what it does, or end in an
InputError of one line; nothing else may be raised, and nothing may wait or eat
memory. Only where a result is to be written may it be an OSError, which
`command.run` makes a line of. What trains is left out: this is about reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import io
import math
import pathlib
import shutil
import signal
import sys
import tempfile
import traceback
import types
from typing import Any
from unittest import mock

from matplotlib import figure
import numpy as np

from experiments import audit
from experiments import compare
from experiments import references
from experiments import report
from experiments.config import settings as settings_lib
from experiments.running import cells
from tests import finished_sweeps
from tests.faults import cases
from tests.faults import forks
from tests.faults import numpy_process
from tests.faults import tamper_faults
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.program import run_folder
from tff_medical.program import run_records
from tff_medical.scoring import evaluation

_LIMIT_SECS = 60
_PRELOAD = ('tests.faults.folder_faults',)


@dataclasses.dataclass(frozen=True)
class Command:
  """A command, a sound folder for it, and what to damage there.

  Attributes:
    make: Makes the folder.
    run: Runs the command on it.
    paths: What it reads.
    outputs: What it writes.
    change: JSON files, what they are, and values to change in them.
  """

  make: Callable[[pathlib.Path], None]
  run: Callable[[pathlib.Path], Any]
  paths: tuple[str, ...]
  outputs: tuple[str, ...]
  change: tuple[tuple[str, str, dict[str, Any]], ...] = ()


def _make_sweep(folder: pathlib.Path) -> None:
  finished_sweeps.write(folder)


def _no_figure(self: figure.Figure, path: Any, **unused: Any) -> None:
  if hasattr(path, 'write'):
    path.write(
      '<svg></svg>' if isinstance(path, io.TextIOBase) else b'<svg></svg>'
    )
  else:
    pathlib.Path(path).write_bytes(b'')


def _report(folder: pathlib.Path) -> None:
  # Their folder is made as ever; to draw hundreds of figures takes minutes.
  with mock.patch.object(figure.Figure, 'savefig', _no_figure):
    report.main(types.SimpleNamespace(sweep_dir=str(folder), run_dir=None))


def _comparison(
  folder: pathlib.Path,
) -> tuple[settings_lib.Flags, list[compare.Variant]]:
  base = settings_lib.Flags.of(
    target_epsilon=2.0, rounds=3, output_dir=str(folder)
  )
  return base, [compare.Variant('more rounds', '--rounds=4')]


def _make_comparison(folder: pathlib.Path) -> None:
  base, variants = _comparison(folder)
  planned = compare.plan(base, [compare.Variant(compare.BASE), *variants], 2)
  compare.claim(folder, planned)
  for number, name in enumerate(planned):
    run = run_folder.RunFolder(cells.cell_folder(folder, name))
    run.path.mkdir(parents=True)
    run.write_summary(_summary(auc=0.5 + 0.1 * number))
    run_folder._files.write_json(run.config, _config())


def _config() -> dict[str, Any]:
  return dataclasses.asdict(
    run_records.Config(
      settings={},
      data_digest='md5:0',
      initial_model_sha256=None,
      versions={},
      run_id='0f',
    )
  )


def _summary(auc: float) -> run_records.Summary:
  return run_records.Summary(
    rounds=3,
    stop_reason='completed',
    stop_message='all planned rounds were run',
    epsilon=2.0,
    metrics={'auc': auc, 'accuracy': 0.5, 'balanced_accuracy': 0.5},
    seconds=3.0,
    delta=1e-3,
    noise_multiplier=1.0,
    privacy_unit='client',
  )


def _compare(folder: pathlib.Path) -> int:
  ended = cells.Ended([], False)
  with (
    mock.patch.object(compare.cells, 'run', lambda *unused: ended),
    mock.patch.object(figure.Figure, 'savefig', _no_figure),
  ):
    return compare.run(*_comparison(folder), seeds=2, jobs=1)


def _make_run(folder: pathlib.Path) -> None:
  truth = folder.with_name('truth')
  numpy_process.start(str(folder), str(truth))


def _images() -> images.ImageData:
  """Returns data that the stand-in's model was trained on, as it were."""
  rng = np.random.default_rng(0)

  def split(size: int) -> images.Split:
    return images.Split(
      rng.integers(0, 255, (size, *numpy_process.SHAPE), np.uint8),
      rng.integers(0, 2, size),
    )

  return images.ImageData(
    name='stand-in',
    train=split(60),
    validation=split(40),
    test=split(40),
    class_names=numpy_process.CLASSES,
    source_digest=numpy_process.DIGEST,
  )


def _audit(folder: pathlib.Path) -> int:
  task = types.SimpleNamespace(data=_images())
  with (
    mock.patch.object(
      audit.audited_run.assembly, 'load_task', lambda settings: task
    ),
    mock.patch.object(figure.Figure, 'savefig', _no_figure),
  ):
    return audit.main(str(folder), 0, None)


def _make_reference(folder: pathlib.Path) -> None:
  _reference(folder)


def _reference(folder: pathlib.Path) -> None:
  task = types.SimpleNamespace(
    data=_images(), initial_model=None, transfer=None, backbone=None
  )
  trained = ('completed', 'one model', evaluation.Evaluation({'auc': 0.5}))
  with (
    mock.patch.object(references.assembly, 'load_task', lambda settings: task),
    mock.patch.object(references, '_train_central', lambda *unused: trained),
  ):
    references.run('central', settings_lib.Flags.of(output_dir=str(folder)))


_CELL = 'cells/eps_8_seed_0'
_BASE = 'cells/base_seed_0'
_SUMMARIES: tuple[dict[str, Any], ...] = (
  {'metrics': {'auc': None}},
  {'metrics': {}},
  {'metrics': {'auc': 'x'}},
  {'metrics': [1]},
  {'epsilon': 'nan'},
  {'epsilon': {}},
  {'epsilon': 10**400},
  {'rounds': 'many'},
  {'rounds': -1},
  {'rounds': 1e300},
  {'stop_reason': 'unheard of'},
  {'stop_reason': 7},
  {'noise_multiplier': None},
  {'noise_multiplier': 'x'},
  {'delta': 'x'},
  {'delta': 7},
  {'seconds': 'inf'},
  {'ledger_sha256': 5},
  {'privacy_unit': None},
  {'stop_message': '\ud800'},
)
COMMANDS: dict[str, Command] = {
  'report': Command(
    _make_sweep,
    _report,
    (
      'sweep.json',
      'cells',
      _CELL,
      *(
        f'{_CELL}/{name}'
        for name in (
          'summary.json',
          'config.json',
          'metrics.csv',
          'privacy_ledger.jsonl',
          'audit.json',
        )
      ),
    ),
    ('results.csv', 'report.html', 'plots'),
    (
      *((f'{_CELL}/summary.json', 'summary', one) for one in _SUMMARIES),
      *(
        ('sweep.json', 'sweep', one)
        for one in (
          {'cells': {}},
          {'cells': [7]},
          {'cells': [{'name': '../..', 'kind': 'central'}]},
          {
            'cells': [
              {'name': 'a\0b', 'kind': 'central', 'epsilon': 1, 'seed': 0}
            ]
          },  # fmt: skip
          {
            'cells': [
              {'name': '..', 'kind': 'central', 'epsilon': 1, 'seed': 0}
            ]
          },  # fmt: skip
          {
            'cells': [
              {'name': 'x' * 5000, 'kind': 'central', 'epsilon': 1, 'seed': 0}
            ]
          },  # fmt: skip
          {'cells': [{'name': 'x', 'kind': [], 'epsilon': 1, 'seed': 0}]},
          {
            'cells': [
              {'name': 'x', 'kind': 'central', 'epsilon': 1, 'seed': math.inf}
            ]
          },  # fmt: skip
          {'settings': 7},
          {'settings': {'rounds': [1]}},
          {'versions': 'x'},
          {'command': ['x']},
          {'command': None},
          {'command': '\ud800'},
        )
      ),
      *(
        (f'{_CELL}/audit.json', 'audit', one)
        for one in (
          {'lower_bound': 'x'},
          {'lower_bound': [1]},
          {'canary_auc': 7},
          {'confidence': None},
          {'attack_auc': {}},
        )
      ),
      *(
        (f'{_CELL}/config.json', 'config', one)
        for one in ({'settings': 7}, {'versions': None}, {'run_id': 5})
      ),
    ),
  ),
  'compare': Command(
    _make_comparison,
    _compare,
    (
      'comparison.json',
      'cells',
      _BASE,
      f'{_BASE}/summary.json',
      f'{_BASE}/config.json',
    ),
    ('results.csv', 'results.md'),
    (
      *((f'{_BASE}/summary.json', 'summary', one) for one in _SUMMARIES),
      ('comparison.json', 'cells', {'base_seed_0': 7}),
      ('comparison.json', 'cells', {'base_seed_0': [1]}),
      ('comparison.json', 'cells', {'base_seed_0': None}),
      ('comparison.json', 'cells', {'base_seed_0': ['--rounds=99']}),
      (f'{_BASE}/config.json', 'config', {'initial_model_sha256': 7}),
      (f'{_BASE}/config.json', 'config', {'initial_model_sha256': 'a'}),
    ),
  ),
  'audit': Command(
    _make_run,
    _audit,
    (
      'config.json',
      'summary.json',
      'checkpoints',
      'checkpoints/data_digest_key.secret',
      'privacy_ledger.jsonl',
      'saved_model',
      'saved_model/saved_model.pb',
      'saved_model/variables',
      'saved_model/variables/variables.index',
      'saved_model/variables/variables.data-00000-of-00001',
      'saved_model/assets',
      'saved_model/assets/privacy_card.json',
      'saved_model/assets/class_names.txt',
    ),
    ('audit', 'audit.json', 'audit.partial'),
    (
      *(('summary.json', 'summary', one) for one in _SUMMARIES),
      *(
        ('config.json', 'config', one)
        for one in (
          {'settings': {}},
          {'settings': {'clipping': 'none'}},
          {'settings': {'unheard': 'of', 'clipping': 'none'}},
          {'settings': {'clipping': 'none', 'dataset': 7}},
          {'settings': {'clipping': 'none', 'rounds': 'x'}},
          {'data_digest': 'md5:other'},
          {'run_id': 7},
        )
      ),
    ),
  ),
  'references': Command(
    _make_reference,
    _reference,
    ('config.json', 'summary.json', 'checkpoints'),
    ('saved_model',),
    (
      *(('summary.json', 'summary', one) for one in _SUMMARIES),
      ('config.json', 'config', {'settings': {}}),
      ('config.json', 'config', {'settings': {'seed': [1]}}),
      ('config.json', 'config', {'data_digest': 'md5:other'}),
    ),
  ),
}


def damages(name: str) -> Iterator[tuple[str, tamper_faults.Change]]:
  """Yields the damages to the folder of a command, by what they are."""
  command = COMMANDS[name]
  for path in (*command.paths, *command.outputs):
    for kind, damage in tamper_faults.DAMAGES.items():
      yield f'{path}: {kind}', tamper_faults.damage(path, damage)
  for path, what, values in command.change:
    yield f'{what} {values}', tamper_faults.change_json(path, **values)


def run_command(name: str, every: int = 1) -> dict[str, Any]:
  """Tries the damages of a command; runs in a forked child.

  Args:
    name: One of `COMMANDS`.
    every: Of them every so many-th.

  Returns:
    How many were `tried`, how many were `refused`, and a line for each `lost`.
  """
  command = COMMANDS[name]
  lost: list[str] = []
  refused = 0
  chosen = list(damages(name))[::every]
  with tempfile.TemporaryDirectory(prefix='folder_faults_') as base:
    sound = pathlib.Path(base, 'sound')
    command.make(sound)
    for number, (what, damage) in enumerate([('nothing', None), *chosen]):
      folder = pathlib.Path(base, f'case_{number}')
      shutil.copytree(sound, folder)
      if damage is not None:
        damage(folder, folder)
      is_output = what.partition(':')[0] in command.outputs
      problem, was_refused = _try(command, folder, is_output)
      if damage is None and was_refused:
        problem = 'refused'
      refused += was_refused
      if problem:
        lost.append(f'{name}, {what}: {problem}')
      shutil.rmtree(folder)
  return {'tried': len(chosen), 'refused': refused, 'lost': lost}


def _try(
  command: Command, folder: pathlib.Path, is_output: bool
) -> tuple[str, bool]:
  """Returns what is wrong with the way in which it ended, and if refused."""

  def too_long(*unused: object) -> None:
    raise TimeoutError(f'took more than {_LIMIT_SECS} s')

  previous = signal.signal(signal.SIGALRM, too_long)
  signal.alarm(_LIMIT_SECS)
  try:
    # Matplotlib and TensorFlow say much that is of no matter here.
    with contextlib.redirect_stdout(None):
      command.run(folder)
  except _validate.InputError as error:
    return '' if cases.one_line(str(error)) else f'not a line: {error}', True
  except Exception as error:  # noqa: BLE001 - Any other one is a loss.
    if is_output and isinstance(error, OSError):
      return '', True
    where = traceback.extract_tb(error.__traceback__)[-1]
    own = [
      f'{pathlib.Path(f.filename).name}:{f.lineno}'
      for f in traceback.extract_tb(error.__traceback__)
      if '/tff_medical/' in f.filename or '/experiments/' in f.filename
    ]
    text = ' '.join(str(error).split())[:200]
    return f'{type(error).__name__}: {text} ({own or where})', False
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
  return '', False


def run(server: forks.Forks, tally: cases.Tally, every: int = 1) -> None:
  """Tries the damages of all commands and counts them."""
  for name in COMMANDS:
    ended = server.run(
      'tests.faults.folder_faults:run_command',
      name=name,
      every=every,
      timeout=3600.0,
    )
    if ended.result is None:
      tally.add(name)
      tally.lose(f'{name} ended with {ended.code}: {ended.output[-1500:]}')
      continue
    tally.add(name, ended.result['tried'])
    for line in ended.result['lost']:
      tally.lose(line)


def main() -> int:
  """Runs the long form; returns its exit code."""
  tally = cases.Tally('damaged folders')
  with forks.Forks(*_PRELOAD) as server:
    run(server, tally)
  return tally.show()


if __name__ == '__main__':
  sys.exit(main())
