"""Checkpoints of a server state, written atomically.

Each round has one file, such as `round_000012.npz`. It holds the leaves of the
state as plain arrays, and a `Record`: run, round and charge, and the values
that the round has to publish. Loading needs the structure of the state, which
the process's `initialize` gives. A renamed or altered file is refused. If a
file cannot be read, the one before it is used.

A state holds only what the mechanism released, so epsilon covers these files
(except for `DpFtrlMechanism`). The cohort seed must stay secret: amplification
by sampling holds only against those who do not know the cohorts. So it has its
own file, `cohort_seed.secret`, which only the owner can read.

TFF's `FileProgramStateManager` writes a SavedModel per round. That takes 60 to
300 ms for ten floats, against 2 ms here, and leaves the writing graph in
memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
from typing import Any
import zipfile
import zlib

from absl import logging
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data import npz

_FILE = re.compile(r'round_(\d{6,})\.npz')
_SEED_FILE = 'cohort_seed.secret'
_RECORD = 'record'
# The largest network has some hundred leaves, with an optimizer three times
# that.
_MAX_LEAVES = 10_000
# Exceptions of NumPy for files that are cut, damaged or of another process.
UNREADABLE = (
  OSError,
  EOFError,
  ValueError,
  KeyError,
  TypeError,
  NotImplementedError,
  zipfile.BadZipFile,
  zlib.error,
)


class AlteredError(Exception):
  """A checkpoint was altered; the message gives the reason."""


@dataclasses.dataclass(frozen=True)
class Record:
  """Facts that a checkpoint states beside the state.

  Attributes:
    run_id: Identity of the run, from its ledger.
    round_num: Number of the last round of the state; 0 for the initial state.
    attempt: Number of the charge of this round.
    charges: Number of charges of the run at that time.
    ledger_digests: `PrivacyLedger.last_digests` at that time.
    weights_digest: `weights_digest` of the global model.
    values: Values that the round has to publish, as flat named numbers.
    evaluates: Whether the round also has to publish metrics of the model.
  """

  run_id: str
  round_num: int
  attempt: int
  charges: int
  ledger_digests: Sequence[str]
  weights_digest: str
  values: Mapping[str, float] = dataclasses.field(default_factory=dict)
  evaluates: bool = False

  @classmethod
  def of(cls, values: Any) -> Record:
    """Returns the record of a file.

    Raises:
      AlteredError: A name or a type does not fit a record.
    """
    try:
      record = cls(**values)
      for name in ('round_num', 'attempt', 'charges'):
        _validate.count(getattr(record, name), name)
      for name in ('run_id', 'weights_digest'):
        if not isinstance(getattr(record, name), str):
          raise TypeError(f'{name} is no text')
      if not isinstance(record.ledger_digests, list) or not all(
        isinstance(digest, str) for digest in record.ledger_digests
      ):
        raise TypeError('ledger_digests is no list of text')
      if not isinstance(record.evaluates, bool):
        raise TypeError('evaluates is not true or false')
      numbers = {n: float(value) for n, value in record.values.items()}
    except (TypeError, ValueError, AttributeError) as error:
      raise AlteredError(f'holds no record of a round ({error})') from None
    return dataclasses.replace(
      record, values=numbers, ledger_digests=tuple(record.ledger_digests)
    )


@dataclasses.dataclass(frozen=True)
class Saved:
  """Loaded checkpoint.

  Attributes:
    state: Server state.
    record: Record of the checkpoint.
    digest: SHA-256, in hexadecimal, of state and record.
    newer_rounds: Rounds of newer checkpoints that cannot be read.
  """

  state: Any
  record: Record
  digest: str
  newer_rounds: tuple[int, ...] = ()


class Checkpoints:
  """Checkpoints of one run, in one folder.

  The newest two are kept. The older one is a reserve, should the newest become
  unreadable on disk.
  """

  _KEEP = 2

  def __init__(self, folder: str | os.PathLike[str]):
    """Uses `folder`, which is made if it is missing."""
    self._folder = pathlib.Path(folder)
    self._folder.mkdir(parents=True, exist_ok=True)

  def rounds(self) -> list[int]:
    """Returns the rounds, ascending, that have a checkpoint."""
    return rounds_in(self._folder)

  def latest_round(self) -> int:
    """Returns the round of the newest readable checkpoint, or 0.

    Raises:
      InputError: That checkpoint was altered.
    """
    for round_num in reversed(self.rounds()):
      path = self._path(round_num)
      try:
        return read(path)[1].round_num
      except AlteredError as error:
        raise _refusal(path, error) from None
      except UNREADABLE:
        continue
    return 0

  def save(self, state: Any, record: Record) -> str:
    """Saves the state after a round; it is on disk when this returns.

    Args:
      state: Server state, a structure of arrays.
      record: Record of the round, whose number names the file.

    Returns:
      The digest of the checkpoint.

    Raises:
      OSError: The file could not be written; older checkpoints are untouched.
    """
    leaves = [np.asarray(x) for x in tf.nest.flatten(state)]
    named = {f'leaf_{n:04d}': leaf for n, leaf in enumerate(leaves)}
    text = _to_text(record)
    digest = _digest(leaves, text)
    buffer = io.BytesIO()
    np.savez(
      buffer, **named, **{_RECORD: np.frombuffer(text + digest, np.uint8)}
    )
    _files.write_bytes(
      self._path(record.round_num), buffer.getvalue(), private=True
    )
    rounds = self.rounds()
    for old in rounds[: -self._KEEP]:
      self._path(old).unlink()
    # Newer checkpoints are unreadable: the run was resumed from an older one.
    for newer in rounds:
      if newer > record.round_num:
        self._path(newer).unlink()
    return digest.decode()

  def load_latest(self, structure: Any) -> Saved | None:
    """Returns the newest readable checkpoint, or None if there is none.

    Args:
      structure: State of the same process, which gives structure and types.

    Raises:
      InputError: No checkpoint can be read, the newest readable one was
        altered, or a folder has the name of a checkpoint.
    """
    problem = ''
    unreadable: list[int] = []
    for round_num in reversed(self.rounds()):
      path = self._path(round_num)
      if path.is_dir():
        raise _validate.InputError(
          f'{path} is a folder, where a checkpoint is to be; remove it'
        )
      try:
        leaves, record, digest = read(path)
        state = _pack(leaves, structure)
      except AlteredError as error:
        raise _refusal(path, error) from None
      except UNREADABLE as error:
        problem = problem or f'{path} cannot be read ({error})'
        unreadable.append(round_num)
        continue
      if problem:
        logging.warning(
          '%s: going on from the checkpoint of round %d; the rounds after it '
          'are run and charged again',
          problem,
          round_num,
        )
      return Saved(state, record, digest, tuple(unreadable))
    if problem:
      raise _validate.InputError(
        f'{problem}, and no older checkpoint can; choose another output_dir'
      )
    return None

  def cohort_seed(
    self, given: int | None = None, *, must_be_there: bool = False
  ) -> int:
    """Returns the seed of this run's cohorts, which the first call decides.

    Args:
      given: Seed to use; by default 128 bits from the operating system.
      must_be_there: Whether later cohorts depend on earlier ones, so that a
        lost seed is an error. Otherwise a lost or damaged seed is replaced,
        with a warning: each charge pays for an independent draw.

    Raises:
      InputError: The run was started with another seed, or the seed is lost and
        must not be replaced.
    """
    path = self._folder / _SEED_FILE
    seed = self._read_seed(path)
    if seed is None and must_be_there:
      raise _validate.InputError(
        f'{path} is missing or damaged, and with this mechanism nobody may '
        'join twice before all have: restore the file or choose another '
        'output_dir'
      )
    if seed is not None:
      if given is not None and given != seed:
        raise _validate.InputError(
          f'cohort_seed must be the one that {self._folder} was started '
          'with; leave it out to go on, or choose another output_dir'
        )
      return seed
    seed = secrets.randbits(128) if given is None else given
    _files.write_bytes(path, f'{seed}\n'.encode(), private=True)
    return seed

  def _read_seed(self, path: pathlib.Path) -> int | None:
    try:
      seed = int(_files.read_text(path))
      if seed < 0:
        raise ValueError(f'{seed} is negative')
    except FileNotFoundError:
      if any(self.rounds()):
        logging.warning('%s is missing: a new seed was drawn', path)
      return None
    except ValueError:
      if not path.is_file():
        raise
      logging.warning('%s is damaged: a new seed was drawn', path)
      return None
    return seed

  def _path(self, round_num: int) -> pathlib.Path:
    return self._folder / file_name(round_num)


def _refusal(path: pathlib.Path, error: AlteredError) -> _validate.InputError:
  return _validate.InputError(
    f'{path} {error}; restore the file that was saved or choose another '
    'output_dir'
  )


def file_name(round_num: int) -> str:
  """Returns the name of the checkpoint of a round."""
  return f'round_{round_num:06d}.npz'


def rounds_in(folder: pathlib.Path) -> list[int]:
  """Returns the rounds, ascending, that have a checkpoint in a folder."""
  matches = (_FILE.fullmatch(p.name) for p in folder.iterdir())
  return sorted(int(m.group(1)) for m in matches if m)


def read(path: pathlib.Path) -> tuple[list[np.ndarray], Record, str]:
  """Returns the arrays, the record and the digest of a checkpoint's file.

  Raises:
    AlteredError: The file was altered or renamed.
    OSError: The file is damaged, as for every other exception in `UNREADABLE`.
  """
  with _files.open_regular(path) as file:
    # `Archive` never reads beyond the contents of a damaged file.
    archive = npz.Archive(file, max_members=_MAX_LEAVES)
    if _RECORD not in archive.keys:
      raise AlteredError('is no checkpoint of this version')
    leaves = [
      archive.read(f'leaf_{n:04d}') for n in range(len(archive.keys) - 1)
    ]
    text = archive.read(_RECORD).tobytes()
  text, digest = text[:-64], text[-64:]
  if _digest(leaves, text) != digest:
    raise AlteredError('was changed: its digest does not match')
  try:
    record = Record.of(json.loads(text))
  except (ValueError, RecursionError) as error:
    raise AlteredError(f'holds no record of a round ({error})') from None
  match = _FILE.fullmatch(path.name)
  if match is None or int(match.group(1)) != record.round_num:
    raise AlteredError(
      f'was renamed: it is the checkpoint of round {record.round_num}'
    )
  return leaves, record, digest.decode()


def weights_digest(arrays: Iterable[npt.ArrayLike]) -> str:
  """Returns the SHA-256, in hexadecimal, of a model's arrays.

  Args:
    arrays: Trainable weights in the model's order, then the other weights.
  """
  sha256 = hashlib.sha256()
  for array in arrays:
    _add(sha256, np.asarray(array))
  return sha256.hexdigest()


def _digest(leaves: list[np.ndarray], text: bytes) -> bytes:
  sha256 = hashlib.sha256(text)
  for leaf in leaves:
    _add(sha256, leaf)
  return sha256.hexdigest().encode()


def _add(digest: Any, array: np.ndarray) -> None:
  digest.update(f'{array.shape}{array.dtype.str}'.encode())
  digest.update(np.ascontiguousarray(array).tobytes())


def _to_text(record: Record) -> bytes:
  return json.dumps(dataclasses.asdict(record), sort_keys=True).encode()


def _pack(leaves: list[np.ndarray], structure: Any) -> Any:
  expected = [np.asarray(x) for x in tf.nest.flatten(structure)]
  for leaf, like in zip(leaves, expected):
    if leaf.shape != like.shape or leaf.dtype.kind != like.dtype.kind:
      raise ValueError('its arrays do not fit this process')
  if len(leaves) != len(expected):
    raise ValueError(f'{len(leaves)} arrays, {len(expected)} expected')
  return tf.nest.pack_sequence_as(
    structure, [x[()].item() if x.dtype.kind == 'S' else x[()] for x in leaves]
  )
