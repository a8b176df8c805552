"""A training run with NumPy in place of TFF's computation, otherwise whole.

`start` runs `experiments.train` with its own assembly: the folder is claimed,
the ledger charged, checkpoints, metrics.csv, TensorBoard's files, summary, card
and exported model are written as ever. Only data, model and learning process
are stand-ins, so that a start takes a second. It runs in a forked child.

What really happened is told to a file of its own, the truth, which is flushed
to the disk before the thing that it tells of can be seen by anybody: `ran` for
each round that drew noise, `saved` for each whose state is about to be saved,
`published` for each that is about to stand in metrics.csv.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import pathlib
import re
import resource
import secrets
import shutil
import signal
import tempfile
import types
from typing import Any
from unittest import mock

from absl import logging
import dp_accounting
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments import train
from experiments.config import settings as settings_lib
from experiments.modes import dp_fed_avg
from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import ledger_file
from tff_medical.program import checkpoints as checkpoints_lib
from tff_medical.program import published
from tff_medical.scoring import evaluation as scoring

CLIENTS = 1000
COHORT = 50
DELTA = 1e-3
NOISE = 1.0
ROUNDS = 6
ROUNDS_PER_EVAL = 2
SHAPE = (2, 2, 1)
DIGEST = 'md5:0123456789abcdef'
CLASSES = ('healthy', 'ill')
_FAULTS = ('before', 'after', 'torn', 'fail')

_State = collections.namedtuple(
  '_State', ['global_model_weights', 'aggregator', 'nonce']
)
_Aggregator = collections.namedtuple('_Aggregator', ['query_state'])
_Query = collections.namedtuple('_Query', ['numerator_state'])
_Sum = collections.namedtuple('_Sum', ['l2_norm_clip'])

# Before they are replaced: the truth must be told in any case.
_fsync = os.fsync


def event() -> dp_accounting.DpEvent:
  """Returns what a round of `start` releases, as the accountant sees it."""
  return dp_accounting.PoissonSampledDpEvent(
    COHORT / CLIENTS, dp_accounting.GaussianDpEvent(NOISE)
  )


def before_fork() -> None:
  """Does what every child would do again, without TensorFlow's threads."""
  accounting.epsilon(event(), rounds=1, delta=DELTA)


