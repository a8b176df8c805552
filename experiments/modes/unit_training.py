"""Base class of modes that clip the gradient of each record or patient."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Optional

from absl import logging

from experiments.config import fields
from experiments.modes import base
import tff_medical as tfm
from tff_medical import InputError

# Largest number of images in memory during a step.
MAX_IMAGES_AT_ONCE = 1_000_000


@dataclasses.dataclass(frozen=True)
class UnitTraining(base.Mode, abc.ABC):
  """The privacy unit is a record (one image) or a patient (several images)."""

  units: ClassVar[tuple[str, ...]] = ('record', 'patient')
  default_clients: ClassVar[int] = 8

  server_learning_rate: float = fields.redefine(
    base.Mode, 'server_learning_rate', 0.5
  )
  unit_sampling: str = fields.setting(
    'poisson',
    'sampling of records or patients. poisson: each one joins each step '
    'independently; all: all of them join every step',
    choices=('poisson', 'all'),
  )
  expected_batch_size: Optional[float] = fields.setting(
    None,
    'expected records or patients in a step, over all clients [a twentieth of '
    'the population]; the population itself is unit_sampling=all',
    only_if={'unit_sampling': ('poisson',)},
    low=1e-3,
    high=1e6,
  )
  augmentations: int = fields.setting(
    0,
    'random views of each image whose gradients are averaged before clipping, '
    'shifted unless --augment says otherwise; 0 is the image itself',
    low=0,
    high=1_000,
  )
  max_images_per_patient: int = fields.setting(
    4,
    'largest number of images used per patient; further images are left out',
    only_if={'privacy_unit': ('patient',)},
    low=1,
    high=10_000,
  )
  microbatch_size: Optional[int] = fields.setting(
    None,
    'records or patients whose gradients are in memory at once [by the size of '
    'the model, at most 256]',
    may_change=True,
    low=1,
    high=65_536,
  )

  @property
  def augments(self) -> str:
    """The setting that transforms training images, or ''."""
    return f'augmentations={self.augmentations}' if self.augmentations else ''

  def check(self) -> None:
    """Raises `InputError` unless the settings fit together."""
    super().check()
    if self.augment is not None and not self.augmentations:
      raise InputError(
        f'augment={self.augment} would be ignored with augmentations=0; give the '
        'number of views of each image as --augmentations'
      )
    per_patient = self.privacy_unit == 'patient'
    fields.check_product(
      MAX_IMAGES_AT_ONCE,
      'images in memory at once',
      {
        'microbatch_size': self.microbatch_size,
        'max_images_per_patient': per_patient and self.max_images_per_patient,
        'augmentations': self.augmentations,
      },
    )

  def units_at_once(self, task: tfm.learning.tasks.Task, images: int) -> int:
    """Returns the number of units whose gradients are in memory at once.

    Args:
      task: Task, whose model decides the default.
      images: Largest number of images of a unit.
    """
    views = images * max(1, self.augmentations)
    return self.microbatch_size or tfm.learning.unit_gradients.microbatch_size(
      task.tff_model, views
    )

  def for_data(
    self: base.ModeT, num_clients: int, num_units: int
  ) -> base.ModeT:
    """Returns the mode with its expected batch; see the base class."""
    mode: Any = super().for_data(num_clients, num_units)
    if mode.unit_sampling == 'all':
      return mode
    mode = mode.with_default(expected_batch_size=num_units / 20)
    if mode.expected_batch_size > num_units:
      raise InputError(
        f'expected_batch_size must be at most the {num_units} '
        f'{mode.privacy_unit}s, got {mode.expected_batch_size:g}; lower it or '
        'choose unit_sampling=all'
      )
    if mode.expected_batch_size == num_units:
      return dataclasses.replace(
        mode, unit_sampling='all', expected_batch_size=None
      )
    return mode

  def units_of(self, task: tfm.learning.tasks.Task) -> tfm.data.units.Units:
    """Returns the units of the training data."""
    units_lib = tfm.data.units
    if self.privacy_unit == 'record':
      return units_lib.record_units(task.partition)
    units = units_lib.patient_units(
      task.data.train, task.partition, max_images=self.max_images_per_patient
    )
    if units.left_out:
      logging.warning(
        '%d of %d training images are left out: max_images_per_patient is %d',
        units.left_out,
        len(task.data.train),
        self.max_images_per_patient,
      )
    return units

  def augmentation(self) -> tfm.learning.Augmentation | None:
    """Returns the views of an image; None without augmentation."""
    if not self.augmentations:
      return None
    return tfm.learning.Augmentation(
      self.augment_names or ('shift',), views=self.augmentations
    )

  def with_canaries(
    self: base.ModeT, scale: float, present: float
  ) -> base.ModeT:
    """Returns the mode with the same sampling rate for more units."""
    del present
    mode: Any = self
    if mode.unit_sampling == 'all':
      return self
    return dataclasses.replace(
      mode, expected_batch_size=base.known(mode.expected_batch_size) * scale
    )
