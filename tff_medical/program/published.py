"""Published values of each round: metrics.csv and files for TensorBoard.

Both are TFF release managers that only append, so that the time per round does
not grow (`tff.program.CSVFileReleaseManager` rewrites the whole file each
round). Both accept the same round twice: after a crash the training program
publishes its last round again.

`repair` is called when a run is resumed. It cuts a torn last line and drops
rounds that will run again. Rounds that one of the files has lost are restored
from the other file, or at least their epsilon from the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import math
import os
import pathlib
from typing import Any

from absl import logging
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.privacy import ledger_contents
from tff_medical.program import metrics_table

# What TensorBoard's own `scalar` states of its values.
_SCALAR = tf.compat.v1.SummaryMetadata(
  plugin_data={'plugin_name': 'scalars'}, data_class='DATA_CLASS_SCALAR'
)


class MetricsTable(tff.program.ReleaseManager):
  """CSV file with one line per round: the round, then every named value.

  A name that occurs for the first time in a later round gets a new column. The
  file is then rewritten once.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Continues the file at `path`, or starts it with the first round.

    Raises:
      InputError: The file is no such table.
    """
    self._path = pathlib.Path(path)
    content = metrics_table.read_content(self._path)
    self._columns = list(content.columns)
    self._rounds = set(content.rows)
    if not content.is_whole:
      metrics_table.write(self._path, content.rows, self._columns)

  async def release(self, value: Mapping[str, Any], key: int) -> None:
    """Appends the values of round `key`; they are on disk when this returns."""
    if key in self._rounds:
      return
    new = [name for name in value if name not in self._columns]
    if new:
      self._add_columns(new)
    line = metrics_table.line(
      [key, *(value.get(name, '') for name in self._columns)]
    )
    with open(self._path, 'ab') as file:
      file.write(line)
      file.flush()
      os.fsync(file.fileno())
    self._rounds.add(key)

  def _add_columns(self, new: Sequence[str]) -> None:
    self._columns = [*self._columns, *new]
    rows = metrics_table.read(self._path)
    metrics_table.write(self._path, rows, self._columns)


class EventFiles(tff.program.ReleaseManager):
  """Files for TensorBoard, flushed round by round.

  They hold the times at which rounds ended, which reveal the cohort sizes.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    """Adds a file to `folder`, which is made if it is missing."""
    self._folder = pathlib.Path(folder)
    self._written = read_events(self._folder)
    self._writer: tf.summary.SummaryWriter | None = None

  async def release(self, value: Mapping[str, Any], key: int) -> None:
    """Writes the values of round `key`."""
    written = self._written.pop(key, {})
    # Rounds come in order, the last one perhaps twice. Earlier rounds are
    # dropped.
    self._written = {n: row for n, row in self._written.items() if n > key}
    self._written[key] = written
    with _disk_errors(self._folder):
      if self._writer is None:
        self._writer = tf.summary.create_file_writer(os.fspath(self._folder))
      with self._writer.as_default():
        new = {n: float(v) for n, v in value.items() if n not in written}
        if new:
          _write_scalars(new, key)
        written.update(new)
      self._writer.flush()


def repair(
  table: pathlib.Path,
  events: pathlib.Path,
  *,
  done: int,
  entries: Sequence[ledger_contents.Entry],
) -> None:
  """Makes both files hold rounds 1 to `done`, and no other.

  Args:
    table: Path of metrics.csv.
    events: Folder of the files for TensorBoard.
    done: Number of the last completed round. It may be missing in the files, as
      the training program publishes it again.
    entries: Entries of the ledger.

  Raises:
    InputError: A file has another format than this run writes.
    OSError: A file could not be written.
  """
  content = metrics_table.read_content(table)
  rows = content.rows
  in_events = read_events(events)
  epsilons = _epsilons(entries)
  complete: metrics_table.Rows = {}
  lost = []
  for round_num in range(1, done + 1):
    paid = epsilons.get(round_num, ())
    row = rows.get(round_num)
    if row is not None and not _agrees(row, paid):
      row = None
    if row is None and round_num == done:
      continue
    if row is None:
      lost.append(round_num)
      row = dict(in_events.get(round_num, {}))
      if not _agrees(row, paid):
        row = {}
      if paid:
        row['epsilon'] = paid[-1]
    complete[round_num] = row
  if lost:
    logging.warning(
      '%s lacked %d of %d rounds or had them with another ε; they were put '
      'back from %s and the ledger',
      table,
      len(lost),
      done,
      events,
    )
  if complete != rows or not content.is_whole:
    metrics_table.write(table, complete, content.columns)
  _repair_events(events, in_events, complete)


