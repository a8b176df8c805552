"""Tables of images from CSV, TSV and Parquet files.

Text files are read as people save them: UTF-8 with or without byte-order mark,
UTF-16 or Windows-1252; separated by comma, semicolon, tab or bar; with Excel's
`sep=` line. Cells stay text: 007 and 7 are two patients. Rows are named as a
spreadsheet numbers them, the header being row 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import csv
import dataclasses
import io
import math
import pathlib

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import dicom_files
from tff_medical.data.tables import image_paths
from tff_medical.data.tables import image_table
from tff_medical.data.tables import label_cells

MISSING_FILES = ('refuse', 'leave_out')
_DELIMITERS = (',', ';', '\t', '|')
_MAX_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of the columns that are read.

  Attributes:
    file: Path or name of the image.
    patient: Text that distinguishes the patients of a site, or None.
    site: Site of the image, or None.
    split: Split of the image, or None.
  """

  file: str = 'file'
  patient: str | None = None
  site: str | None = None
  split: str | None = None

  def named(self) -> dict[str, str]:
    """Returns the columns that are named, by the name of their flag."""
    values = dataclasses.asdict(self)
    return {f'{name}_column': v for name, v in values.items() if v is not None}


def read(
  path: pathlib.Path,
  columns: Columns,
  form: label_cells.LabelForm,
  *,
  image_dir: pathlib.Path | None = None,
  dicom_patients: bool = False,
  missing_files: str = 'refuse',
  missing_patients: str = 'refuse',
) -> image_table.ImageTable:
  """Returns the table that a file holds.

  Args:
    path: File of the table.
    columns: Names of its columns.
    form: Form of its labels.
    image_dir: Folder of the images; None for the folder of the table.
    dicom_patients: Whether DICOM headers distinguish patients.
    missing_files: Treatment of rows whose image is missing: `refuse` or
      `leave_out`.
    missing_patients: Treatment of rows without a patient; see
      `image_table.build`.

  Raises:
    InputError: The file cannot be read, or rows of it cannot be used.
  """
  _validate.one_of(MISSING_FILES, missing_files=missing_files)
  if dicom_patients and columns.patient is not None:
    raise _validate.InputError(
      f'dicom_patients would be ignored with patient_column={columns.patient}; '
      'leave one of them out'
    )
  lines = _read_lines(path, columns.named(), form)
  files = image_paths.scan(image_dir or path.parent)
  paths, notes = _found_files(lines, columns.file, files, path, missing_files)
  kept = [
    (where, cells, image)
    for (where, cells), image in zip(lines, paths)
    if image is not None
  ]
  labels = label_cells.read(form, [(where, cells) for where, cells, _ in kept])
  left_out = sum(label is None for label in labels)
  if left_out:
    notes.append(f'{left_out} rows were left out for their labels.')
  rows = []
  for (where, cells, image), label in zip(kept, labels):
    if label is None:
      continue
    rows.append(
      image_table.Row(
        where=where,
        path=image,
        labels=label.present,
        unknown=label.unknown,
        site=_cell(cells, columns.site),
        patient=_patient(
          files.root, image, where, cells, columns.patient, dicom_patients
        ),
        split=_split(where, cells, columns.split),
      )
    )
  table = image_table.build(
    files.root,
    rows,
    multi_label=form.multi_label,
    class_names=form.class_names,
    missing_patients=missing_patients,
    ignored=files.ignored,
    notes=notes,
  )
  return dataclasses.replace(table, num_rows=len(lines))


def check_columns(
  path: pathlib.Path, columns: Columns, form: label_cells.LabelForm
) -> None:
  """Raises `InputError` for a file that cannot be read or lacks a column."""
  _read_lines(path, columns.named(), form)


