"""Decodes a table's images once into a folder that training reads from.

What: every file is decoded in a worker process (`decoding_pool`), resized and
kept in parts, so that a preparation that was killed goes on; the parts become
one `prepared` folder, which appears under its name when all of it is there. A
file that cannot be used is left out, counted by site and named in
bad_files.tsv; more of them than `max_bad_fraction` end the preparation, after
all were tried.

The folder's name is a keyed hash of all that decides its content: the files'
paths, sizes and times, the table and the policy. Where only some of these
changed, what an older folder holds of the same files is copied, not decoded.
Patients become numbers, salted by a secret beside the folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import secrets
from typing import Any

from absl import logging
import numpy as np

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import label_values
from tff_medical.data.decoders import decoding_pool
from tff_medical.data.decoders import decoding_worker
from tff_medical.data.decoders import resizing
from tff_medical.data.preparing import locking
from tff_medical.data.preparing import near_duplicates
from tff_medical.data.preparing import pixel_file
from tff_medical.data.preparing import preparation_parts
from tff_medical.data.preparing import preparation_report
from tff_medical.data.preparing import preparation_reuse
from tff_medical.data.preparing import prepared
from tff_medical.data.tables import image_table
from tff_medical.data.tables import splitting

_SALT = 'salt.secret'
_PARTIAL = '.partial'
# Number of bad files at which a preparation ends, if they are too many.
_HOPELESS_BAD = 100
# Seed of the split where a table has none: the same for every seed of training,
# so that a test image stays one.
_SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True)
class Options:
  """Choices of a preparation.

  Attributes:
    task: Policy, size and channels.
    prepared_dir: Folder of prepared folders, made if it is missing.
    max_bad_fraction: Largest fraction of the files that may be unusable, 0 to 1.
    workers: Number of decoding processes; None for one for each core.
    file_seconds: Largest number of seconds for decoding a file.
  """

  task: decoding_worker.Task
  prepared_dir: pathlib.Path
  max_bad_fraction: float = 0.0
  workers: int | None = None
  file_seconds: float = 60.0

  def __post_init__(self) -> None:
    _validate.within(0, 1, max_bad_fraction=self.max_bad_fraction)
    _validate.positive(file_seconds=self.file_seconds)
    if self.workers is not None:
      _validate.positive_int(decode_workers=self.workers)


def prepare(
  table: image_table.ImageTable, options: Options
) -> prepared.Prepared:
  """Returns the prepared images of a table, decoded now or before.

  Args:
    table: Checked table of the images.
    options: Choices of the preparation.

  Raises:
    InputError: A file asks for a choice, too many cannot be used, or the folder
      cannot be written.
  """
  with locking.locked(options.prepared_dir):
    return _Preparation(table, options).run()


class _Preparation:
  """One preparation, step by step."""

  def __init__(self, table: image_table.ImageTable, options: Options):
    self._table = table
    self._options = options
    self._salt = _salt(options.prepared_dir)
    self._states = [_state(table.root / path, path) for path in table.paths]
    self._splits, self._split_rule = _splits(table)
    self._check_labels()
    self._decoding_key = self._keyed('decoding', _plain_task(options.task))
    self._folder = options.prepared_dir / self._key()
    self._partial = self._folder.with_name(self._folder.name + _PARTIAL)

  def run(self) -> prepared.Prepared:
    if (self._folder / prepared.INFO).exists():
      earlier = prepared.load(self._folder)
      self._check_bad(earlier.info['bad_files'], self._folder)
      return earlier
    self._partial.mkdir(mode=0o700, exist_ok=True)
    older = self._older()
    parts = preparation_parts.Parts(self._partial)
    self._decode(parts, older)
    said = dict(parts.said)
    for number, (_, row) in older.rows.items():
      said[number] = older.said(row)
    bad = {n: s.reason for n, s in said.items() if s.reason}
    self._write_bad(bad)
    self._check_bad(len(bad), self._partial, self._first_bad(bad))
    self._assemble(parts, older, said)
    parts.remove()
    _files.sync_folder(self._partial)
    os.rename(self._partial, self._folder)
    _files.sync_folder(self._folder.parent)
    return prepared.load(self._folder)

  def _check_labels(self) -> None:
    """Refuses splits without a known label, before an image is decoded."""
    for name in ('train', 'test'):
      number = images.SPLIT_NAMES.index(name)
      labels = self._table.labels[self._splits == number]
      if len(labels):
        label_values.check_has_label(name, labels)

  # The keys and numbers that stand for names.

  def _keyed(self, what: str, value: Any) -> str:
    text = json.dumps([what, value], sort_keys=True)
    return hashlib.blake2b(
      text.encode('utf-8', 'surrogatepass'), key=self._salt, digest_size=16
    ).hexdigest()

  def _key(self) -> str:
    table = self._table
    return self._keyed(
      'prepared',
      [
        prepared.VERSION,
        self._decoding_key,
        self._states,
        table.labels.tolist(),
        table.class_names,
        table.multi_label,
        None if table.sites is None else table.sites.tolist(),
        table.site_names,
        table.patients,
        self._splits.tolist(),
      ],
    )

  def _patient_number(self, index: int) -> int:
    """Returns the salted number of a file's patient; its own without one."""
    patients = self._table.patients
    name = ('file', self._states[index][0]) if patients is None else (
      ('patient', *patients[index])
    )  # fmt: skip
    # 62 bits: the numbers of a million patients all differ but for 1e-7.
    return int(self._keyed('patient', name)[:16], 16) >> 2

  # Decoding.

  def _older(self) -> preparation_reuse.Older:
    """Returns the earlier preparation that holds most of the same files."""
    signatures = np.array(
      [_pair(self._keyed('file', state)) for state in self._states], np.uint64
    ).reshape(-1, 2)
    self._signatures = signatures
    number = {tuple(pair): i for i, pair in enumerate(signatures.tolist())}
    best = preparation_reuse.nothing()
    for info_path in self._options.prepared_dir.glob(f'*/{prepared.INFO}'):
      if info_path.parent.name.endswith(_PARTIAL):
        continue
      with contextlib.suppress(*prepared.UNREADABLE):
        older = preparation_reuse.read(
          info_path.parent, self._decoding_key, number
        )
        if len(older.rows) > len(best.rows):
          best = older
    return best

  def _decode(
    self, parts: preparation_parts.Parts, older: preparation_reuse.Older
  ) -> None:
    """Decodes the files that no part or earlier preparation holds."""
    total = len(self._table)
    todo = [
      i for i in range(total) if i not in parts.said and i not in older.rows
    ]
    if not todo:
      return
    logging.info(
      'Preparing %d of %d files in %s.', len(todo), total, self._partial
    )
    files = ((i, str(self._table.root / self._table.paths[i])) for i in todo)
    bad = sum(bool(s.reason) for s in parts.said.values())
    pool = decoding_pool.Pool(
      self._options.task,
      workers=min(self._options.workers or os.cpu_count() or 1, len(todo)),
      file_seconds=self._options.file_seconds,
    )
    import tqdm  # Late: flags import this module.

    # Nothing is shown where nobody looks; the log has the parts.
    bar = tqdm.tqdm(
      total=total,
      initial=total - len(todo),
      unit='file',
      desc='preparing',
      disable=None,
    )
    try:
      with pool, bar:
        for number, outcome in pool.outcomes(files):
          if outcome.needs_policy:
            raise _validate.InputError(
              f'{self._table.shown(number)} {outcome.reason}'
            )
          parts.add(number, outcome)
          bar.update()
          bad += bool(outcome.reason)
          if bad >= _HOPELESS_BAD and bad > self._allowed_bad():
            break
    finally:
      parts.write()

  # Files that cannot be used.

  def _allowed_bad(self) -> float:
    return self._options.max_bad_fraction * len(self._table)

  def _first_bad(self, bad: dict[int, str]) -> str:
    if not bad:
      return ''
    first = min(bad)
    return f'{self._table.shown(first)} {bad[first]}'

  def _write_bad(self, bad: dict[int, str]) -> None:
    lines = ['file\treason']
    for number in sorted(bad):
      path = self._table.paths[number].replace('\t', ' ').replace('\n', ' ')
      lines.append(f'{path}\t{bad[number]}')
    text = '\n'.join(lines) + '\n'
    _files.write_bytes(
      self._partial / prepared.BAD_FILES,
      text.encode('utf-8', 'replace'),
      private=True,
    )

  def _check_bad(
    self, count: int, folder: pathlib.Path, first: str = ''
  ) -> None:
    if not count:
      return
    total = len(self._table)
    listed = folder / prepared.BAD_FILES
    if count > self._allowed_bad():
      if not first:
        lines = _files.read_text(listed).splitlines()[1:2]
        first = ' '.join(lines[0].split('\t')) if lines else 'not known'
      raise _validate.InputError(
        f'{count} of {total} files cannot be used, more than '
        f'max_bad_fraction={self._options.max_bad_fraction:g} allows; the first: '
        f'{first}; all are listed in {listed}: mend or remove them, or leave them '
        'out with --max_bad_fraction'
      )
    if count == total:
      raise _validate.InputError(
        f'none of the {total} files can be used; {listed} says why'
      )

  # The prepared folder.

  def _assemble(
    self,
    parts: preparation_parts.Parts,
    older: preparation_reuse.Older,
    said: dict[int, preparation_parts.Said],
  ) -> None:
    """Writes pixels, table and their description."""
    good = np.array(sorted(n for n, s in said.items() if not s.reason))
    good = good[np.argsort(self._splits[good], kind='stable')]
    counts = np.array([said[n].count for n in good.tolist()])
    starts = np.cumsum(counts) - counts
    start_of = dict(zip(good.tolist(), starts.tolist()))
    side = self._options.task.image_size
    channels = self._options.task.channels or max(
      said[n].channels for n in good.tolist()
    )
    shape = (int(counts.sum()), side, side, channels)
    path = self._partial / prepared.PIXELS
    with pixel_file.PixelFile(path, shape) as pixels:
      for files, stored in parts.pixels():
        rows = _rows_of(files, start_of)
        is_kept = rows >= 0
        pixels.put(
          rows[is_kept], resizing.with_channels(stored[is_kept], channels)
        )
      older.copy_to(pixels, start_of, channels)
    written = prepared.open_pixels(self._partial, shape)
    file_of_row = np.repeat(good, counts)
    columns = self._columns(file_of_row, several=bool((counts > 1).any()))
    comparison = near_duplicates.compare([written])
    rule = self._split_rule
    if rule == splitting.BY_IMAGE and 'patients' not in columns:
      rule = self._split_by_copies(comparison, file_of_row, columns)
    self._write_npz(prepared.TABLE, columns)
    self._write_files(good, counts, starts, said)
    info = {
      'version': prepared.VERSION,
      'decoding_key': self._decoding_key,
      'policy': _plain_task(self._options.task),
      'split': rule,
      **preparation_report.describe(self._table, said, shape, columns),
    }
    info['duplicates'] = preparation_report.duplicates(
      comparison, columns['splits']
    )
    info['pixels_sha256'] = _files.sha256(path)
    info['digest'] = preparation_report.digest(info, columns)
    _files.write_json(self._partial / prepared.INFO, info)

  def _split_by_copies(
    self,
    comparison: near_duplicates.Comparison,
    files: np.ndarray,
    columns: dict[str, np.ndarray],
  ) -> str:
    """Splits by groups of near copies, in place; returns the rule of the split.

    A copy in another split than its original would make metrics too good. A
    group has the hash of its first file, so that it stays where it is when
    images are added behind it.
    """
    if not comparison.is_complete:
      return splitting.BY_IMAGE
    # Not the group's first row: rows are in the order of another split.
    first_file = np.full(len(files), len(self._table.paths))
    np.minimum.at(first_file, comparison.groups, files)
    names = [
      self._table.paths[number]
      for number in first_file[comparison.groups].tolist()
    ]
    strata = splitting.strata(columns['labels'], columns.get('sites'))
    splits = splitting.split(names, strata, seed=_SPLIT_SEED)
    if len(np.unique(splits)) < len(images.SPLIT_NAMES):
      return splitting.BY_IMAGE  # There are too few groups.
    columns['splits'] = splits
    return splitting.BY_COPIES

  def _columns(
    self, files: np.ndarray, *, several: bool
  ) -> dict[str, np.ndarray]:
    table = self._table
    columns = {'labels': table.labels[files], 'splits': self._splits[files]}
    if table.sites is not None:
      columns['sites'] = table.sites[files]
    # Several images of a file are of one patient, whoever that is.
    if table.patients is not None or several:
      numbers = {n: self._patient_number(n) for n in np.unique(files).tolist()}
      columns['patients'] = np.array(
        [numbers[n] for n in files.tolist()], np.int64
      )
    return columns

  def _write_npz(self, name: str, columns: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, **columns)
    _files.write_bytes(self._partial / name, content.getvalue(), private=True)

  def _write_files(
    self,
    good: np.ndarray,
    counts: np.ndarray,
    starts: np.ndarray,
    said: dict[int, preparation_parts.Said],
  ) -> None:
    """Writes the origin of each row, for a later preparation."""
    kinds: dict[str, int] = {}
    kind_of_file = [
      kinds.setdefault(
        json.dumps([said[n].rules, said[n].warnings, said[n].sizes]), len(kinds)
      )
      for n in good.tolist()
    ]
    self._write_npz(
      prepared.FILES,
      {
        'signatures': self._signatures[good],
        'starts': starts,
        'counts': counts,
        'channels': np.array([said[n].channels for n in good.tolist()]),
        'kinds': np.array(kind_of_file, np.int64),
        'texts': np.frombuffer(json.dumps(list(kinds)).encode(), np.uint8),
      },
    )


