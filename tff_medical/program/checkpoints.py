"""Checkpoints of a server state, written whole or not at all.

One file a round, `round_000012.npz`, holds the leaves of the state as plain
arrays; loading needs the structure, which the process's `initialize` gives. A
state holds only what the mechanism released, so epsilon covers these files. The
cohort seed is what must stay secret (amplification by sampling holds only
against those who cannot tell who took part), so it has a file of its own,
`cohort_seed.secret`, that only its owner can read.

TFF's `FileProgramStateManager` writes a SavedModel a round (60 to 300 ms for
ten floats, where this takes 2) and leaves the graph that wrote it in memory.
"""

from __future__ import annotations

import io
import os
import pathlib
import re
import secrets
from typing import Any
import zipfile

import numpy as np
import tensorflow as tf

from tff_medical import _validate

_FILE = re.compile(r'round_(\d{6})\.npz')
_SEED_FILE = 'cohort_seed.secret'
# What NumPy raises for files that are cut, damaged or of another process.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


class Checkpoints:
  """The checkpoints of one run, in one folder.

  The newest two are kept: the last one, and one more should its disk sectors
  turn out unreadable.
  """

  _KEEP = 2

  def __init__(self, folder: str | os.PathLike[str]):
    """Uses `folder`, which is made if it is missing."""
    self._folder = pathlib.Path(folder)
    self._folder.mkdir(parents=True, exist_ok=True)

  def rounds(self) -> list[int]:
    """Returns the rounds, ascending, that have a checkpoint."""
    matches = (_FILE.fullmatch(p.name) for p in self._folder.iterdir())
    return sorted(int(m.group(1)) for m in matches if m)

  def save(self, round_num: int, state: Any) -> None:
    """Saves the state after `round_num`; on disk when it returns.

    Raises:
      OSError: It could not be written; older checkpoints are untouched.
    """
    leaves = [np.asarray(x) for x in tf.nest.flatten(state)]
    named = {f'leaf_{n:04d}': leaf for n, leaf in enumerate(leaves)}
    buffer = io.BytesIO()
    np.savez(buffer, **named)
    self._write(self._path(round_num), buffer.getvalue())
    for old in self.rounds()[: -self._KEEP]:
      self._path(old).unlink()

  def load_latest(self, structure: Any) -> tuple[int, Any] | None:
    """Returns the newest round that can be read and its state, or None.

    Args:
      structure: A state of the same process, which gives structure and types.

    Raises:
      InputError: There are checkpoints, but none can be read.
    """
    problem = None
    for round_num in reversed(self.rounds()):
      path = self._path(round_num)
      try:
        return round_num, _read(path, structure)
      except _UNREADABLE as error:
        problem = problem or f'{path} cannot be read ({error})'
    if problem:
      raise _validate.InputError(
        f'{problem}, and no older checkpoint can; choose another output_dir'
      )
    return None

  def cohort_seed(self, given: int | None = None) -> int:
    """Returns the seed of this run's cohorts; the first call decides it.

    Args:
      given: The seed to use; by default 128 bits from the operating system.

    Raises:
      InputError: The run was started with another seed.
    """
    path = self._folder / _SEED_FILE
    if path.exists():
      seed = int(path.read_text())
      if given is not None and given != seed:
        raise _validate.InputError(
          f'cohort_seed must be the one that {self._folder} was started '
          'with; leave it out to go on, or choose another output_dir'
        )
      return seed
    seed = secrets.randbits(128) if given is None else given
    self._write(path, f'{seed}\n'.encode())
    return seed

  def _path(self, round_num: int) -> pathlib.Path:
    return self._folder / f'round_{round_num:06d}.npz'

  def _write(self, path: pathlib.Path, content: bytes) -> None:
    """Writes a file under another name, syncs it, then renames it."""
    temporary = path.with_name(path.name + '.partial')
    try:
      with open(temporary, 'wb', opener=_private) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    except OSError:
      temporary.unlink(missing_ok=True)
      raise
    folder = os.open(self._folder, os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)


def _private(path: str, flags: int) -> int:
  return os.open(path, flags, 0o600)


def _read(path: pathlib.Path, structure: Any) -> Any:
  expected = [np.asarray(x) for x in tf.nest.flatten(structure)]
  with open(path, 'rb') as raw, np.load(raw, allow_pickle=False) as file:
    leaves = [file[f'leaf_{n:04d}'] for n in range(len(file.files))]
  for leaf, like in zip(leaves, expected):
    if leaf.shape != like.shape or leaf.dtype.kind != like.dtype.kind:
      raise ValueError('its arrays do not fit this process')
  if len(leaves) != len(expected):
    raise ValueError(f'{len(leaves)} arrays, {len(expected)} expected')
  return tf.nest.pack_sequence_as(
    structure, [x[()].item() if x.dtype.kind == 'S' else x[()] for x in leaves]
  )
