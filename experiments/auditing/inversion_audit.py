"""Gradient inversion on a run's first round: what updates reveal of an image.

Training images are drawn. Each is treated as the whole data of a client or, at
record level, of a unit. A client trains on the image by plain SGD; a unit's
update is the gradient of the image. The attacker of
`tff_medical.auditing.inversion` knows the initial weights and the label, and
reconstructs the image from one of three views:

- raw: the update before clipping.
- clipped: the update at the clip norm. It is shorter but has the same
  direction, and so hides nothing.
- noised: the clipped update with the noise of the round's sum, as seen by an
  attacker who sees the release and knows all other contributions. A failure of
  this attack does not prove that every attack fails; only ε proves something.

`blind` is a guess without any view: the mean training image. The noise is
fresh, not that of the run. `labels_told` is the share of labels that the bias
of the head reveals.

The figure shows training images beside the reconstructions. Only those who may
see the data may see it, so the report does not show it. The figures in
audit.json are means over images, and no ε covers them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from experiments import modes
from experiments.auditing import audited_run
from experiments.config import assembly
from tff_medical import _validate
from tff_medical import models
from tff_medical.auditing import inversion
from tff_medical.data import examples
from tff_medical.data import images as images_lib
from tff_medical.data import label_values
from tff_medical.privacy import interface
from tff_medical.privacy import mechanisms
from tff_medical.reporting import plots

_VIEWS = {
  'raw': 'from the raw update',
  'clipped': 'clipped',
  'noised': 'clipped, with noise',
}
_BLIND = 'blind'
_MIN_PIXELS = 11  # The width of SSIM's window.


def check(
  run: audited_run.FinishedRun, train: images_lib.Split, images: int
) -> None:
  """Checks that the inversion can attack a number of training images.

  Args:
    run: Finished run.
    train: Training split of the run.
    images: Number of training images to attack.

  Raises:
    InputError: The run does not add one noise to the sum of clipped updates, or
      has fewer training images, or the images are too small for SSIM.
  """
  if run.settings.model.backbone is not None:
    raise _validate.InputError(
      'inversion_images attacks models without a backbone, got a run with '
      f'backbone {run.settings.model.backbone}; give --inversion_images=0'
    )
  mode = run.settings.mode
  if not mode.has_one_noise or not mode.is_private:
    actual = f'mechanism={mode.name}' if mode.is_private else 'no noise'
    allowed = ' or '.join(
      m.name for m in modes.MODES.values() if m.has_one_noise
    )
    raise _validate.InputError(
      f'inversion_images needs a run with mechanism={allowed}, clipping and '
      f'noise, got a run with {actual}; give --inversion_images=0'
    )
  most = len(_candidates(train))
  if images > most:
    raise _validate.InputError(
      f'inversion_images must be at most {most}, the number of training images '
      f'with a label, got {images}'
    )
  if min(train.image_shape[:2]) < _MIN_PIXELS:
    raise _validate.InputError(
      f'inversion_images needs images of at least {_MIN_PIXELS} pixels in '
      f'height and width, got {train.image_shape}; give --inversion_images=0'
    )


def invert(
  run: audited_run.FinishedRun, folder: pathlib.Path, images: int
) -> dict[str, Any]:
  """Attacks updates of training images; writes the figure.

  Args:
    run: Finished run that passes `check`.
    folder: Folder that gets inversion.png.
    images: Number of training images to attack.

  Returns:
    Means over the images, by the attacker's view.
  """
  mode = run.settings.mode
  task = run.build_task()
  train = task.data.train
  mechanism = assembly.assemble(run.settings, task).mechanism
  # TFF's form of the model, which the feed was chosen by, came from a graph.
  models.restore_eager(task.keras_model)
  multi_label = task.data.multi_label
  loss = task.loss
  attack = inversion.InversionAttack(task.keras_model, loss)
  chosen = train.take(
    np.random.default_rng(run.settings.data.seed).choice(
      _candidates(train), images, False
    )
  )
  blind = _mean_image(train)
  pixels = examples.scaled(chosen.rows(np.arange(images)))
  rows, similarities, hits = [], [], []
  for number in tqdm.trange(images, unit='image'):
    image = pixels[number]
    label = chosen.labels[number].astype(
      np.float32 if multi_label else np.int64
    )
    raw = _update(task.keras_model, loss, image, label, mode)
    views = _views(raw, mechanism)
    guesses = [attack.reconstruct(views[v], label, number) for v in _VIEWS]
    rows.append([image, *guesses])
    similarities.append(
      [inversion.similarity(image, guess) for guess in (*guesses, blind)]
    )
    if not multi_label:
      hits.append(
        [inversion.infer_label(views[v][-1]) == label for v in _VIEWS]
      )
  headings = ('original', *_VIEWS.values())
  figure = plots.image_grid(
    'Training images, confidential: do not publish', headings, rows
  )
  plots.save(figure, folder, 'inversion')
  return _describe(similarities, hits)


def summary_rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns the rows to print of the results of `invert`: name and text."""
  rows = []
  for view in (*_VIEWS, _BLIND):
    values = results[view]
    text = f'PSNR {float(values["psnr"]):.1f} dB, SSIM {values["ssim"]:.3f}'
    if 'labels_told' in values:
      text += f', {values["labels_told"]:.0%} of labels told'
    rows.append((f'inversion, {view}', text))
  rows.append(
    (
      'inversion.png',
      f'{results["images"]} training images: confidential, do not publish',
    )
  )
  return rows