def _salt(folder: pathlib.Path) -> bytes:
  """Returns the secret of a folder, made if there is none."""
  path = folder / _SALT
  try:
    salt = _files.read_bytes(path)
  except FileNotFoundError:
    salt = secrets.token_bytes(32)
    _files.write_bytes(path, salt, private=True)
  if len(salt) != 32:
    raise _validate.InputError(
      f'{path} is damaged; remove it, and the images are prepared again'
    )
  return salt


def _state(path: pathlib.Path, relative: str) -> tuple[str, int, int]:
  """Returns the path of a file, its size and its time."""
  try:
    status = path.stat()
  except OSError as error:
    raise _validate.InputError(
      f'a file of the table cannot be read: {error.strerror}; remove its row, or '
      'put the file there'
    ) from None
  return relative, status.st_size, status.st_mtime_ns


def _plain_task(task: decoding_worker.Task) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(task)))


def _pair(keyed: str) -> tuple[int, int]:
  return int(keyed[:16], 16), int(keyed[16:], 16)


def _splits(table: image_table.ImageTable) -> tuple[np.ndarray, str]:
  """Returns the split of each file, and where it comes from."""
  if table.splits is not None:
    return table.splits, splitting.GIVEN
  strata = splitting.strata(table.labels, table.sites)
  if table.patients is None:
    groups = list(table.paths)
  else:
    groups = ['\0'.join(patient) for patient in table.patients]
  rule = splitting.BY_IMAGE if table.patients is None else splitting.BY_PATIENT
  return splitting.split(groups, strata, seed=_SPLIT_SEED), rule


def _rows_of(files: np.ndarray, start_of: dict[int, int]) -> np.ndarray:
  """Returns the row of each image; images of a file follow each other."""
  rows = np.empty(len(files), np.int64)
  previous, place = -1, 0
  for i, number in enumerate(files.tolist()):
    place = place + 1 if number == previous else 0
    previous = number
    start = start_of.get(number, -1)
    rows[i] = -1 if start < 0 else start + place
  return rows
