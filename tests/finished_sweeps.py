"""Writes a sweep's folder as `experiments.tradeoff` does, without training."""

import dataclasses
import json
import math
import pathlib

from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import run_records
from tff_medical.reporting import sweeps

CLASSES = ('normal', 'pneumonia <b>')
SITES = ('0', '1')
# AUC at each budget, and how far apart the two seeds are.
AUCS = {1.0: 0.6, 8.0: 0.8, math.inf: 0.9}
SPREAD = 0.02


def write(folder, command='python -m experiments.tradeoff', **info):
  """Writes a sweep of two seeds, with one cell missing and one audited.

  Args:
    folder: Folder to make.
    command: Command in `sweep.json`.
    **info: Further entries of `sweep.json`.

  Returns:
    The folder as a path.
  """
  folder = pathlib.Path(folder)
  entries = []
  for seed in (0, 1):
    for kind in (sweeps.CENTRAL, sweeps.PER_SITE):
      entries.append(_entry(f'{kind}_seed_{seed}', kind, math.inf, seed))
      _reference(folder / 'cells' / entries[-1]['name'], kind)
    for epsilon, auc in AUCS.items():
      name = f'eps_{epsilon:g}_seed_{seed}'
      entries.append(_entry(name, sweeps.FEDERATED, epsilon, seed))
      _run(folder / 'cells' / name, epsilon, auc + seed * SPREAD)
  entries.append(_entry('eps_1_seed_2', sweeps.FEDERATED, 1.0, 2))
  _json(
    folder / 'sweep.json',
    {
      'command': command,
      'settings': {
        'dataset': 'medmnist/pneumoniamnist',
        'privacy_unit': 'client',
        'rounds': 20,
      },
      'versions': {'python': '3.11'},
      'cells': entries,
      **info,
    },
  )
  return folder


def summary(**changed):
  """Returns the summary of a run of 3 rounds."""
  values = {
    'rounds': 3,
    'stop_reason': 'completed',
    'stop_message': 'all planned rounds were run',
    'epsilon': 1.0,
    'delta': 1e-3,
    'noise_multiplier': 1.0,
    'privacy_unit': 'record',
    'metrics': {},
    'seconds': 3.0,
    'ledger_sha256': 'abc',
  }
  return run_records.Summary(**{**values, **changed})


def eval_split(job):
  """Returns the split on which a job evaluates its model."""
  return 'test' if '--eval_split=test' in job.command else 'validation'


def config(**changed):
  """Returns the config of a run."""
  values = {
    'settings': {},
    'data_digest': 'md5:123',
    'initial_model_sha256': None,
    'versions': {},
    'run_id': '0f',
  }
  return run_records.Config(**{**values, **changed})


def _entry(name, kind, epsilon, seed):
  plain = 'inf' if math.isinf(epsilon) else epsilon
  return {'name': name, 'kind': kind, 'epsilon': plain, 'seed': seed}


def _metrics(auc):
  metrics = {'auc': auc, 'accuracy': auc - 0.1, 'balanced_accuracy': auc - 0.2}
  for index, name in enumerate(CLASSES):
    metrics[f'sensitivity/{name}'] = auc - 0.3 * index
  for index, name in enumerate(SITES):
    metrics[f'site/{name}/auc'] = auc
    metrics[f'site/{name}/accuracy'] = auc - 0.1 * index
    metrics[f'site/{name}/sensitivity/{CLASSES[0]}'] = auc
  return metrics


def _reference(folder, kind):
  auc = 0.93 if kind == sweeps.CENTRAL else 0.7
  summary = {
    'rounds': 0,
    'stop_reason': 'completed',
    'stop_message': 'one model',
    'epsilon': 'inf',
    'metrics': _metrics(auc),
    'seconds': 3.0,
  }
  _json(folder / 'summary.json', summary)


def _run(folder, epsilon, auc):
  private = math.isfinite(epsilon)
  summary = {
    'rounds': 20,
    'stop_reason': 'completed',
    'stop_message': 'all planned rounds were run',
    'epsilon': epsilon - 0.01 if private else 'inf',
    'delta': 0.001,
    'noise_multiplier': 3 / epsilon,
    'ledger_sha256': f'{hash(auc) % 16**8:08x}' * 8,
    'metrics': _metrics(auc),
    'seconds': 12.5,
  }
  _json(folder / 'summary.json', summary)
  _json(folder / 'config.json', dataclasses.asdict(config()))
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(100, 10),
    clipping=mechanisms.FixedClipping(),
    noise_multiplier=1.0 if private else 0.0,
  )
  path = folder / 'privacy_ledger.jsonl'
  ledger_lib.PrivacyLedger(path, mechanism, delta=1e-3).close()
  clip = ',clip_norm' if private else ''
  rows = [f'round,epsilon{clip},validation/auc']
  for number in range(1, 21):
    spent = epsilon * math.sqrt(number / 20)
    norm = f',{0.1 * 1.05**number}' if private else ''
    measured = auc * (1 - 1 / number) if number % 5 == 0 else ''
    rows.append(f'{number},{spent}{norm},{measured}')
  (folder / 'metrics.csv').write_text('\n'.join(rows) + '\n')
  if epsilon == 8:
    _json(
      folder / 'audit.json',
      {
        'lower_bound': 1.25,
        'upper_bound': 7.99,
        'confidence': 0.95,
        'membership': {'attack_auc': 0.53, 'roc': [[0, 0], [1, 1]]},
        'note': '<script>alert(1)</script>',
        'inversion': {'ssim_raw': 0.987654},
      },
    )


def _json(path, values):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(values), encoding='utf-8')