def _read_lines(
  path: pathlib.Path,
  named: dict[str, str],
  form: label_cells.LabelForm,
) -> list[tuple[str, dict[str, str]]]:
  """Returns the name of each row and its cells by column."""
  if image_paths.is_archive(path):
    raise _validate.InputError(
      f'data_dir {str(path)!r} is an archive; unpack the table first and give '
      'it, and the archive as --image_dir if it holds the images'
    )
  if path.suffix.lower() in ('.xls', '.xlsx', '.xlsm', '.ods', '.numbers'):
    raise _validate.InputError(
      f'data_dir {str(path)!r} is a spreadsheet; save its sheet as CSV'
    )
  try:
    content = _files.read_bytes(path, _MAX_BYTES)
  except FileNotFoundError:
    raise _validate.InputError(
      f'data_dir must be a CSV, TSV or Parquet file with dataset=table, got '
      f'{str(path)!r}, which is not there'
    ) from None
  column_of_flag = {
    f'{flag}={column}': column for flag, column in named.items()
  }
  for column in form.columns:
    column_of_flag[f'label_columns={column}'] = column
  if content.startswith(b'PAR1'):
    header, rows = _parquet(content, path)
  else:
    header, rows = _text(content, path, list(column_of_flag.values()))
  index = {}
  for flag, column in column_of_flag.items():
    index[column] = _column(header, column, flag, path)
  if not rows:
    raise _validate.InputError(f'{path} holds a header and no row')
  lines = []
  for number, cells in rows:
    if len(cells) != len(header):
      raise _validate.InputError(
        f'{path} row {number} has {len(cells)} cells but the header '
        f'{len(header)}; put quotes around cells that hold the separator'
      )
    lines.append((f'row {number}', {c: cells[i] for c, i in index.items()}))
  return lines


def _column(
  header: Sequence[str], column: str, flag: str, path: pathlib.Path
) -> int:
  """Returns the index of a column, regardless of case and outer blanks."""
  folds: tuple[Callable[[str], str], ...] = (str, str.casefold)
  for fold in folds:
    folded = fold(image_paths.normal(column))
    places = [i for i, name in enumerate(header) if fold(name) == folded]
    if len(places) == 1:
      return places[0]
    if len(places) > 1:
      raise _validate.InputError(
        f'{path} has {len(places)} columns called {column!r}; give them names '
        'that differ'
      )
  shown = ', '.join(map(repr, header[:30]))
  raise _validate.InputError(
    f'{flag} is no column of {path}, which has {shown}; name one of them'
  )


def _text(
  content: bytes, path: pathlib.Path, columns: Sequence[str]
) -> tuple[list[str], list[tuple[int, list[str]]]]:
  text = _decoded(content, path)
  first = text.partition('\n')[0].strip().strip('"')
  skipped = 0
  delimiters: Sequence[str] = _DELIMITERS
  if first.lower().startswith('sep=') and len(first) == 5:
    delimiters, skipped = (first[4],), 1
    text = text.partition('\n')[2]
  best: tuple[int, int] = (-1, -1)
  delimiter = delimiters[0]
  for candidate in delimiters:
    header = _header(text, candidate)
    folded = {name.casefold() for name in header}
    score = sum(image_paths.normal(c).casefold() in folded for c in columns)
    if (score, len(header)) > best:
      best, delimiter = (score, len(header)), candidate
  reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter)
  try:
    header = [image_paths.normal(name) for name in next(reader, [])]
    while header and not header[-1]:  # A separator ends each line.
      header.pop()
    rows = []
    number = skipped + 1
    for cells in reader:
      number += 1
      if not any(cell.strip() for cell in cells):
        continue
      while len(cells) > len(header) and not cells[-1].strip():
        cells.pop()
      rows.append((number, cells))
  except csv.Error as error:
    raise _validate.InputError(f'{path} cannot be read: {error}') from None
  if not header:
    raise _validate.InputError(f'{path} is empty; give a table with a header')
  return header, rows


def _header(text: str, delimiter: str) -> list[str]:
  try:
    first = next(csv.reader(io.StringIO(text, newline=''), delimiter=delimiter))
  except (StopIteration, csv.Error):
    return []
  return [image_paths.normal(name) for name in first]


def _decoded(content: bytes, path: pathlib.Path) -> str:
  """Returns the text of a file in one of the usual encodings."""
  if content.startswith((b'\xff\xfe', b'\xfe\xff')):
    encodings = ['utf-16']
  elif content[1:2] == b'\0':
    encodings = ['utf-16-le']
  elif content[:1] == b'\0':
    encodings = ['utf-16-be']
  else:
    encodings = ['utf-8-sig', 'cp1252']
  for encoding in encodings:
    try:
      text = content.decode(encoding)
    except UnicodeDecodeError:
      continue
    if '\0' not in text:
      return text
  raise _validate.InputError(
    f'{path} is no text of a known encoding; save it as CSV in UTF-8, or as '
    'Parquet'
  )