def _candidates(train: images_lib.Split) -> np.ndarray:
  """Returns the rows of images that change an update, int64 [n]."""
  return np.flatnonzero(label_values.has_label(train.labels))


def _mean_image(split: images_lib.Split) -> np.ndarray:
  """Returns the mean of a split's images, float32 [H, W, C] in 0..1."""
  total = sum(batch.sum(axis=0, dtype=np.int64) for batch in split.batches())
  return (total / len(split) / 255).astype(np.float32)


def _update(
  model: tf.keras.Model,
  loss: inversion.Loss,
  image: np.ndarray,
  label: np.ndarray,
  mode: Any,
) -> list[np.ndarray]:
  """Returns the update of a unit whose data is one image."""
  if mode.privacy_unit != 'client':
    return inversion.gradient_of(model, loss, image, label)
  start = model.get_weights()
  for _ in range(mode.client_epochs):
    gradient = inversion.gradient_of(model, loss, image, label)
    model.set_weights(
      [
        weight - mode.client_learning_rate * part
        for weight, part in zip(model.get_weights(), gradient)
      ]
    )
  update = [a - b for a, b in zip(start, model.get_weights())]
  model.set_weights(start)
  return update


def _views(
  raw: Sequence[np.ndarray], mechanism: interface.Mechanism
) -> dict[str, Sequence[np.ndarray]]:
  """Returns the attacker's views of an update in the first round, by name.

  Raises:
    TypeError: The mechanism adds no noise to the sum of clipped updates.
  """
  if (
    not isinstance(mechanism, mechanisms.GaussianMechanism)
    or mechanism.clipping is None
  ):
    raise TypeError(f'{mechanism.name} does not noise a sum of clipped updates')
  clipping = mechanism.clipping
  norm = np.sqrt(sum(np.sum(np.square(part)) for part in raw))
  factor = min(1.0, clipping.clip_norm / max(norm, 1e-12))
  clipped = [factor * part for part in raw]
  rng = np.random.default_rng()
  stddev = clipping.clip_norm * mechanism.value_noise_multiplier
  noised = [part + rng.normal(0, stddev, part.shape) for part in clipped]
  return {'raw': raw, 'clipped': clipped, 'noised': noised}


def _describe(
  similarities: Sequence[Sequence[inversion.Similarity]],
  hits: Sequence[Sequence[bool]],
) -> dict[str, Any]:
  """Returns means over images; both arguments are [images, views]."""
  results: dict[str, Any] = {'images': len(similarities)}
  means = np.mean(similarities, axis=0)
  for view, (psnr, ssim) in zip((*_VIEWS, _BLIND), means):
    results[view] = {'psnr': float(psnr), 'ssim': float(ssim)}
  if hits:
    for view, share in zip(_VIEWS, np.mean(hits, axis=0)):
      results[view]['labels_told'] = float(share)
  return results
