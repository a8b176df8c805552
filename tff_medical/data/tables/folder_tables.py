"""Tables of images from the folders that they lie in.

`levels` gives the meaning of each folder between `data_dir` and the files, e.g.
`site/class` for DIR/north/ill/1.png: `class`, `site`, `split`, `patient`, or `*`
for a folder without a meaning. Without it DIR/class/FILE and DIR/split/class/FILE are
recognized (where every first folder is called like a split); anything deeper is
asked about, since class/patient and site/class look alike.

Patients come from a folder or from the headers of DICOM files, which are read
without their pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib

from tff_medical import _validate
from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import dicom_files
from tff_medical.data.tables import image_paths
from tff_medical.data.tables import image_table

_LEVELS = ('class', 'site', 'split', 'patient', '*')
# Suffixes of files that are no images; any other file is decoded.
_NO_IMAGES = (
  '.txt', '.md', '.csv', '.tsv', '.json', '.xml', '.xls', '.xlsx', '.ods',
  '.pdf', '.docx', '.html', '.htm', '.log', '.ini', '.yaml', '.yml', '.py',
  '.db', '.lnk', '.url', '.parquet', '.zip', '.tar', '.tgz', '.7z', '.rar',
)  # fmt: skip


def parse_levels(text: str) -> tuple[str, ...]:
  """Returns the levels that a text such as `site/class` names.

  Raises:
    InputError: A level is unknown, or `class` is missing or named twice.
  """
  levels = tuple(part.strip() for part in text.split('/'))
  for level in levels:
    _validate.one_of(_LEVELS, folder_levels=level)
    if level != '*' and levels.count(level) > 1:
      raise _validate.InputError(
        f'folder_levels must name {level} once, got {text!r}'
      )
  if 'class' not in levels:
    raise _validate.InputError(
      f'folder_levels must say which folder is the class, got {text!r}; write it '
      'as site/class'
    )
  return levels


def read(
  root: pathlib.Path,
  *,
  levels: str | None = None,
  dicom_patients: bool = False,
  missing_patients: str = 'refuse',
  may_be_wrapped: bool = False,
) -> image_table.ImageTable:
  """Returns the table of a folder.

  Args:
    root: Folder of the images.
    levels: Meaning of the folders in it; None for class folders alone, which may
      lie in folders of splits.
    dicom_patients: Whether DICOM headers distinguish patients.
    missing_patients: Treatment of images without a patient; see
      `image_table.build`.
    may_be_wrapped: Whether one more folder may surround all others, as it often
      does in archives.

  Raises:
    InputError: The folder cannot be understood.
  """
  files = image_paths.scan(root)
  if may_be_wrapped and (wrapping := _wrapping(files.paths, levels)):
    root = root / wrapping
    files = dataclasses.replace(image_paths.scan(root), ignored=files.ignored)
  if files.linked_folders:
    raise _validate.InputError(
      f'data_dir holds {len(files.linked_folders)} links to folders, which are not '
      f'followed, the first is {files.linked_folders[0]!r}; put the folders '
      'themselves there'
    )
  skipped = [p for p in files.paths if p.lower().endswith(_NO_IMAGES)]
  paths = [p for p in files.paths if not p.lower().endswith(_NO_IMAGES)]
  if not paths:
    raise _validate.InputError(
      f'data_dir {str(root)!r} holds no image; give the folder whose folders are '
      'the classes'
    )
  named = parse_levels(levels) if levels else _recognized(root, paths)
  if dicom_patients and 'patient' in named:
    raise _validate.InputError(
      f'dicom_patients would be ignored with folder_levels={levels}, where a '
      'folder is the patient; leave one of them out'
    )
  _check_depth(paths, named)
  for path in paths:
    _check_link(files, path)
  patients = _dicom_patients(root, paths) if dicom_patients else None
  rows = [
    _row(path, named, patients[i] if patients else None)
    for i, path in enumerate(paths)
  ]
  empty = [folder for folder in files.empty_folders if _is_class(folder, named)]
  return image_table.build(
    root,
    rows,
    missing_patients=missing_patients,
    ignored=files.ignored + len(skipped),
    notes=[f'The class folder {folder!r} holds no image.' for folder in empty],
  )


def _wrapping(paths: Sequence[str], levels: str | None) -> str:
  """Returns the one folder that is around all others and means nothing.

  It is '' where there is none, or where it stands for something.
  """
  parts = [p.split('/') for p in paths if not p.lower().endswith(_NO_IMAGES)]
  tops = {part[0] for part in parts if len(part) > 1}
  depths = {len(part) - 1 for part in parts}
  if len(tops) != 1 or len(depths) != 1:
    return ''
  (top,), (depth,) = tops, depths
  if levels is not None:
    is_wrapped = depth == len(parse_levels(levels)) + 1
  elif depth == 2:
    is_wrapped = top.casefold() not in image_table.SPLIT_WORDS
  else:
    is_wrapped = depth == 3 and {p[1].casefold() for p in parts} <= set(
      image_table.SPLIT_WORDS
    )
  return top if is_wrapped else ''


def _recognized(root: pathlib.Path, paths: Sequence[str]) -> tuple[str, ...]:
  """Returns the levels of folders that leave no doubt."""
  depths = {path.count('/') for path in paths}
  tops = {path.split('/')[0].casefold() for path in paths if '/' in path}
  are_splits = tops <= set(image_table.SPLIT_WORDS)
  if depths == {1} and not are_splits:
    return ('class',)
  if depths == {2} and are_splits:
    return ('split', 'class')
  if 0 in depths:
    loose = sorted(path for path in paths if '/' not in path)
    raise _validate.InputError(
      f'{len(loose)} files lie right in data_dir {str(root)!r}, in no class '
      f'folder, the first is {loose[0]!r}; move them into the folders of their '
      'classes'
    )
  deepest = max(depths)
  guess = '/'.join(['split'] * are_splits + ['class', '*', '*', '*'])
  raise _validate.InputError(
    f'data_dir {str(root)!r} holds files {deepest} folders deep; say what the '
    'folders stand for with --folder_levels, as site/class, class/patient or '
    f'{"/".join(guess.split("/")[:deepest])}'
  )


def _check_depth(paths: Sequence[str], levels: tuple[str, ...]) -> None:
  wrong = [path for path in paths if path.count('/') != len(levels)]
  if not wrong:
    return
  shown = wrong[0]
  if 'patient' in levels:  # A folder may be called like a patient.
    shown = '/'.join('*' * len(wrong[0].split('/')))
  raise _validate.InputError(
    f'{len(wrong)} of {len(paths)} files do not lie {len(levels)} folders deep, '
    f'as folder_levels={"/".join(levels)} says, the first is {shown!r}; move '
    'them, or name every level (* for one that means nothing)'
  )


def _check_link(files: image_paths.ImageFiles, path: str) -> None:
  try:
    files.check_inside(path)
  except image_paths.Outside as error:
    raise _validate.InputError(
      f'{path!r} {error}; copy the file into the folder'
    ) from None


def _row(
  path: str, levels: tuple[str, ...], patient: str | None
) -> image_table.Row:
  parts = path.split('/')
  value = dict(zip(levels, parts))
  split = None
  if 'split' in value:
    split = image_table.split_of(value['split'], f'folder {value["split"]!r}')
  # Blanks around the name of a folder are kept for the check of like names.
  return image_table.Row(
    where=repr(path) if 'patient' not in levels else 'a file',
    path=path,
    labels=(_class_name(value['class']),),
    site=image_paths.normal(value['site']) if 'site' in value else None,
    patient=image_paths.normal(value['patient'])
    if 'patient' in value
    else patient,
    split=split,
  )


def _class_name(folder: str) -> str:
  return image_paths.normal(folder) + ' ' * (folder != folder.strip())


def _is_class(folder: str, levels: tuple[str, ...]) -> bool:
  """Returns whether an empty folder would be the one of a class."""
  return folder.count('/') == levels.index('class')


def _dicom_patients(root: pathlib.Path, paths: Sequence[str]) -> list[str]:
  patients = []
  for path in paths:
    try:
      patients.append(dicom_files.patient_id(str(root / path)))
    except decoded.BadFile as error:
      raise _validate.InputError(
        f'{path!r} {error}, so that dicom_patients finds no patient in it; move '
        'it away, or leave dicom_patients out'
      ) from None
  return patients
