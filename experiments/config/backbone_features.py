"""From the settings of a backbone to fixed features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.config import settings as settings_lib
from tff_medical import _validate
from tff_medical import models
from tff_medical.models import backbones
from tff_medical.models import fixed_features


def check(settings: settings_lib.Settings) -> None:
  """Raises `InputError` for a wrong name of a backbone or a model."""
  if settings.model.backbone is None:
    models.find(settings.model.model)
  else:
    name, colon, _ = settings.model.backbone.partition(':')
    if not colon:
      _validate.one_of(backbones.BACKBONES, backbone=name)


def load(
  settings: settings_lib.Settings, image_shape: tuple[int, int, int]
) -> models.FixedFeatures | None:
  """Returns the frozen layers; None if the whole model is trained.

  Args:
    settings: Settings of the run.
    image_shape: Shape (H, W, C) of the images.

  Raises:
    InputError: The backbone cannot be loaded, or was trained on the data whose
      privacy the run is to protect.
  """
  chosen = settings.model
  if chosen.backbone is None:
    return None
  layers = chosen.backbone_layers
  backbone = backbones.load(
    chosen.backbone,
    image_shape=image_shape,
    layers=None if layers is None else [n.strip() for n in layers.split(',')],
    weights=chosen.backbone_weights,
    image_size=chosen.backbone_image_size,
  )
  if settings.mode.is_private:
    refuse_same_data(
      f'backbone {backbone.name}',
      backbone.origin.datasets,
      settings.data.dataset,
    )
  provenance = backbone.provenance
  return models.FixedFeatures(
    model=backbone.model,
    identity={**provenance, 'image_shape': list(image_shape)},
    provenance=provenance,
    trained_part=fixed_features.linear,
  )


def check_initial_model(
  initial: models.InitialModel, features: models.FixedFeatures | None
) -> None:
  """Refuses an initial model that takes other features.

  Raises:
    InputError: The initial model was trained behind another backbone.
  """
  before = initial.card.get('backbone')
  now = dict(features.provenance) if features is not None else None
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
  # A card may append to the name that the file is not the official one.
  if any(f'{name} '.startswith(f'{dataset} ') for name in trained_on):
    raise _validate.InputError(
      f'{model} was trained on {dataset} as well, so the ε '
      'of this run alone would not hold; start from a model of other data, go '
      'on in the output_dir of that run, or give up privacy with clipping=none'
    )