def _repair_events(
  folder: pathlib.Path,
  in_events: metrics_table.Rows,
  complete: metrics_table.Rows,
) -> None:
  """Makes the files for TensorBoard hold the values of the table.

  Surplus values come from rounds that will run again, or from another run. As
  such a file can only be appended to, all values are then written to a new one.
  """
  files_before = _event_files(folder)
  is_wrong = not all(
    n in complete and _holds(complete[n], row) for n, row in in_events.items()
  )
  lacking = {
    n: {name: v for name, v in row.items() if name not in in_events.get(n, {})}
    for n, row in complete.items()
    if row.keys() - in_events.get(n, {}).keys()
  }
  if is_wrong:
    lacking = complete
  elif not lacking:
    return
  logging.warning(
    '%s %s metrics.csv; %d rounds were written again from there',
    folder,
    'has other values than' if is_wrong else 'lacked values of',
    len(lacking),
  )
  _write_events(folder, lacking)
  if is_wrong:
    for path in files_before:
      path.unlink()


def _holds(row: Mapping[str, float], in_events: Mapping[str, float]) -> bool:
  """Returns whether a row has all values of TensorBoard's files, in float32."""
  with np.errstate(over='ignore'):
    return all(
      name in row
      and np.array_equal(
        np.float32(row[name]), np.float32(value), equal_nan=True
      )
      for name, value in in_events.items()
    )


def _epsilons(
  entries: Sequence[ledger_contents.Entry],
) -> dict[int, list[float]]:
  """Returns the epsilon of each attempt at a round, by round."""
  epsilons: dict[int, list[float]] = {}
  for entry in entries:
    if not entry.restored_from:
      epsilons.setdefault(entry.round_num, []).append(entry.epsilon)
  return epsilons


def _agrees(values: Mapping[str, float], paid: Sequence[float]) -> bool:
  """Returns whether the epsilon among `values` is one of the ledger's.

  If the ledger has lost the round, the values are accepted.
  """
  if not paid or 'epsilon' not in values:
    return not paid
  # TensorBoard stores float32.
  return any(math.isclose(values['epsilon'], e, rel_tol=1e-6) for e in paid)


def read_events(folder: pathlib.Path) -> metrics_table.Rows:
  """Returns the readable values of TensorBoard's files.

  Raises:
    InputError: The path is not a folder.
  """
  rows: metrics_table.Rows = {}
  if os.path.lexists(folder) and not folder.is_dir():
    raise _validate.InputError(
      f'{folder} is not a folder; remove it, and the rounds that can be known '
      'of are put back when the run goes on'
    )
  for path in _event_files(folder):
    try:
      for record in tf.data.TFRecordDataset(os.fspath(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
          if value.HasField('tensor'):
            number = float(np.ravel(tf.make_ndarray(value.tensor))[0])
            rows.setdefault(event.step, {})[value.tag] = number
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError):
      continue  # A crash cut the last event.
  # The order of file names is not the order of rounds.
  return dict(sorted(rows.items()))


def _event_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns TensorBoard's files, oldest first."""
  paths = sorted(folder.glob('events.out.tfevents.*'))
  return [path for path in paths if path.is_file()]


def _write_scalars(values: Mapping[str, float], step: int) -> None:
  """Writes the values of a round as one event.

  An operation for each value would take longer than all else of the release.
  """
  summary = tf.compat.v1.Summary()
  with np.errstate(over='ignore'):
    for name, number in values.items():
      summary.value.add(
        tag=name,
        tensor=tf.make_tensor_proto(np.float32(number)),
        metadata=_SCALAR,
      )
  # TensorFlow keeps all Python numbers.
  tf.summary.experimental.write_raw_pb(
    summary.SerializeToString(), step=np.int64(step)
  )


def _write_events(folder: pathlib.Path, rows: metrics_table.Rows) -> None:
  with _disk_errors(folder):
    writer = tf.summary.create_file_writer(os.fspath(folder))
    with writer.as_default():
      for round_num, values in rows.items():
        _write_scalars(values, round_num)
    writer.close()


@contextlib.contextmanager
def _disk_errors(folder: pathlib.Path) -> Iterator[None]:
  """Turns TensorFlow's errors about files into an `OSError`.

  TensorFlow's errors differ for a full disk, a quota and a file size limit.
  """
  try:
    yield
  except tf.errors.OpError as error:
    reason = ' '.join(str(error).split())
    raise OSError(
      errno.EIO, f'events cannot be written ({reason})', os.fspath(folder)
    ) from error
