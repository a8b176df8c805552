"""From the settings of a backbone to fixed features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import re
from typing import Any

import tensorflow as tf

from experiments.config import settings as settings_lib
from tff_medical import _validate
from tff_medical import models
from tff_medical.data import images
from tff_medical.data import own_images
from tff_medical.models import backbones
from tff_medical.models import transfer


def check(settings: settings_lib.Settings) -> None:
  """Raises `InputError` for a wrong name of a backbone or a model."""
  if settings.model.backbone is None:
    models.find(settings.model.model)
  else:
    backbones.find(settings.model.backbone)
    backbones.check_part(settings.model.backbone, settings.model.trainable)


def load(
  settings: settings_lib.Settings, data: images.ImageData
) -> models.Transfer | None:
  """Returns the network that starts from a backbone; None without backbone.

  Args:
    settings: Settings of the run.
    data: Images that the network takes.

  Raises:
    InputError: The backbone cannot be loaded, or was trained on the data whose
      privacy the run is to protect.
  """
  chosen = settings.model
  if chosen.backbone is None:
    return None
  layers = chosen.backbone_layers

  def split(num_outputs: int, seed: int | None) -> backbones.Split:
    with _named_as_flags():
      return backbones.trainable(
        chosen.backbone or '',
        chosen.trainable,
        image_shape=data.image_shape,
        num_outputs=num_outputs,
        seed=seed,
        layers=None
        if layers is None
        else [n.strip() for n in layers.split(',')],
        weights=chosen.backbone_weights,
        image_size=chosen.backbone_image_size,
      )

  first = split(data.num_classes, seed=0)
  if settings.mode.is_private:
    refuse_same_data(f'backbone {first.name}', first.origin.datasets, data.name)
  provenance = first.provenance

  def build_trained(num_outputs: int, seed: int | None) -> tf.keras.Model:
    if first.part == backbones.HEAD:  # The backbone need not be loaded again.
      return transfer.linear(first.frozen, num_outputs, seed)
    return split(num_outputs, seed).trained

  return models.Transfer(
    frozen=first.frozen,
    identity={**provenance, 'image_shape': list(data.image_shape)},
    provenance=provenance,
    build_trained=build_trained,
  )


@contextlib.contextmanager
def _named_as_flags() -> Iterator[None]:
  """Turns arguments of `backbones` in messages into flags.

  `--image_size` is another flag than the `image_size` of a backbone.
  """
  try:
    yield
  except _validate.InputError as error:
    text = str(error)
    if re.match('(layers|image_size|weights (file|must)) ', text):
      raise _validate.InputError(f'backbone_{text}') from error
    raise


def check_initial_model(
  initial: models.InitialModel, transfer: models.Transfer | None
) -> None:
  """Refuses an initial model that takes other features.

  Raises:
    InputError: The initial model was trained behind another backbone.
  """
  before = initial.card.get('backbone')
  now = dict(transfer.provenance) if transfer is not None else None
  if before != now:
    raise _validate.InputError(
      f'initial_model {initial.name} was trained with backbone '
      f'{_described(before)}, and the run has {_described(now)}; choose the same '
      'backbone, layers and image size'
    )


def _described(provenance: Mapping[str, Any] | None) -> str:
  if provenance is None:
    return 'none'
  text = f'{provenance["name"]}, layers {", ".join(provenance["layers"])}'
  height, width = provenance['image_size']
  return f'{text}, at {height} x {width}, {provenance["sha256"][:8]}'


def refuse_same_data(
  model: str, trained_on: Iterable[str], dataset: str
) -> None:
  """Refuses to state an epsilon for data that was trained on before.

  Args:
    model: Argument and name of the earlier model, for the message.
    trained_on: Names of the data sets that it was trained on, as cards state
      them.
    dataset: Name of the data set of the run.

  Raises:
    InputError: The data set is among them.
  """
  for earlier in trained_on:
    shown, hint = dataset, ''
    if own_images.may_be_same(earlier, dataset):
      shown = earlier
      hint = ' (two sets of own images need a different --dataset_name each)'
    # A card may append to the name that the file is not the official one.
    elif not f'{earlier} '.startswith(f'{dataset} '):
      continue
    raise _validate.InputError(
      f'{model} was trained on {shown} as well{hint}, so '
      'the ε of this run alone would not hold; start from a model of other data, '
      'go on in the output_dir of that run, or give up privacy with clipping=none'
    )
