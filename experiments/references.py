r"""Trains the baselines: models without federation and without privacy.

    python -m experiments.references --kind=central --dataset=synthetic \
        --output_dir=runs/central

`central` trains one model on all images, as if they were pooled. `per_site`
trains one model per site on the site's own images, as if no sites worked
together. Both use plain Keras with Adam, and keep the epoch with the lowest
validation loss, which makes metrics on validation images a little too good. The
folder gets config.json and summary.json, as that of a run.
There is no ledger, as there is no guarantee. `central` also writes saved_model.
If its images are public, private training may start from that model with
--initial_model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import math
import pathlib
import time
from typing import NamedTuple

from absl import flags as absl_flags

from experiments.config import flags
from experiments.config import run_settings
from experiments.config import settings as settings_lib
from experiments.running import command
from tff_medical.reporting import sweeps

if __name__ == '__main__':
  absl_flags.DEFINE_string(
    'kind', None, f'kind of baseline: {" or ".join(sweeps.REFERENCES)}'
  )
  read_flags = flags.define()
  command.parse(
    check=lambda: read_flags().as_reference().resolve(),
    settings=settings_lib.REFERENCE_FLAGS,
  )

import numpy as np
import pandas as pd
import tensorflow as tf

from experiments.config import assembly
from tff_medical import _validate
from tff_medical import models
from tff_medical.data import clients as clients_lib
from tff_medical.learning import tasks
from tff_medical.privacy import card as card_lib
from tff_medical.program import ending
from tff_medical.program import run_folder as run_folder_lib
from tff_medical.program import run_records
from tff_medical.scoring import evaluation as scoring
from tff_medical.serving import export

# Above this number of clients, and without sites, a client has too few images.
MAX_ALONE = 20
_EPOCHS = 30
_PATIENCE = 5
_BATCH_SIZE = 32
_LEARNING_RATE = 1e-3


class _Site(NamedTuple):
  """A site that trains alone.

  Attributes:
    rows: Rows of the site's training images, int64 [n].
    number: Number of the natural site; None for a client.
  """

  rows: np.ndarray
  number: int | None


def run(kind: str, given: settings_lib.Flags) -> None:
  """Trains a baseline and writes its folder.

  Args:
    kind: Kind of baseline, one of `sweeps.REFERENCES`.
    given: Flags, of `settings.REFERENCE_FLAGS` alone.

  Raises:
    InputError: A setting would be ignored, or cannot be used.
  """
  started = time.monotonic()
  _validate.one_of(sweeps.REFERENCES, kind=kind)
  settings = given.as_reference().resolve()
  folder = run_folder_lib.RunFolder(pathlib.Path(settings.run.output_dir or ''))
  folder.check()
  task = assembly.load_task(settings)
  assembly.claim(folder, settings, task)
  split_name = settings.run.eval_split
  task.data.eval_split(split_name)
  if _is_done(folder, split_name):
    print(f'{kind}: done before; results in {folder.path}')
    return
  train = _train_central if kind == sweeps.CENTRAL else _train_per_site
  reason, message, result = train(task, folder, settings.run)
  summary = run_records.Summary(
    rounds=0,
    stop_reason=reason,
    stop_message=message,
    epsilon=math.inf,
    metrics=result.metrics,
    intervals=result.intervals,
    fitted=result.fitted,
    eval_split=split_name,
    seconds=time.monotonic() - started,
  )
  with ending.deferred():
    folder.write_summary(summary)
  print(f'{kind}: {message}')


def _is_done(folder: run_folder_lib.RunFolder, split_name: str) -> bool:
  """Returns whether the folder has the results of the baseline on a split."""
  if not folder.summary.exists():
    return False
  summary = folder.read_summary()
  return summary.has_ended and summary.eval_split == split_name


def _train_central(
  task: tasks.Task,
  folder: run_folder_lib.RunFolder,
  run: run_settings.RunSettings,
) -> tuple[str, str, scoring.Evaluation]:
  """Trains and exports one model; returns reason, message and evaluation."""
  model = _fit(task, np.arange(len(task.data.train)))
  result, scores = task.evaluation(model, run.eval_split, run.fixed_specificity)
  with ending.deferred():
    export.save(
      folder.saved_model,
      model,
      class_names=task.data.class_names,
      multi_label=task.data.multi_label,
      privacy_card=card_lib.build_open_card(
        dataset=task.data.described,
        **card_lib.metrics_of(
          run.eval_split, result.metrics, result.intervals, result.fitted
        ),
        initial_model=task.provenance,
        backbone=task.backbone,
      ),
      transfer=task.transfer,
    )
    # The summary of a reference has no digest of its weights.
    folder.write_scores(scores, '')
  return 'completed', 'one model trained on all images', result


def _train_per_site(
  task: tasks.Task,
  folder: run_folder_lib.RunFolder,
  run: run_settings.RunSettings,
) -> tuple[str, str, scoring.Evaluation]:
  """Trains a model per site; returns reason, message and evaluation."""
  del folder  # No model is exported, as none is of use to another site.
  sites = _sites(task)
  if not sites:
    message = (
      f'{task.num_clients} clients have too few images each to train alone, '
      'and the data has no sites'
    )
    return 'skipped', message, scoring.Evaluation()
  message = f'a model of its own for each of {len(sites)} sites'
  metrics = _metrics(task, sites, run.eval_split)
  return 'completed', message, scoring.Evaluation(metrics)


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
  task: tasks.Task, sites: Sequence[_Site], split_name: str
) -> dict[str, float]:
  """Returns the metrics of the sites' models.

  Metrics of the whole split are means over the models. Metrics of one site are
  those of the site's own model on the site's own images of the split.
  """
  by_site = [
    _evaluate(task, _fit(task, site.rows), split_name) for site in sites
  ]
  # The mean leaves out the NaN of a metric that a model does not determine.
  means = {
    name: float(value)
    for name, value in pd.DataFrame(by_site).mean().items()
    if not name.startswith('site/')
  }
  for site, metrics in zip(sites, by_site):
    prefix = f'site/{site.number}/'
    means.update((n, v) for n, v in metrics.items() if n.startswith(prefix))
  return means


def _fit(task: tasks.Task, rows: np.ndarray) -> tf.keras.Model:
  """Returns a model that was trained on some rows of the training images."""
  data = task.data
  if not data.has_validation:
    raise _validate.InputError(
      f'{data.name} has too few patients or images for a validation split with '
      'labels, which decides when to stop; give more data'
    )
  tf.keras.utils.set_random_seed(task.seed)
  model = task.build_model()
  model.compile(
    tf.keras.optimizers.Adam(_LEARNING_RATE), models.loss(data.multi_label)
  )
  train = clients_lib.to_arrays(data.train.take(rows))
  validation = clients_lib.to_arrays(data.validation)
  model.fit(
    train['x'],
    train['y'],
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
  return model


def _evaluate(
  task: tasks.Task, model: tf.keras.Model, split_name: str
) -> dict[str, float]:
  """Returns the metrics of a model on the images of a split."""
  return dict(task.metrics(task.model_scores(model, split_name), split_name))


def main(
  read_flags: Callable[[], settings_lib.Flags],
  values: absl_flags.FlagValues,
) -> None:
  """Runs the command."""
  run(values.kind, read_flags())


if __name__ == '__main__':
  command.run(functools.partial(main, read_flags, absl_flags.FLAGS))
