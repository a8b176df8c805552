"""The folder of one training run: what is in it, and whose it is.

| file                  | what it holds                                        |
|-----------------------|------------------------------------------------------|
| config.json           | every resolved setting, versions, digests of the     |
|                       | data and of the initial model                        |
| metrics.csv           | ε, clip norm and test metrics, one line a round      |
| tensorboard/          | the same for TensorBoard, with times: keep it secret |
| privacy_ledger.jsonl  | every round that was paid for                        |
| checkpoints/          | server states; and cohort_seed.secret: keep it so    |
| summary.json          | how it ended: rounds, reason, ε, δ, metrics          |
| saved_model/          | the exported model with its privacy card             |
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

from experiments import settings as settings_lib
from tff_medical import _validate
from tff_medical import export
from tff_medical import tasks

_PACKAGES = (
  'tensorflow',
  'tensorflow-federated',
  'tensorflow-privacy',
  'tensorflow-datasets',
  'dp-accounting',
  'numpy',
)
# They change where or how fast the same computation runs, never what it is.
MAY_CHANGE = (
  'output_dir',
  'data_dir',
  'initial_model',  # Its digest must not.
  'rounds_per_eval',
  'runtime',
  'client_threads',
  'client_devices',
  'clients_per_device',
  'microbatch_size',
)

_DIGESTS = {'data_digest': 'data', 'initial_model_sha256': '--initial_model'}


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """The paths of a run's files."""

  path: pathlib.Path

  config = property(lambda self: self.path / 'config.json')
  metrics = property(lambda self: self.path / 'metrics.csv')
  tensorboard = property(lambda self: self.path / 'tensorboard')
  ledger = property(lambda self: self.path / 'privacy_ledger.jsonl')
  checkpoints = property(lambda self: self.path / 'checkpoints')
  summary = property(lambda self: self.path / 'summary.json')
  saved_model = property(lambda self: self.path / 'saved_model')

  def check(self) -> None:
    """Raises `InputError` unless the folder is new, empty or of a run."""
    if not self.path.exists():
      return
    if not self.path.is_dir():
      raise _validate.InputError(f'output_dir {self.path} is not a folder')
    if any(self.path.iterdir()) and not self.config.exists():
      raise _validate.InputError(
        f'output_dir {self.path} holds other files (no config.json); choose '
        'a new folder'
      )

  def claim(self, settings: settings_lib.Settings, task: tasks.Task) -> bool:
    """Makes the folder this run's, or checks that it is.

    Args:
      settings: Fully resolved.
      task: Its data and its initial model are identified by digests.

    Returns:
      Whether the run was started before.

    Raises:
      InputError: The folder belongs to a run with other settings, data or
        initial model.
    """
    self.check()
    initial = task.initial_model
    config = {
      'settings': _public(settings),
      'data_digest': task.data.source_digest,
      'initial_model_sha256': initial.digest if initial else None,
      'versions': versions(),
    }
    if self.config.exists():
      _refuse_other_run(self.config, config)
      return True
    try:
      self.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise _validate.InputError(
        f'output_dir {self.path} cannot be made ({error.strerror})'
      ) from None
    write_json(self.config, config)
    return False


def versions() -> dict[str, str]:
  """Returns the versions of Python and of what the results rest on."""
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {'python': platform.python_version(), **found}


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  """Writes a JSON file whole or not at all; ε of no noise becomes "inf"."""
  plain = export.plain_json(values)
  temporary = path.with_name(path.name + '.partial')
  try:
    with open(temporary, 'w', encoding='utf-8') as file:
      json.dump(plain, file, indent=2, ensure_ascii=False, allow_nan=False)
      file.write('\n')
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise


def _public(settings: settings_lib.Settings) -> dict[str, Any]:
  """Returns the settings as published: without the seed of the cohorts."""
  values = dataclasses.asdict(settings)
  if values['cohort_seed'] is not None:
    values['cohort_seed'] = 'given; see checkpoints/cohort_seed.secret'
  return values


def _refuse_other_run(path: pathlib.Path, wanted: Mapping[str, Any]) -> None:
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
    there = found['settings']
    digests = {name: found[name] for name in _DIGESTS}
  except (ValueError, KeyError, TypeError):
    raise _validate.InputError(
      f'{path} is damaged; choose another output_dir'
    ) from None
  now = export.plain_json(wanted)
  free = set(MAY_CHANGE)
  settings = now['settings']
  if settings['target_epsilon'] is None and settings[
    'client_learning_rate_schedule'
  ] in (None, 'constant'):
    free.add('rounds')  # Nothing was chosen for their number.
  changed = [
    f'--{name} ({there.get(name)} there, {value} now)'
    for name, value in now['settings'].items()
    if name not in free and there.get(name) != value
  ]
  changed += [
    f'{what} ({digests[name]} there, {now[name]} now)'
    for name, what in _DIGESTS.items()
    if digests[name] != now[name]
  ]
  if changed:
    raise _validate.InputError(
      f'output_dir {path.parent} belongs to a run with another '
      f'{", ".join(changed)}; use the same or choose another output_dir'
    )
