"""Settings of sets that are open by name: `tfds:NAME` and `npz:FILE`."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Optional

from experiments.config import fields
from experiments.config import own_image_settings
from tff_medical.data import catalogue
from tff_medical.data import loading
from tff_medical.data import npz_files

_CATALOGUE = {'dataset': (loading.family(catalogue.PREFIX),)}
_NPZ = {'dataset': (loading.family(npz_files.PREFIX),)}


@dataclasses.dataclass(frozen=True)
class OpenSetSettings:
  """Features of image, label and patient, and names of classes."""

  image_key: Optional[str] = fields.setting(
    None, 'feature of the image [the only one]', only_if=_CATALOGUE
  )
  label_key: Optional[str] = fields.setting(
    None,
    'feature of the class or the findings [the only one]',
    only_if=_CATALOGUE,
  )
  patient_key: Optional[str] = fields.setting(
    None,
    'feature that distinguishes patients [patient_id or the like]',
    only_if=_CATALOGUE,
  )
  class_names: Optional[str] = fields.setting(
    None,
    'names of the classes 0, 1, ..., separated by commas [their numbers]',
    only_if=_NPZ,
  )

  def keys(self) -> catalogue.Keys:
    """Returns the features in the form of the library."""
    return catalogue.Keys(self.image_key, self.label_key, self.patient_key)

  def names(self) -> tuple[str, ...]:
    """Returns the names of the classes, () for their numbers."""
    if self.class_names is None:
      return ()
    return own_image_settings.names(self.class_names)


def located(given: dict[str, Any]) -> dict[str, Any]:
  """Returns flags with the folder of npz:FOLDER/FILE as the `data_dir`.

  A data set's name is published, and its folder is not.
  """
  dataset = given.get('dataset')
  if not isinstance(dataset, str) or not dataset.startswith(npz_files.PREFIX):
    return given
  folder, name = os.path.split(dataset[len(npz_files.PREFIX) :])
  if not folder or not name:
    return given
  data_dir = os.path.join(given.get('data_dir') or '', folder)
  return {
    **given,
    'dataset': f'{npz_files.PREFIX}{name}',
    'data_dir': data_dir,
  }
