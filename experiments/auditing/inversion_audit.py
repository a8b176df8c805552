"""Gradient inversion on a run's first round: what updates show of an image.

Training images are drawn, and each is taken for all that a client, or the unit at
record level, holds; a client trains on it by plain SGD, a unit's gradient is that
of the image as it is. The attacker of `tff_medical.auditing.inversion` knows the initial
weights and the label, and tries to see the image in

- raw: the update as it is computed;
- clipped: what is left of it at the clip norm, which is shorter, has the same
  direction and so hides nothing;
- noised: the clipped update with the noise that the round's sum carries, as for
  someone who sees what is released and knows all other contributions. That this
  attack fails is no proof that none succeeds; what proves something is ε.

`blind` is the guess of one who sees nothing, the mean training image. The noise
is drawn anew, not the run's. `labels_told` is the share of labels that the bias
of the head gives away. The figure shows training images beside the
reconstructions: it must not leave those who may see the data, and the report does
not show it. No ε covers the figures in audit.json either; they are means over
images.
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
from tff_medical.privacy import mechanisms
from tff_medical.reporting import plots

_VIEWS = {
  'raw': 'from the raw update',
  'clipped': 'clipped',
  'noised': 'clipped, with noise',
}
_BLIND = 'blind'
_MIN_PIXELS = 11  # The window of SSIM.


def check(
  run: audited_run.FinishedRun, train: images_lib.Split, images: int
) -> None:
  """Checks that so many of the run's training images can be attacked.

  Raises:
    InputError: The run does not add one noise to the sum of clipped updates, or
      there are fewer training images, or they are too small to compare.
  """
  mode = run.settings.mode
  if not mode.has_one_noise or not mode.is_private:
    what = f'mechanism={mode.name}' if mode.is_private else 'no noise'
    able = ' or '.join(m.name for m in modes.MODES.values() if m.has_one_noise)
    raise _validate.InputError(
      f'inversion_images needs a run with mechanism={able}, clipping and noise, '
      f'got one with {what}; give --inversion_images=0'
    )
  most = len(_candidates(train))
  if images > most:
    raise _validate.InputError(
      f'inversion_images must be at most {most}, the number of training images '
      f'with a label, got {images}'
    )
  if min(train.image_shape[:2]) < _MIN_PIXELS:
    raise _validate.InputError(
      f'inversion_images needs images of at least {_MIN_PIXELS} pixels a side'
    )


def invert(
  run: audited_run.FinishedRun, folder: pathlib.Path, images: int
) -> dict[str, Any]:
  """Attacks updates of training images; writes the figure.

  Args:
    run: One that passes `check`.
    folder: Folder of inversion.png.
    images: How many.

  Returns:
    Means over the images, by what the attacker saw.
  """
  mode = run.settings.mode
  task = run.build_task()
  train = task.data.train
  mechanism = assembly.assemble(run.settings, task).mechanism
  assert isinstance(mechanism, mechanisms.GaussianMechanism)  # See `check`.
  multi_label = task.data.multi_label
  loss = models.loss(multi_label)
  attack = inversion.InversionAttack(task.keras_model, loss)
  chosen = train.take(
    np.random.default_rng(run.settings.data.seed).choice(
      _candidates(train), images, False
    )
  )
  blind = _mean_image(train)
  pixels = examples.scaled(chosen.rows(np.arange(images)))
  rows, likeness, told = [], [], []
  for number in tqdm.trange(images, unit='image'):
    image = pixels[number]
    label = chosen.labels[number].astype(
      np.float32 if multi_label else np.int64
    )
    raw = _update(task.keras_model, loss, image, label, mode)
    seen = _seen(raw, mechanism)
    found = [attack.reconstruct(seen[view], label, number) for view in _VIEWS]
    rows.append([image, *found])
    likeness.append([inversion.similarity(image, f) for f in (*found, blind)])
    if not multi_label:
      told.append([inversion.infer_label(seen[v][-1]) == label for v in _VIEWS])
  headings = ('original', *_VIEWS.values())
  figure = plots.image_grid(
    'Training images, confidential: do not publish', headings, rows
  )
  plots.save(figure, folder, 'inversion')
  return _describe(likeness, told)


def summary_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns what to print of the results of `invert`, by name."""
  rows = []
  for view in (*_VIEWS, _BLIND):
    values = found[view]
    text = f'PSNR {float(values["psnr"]):.1f} dB, SSIM {values["ssim"]:.3f}'
    if 'labels_told' in values:
      text += f', {values["labels_told"]:.0%} of labels told'
    rows.append((f'inversion, {view}', text))
  rows.append(
    (
      'inversion.png',
      f'{found["images"]} training images: confidential, do not publish',
    )
  )
  return rows


def _candidates(train: images_lib.Split) -> np.ndarray:
  """Returns the rows of images that change an update, int64 [n]."""
  return np.flatnonzero(images_lib.has_label(train.labels))


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
  """Returns the update of a unit that holds the image alone."""
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


def _seen(
  raw: Sequence[np.ndarray], mechanism: mechanisms.GaussianMechanism
) -> dict[str, Sequence[np.ndarray]]:
  """Returns what is attacked, by view, in the mechanism's first round."""
  clipping = mechanism.clipping
  assert clipping is not None  # A private mechanism clips.
  norm = np.sqrt(sum(np.sum(np.square(part)) for part in raw))
  factor = min(1.0, clipping.clip_norm / max(norm, 1e-12))
  clipped = [factor * part for part in raw]
  rng = np.random.default_rng()
  stddev = clipping.clip_norm * mechanism.value_noise_multiplier
  noised = [part + rng.normal(0, stddev, part.shape) for part in clipped]
  return {'raw': raw, 'clipped': clipped, 'noised': noised}


def _describe(
  likeness: Sequence[Sequence[inversion.Similarity]],
  told: Sequence[Sequence[bool]],
) -> dict[str, Any]:
  """Returns means over images; both are [images, views]."""
  found: dict[str, Any] = {'images': len(likeness)}
  for view, (psnr, ssim) in zip((*_VIEWS, _BLIND), np.mean(likeness, axis=0)):
    found[view] = {'psnr': float(psnr), 'ssim': float(ssim)}
  if told:
    for view, share in zip(_VIEWS, np.mean(told, axis=0)):
      found[view]['labels_told'] = float(share)
  return found
