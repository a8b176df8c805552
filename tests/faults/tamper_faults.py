"""Runs whose files were tampered with, lost or replaced.

    python -m tests.faults.tamper_faults

A finished and an unfinished run, each of which has repeated a round, are copied;
one thing in the copy is changed; `experiments.verify` looks at it, and the run is
started again. Then it must have been refused by an InputError, or what it states
must be at least what was really released, with no cohort drawn twice among it.
`verify` must say so where a stated number was changed.

Files with mode 000 are tried only where the tests do not run as root, whom no
mode stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import numpy as np

from tests.faults import cases
from tests.faults import forks
from tests.faults import kill_faults

START = kill_faults.START
ROUNDS = 6
_LEDGER = 'privacy_ledger.jsonl'
_CARD = 'saved_model/assets/privacy_card.json'
_TIMEOUT_SECS = 180.0
# Nothing that these leave can tell of a round that was saved, not yet published.
_UNSEEN = (
  'ledger and checkpoints missing',
  'ledger, checkpoints and seed missing',
  'ledger cut, newest checkpoint missing',
)

Change = Callable[[pathlib.Path, pathlib.Path], None]


@dataclasses.dataclass(frozen=True)
class Tampering:
  """One change of a run's folder.

  Attributes:
    name: What it is.
    change: Is given the folder and that of another run.
    finished: Whether the run that it is done to had ended.
    is_lie: Whether a stated number was changed, so that `verify` must find it.
  """

  name: str
  change: Change
  finished: bool = True
  is_lie: bool = False


# Damage to any file.


def _missing(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _with(content: bytes) -> Callable[[pathlib.Path], None]:
  def write(path: pathlib.Path) -> None:
    _missing(path)
    path.write_bytes(content)

  return write


def _directory(path: pathlib.Path) -> None:
  _missing(path)
  path.mkdir()
  (path / 'something').write_text('else')


def _fifo(path: pathlib.Path) -> None:
  _missing(path)
  os.mkfifo(path)


def _loop(path: pathlib.Path) -> None:
  _missing(path)
  path.symlink_to(path.name)


def _dangling(path: pathlib.Path) -> None:
  _missing(path)
  path.symlink_to('nowhere/at/all')


def _huge(path: pathlib.Path) -> None:
  if path.is_dir():
    _missing(path)
  with open(path, 'ab') as file:
    file.truncate(2**40)


def _device(path: pathlib.Path) -> None:
  _missing(path)
  path.symlink_to('/dev/zero')


def _no_access(path: pathlib.Path) -> None:
  path.chmod(0)


def _half(path: pathlib.Path) -> None:
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


GARBAGE = bytes(range(256)) * 8
DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
  'missing': _missing,
  'empty': _with(b''),
  'binary': _with(GARBAGE),
  'a list': _with(b'[1, 2]\n'),
  'a string': _with(b'"text"\n'),
  'deep nesting': _with(b'[' * 100_000),
  'an empty object': _with(b'{}\n'),
  'NUL bytes': _with(b'\0' * 4096),
  'a FIFO': _fifo,
  'a folder': _directory,
  'a loop of links': _loop,
  'a link to nothing': _dangling,
  'a device': _device,
  'huge and sparse': _huge,
}
if os.geteuid():
  DAMAGES['mode 000'] = _no_access


def damage(name: str, how: Callable[[pathlib.Path], None]) -> Change:
  """Returns the change that damages one path in the folder."""
  return lambda folder, other: how(folder / name)


# The ledger, line by line.


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> Change:
  def apply(folder: pathlib.Path, other: pathlib.Path) -> None:
    path = folder / _LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(change(lines)))

  return apply


def reseal(lines: list[dict[str, Any]]) -> list[bytes]:
  """Returns lines with digests that follow from each other, as a liar would."""
  digest = ''
  found = []
  for record in lines:
    body = json.dumps(
      {k: v for k, v in record.items() if k != 'digest'},
      sort_keys=True,
      ensure_ascii=False,
    )
    digest = hashlib.sha256((digest + body).encode()).hexdigest()
    found.append(
      json.dumps(
        {**record, 'digest': digest}, sort_keys=True, ensure_ascii=False
      ).encode()
      + b'\n'
    )
  return found


def _resealed(
  change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
) -> Change:
  return _lines(
    lambda lines: reseal(change([json.loads(line) for line in lines]))
  )


def _set_line(number: int, **values: Any) -> Change:
  def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    records[number].update(values)
    return records

  return _resealed(change)


def _cut(size: Callable[[bytes], int]) -> Change:
  def apply(folder: pathlib.Path, other: pathlib.Path) -> None:
    path = folder / _LEDGER
    os.truncate(path, size(path.read_bytes()))

  return apply


def _flip(name: str, place: float) -> Change:
  def apply(folder: pathlib.Path, other: pathlib.Path) -> None:
    path = _only(folder, name)
    content = bytearray(path.read_bytes())
    content[min(int(len(content) * place), len(content) - 1)] ^= 4
    path.write_bytes(bytes(content))

  return apply


def _only(folder: pathlib.Path, pattern: str) -> pathlib.Path:
  """Returns the last of the paths that match."""
  return sorted(folder.glob(pattern))[-1]


def _ledger_changes() -> Iterator[tuple[str, Change, bool]]:
  for keep in range(1, 7):
    yield (
      f'ledger: {keep} lines are left',
      _lines(lambda lines, keep=keep: lines[:keep]),
      True,
    )
  for back in (1, 2, 40, 80):
    yield (
      f'ledger: {back} bytes cut',
      _cut(lambda content, back=back: len(content) - back),
      True,
    )
  for size in (0, 1, 100):
    yield f'ledger: cut to {size} bytes', _cut(lambda c, s=size: s), True
  yield 'ledger: header lost', _lines(lambda lines: lines[1:]), True
  yield 'ledger: entry removed', _lines(lambda x: x[:3] + x[4:]), True
  yield 'ledger: last twice', _lines(lambda x: x + x[-1:]), True
  yield (
    'ledger: two swapped',
    _lines(lambda x: x[:2] + [x[3], x[2]] + x[4:]),
    True,
  )
  yield 'ledger: reversed', _lines(lambda x: x[:1] + x[:0:-1]), True
  yield 'ledger: blank line', _lines(lambda x: x[:2] + [b'\n'] + x[2:]), True
  yield 'ledger: all lines blank', _lines(lambda x: [b'\n'] * 5), True
  yield 'ledger: garbage appended', _lines(lambda x: [*x, GARBAGE]), True
  yield 'ledger: text appended', _lines(lambda x: [*x, b'hello\n']), True
  yield 'ledger: CRLF', _lines(lambda x: [y[:-1] + b'\r\n' for y in x]), True
  yield (
    'ledger: digit changed',
    _lines(
      lambda x: [*x[:-1], x[-1].replace(b'"epsilon": 0.', b'"epsilon": 0.0')]
    ),
    True,
  )
  for place in (0.1, 0.5, 0.9, 0.999):
    yield f'ledger: bit flip at {place}', _flip(_LEDGER, place), True
  yield 'ledger, sealed anew: ε 0', _set_line(-1, epsilon=0.0), True
  yield 'ledger, sealed anew: ε halved', _set_line(-1, epsilon=0.2), True
  yield 'ledger, sealed anew: ε text', _set_line(-1, epsilon='much'), True
  yield 'ledger, sealed anew: ε nan', _set_line(-1, epsilon='nan'), True
  yield 'ledger, sealed anew: ε negative', _set_line(-1, epsilon=-1.0), True
  yield 'ledger, sealed anew: charges 1', _set_line(-1, charges=1), True
  yield 'ledger, sealed anew: charges huge', _set_line(-1, charges=10**30), True
  yield 'ledger, sealed anew: charges true', _set_line(-1, charges=True), True
  yield 'ledger, sealed anew: round 0', _set_line(-1, round=0), True
  yield 'ledger, sealed anew: round huge', _set_line(-1, round=10**18), True
  yield 'ledger, sealed anew: attempt huge', _set_line(-1, attempt=10**18), True
  yield 'ledger, sealed anew: δ', _set_line(0, delta=0.5), True
  yield 'ledger, sealed anew: δ text', _set_line(0, delta='x'), True
  yield (
    'ledger, sealed anew: event',
    _set_line(0, event='GaussianDpEvent(noise_multiplier=100.0)'),
    True,
  )
  for noise in ('1e-06', '0', '-1.0', '1e400', '1e-300'):
    yield (
      f'ledger, sealed anew: event of noise {noise}',
      _set_line(0, event=f'GaussianDpEvent(noise_multiplier={noise})'),
      True,
    )
  yield (
    'ledger, sealed anew: event is code',
    _set_line(0, event='__import__("os").system("true")'),
    True,
  )
  yield 'ledger, sealed anew: noise', _set_line(0, noise_multiplier=9.0), True
  yield (
    'ledger: half a character',
    _lines(lambda x: [*x, b'{"digest": "", "round": "\\ud800"}\n']),
    True,
  )
  yield 'ledger, sealed anew: format', _set_line(0, format=1), True
  yield 'ledger, sealed anew: run', _set_line(0, run_id='00' * 16), True
  yield (
    'ledger, sealed anew: budget text',
    _set_line(0, epsilon_budget='x'),
    True,
  )
  yield 'ledger, sealed anew: budget', _set_line(0, epsilon_budget=0.01), True
  yield 'ledger, sealed anew: no entries', _resealed(lambda x: x[:1]), True
  yield 'ledger, sealed anew: fewer', _resealed(lambda x: x[:4]), True
  yield (
    'ledger, sealed anew: an entry removed',
    _resealed(lambda x: x[:3] + x[4:]),
    True,
  )
  yield (
    'ledger, sealed anew: one charge for all',
    _resealed(lambda x: [x[0], {**x[-1], 'charges': 1, 'attempt': 1}]),
    True,
  )
  yield f'{_LEDGER} of another run', _from_other(_LEDGER), True


# Checkpoints and the other files.


def _from_other(name: str) -> Change:
  def apply(folder: pathlib.Path, other: pathlib.Path) -> None:
    _missing(folder / name)
    source = other / name
    if source.is_dir():
      shutil.copytree(source, folder / name)
    else:
      shutil.copy(source, folder / name)

  return apply


def _checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted((folder / 'checkpoints').glob('round_*.npz'))


def _renamed(folder: pathlib.Path, other: pathlib.Path) -> None:
  path = _checkpoints(folder)[-1]
  path.rename(path.with_name('round_000500.npz'))


def _renamed_older(folder: pathlib.Path, other: pathlib.Path) -> None:
  older, newest = _checkpoints(folder)[-2:]
  newest.unlink()
  older.rename(newest)


def _swapped(folder: pathlib.Path, other: pathlib.Path) -> None:
  older, newest = _checkpoints(folder)[-2:]
  aside = older.with_name('aside')
  older.rename(aside)
  newest.rename(older)
  aside.rename(newest)


def _other_checkpoint(folder: pathlib.Path, other: pathlib.Path) -> None:
  for path in _checkpoints(folder):
    path.unlink()
  for path in _checkpoints(other):
    shutil.copy(path, folder / 'checkpoints')


def _other_weights(reseals: bool) -> Change:
  def apply(folder: pathlib.Path, other: pathlib.Path) -> None:
    path = _checkpoints(folder)[-1]
    with np.load(path) as file:
      arrays = dict(file)
    arrays['leaf_0000'] = arrays['leaf_0000'] + 1
    if reseals:
      arrays['record'] = _seal_arrays(arrays)
    np.savez(path, **arrays)

  return apply


def _other_record(**values: Any) -> Change:
  def apply(folder: pathlib.Path, other: pathlib.Path) -> None:
    for path in _checkpoints(folder)[-1:]:
      with np.load(path) as file:
        arrays = dict(file)
      record = json.loads(arrays['record'].tobytes()[:-64])
      record.update(values)
      arrays['record'] = _seal_arrays(arrays, record)
      np.savez(path, **arrays)

  return apply


def _seal_arrays(
  arrays: dict[str, np.ndarray], record: dict[str, Any] | None = None
) -> np.ndarray:
  text = arrays['record'].tobytes()[:-64]
  if record is not None:
    text = json.dumps(record, sort_keys=True).encode()
  found = hashlib.sha256(text)
  for name in sorted(arrays):
    if name.startswith('leaf'):
      array = np.asarray(arrays[name])
      found.update(f'{array.shape}{array.dtype.str}'.encode())
      found.update(np.ascontiguousarray(array).tobytes())
  return np.frombuffer(text + found.hexdigest().encode(), np.uint8)


def _all_of(*changes: Change) -> Change:
  def apply(folder: pathlib.Path, other: pathlib.Path) -> None:
    for change in changes:
      change(folder, other)

  return apply


def _newest(how: Callable[[pathlib.Path], None]) -> Change:
  return lambda folder, other: how(_checkpoints(folder)[-1])


def _every(how: Callable[[pathlib.Path], None]) -> Change:
  def apply(folder: pathlib.Path, other: pathlib.Path) -> None:
    for path in _checkpoints(folder):
      how(path)

  return apply


def _checkpoint_changes() -> Iterator[tuple[str, Change, bool]]:
  for name in ('missing', 'empty', 'binary', 'a FIFO', 'a folder',
               'a loop of links', 'a device', 'huge and sparse'):  # fmt: skip
    yield f'newest checkpoint: {name}', _newest(DAMAGES[name]), False
    yield f'all checkpoints: {name}', _every(DAMAGES[name]), False
  yield 'newest checkpoint: half', _newest(_half), False
  yield 'all checkpoints: half', _every(_half), False
  for place in (0.02, 0.3, 0.6, 0.9, 0.99):
    yield (
      f'newest checkpoint: bit flip at {place}',
      _flip('checkpoints/round_*.npz', place),
      False,
    )
  yield 'checkpoint renamed', _renamed, True
  yield 'older checkpoint renamed to the newest', _renamed_older, True
  yield 'checkpoints swapped', _swapped, True
  yield 'checkpoints of another run', _other_checkpoint, True
  yield 'checkpoint: other weights', _other_weights(False), True
  yield 'checkpoint, sealed anew: other weights', _other_weights(True), False
  for values in (
    {'charges': 0},
    {'charges': 1},
    {'charges': 10**9},
    {'charges': 'many'},
    {'charges': -5},
    {'attempt': 1},
    {'attempt': 10**9},
    {'attempt': None},
    {'round_num': 0},
    {'round_num': 10**6},
    {'run_id': '00' * 16},
    {'ledger_digests': ['00' * 8]},
    {'ledger_digests': '00' * 8},
    {'values': {}},
    {'values': [1]},
    {'values': {'epsilon': 'x'}},
    {'values': {'epsilon': 0.0}},
    {'more': 1},
  ):
    yield (
      f'checkpoint, sealed anew: {values}',
      _other_record(**values),
      False,
    )
  folder = 'checkpoints'
  yield 'checkpoints: missing', damage(folder, _missing), False
  yield 'checkpoints: a file', damage(folder, _with(b'x')), False
  yield 'checkpoints: a loop', damage(folder, _loop), False


def change_json(name: str, **values: Any) -> Change:
  """Returns the change of some values in a JSON file."""

  def apply(folder: pathlib.Path, other: pathlib.Path) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

  return apply


def _row(change: Callable[[list[str]], list[str]]) -> Change:
  def apply(folder: pathlib.Path, other: pathlib.Path) -> None:
    path = folder / 'metrics.csv'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join(change(lines)) + '\n')

  return apply


def _free_row(line: str) -> str:
  number, _, *rest = line.split(',')
  return ','.join([number, '0.0', *rest])


def _side_changes() -> Iterator[tuple[str, Change, bool]]:
  """Yields changes of what there is in a finished and an unfinished run."""
  for name, how in DAMAGES.items():
    for path in ('config.json', 'metrics.csv', 'tensorboard', _LEDGER,
                 'checkpoints/cohort_seed.secret',
                 'checkpoints/data_digest_key.secret'):  # fmt: skip
      lies = path == _LEDGER
      yield f'{path}: {name}', damage(path, how), lies
  for values in (
    {'run_id': '00' * 16},
    {'run_id': 7},
    {'settings': []},
    {'settings': {}},
    {'settings': None},
    {'data_digest': 'md5:0'},
    {'versions': {}},
    {'initial_model_sha256': '00'},
  ):
    yield (
      f'config.json: {values}',
      change_json('config.json', **values),
      'run_id' in values,
    )
  yield (
    'metrics.csv: ε 0 everywhere',
    _row(lambda x: [x[0], *map(_free_row, x[1:])]),
    True,
  )
  yield 'metrics.csv: header lost', _row(lambda x: x[1:]), False
  yield 'metrics.csv: rows lost', _row(lambda x: x[:1] + x[3:]), False
  yield 'metrics.csv: a row twice', _row(lambda x: x + x[-1:]), False
  yield (
    'metrics.csv: round 10**9',
    _row(lambda x: [*x, '1000000000,1,1,1']),
    True,
  )
  yield 'metrics.csv: round -1', _row(lambda x: [*x, '-1,1,1,1']), False
  yield 'metrics.csv: text', _row(lambda x: [*x, 'a,b,c,d']), False
  yield 'metrics.csv: too long', _row(lambda x: [*x, '3,' * 500]), False
  yield 'metrics.csv: a NUL', _row(lambda x: [*x, '3\0,1,1,1']), False
  yield (
    'metrics.csv: a field of 10 MB',
    _row(lambda x: [*x, '9' * 10**7]),
    False,
  )
  yield 'events: bit flip', _flip('tensorboard/events*', 0.5), False
  yield (
    'events: half',
    lambda folder, other: _half(_only(folder, 'tensorboard/events*')),
    False,
  )
  for name in ('empty', 'binary', 'a FIFO', 'a folder', 'a loop of links',
               'a device', 'huge and sparse'):  # fmt: skip
    yield (
      f'events: {name}',
      lambda folder, other, how=DAMAGES[name]: how(
        _only(folder, 'tensorboard/events*')
      ),
      False,
    )
  yield (
    'cohort seed: negative',
    damage('checkpoints/cohort_seed.secret', _with(b'-1\n')),
    False,
  )
  yield (
    'cohort seed: 10**5000',
    damage('checkpoints/cohort_seed.secret', _with(b'9' * 5000)),
    False,
  )
  yield from _several()


def _several() -> Iterator[tuple[str, Change, bool]]:
  """Yields losses of several files at once."""
  ledger = damage(_LEDGER, _missing)
  metrics = damage('metrics.csv', _missing)
  seed = damage('checkpoints/cohort_seed.secret', _missing)
  checkpoints = _every(_missing)
  yield 'ledger and metrics.csv missing', _all_of(ledger, metrics), True
  yield 'ledger and checkpoints missing', _all_of(ledger, checkpoints), True
  yield 'checkpoints and seed missing', _all_of(checkpoints, seed), False
  yield (
    'ledger, checkpoints and seed missing',
    _all_of(ledger, checkpoints, seed),
    True,
  )
  yield (
    'ledger cut, newest checkpoint missing',
    _all_of(_lines(lambda x: x[:3]), _newest(_missing)),
    True,
  )
  yield (
    'ledger cut, newest checkpoint torn',
    _all_of(_lines(lambda x: x[:3]), _newest(_half)),
    True,
  )
  yield (
    'ledger emptied, checkpoints torn',
    _all_of(damage(_LEDGER, _with(b'')), _every(_half)),
    True,
  )
  yield (
    'config.json and ledger of another run',
    _all_of(_from_other('config.json'), _from_other(_LEDGER)),
    True,
  )
  yield (
    'config.json and checkpoints of another run',
    _all_of(_from_other('config.json'), _other_checkpoint),
    True,
  )
  for name in ('config.json', 'metrics.csv', 'tensorboard'):
    yield f'{name} of another run', _from_other(name), name == 'config.json'
  yield (
    'files nobody wrote',
    lambda folder, other: (folder / 'note.txt').write_text('hello'),
    False,
  )
  yield (
    'files half written',
    lambda folder, other: [
      (folder / f'{name}.partial').write_bytes(GARBAGE)
      for name in (
        'config.json',
        'metrics.csv',
        'summary.json',
        'checkpoints/round_000009.npz',
      )  # fmt: skip
    ],
    False,
  )


def _final_changes() -> Iterator[tuple[str, Change, bool]]:
  """Yields changes of what a finished run alone has."""
  for name, how in DAMAGES.items():
    lies = name not in ('missing',)
    yield f'summary.json: {name}', damage('summary.json', how), lies
    yield f'card: {name}', damage(_CARD, how), True
    yield f'saved_model: {name}', damage('saved_model', how), True
    yield (
      f'saved_model.pb: {name}',
      damage('saved_model/saved_model.pb', how),
      False,
    )
  for values in (
    {'epsilon': 0.0},
    {'epsilon': 0.1},
    {'epsilon': -1},
    {'epsilon': 'inf'},
    {'epsilon': None},
    {'epsilon': [1]},
    {'rounds': 3},
    {'rounds': -1},
    {'rounds': 10**9},
    {'charges': 1},
    {'rounds_charged': 2},
    {'delta': 0.1},
    {'delta': 'x'},
    {'run_id': '00' * 16},
    {'ledger_sha256': '00' * 32},
    {'weights_sha256': '00' * 32},
  ):
    yield f'summary.json: {values}', change_json('summary.json', **values), True
    yield f'card: {values}', change_json(_CARD, **values), True
  yield (
    'card: event',
    change_json(_CARD, charge_event='GaussianDpEvent(noise_multiplier=100.0)'),
    True,
  )
  for text in (
    7,
    'GaussianDpEvent(noise_multiplier=1e-06)',
    'PoissonSampledDpEvent(sampling_probability=9, '
    'event=GaussianDpEvent(noise_multiplier=1.0))',
    'ZCDpEvent(rho=-1, xi=0)',
    'PoissonSampledDpEvent(sampling_probability=0.05, event=7)',
  ):
    yield f'card: event {text}', change_json(_CARD, charge_event=text), True
  yield 'card of another run', _from_other(_CARD), True
  yield 'saved_model of another run', _from_other('saved_model'), True
  yield 'summary.json of another run', _from_other('summary.json'), True
  weights = 'saved_model/variables/variables.data-00000-of-00001'
  yield 'weights: bit flip', _flip(weights, 0.01), True
  yield 'weights of another run', _from_other(weights), True
  for name in ('missing', 'empty', 'binary', 'a FIFO', 'a folder'):
    yield f'weights: {name}', damage(weights, DAMAGES[name]), True
  ledger, checkpoints = damage(_LEDGER, _missing), _every(_missing)
  yield (
    'only the card is left',
    _all_of(
      ledger,
      checkpoints,
      damage('summary.json', _missing),
      damage('metrics.csv', _missing),
    ),
    True,
  )
  yield (
    'only the summary is left',
    _all_of(
      ledger,
      checkpoints,
      damage('saved_model', _missing),
      damage('metrics.csv', _missing),
    ),
    True,
  )


def tamperings() -> list[Tampering]:
  """Returns all tamperings of the long form."""
  both = [*_ledger_changes(), *_checkpoint_changes(), *_side_changes()]
  return [
    *(Tampering(n, c, True, lie) for n, c, lie in (*both, *_final_changes())),
    *(Tampering(f'{n} (unfinished)', c, False, lie) for n, c, lie in both),
  ]


class Runs:
  """A finished, an unfinished and another run, to be copied."""

  def __init__(self, server: forks.Forks, base: pathlib.Path):
    """Makes the runs below `base`."""
    self._server, self._base = server, base
    for name, stops in (
      # Killed after what it had drawn, and after what it had saved.
      ('finished', [('next', 4, 'after'), ('save', 2, 'after')]),
      (
        'unfinished',
        [('next', 3, 'after'), ('save', 2, 'after'), ('save', 2, 'after')],
      ),
      ('other', []),
    ):
      for aim in (*stops, None) if name != 'unfinished' else stops:
        ended = server.run(START, aim=aim, **self._places(base / name))
        if ended.code not in (0, -9):
          raise RuntimeError(ended.output)

  def _places(self, base: pathlib.Path) -> dict[str, str]:
    base.mkdir(exist_ok=True)
    return {'folder': str(base / 'run'), 'truth': str(base / 'truth')}

  def problems(self, tampering: Tampering) -> list[str]:
    """Returns what does not hold after a tampering."""
    with tempfile.TemporaryDirectory(dir=self._base) as name:
      base = pathlib.Path(name, 'case')
      which = 'finished' if tampering.finished else 'unfinished'
      shutil.copytree(self._base / which, base)
      places = self._places(base)
      tampering.change(base / 'run', self._base / 'other' / 'run')
      return [
        *self._verify(places['folder'], tampering),
        *self._restart(places, tampering),
      ]

  def _verify(self, folder: str, tampering: Tampering) -> Iterator[str]:
    ended = self._run('tests.faults.inspection:verified', folder=folder)
    if ended.code:
      yield f'verify ended with {ended.code}: {ended.output[-1500:]}'
    elif tampering.is_lie and not (
      ended.result['wrong'] or 'refused' in ended.result
    ):
      yield 'verify found nothing'

  def _restart(
    self, places: dict[str, str], tampering: Tampering
  ) -> Iterator[str]:
    ended = self._run(START, **places)
    if ended.code or 'Traceback' in ended.output:
      yield f'the start ended with {ended.code}: {ended.output[-1500:]}'
      return
    if 'refused' in ended.result:
      if not cases.one_line(ended.result['refused']):
        yield f'refused in more than a line: {ended.result["refused"]}'
      return
    if ended.result['code']:
      yield f'exit code {ended.result["code"]}: {ended.output[-800:]}'
      return
    unseen = tampering.name.removesuffix(' (unfinished)') in _UNSEEN
    after = self._run(
      'tests.faults.inspection:stated',
      seen='published' if unseen else 'saved',
      **places,
    )
    if after.code:
      yield f'the folder cannot be read: {after.output[-1500:]}'
      return
    found = after.result
    if found['epsilon'] is None or found['epsilon'] < found['released']:
      yield f'ε {found["epsilon"]} stated, {found["released"]} released'
    if found['rounds'] and not found['epsilon']:
      yield f'ε 0 for {found["rounds"]} rounds'
    if found['repeated']:
      yield f'{found["repeated"]} cohorts were released twice'
    # A ledger that somebody has sealed anew keeps the line that is a lie.
    if not tampering.is_lie and (found['wrong'] or 'refused' in found):
      yield f'verify after the restart: {found.get("refused", found["wrong"])}'

  def _run(self, function: str, **arguments: Any) -> forks.Ended:
    ended = self._server.run(function, timeout=_TIMEOUT_SECS, **arguments)
    if ended.timed_out:
      return dataclasses.replace(ended, code=1, output='it did not end')
    return ended


def run(
  server: forks.Forks, chosen: list[Tampering], tally: cases.Tally
) -> None:
  """Tries tamperings and counts them."""
  progress = cases.Progress(tally)
  with tempfile.TemporaryDirectory(prefix='tamper_faults_') as name:
    runs = Runs(server, pathlib.Path(name))
    for tampering in chosen:
      tally.add('finished' if tampering.finished else 'unfinished')
      problems = runs.problems(tampering)
      if problems:
        tally.lose(f'{tampering.name}: {"; ".join(problems)}')
      progress.show()


def main() -> int:
  """Runs the long form; returns its exit code."""
  tally = cases.Tally('tamperings')
  with forks.Forks(*kill_faults.PRELOAD) as server:
    run(server, tamperings(), tally)
  if not os.geteuid():
    print('tamperings: mode 000 was left out, as root is not stopped by it')
  return tally.show()


if __name__ == '__main__':
  sys.exit(main())