class Truth:
  """What really happened in a run, over all of its starts."""

  def __init__(self, path: str | os.PathLike[str]):
    self._path = pathlib.Path(path)

  def tell(self, **what: Any) -> None:
    """Appends a line; it is on disk when this returns."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    descriptor = os.open(self._path, flags, 0o600)
    # The disk that is full is that of the run.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit[1], limit[1]))
    try:
      os.write(descriptor, json.dumps(what).encode() + b'\n')
      _fsync(descriptor)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limit)
      os.close(descriptor)

  def lines(self, what: str) -> list[dict[str, Any]]:
    """Returns the lines of a kind, in order."""
    if not self._path.exists():
      return []
    found = [json.loads(x) for x in self._path.read_text().splitlines()]
    return [one for one in found if one['what'] == what]


class Aim:
  """A fault at the n-th time that something happens.

  Attributes:
    seen: How often each thing has happened, by its name.
  """

  def __init__(self, label: str = '', number: int = 0, fault: str = 'before'):
    """Aims at the `number`-th `label`; without it nothing is done.

    The fault is a kill before or after it, a kill when half of the file's last
    line or content is written ('torn'), or an error of a full disk ('fail').
    """
    if fault not in _FAULTS:
      raise ValueError(fault)
    self.seen: collections.Counter[str] = collections.Counter()
    self._label, self._number, self._fault = label, number, fault

  def around(self, label: str, call: Any, path: Any = None) -> Any:
    """Calls what `label` names, with the fault if it is aimed at."""
    self.seen[label] += 1
    if (label, self.seen[label]) != (self._label, self._number):
      return call()
    if self._fault == 'before':
      _kill_self()
    if self._fault == 'fail':
      raise OSError(28, 'No space left on device', os.fspath(path or label))
    result = call()
    if self._fault == 'torn' and path is not None:
      tear(pathlib.Path(path))
    _kill_self()
    return result


def tear(path: pathlib.Path) -> None:
  """Takes the second half of the last line, or of all if there is one."""
  content = path.read_bytes()
  start = content.rfind(b'\n', 0, max(0, len(content) - 1)) + 1
  os.truncate(path, start + (len(content) - start) // 2)


def _kill_self() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


class _Process:
  """Stands in for a `tff.learning.templates.LearningProcess`."""

  def __init__(self, truth: Truth, aim: Aim):
    self._truth, self._aim = truth, aim
    self.attempt = 0
    self.round_num = 0

  def initialize(self) -> _State:
    size = int(np.prod(SHAPE))
    weights = tff.learning.models.ModelWeights(
      trainable=[
        np.zeros((size, len(CLASSES)), np.float32),
        np.zeros(len(CLASSES), np.float32),
      ],
      non_trainable=[],
    )
    clip = _Aggregator(_Query(_Sum(np.float32(0.1))))
    return _State(weights, clip, np.int64(0))

  def next(self, state: _State, datasets: list[Any]) -> Any:
    return self._aim.around('next', lambda: self._next(state, datasets))

  def _next(self, state: _State, datasets: list[Any]) -> Any:
    if not datasets:
      return types.SimpleNamespace(state=state, metrics={})
    nonce = secrets.randbits(62)
    self._truth.tell(
      what='ran',
      round=self.round_num,
      attempt=self.attempt,
      cohort=hashlib.sha256(datasets[0].tobytes()).hexdigest(),
      nonce=nonce,
    )
    rng = np.random.default_rng()
    trained = [
      (w + rng.normal(0, 0.1, w.shape)).astype(np.float32)
      for w in state.global_model_weights.trainable
    ]
    weights = tff.learning.models.ModelWeights(trained, [])
    clip = state.aggregator.query_state.numerator_state.l2_norm_clip
    state = _State(
      weights,
      _Aggregator(_Query(_Sum(np.float32(clip * 1.01)))),
      np.int64(nonce),
    )
    return types.SimpleNamespace(state=state, metrics={})

  def get_model_weights(self, state: _State) -> Any:
    return state.global_model_weights


class _Feed:
  """Gives the cohort itself as the data of a round."""

  num_units = CLIENTS

  def without_data(self) -> list[Any]:
    return []

  def __call__(self, indices: np.ndarray) -> list[Any]:
    return [indices]


class _Task:
  """Stands in for a `tasks.Task`."""

  num_clients = CLIENTS
  initial_model = provenance = transfer = backbone = keras_model = None

  def __init__(self) -> None:
    self.data = types.SimpleNamespace(
      class_names=CLASSES,
      num_classes=len(CLASSES),
      multi_label=False,
      source_digest=DIGEST,
      is_public=False,
      described='stand-in',
      name='stand-in',
      largest_group=None,
      decoding_policy=None,
      has_validation=True,
      eval_split=lambda name: name,
    )

  def evaluate(self, weights: Any, split_name: str) -> dict[str, float]:
    del split_name
    return {'auc': norm(weights)}

  def evaluation(
    self, model: tf.keras.Model, split_name: str, specificity: float
  ) -> tuple[scoring.Evaluation, None]:
    del split_name, specificity
    weights = types.SimpleNamespace(trainable=model.get_weights())
    return scoring.Evaluation(metrics={'auc': norm(weights)}), None

  def load_weights(self, weights: Any) -> tf.keras.Model:
    model = tf.keras.Sequential(
      [
        tf.keras.layers.InputLayer(SHAPE),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(len(CLASSES)),
      ]
    )
    model.set_weights(weights.trainable)
    return model


def norm(weights: Any) -> float:
  """Returns the metric that the stand-in measures of a model."""
  return float(np.linalg.norm(np.concatenate(
    [np.ravel(w) for w in weights.trainable]
  )))  # fmt: skip


def settings(folder: str, **changed: Any) -> settings_lib.Flags:
  """Returns the settings of a run in `folder`."""
  values = dict(
    num_clients=CLIENTS,
    clients_per_round=float(COHORT),
    noise_multiplier=NOISE,
    target_delta=DELTA,
    rounds=ROUNDS,
    rounds_per_eval=ROUNDS_PER_EVAL,
    output_dir=folder,
  )
  return settings_lib.Flags.of(**{**values, **changed})


def start(
  folder: str,
  truth: str,
  aim: tuple[str, int, str] | None = None,
  max_file_bytes: int | None = None,
  changed: dict[str, Any] | None = None,
  temporary: str | None = None,
) -> dict[str, Any]:
  """Starts the run in `folder`, or goes on with it.

  Args:
    folder: The `--output_dir`.
    truth: The file that is told what really happened.
    aim: Of `Aim`.
    max_file_bytes: No file can grow beyond it, as on a full disk.
    changed: Settings that differ.
    temporary: The folder of temporary files.

  Returns:
    `refused` with the text of an InputError, or the exit `code`; and `seen`,
    how often each thing happened that an aim may have.
  """
  logging.set_verbosity(logging.WARNING)
  if temporary is not None:
    pathlib.Path(temporary).mkdir(exist_ok=True)
    tempfile.tempdir = temporary
  told, aimed = Truth(truth), Aim(*(aim or ()))
  process = _Process(told, aimed)
  for patch in (*_stand_ins(process), *_watched(told, aimed, process)):
    patch.start()
  wanted = settings(folder, **(changed or {}))
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  if max_file_bytes is not None:
    # Python ignores SIGXFSZ, so that writing gives an OSError.
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, before[1]))
  try:
    code = train.main(lambda: wanted)
  except _validate.InputError as error:
    return {'refused': str(error), 'seen': dict(aimed.seen)}
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  return {'code': code, 'seen': dict(aimed.seen)}


def _stand_ins(process: _Process) -> list[Any]:
  mode = dp_fed_avg.DpFedAvg
  return [
    mock.patch.object(train.assembly, 'load_task', lambda settings: _Task()),
    mock.patch.object(mode, 'feed', lambda self, task: _Feed()),
    mock.patch.object(mode, 'averaged_process', lambda *unused: process),
    mock.patch.object(train.runtime, 'set_local_context', lambda **unused: 0),
    mock.patch.object(train.export, 'trace_ahead'),
  ]


def _watched(truth: Truth, aim: Aim, process: _Process) -> list[Any]:
  """Returns the patches that count, tell and aim."""
  charge, write = (
    ledger_lib.PrivacyLedger.charge,
    ledger_file.LedgerFile.write,
  )
  save = checkpoints_lib.Checkpoints.save
  nonces = {one['round']: one['nonce'] for one in truth.lines('saved')}
  release, flush = published.MetricsTable.release, published.EventFiles.release

  def charge_and_remember(self: Any, round_num: int, **extra: Any) -> float:
    epsilon = aim.around(
      'charge', lambda: charge(self, round_num, **extra), self._path
    )
    process.round_num, process.attempt = round_num, self.rounds_charged
    return epsilon

  def save_and_tell(self: Any, state: _State, record: Any) -> str:
    if record.round_num:
      nonces[record.round_num] = int(state.nonce)
      truth.tell(
        what='saved',
        round=record.round_num,
        attempt=record.attempt,
        values=dict(record.values),
        norm=norm(state.global_model_weights),
        evaluates=record.evaluates,
        nonce=int(state.nonce),
      )
    return aim.around('save', lambda: save(self, state, record))

  async def release_watched(self: Any, value: Any, key: int) -> None:
    truth.tell(what='published', round=key, nonce=nonces[key])
    aim.around('append metrics.csv', lambda: None)
    await release(self, value, key)
    aim.around('appended metrics.csv', lambda: None, self._path)

  async def flush_watched(self: Any, value: Any, key: int) -> None:
    aim.around('flush events', lambda: None)
    await flush(self, value, key)
    newest = max(self._folder.glob('events*'), key=lambda p: p.stat().st_mtime)
    aim.around('flushed events', lambda: None, newest)

  def fsync(descriptor: int) -> None:
    name = os.readlink(f'/proc/self/fd/{descriptor}')
    path = name if os.path.isfile(name) else None
    aim.around(f'fsync {_label(name)}', lambda: _fsync(descriptor), path)

  def watch(owner: Any, name: str, what: str) -> Any:
    original = getattr(owner, name)

    def watched(*args: Any, **named: Any) -> Any:
      return aim.around(
        f'{what} {_label(args[-1])}', lambda: original(*args, **named)
      )

    return mock.patch.object(owner, name, watched)

  return [
    mock.patch.object(ledger_lib.PrivacyLedger, 'charge', charge_and_remember),
    mock.patch.object(
      ledger_file.LedgerFile,
      'write',
      lambda self, record: aim.around(
        'write ledger', lambda: write(self, record), self._path
      ),
    ),
    mock.patch.object(checkpoints_lib.Checkpoints, 'save', save_and_tell),
    mock.patch.object(published.MetricsTable, 'release', release_watched),
    mock.patch.object(published.EventFiles, 'release', flush_watched),
    mock.patch.object(os, 'fsync', fsync),
    watch(os, 'replace', 'replace'),
    watch(os, 'rename', 'rename'),
    watch(shutil, 'rmtree', 'rmtree'),
    watch(tf.saved_model, 'save', 'save model'),
    watch(os, 'unlink', 'unlink'),
  ]


def _label(path: Any) -> str:
  """Returns the name of a file, the same in every round and run."""
  if not isinstance(path, (str, os.PathLike)):
    return ''
  name = pathlib.Path(path).name
  if re.fullmatch(r'\.saved_model\.[0-9a-f]+\.\w+', name):
    return 'saved_model' + pathlib.Path(name).suffix
  if name.startswith('events.out'):
    return 'events'
  if name.startswith('tmp'):
    return 'tmp'
  return re.sub(r'round_\d+', 'round', name)
