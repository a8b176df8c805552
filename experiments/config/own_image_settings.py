"""The settings of own images: flags of `--dataset=folder` and `--dataset=table`.

They are a group of their own, as data sets with a name have no use for them.
`OwnImageSettings.options` gives them to the library.
"""

from __future__ import annotations

import csv
import dataclasses
from typing import Optional

from experiments.config import fields
from tff_medical import _validate
from tff_medical.data import decoded
from tff_medical.data import file_tables
from tff_medical.data import image_table
from tff_medical.data import label_cells
from tff_medical.data import own_images

_OWN = {'dataset': own_images.NAMES}
_FOLDER = {'dataset': (own_images.FOLDER,)}
_TABLE = {'dataset': (own_images.TABLE,)}


@dataclasses.dataclass(frozen=True)
class OwnImageSettings:
  """Where labels, patients and sites stand, and how files are decoded."""

  folder_levels: Optional[str] = fields.setting(
    None,
    'what the folders stand for, as site/class or class/patient/* '
    '[class, or split/class]',
    only_if=_FOLDER,
  )
  file_column: str = fields.setting(
    'file', 'column of the path or name of the image', only_if=_TABLE
  )
  label_columns: str = fields.setting(
    'label',
    'column of the class, or several columns of 0 and 1 with commas',
    only_if=_TABLE,
  )
  one_hot: bool = fields.setting(
    False,
    'several label columns are classes, exactly one a row',
    only_if=_TABLE,
  )
  label_separator: Optional[str] = fields.setting(
    None, 'text between several findings in a cell, as |', only_if=_TABLE
  )
  no_finding: Optional[str] = fields.setting(
    None, 'word for no finding, with --label_separator', only_if=_TABLE
  )
  uncertain: Optional[str] = fields.setting(
    None,
    'what an uncertain label (-1) counts as: '
    f'{", ".join(label_cells.CHOICES)} [asked for]',
    only_if=_TABLE,
  )
  blank: Optional[str] = fields.setting(
    None,
    'what a blank label counts as: '
    f'{", ".join(label_cells.CHOICES)} [asked for]',
    only_if=_TABLE,
  )
  patient_column: Optional[str] = fields.setting(
    None, 'column that tells the patients of a site apart', only_if=_TABLE
  )
  site_column: Optional[str] = fields.setting(
    None, 'column of the site', only_if=_TABLE
  )
  split_column: Optional[str] = fields.setting(
    None,
    'column of train, validation or test [made by patient, or else by image]',
    only_if=_TABLE,
  )
  image_dir: Optional[str] = fields.setting(
    None,
    'folder of the images [that of the table]',
    only_if=_TABLE,
    may_change=True,
    is_path=True,
  )
  missing_files: str = fields.setting(
    'refuse',
    'rows whose file is not there',
    choices=file_tables.MISSING_FILES,
    only_if=_TABLE,
  )
  dicom_patients: bool = fields.setting(
    False, 'PatientID of DICOM headers tells patients apart', only_if=_OWN
  )
  missing_patients: str = fields.setting(
    'refuse',
    'images without a patient; own: each is a patient of its own',
    choices=image_table.MISSING_PATIENTS,
    only_if=_OWN,
  )
  channels: Optional[int] = fields.setting(
    None, '1 (grey) or 3 (RGB) [3 if any image is in colour]', only_if=_OWN,
    low=1, high=3,
  )  # fmt: skip
  frames: Optional[str] = fields.setting(
    None,
    'frames or pages of a file that are images: first, middle, all or a number '
    'from 0 [asked for]',
    only_if=_OWN,
  )
  slice_axis: Optional[str] = fields.setting(
    None,
    'axis along which NIfTI volumes are cut [asked for]',
    choices=decoded.SLICE_AXES,
    only_if=_OWN,
  )
  slices: str = fields.setting(
    'all', 'slices that are images, as for --frames', only_if=_OWN
  )
  volume: Optional[int] = fields.setting(
    None,
    'number, from 0, of the volume of a NIfTI series [asked for]',
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
    'values that are black and white, as -160,240: for floating-point TIFF, '
    'NIfTI and --dicom_values=hu',
    only_if=_OWN,
  )
  prepared_dir: Optional[str] = fields.setting(
    None,
    'folder of prepared images, as private as they are [in ~/.cache]',
    only_if=_OWN,
    may_change=True,
    is_path=True,
  )
  max_bad_fraction: float = fields.setting(
    0.0,
    'share of the files that may be unusable',
    only_if=_OWN,
    low=1e-9,
    high=1.0,
    or_zero=True,
  )
  decode_workers: Optional[int] = fields.setting(
    None,
    'processes that decode [one for each core]',
    only_if=_OWN,
    may_change=True,
    low=1,
    high=256,
  )
  file_seconds: float = fields.setting(
    60.0,
    'seconds that decoding a file may take',
    only_if=_OWN,
    may_change=True,
    low=0.1,
    high=86_400.0,
  )

  def __post_init__(self) -> None:
    self.options()  # Checks the values that belong together.

  def options(self) -> own_images.OwnImages:
    """Returns the choices as the library takes them."""
    return own_images.OwnImages(
      decoding=decoded.DecodingPolicy(
        frames=self.frames,
        slice_axis=self.slice_axis,
        slices=self.slices,
        volume=self.volume,
        dicom_values=self.dicom_values,
        value_range=_range(self.value_range),
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
  """Returns names with commas between them; quotes hold a name with a comma."""
  return tuple(name.strip() for name in next(csv.reader([text])))


def _range(text: str | None) -> tuple[float, float] | None:
  if text is None:
    return None
  try:
    low, high = (float(part) for part in text.split(','))
  except ValueError:
    raise _validate.InputError(
      f'value_range must be LOW,HIGH as -160,240, got {text!r}'
    ) from None
  return low, high