def _parquet(
  content: bytes, path: pathlib.Path
) -> tuple[list[str], list[tuple[int, list[str]]]]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ModuleNotFoundError:
    raise _validate.InputError(
      f'{path} is a Parquet file, which needs the package pyarrow; install '
      'requirements.txt'
    ) from None
  try:
    table = parquet.read_table(pyarrow.BufferReader(content))
  except (pyarrow.ArrowException, OSError) as error:
    raise _validate.InputError(
      f'{path} cannot be read as Parquet: {" ".join(str(error).split())}'
    ) from None
  columns = [
    [_plain(value) for value in column.to_pylist()] for column in table.columns
  ]
  rows = [(i + 2, list(cells)) for i, cells in enumerate(zip(*columns))]
  return [image_paths.normal(name) for name in table.column_names], rows


def _plain(value: object) -> str:
  """Returns a value of Parquet as a cell; whole numbers have no decimals."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return ''
  if isinstance(value, bool):
    return str(int(value))
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  if isinstance(value, bytes):
    return value.decode('utf-8', 'replace')
  return str(value)


def _found_files(
  lines: Sequence[tuple[str, dict[str, str]]],
  column: str,
  files: image_paths.ImageFiles,
  table: pathlib.Path,
  missing_files: str,
) -> tuple[list[str | None], list[str]]:
  """Returns the file of each row, or None where one is left out."""
  paths: list[str | None] = []
  missing: list[str] = []
  by_text: dict[str, str | None] = {}
  texts: dict[str, tuple[str, str]] = {}
  reason = ''
  table_folder = table.parent
  for where, cells in lines:
    text = cells[column]
    if text not in by_text:
      try:
        by_text[text] = files.find(text, table_folder)
      except image_paths.Outside as error:
        raise _validate.InputError(
          f'{where}: {column} {text!r} {error}; a table may name files of that '
          'folder alone: copy the file there, or give the folder as --image_dir'
        ) from None
      except image_paths.NoFile as error:
        by_text[text] = None
        reason = reason or f'{where}: {column} {text!r} {error}'
    path = by_text[text]
    if path is None:
      missing.append(where)
    else:
      _check_same_text(texts, path, where, text, column)
    paths.append(path)
  if missing and (missing_files == 'refuse' or len(missing) == len(lines)):
    raise _validate.InputError(
      f'{len(missing)} of {len(lines)} rows name a file that is not there, the '
      f'first is {reason}; give the folder of the images as --image_dir, or '
      'choose --missing_files=leave_out'
    )
  notes = [f'{len(missing)} rows without their file were left out.']
  return paths, notes if missing else []


def _check_same_text(
  texts: dict[str, tuple[str, str]],
  path: str,
  where: str,
  text: str,
  column: str,
) -> None:
  """Refuses two different paths for which one and the same file was taken."""
  plain = image_paths.normal(text).replace('\\', '/').casefold()
  first_where, first = texts.setdefault(path, (where, plain))
  if first != plain:
    raise _validate.InputError(
      f'{first_where} and {where}: {column} names different paths, but one '
      'file alone fits both; give the folder that holds both as --image_dir'
    )


def _cell(cells: dict[str, str], column: str | None) -> str | None:
  return None if column is None else image_paths.normal(cells[column])


def _split(where: str, cells: dict[str, str], column: str | None) -> str | None:
  if column is None:
    return None
  return image_table.split_of(cells[column], where)


def _patient(
  root: pathlib.Path,
  path: str,
  where: str,
  cells: dict[str, str],
  column: str | None,
  dicom_patients: bool,
) -> str | None:
  if column is not None:
    return image_paths.normal(cells[column])
  if not dicom_patients:
    return None
  try:
    return dicom_files.patient_id(str(root / path))
  except decoded.BadFile as error:
    raise _validate.InputError(
      f'{where}: the file {error}, so that dicom_patients finds no patient in it; '
      'mend the row, or leave dicom_patients out'
    ) from None
