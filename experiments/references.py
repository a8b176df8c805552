"""What federation and privacy are measured against: training without them.

    python -m experiments.references --kind=central --dataset=synthetic \
        --output_dir=runs/central

`central` trains one model on all images, as if they had been pooled;
`per_site` trains one model for each site on its own images, as if nobody had
worked together. Plain Keras, Adam, the epoch with the least validation loss:
what somebody without TFF would do. The folder gets config.json and
summary.json as that of a run; there is no ledger, as nothing is promised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import pathlib
import time
from typing import NamedTuple

from absl import flags as absl_flags
import numpy as np
import tensorflow as tf

from experiments import build
from experiments import flags
from experiments import run_folder as run_folder_lib
from experiments import settings as settings_lib
from tff_medical import _validate
from tff_medical import evaluation
from tff_medical import models
from tff_medical import study
from tff_medical import tasks
from tff_medical.data import clients as clients_lib

KINDS = (study.CENTRAL, study.PER_SITE)
# With more clients than this, and no sites, one alone has too few images.
MAX_ALONE = 20
_EPOCHS = 30
_PATIENCE = 5
_BATCH_SIZE = 32
_LEARNING_RATE = 1e-3


class _Site(NamedTuple):
  """Somebody who trains alone; `number` is None if it is no natural site."""

  rows: np.ndarray
  number: int | None


def run(kind: str, settings: settings_lib.Settings) -> None:
  """Trains a reference and writes its folder.

  Args:
    kind: One of `KINDS`.
    settings: Without privacy; of them data, partition, model and seed matter.
  """
  started = time.monotonic()
  _validate.one_of(KINDS, kind=kind)
  settings = settings.resolve()
  folder = run_folder_lib.RunFolder(pathlib.Path(settings.output_dir or ''))
  folder.check()
  task = build.build_task(settings)
  folder.claim(settings, task.data.source_digest)
  if kind == study.CENTRAL:
    sites = [_Site(np.arange(len(task.data.train)), None)]
    message = 'one model trained on all images'
  else:
    sites = _sites(task)
    message = f'a model of its own for each of {len(sites)} sites'
  summary = {
    'rounds': 0,
    'stop_reason': 'completed' if sites else 'skipped',
    'stop_message': message
    if sites
    else f'{task.num_clients} clients have too few images each to train alone, '
    'and the data has no sites',
    'epsilon_pld': float('inf'),
    'metrics': _metrics(task, sites, settings.seed) if sites else {},
    'seconds': time.monotonic() - started,
  }
  run_folder_lib.write_json(folder.summary, summary)
  print(f'{kind}: {summary["stop_message"]}')


def _sites(task: tasks.Task) -> list[_Site]:
  """Returns the natural sites, or else the clients if they are few."""
  numbers = task.data.train.sites
  if numbers is not None:
    return [
      _Site(np.flatnonzero(numbers == n), int(n)) for n in np.unique(numbers)
    ]
  if task.num_clients > MAX_ALONE:
    return []
  return [_Site(rows, None) for rows in task.partition]


def _metrics(
  task: tasks.Task, sites: Sequence[_Site], seed: int
) -> dict[str, float]:
  """Returns the metrics of one model, or of several their means.

  Of several, those of a site are of its own model on its own test images.
  """
  found = [_train(task, site.rows, seed) for site in sites]
  if len(found) == 1:
    return found[0]
  means = {
    name: study.mean(metrics[name] for metrics in found)
    for name in found[0]
    if not name.startswith('site/')
  }
  for site, metrics in zip(sites, found):
    own = f'site/{site.number}/'
    means.update((n, v) for n, v in metrics.items() if n.startswith(own))
  return means


def _train(task: tasks.Task, rows: np.ndarray, seed: int) -> dict[str, float]:
  """Trains a model on some training images; returns its test metrics."""
  data = task.data
  tf.keras.utils.set_random_seed(seed)
  model = models.build(
    task.model,
    input_shape=data.image_shape,
    num_outputs=data.num_classes,
    seed=seed,
  )
  model.compile(
    tf.keras.optimizers.Adam(_LEARNING_RATE), models.loss(data.multi_label)
  )
  train = clients_lib.to_arrays(data.train)
  validation = clients_lib.to_arrays(data.validation)
  model.fit(
    train['x'][rows],
    train['y'][rows],
    batch_size=_BATCH_SIZE,
    epochs=_EPOCHS,
    validation_data=(validation['x'], validation['y']),
    callbacks=[
      tf.keras.callbacks.EarlyStopping(
        'val_loss', patience=_PATIENCE, restore_best_weights=True
      )
    ],
    verbose=0,
  )
  return dict(
    evaluation.evaluate(
      model,
      data.test.images,
      data.test.labels,
      class_names=data.class_names,
      multi_label=data.multi_label,
      sites=data.test.sites,
    )
  )


def main(
  read_settings: Callable[[], settings_lib.Settings],
  values: absl_flags.FlagValues,
) -> None:
  """Runs the command."""
  run(values.kind, read_settings())


if __name__ == '__main__':
  absl_flags.DEFINE_string('kind', None, f'one of {", ".join(KINDS)}')
  flags.run(functools.partial(main, flags.define_settings(), absl_flags.FLAGS))
