"""Settings of own images: flags of `--dataset=folder` and `--dataset=table`.

They are a separate group, as named data sets have no use for them.
`OwnImageSettings.options` returns them in the form of the library.
"""

from __future__ import annotations

import csv
import dataclasses
from typing import Optional

from experiments.config import fields
from tff_medical import _validate
from tff_medical.data import own_images
from tff_medical.data.decoders import decoded
from tff_medical.data.tables import file_tables
from tff_medical.data.tables import image_table
from tff_medical.data.tables import label_cells

_OWN = {'dataset': own_images.NAMES}
_FOLDER = {'dataset': (own_images.FOLDER,)}
_TABLE = {'dataset': (own_images.TABLE,)}


@dataclasses.dataclass(frozen=True)
class OwnImageSettings:
  """Places of labels, patients and sites, and choices for decoding."""

  dataset_name: Optional[str] = fields.setting(
    None,
    'name of the images in the published card and report; a model of one named '
    'set may be the --initial_model for another one [none]',
    only_if=_OWN,
  )
  folder_levels: Optional[str] = fields.setting(
    None,
    'meaning of the folder levels, e.g. site/class or class/patient/* '
    '[class, or split/class]',
    only_if=_FOLDER,
  )
  file_column: str = fields.setting(
    'file', "column of the image's path or name", only_if=_TABLE
  )
  label_columns: str = fields.setting(
    'label',
    'column of the class, or several columns of 0 and 1, separated by commas',
    only_if=_TABLE,
  )
  one_hot: bool = fields.setting(
    False,
    'whether several label columns are classes, exactly one of them in a row',
    only_if=_TABLE,
  )
  label_separator: Optional[str] = fields.setting(
    None, 'text between several findings in a cell, e.g. |', only_if=_TABLE
  )
  no_finding: Optional[str] = fields.setting(
    None, 'word for no finding, with --label_separator', only_if=_TABLE
  )
  uncertain: Optional[str] = fields.setting(
    None,
    'value that an uncertain label (-1) counts as: '
    f'{", ".join(label_cells.CHOICES)} [required if there are any]',
    only_if=_TABLE,
  )
  blank: Optional[str] = fields.setting(
    None,
    'value that a blank label counts as: '
    f'{", ".join(label_cells.CHOICES)} [required if there are any]',
    only_if=_TABLE,
  )
  patient_column: Optional[str] = fields.setting(
    None, 'column that distinguishes the patients of a site', only_if=_TABLE
  )
  site_column: Optional[str] = fields.setting(
    None, 'column of the site', only_if=_TABLE
  )
  split_column: Optional[str] = fields.setting(
    None,
    'column of train, validation or test [split by patient, else by groups of '
    'near copies, else by image]',
    only_if=_TABLE,
  )
  image_dir: Optional[str] = fields.setting(
    None,
    'folder or archive of the images [the folder of the table]',
    only_if=_TABLE,
    may_change=True,
    is_path=True,
  )
  missing_files: str = fields.setting(
    'refuse',
    'treatment of rows whose file is missing',
    choices=file_tables.MISSING_FILES,
    only_if=_TABLE,
  )
  dicom_patients: bool = fields.setting(
    False,
    'whether the PatientID of DICOM headers distinguishes patients',
    only_if=_OWN,
  )
  missing_patients: str = fields.setting(
    'refuse',
    'treatment of images without a patient; own: each is a separate patient',
    choices=image_table.MISSING_PATIENTS,
    only_if=_OWN,
  )
  channels: Optional[int] = fields.setting(
    None,
    'number of channels: 1 (grey) or 3 (RGB) [3 if any image is in colour]',
    only_if=_OWN,
    low=1,
    high=3,
  )
  frames: Optional[str] = fields.setting(
    None,
    'frames or pages of a file that are images: first, middle, all or a number '
    'from 0 [required if there are several]',
    only_if=_OWN,
  )
  slice_axis: Optional[str] = fields.setting(
    None,
    'axis along which NIfTI volumes are sliced [required for NIfTI]',
    choices=decoded.SLICE_AXES,
    only_if=_OWN,
  )
  slices: str = fields.setting(
    'all', 'slices that are images, with the values of --frames', only_if=_OWN
  )
  volume: Optional[int] = fields.setting(
    None,
    'number, from 0, of the volume of a NIfTI series [required for a series]',
    only_if=_OWN,
    low=0,
    high=1_000_000,
  )
  dicom_values: str = fields.setting(
    'display',
    'values of DICOM images: as displayed, as stored, or rescaled',
    choices=decoded.DICOM_VALUES,
    only_if=_OWN,
  )
  value_range: Optional[str] = fields.setting(
    None,
    'values that become black and white, e.g. -160,240; for floating-point '
    'TIFF, NIfTI and --dicom_values=hu',
    only_if=_OWN,
  )
  reduced_decoding: bool = fields.setting(
    False,
    'whether a JPEG of 4 times --image_size or more is decoded at 1/2, 1/4 or '
    '1/8 of its size, 3 to 10 times as fast, which changes values slightly',
    only_if=_OWN,
  )
  prepared_dir: Optional[str] = fields.setting(
    None,
    'folder of prepared images, which needs the same protection as the images '
    '[in ~/.cache]',
    only_if=_OWN,
    may_change=True,
    is_path=True,
  )
  max_bad_fraction: float = fields.setting(
    0.0,
    'largest allowed fraction of unusable files',
    only_if=_OWN,
    low=1e-9,
    high=1.0,
    or_zero=True,
  )
  decode_workers: Optional[int] = fields.setting(
    None,
    'number of processes that decode [one for each core]',
    only_if=_OWN,
    may_change=True,
    low=1,
    high=256,
  )
  file_seconds: float = fields.setting(
    60.0,
    'largest allowed seconds for decoding a file',
    only_if=_OWN,
    may_change=True,
    low=0.1,
    high=86_400.0,
  )

  def __post_init__(self) -> None:
    self.options()  # The library checks that the values fit together.

  def options(self) -> own_images.OwnImages:
    """Returns the choices in the form of the library."""
    return own_images.OwnImages(
      dataset_name=self.dataset_name,
      decoding=decoded.DecodingPolicy(
        frames=self.frames,
        slice_axis=self.slice_axis,
        slices=self.slices,
        volume=self.volume,
        dicom_values=self.dicom_values,
        value_range=_range(self.value_range),
        reduced_decoding=self.reduced_decoding,
      ),
      folder_levels=self.folder_levels,
      columns=file_tables.Columns(
        self.file_column,
        self.patient_column,
        self.site_column,
        self.split_column,
      ),
      labels=label_cells.LabelForm(
        columns=names(self.label_columns),
        one_hot=self.one_hot,
        separator=self.label_separator,
        no_finding=self.no_finding,
        uncertain=self.uncertain,
        blank=self.blank,
      ),
      image_dir=self.image_dir,
      dicom_patients=self.dicom_patients,
      missing_files=self.missing_files,
      missing_patients=self.missing_patients,
      channels=self.channels,
      prepared_dir=self.prepared_dir,
      max_bad_fraction=self.max_bad_fraction,
      workers=self.decode_workers,
      file_seconds=self.file_seconds,
    )


def names(text: str) -> tuple[str, ...]:
  """Returns comma-separated names; a quoted name may hold a comma."""
  return tuple(name.strip() for name in next(csv.reader([text])))


def _range(text: str | None) -> tuple[float, float] | None:
  if text is None:
    return None
  try:
    low, high = (float(part) for part in text.split(','))
  except ValueError:
    raise _validate.InputError(
      f'value_range must be LOW,HIGH, e.g. -160,240, got {text!r}'
    ) from None
  return low, high
