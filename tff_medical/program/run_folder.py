"""The folder of one training run, with all its files.

| file                  | content                                              |
|-----------------------|------------------------------------------------------|
| config.json           | the run's id, every resolved setting, versions, the  |
|                       | digests of the data and of the initial model         |
| metrics.csv           | epsilon, clip norm, and metrics on validation        |
|                       | images; one line per round                           |
| tensorboard/          | the same for TensorBoard, with times: keep it secret |
| privacy_ledger.jsonl  | every round that was paid for                        |
| checkpoints/          | server states, and two secrets: keep it secret       |
| summary.json          | end of the run: rounds, reason, epsilon, metrics     |
| scores.npz            | logits and labels of the evaluated images, without   |
|                       | identity: keep it as private as the labels           |
| saved_model/          | the exported model with its privacy card             |

`RunFolder` names the files and reads each into a checked type of `run_records`
or of its own module. `lost_charges` holds the files against the ledger when a
run is resumed. The digest of private data is keyed by a secret of the run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import pathlib
import secrets
import shutil
from typing import Any

from absl import logging

from tff_medical import _files
from tff_medical import _validate
from tff_medical.privacy import keyed_digests
from tff_medical.privacy import ledger_contents
from tff_medical.program import run_records
from tff_medical.scoring import scored

_KEY_FILE = 'data_digest_key.secret'
_DAMAGED = 'restore it or choose another output_dir'


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """Files of a run.

  Attributes:
    path: Path of the folder, which need not exist.
  """

  path: pathlib.Path

  @property
  def config(self) -> pathlib.Path:
    """File of the `Config`."""
    return self.path / 'config.json'

  @property
  def metrics(self) -> pathlib.Path:
    """CSV file of the values published by round."""
    return self.path / 'metrics.csv'

  @property
  def tensorboard(self) -> pathlib.Path:
    """Folder of the files for TensorBoard."""
    return self.path / 'tensorboard'

  @property
  def ledger(self) -> pathlib.Path:
    """File of the privacy ledger."""
    return self.path / 'privacy_ledger.jsonl'

  @property
  def checkpoints(self) -> pathlib.Path:
    """Folder of checkpoints and secrets."""
    return self.path / 'checkpoints'

  @property
  def summary(self) -> pathlib.Path:
    """File of the `Summary`."""
    return self.path / 'summary.json'

  @property
  def scores(self) -> pathlib.Path:
    """File of the scores of the evaluated images; see `scoring.scored`."""
    return self.path / 'scores.npz'

  @property
  def saved_model(self) -> pathlib.Path:
    """Folder of the exported model."""
    return self.path / 'saved_model'

  @property
  def audit(self) -> pathlib.Path:
    """File of the findings of `experiments.audit`."""
    return self.path / 'audit.json'

  @property
  def audit_files(self) -> pathlib.Path:
    """Folder of an audit's ledger and figures."""
    return self.path / 'audit'

  def check(self) -> None:
    """Raises `InputError` unless the folder is new, empty or a run's."""
    if not self.path.exists():
      return
    if not self.path.is_dir():
      raise _validate.InputError(f'output_dir {self.path} is not a folder')
    names = {p.name for p in self.path.iterdir()}
    if self._was_just_claimed(names):
      return
    if names and self.config.name not in names:
      what = (
        'a run without its config.json; restore that file or choose another '
        'output_dir'
        if self.ledger.name in names
        else 'other files (no config.json); choose a new folder'
      )
      raise _validate.InputError(f'output_dir {self.path} holds {what}')

  def check_settings(self, settings: Mapping[str, Any]) -> None:
    """Raises `InputError` if a run here was started with other settings.

    This is for settings that do not depend on the data. `claim` compares all.

    Args:
      settings: Values of settings that may not change, by name.
    """
    if not self.config.exists():
      return
    differing = _differing(self.read_config(), _files.plain_json(settings))
    if differing:
      raise _validate.InputError(_of_another_run(self.path, differing))

  def _was_just_claimed(self, names: Collection[str]) -> bool:
    """Returns whether a start was killed before it wrote config.json."""
    if not {*names} <= {
      self.checkpoints.name,
      f'{self.config.name}{_files.PARTIAL_SUFFIX}',
    }:
      return False
    in_checkpoints = (
      {p.name for p in self.checkpoints.iterdir()}
      if self.checkpoints.is_dir()
      else set()
    )
    return in_checkpoints <= {_KEY_FILE, f'{_KEY_FILE}{_files.PARTIAL_SUFFIX}'}

  def claim(
    self,
    *,
    settings: Mapping[str, Any],
    may_change: Collection[str],
    data_digest: str,
    data_is_public: bool,
    initial_model_digest: str | None,
    backbone_digest: str | None = None,
  ) -> run_records.Config:
    """Claims the folder for this run, or checks that it belongs to the run.

    Args:
      settings: Fully resolved settings, as plain values.
      may_change: Names of the settings that may differ when a run is resumed.
      data_digest: Digest that identifies the data.
      data_is_public: Whether this digest may be published as it is.
      initial_model_digest: Digest of the initial model; None without one.
      backbone_digest: Digest of the frozen layers; None without any.

    Returns:
      The configuration that the run was started with.

    Raises:
      InputError: The folder belongs to a run with other settings, data or
        initial model, or cannot be made.
    """
    self.check()
    has_begun = self.config.exists()
    if has_begun:
      filed = self.read_config()
    try:
      self.checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise _validate.InputError(
        f'output_dir {self.path} cannot be made ({error.strerror}); choose '
        'another output_dir'
      ) from None
    key = None if data_is_public else self._data_key(has_begun)
    now = run_records.Config(
      settings=_files.plain_json(settings),
      data_digest=_stated_digest(data_digest, key),
      initial_model_sha256=initial_model_digest,
      versions=run_records.versions(),
      run_id=filed.run_id if has_begun else secrets.token_hex(16),
      backbone_sha256=backbone_digest,
    )
    if not has_begun:
      _files.write_json(self.config, dataclasses.asdict(now))
      return now
    if key is None and not data_is_public:
      logging.warning(
        '%s is missing or damaged, so that it cannot be checked whether the '
        'data is the same',
        self.checkpoints / _KEY_FILE,
      )
      now = dataclasses.replace(now, data_digest=filed.data_digest)
    _refuse_other_run(self.config, filed, now, may_change)
    return filed

  def holds_data(self, digest: str, config: run_records.Config) -> bool:
    """Returns whether the run was trained on the data with this digest."""
    if config.data_digest == digest:
      return True
    key = self._read_key()
    return key is not None and config.data_digest == _stated_digest(digest, key)

  def read_config(self) -> run_records.Config:
    """Returns the configuration that the run was started with.

    Raises:
      FileNotFoundError: There is no config.json.
      InputError: The file is damaged, or of another version.
    """
    try:
      return run_records.Config.of(_files.read_json(self.config))
    except KeyError as error:
      raise _validate.InputError(
        f'{self.config} is damaged or of another version (no {error.args[0]});'
        f' {_DAMAGED}'
      ) from None
    except TypeError as error:
      raise _validate.InputError(
        f'{self.config} is damaged ({error}); {_DAMAGED}'
      ) from None

  def read_summary(self) -> run_records.Summary:
    """Returns the summary of the run.

    Raises:
      FileNotFoundError: The run has not ended.
      InputError: summary.json is damaged, or of another version.
    """
    values = _files.read_json(self.summary)
    try:
      return run_records.Summary.of(values)
    except (KeyError, ValueError, OverflowError) as error:
      raise _validate.InputError(
        f'{self.summary} is damaged or of another version ({error}); start '
        'the run again, which writes it anew'
      ) from None

  def write_summary(self, summary: run_records.Summary) -> None:
    """Writes the summary of the run.

    Raises:
      OSError: The file could not be written; an older file is untouched.
    """
    _files.write_json(self.summary, dataclasses.asdict(summary))

  def write_scores(
    self, images: scored.ScoredImages, weights_sha256: str
  ) -> None:
    """Writes the scores of the final model, for their owner alone.

    Args:
      images: Scores and labels of the evaluated images.
      weights_sha256: Digest of the model, as in the summary.

    Raises:
      OSError: The file could not be written; an older file is untouched.
    """
    content = images.to_bytes(weights_sha256)
    _files.write_bytes(self.scores, content, private=True)

  def read_scores(self) -> scored.ScoredImages | None:
    """Returns the scores that the summary's metrics were computed from.

    Returns:
      Scores and labels; None if the file is missing, or of another model or
      split than the summary, as after a crash between writing the two.

    Raises:
      FileNotFoundError: The run has not ended.
      InputError: A file is damaged.
    """
    summary = self.read_summary()
    try:
      content = _files.read_bytes(self.scores)
    except FileNotFoundError:
      return None
    images, weights = scored.ScoredImages.from_bytes(content, str(self.scores))
    is_same = (weights, images.split_name) == (
      summary.weights_sha256,
      summary.eval_split,
    )
    return images if is_same else None

  def remove_leftovers(self) -> None:
    """Removes half-written files of killed processes.

    The caller must hold the ledger's lock: no other process then writes here.
    """
    for path in (*self.path.iterdir(), *self.checkpoints.iterdir()):
      if path.name.endswith(_files.PARTIAL_SUFFIX) and path.is_file():
        path.unlink()
    for path in self.path.glob(f'.{self.saved_model.name}.*'):
      shutil.rmtree(path, ignore_errors=True)

  def noise_multiplier(self) -> float | None:
    """Returns the noise multiplier of the ledger; None without a ledger.

    Another version may calibrate another one. What continues or repeats the run
    takes the run's own, for which its ledger computes epsilon.

    Raises:
      InputError: The ledger was changed.
    """
    try:
      noise = ledger_contents.read(self.ledger).header.get('noise_multiplier')
    except FileNotFoundError:
      return None
    return noise if isinstance(noise, float) else None

  def _data_key(self, has_begun: bool) -> bytes | None:
    """Returns the key of the data's digest; draws it for a new run."""
    if has_begun:
      return self._read_key()
    key = secrets.token_hex(32)
    _files.write_bytes(
      self.checkpoints / _KEY_FILE, f'{key}\n'.encode(), private=True
    )
    return bytes.fromhex(key)

  def _read_key(self) -> bytes | None:
    try:
      return bytes.fromhex(_files.read_text(self.checkpoints / _KEY_FILE))
    except (OSError, ValueError):
      return None


def _stated_digest(digest: str, key: bytes | None) -> str:
  """Returns the digest that is stated: without a key the digest itself."""
  return digest if key is None else keyed_digests.keyed(digest, key)


def _refuse_other_run(
  path: pathlib.Path,
  filed: run_records.Config,
  now: run_records.Config,
  may_change: Collection[str],
) -> None:
  """Raises `InputError` if the configuration in the file is not this run's."""
  changed = _differing(
    filed, {n: v for n, v in now.settings.items() if n not in may_change}
  )
  for what, before, after in (
    ('data', filed.data_digest, now.data_digest),
    ('--initial_model', filed.initial_model_sha256, now.initial_model_sha256),
    ('--backbone', filed.backbone_sha256, now.backbone_sha256),
  ):
    if before != after:
      changed.append(f'{what} ({before} there, {after} now)')
  if changed:
    raise _validate.InputError(_of_another_run(path.parent, changed))


def _differing(
  filed: run_records.Config, settings: Mapping[str, Any]
) -> list[str]:
  """Returns a word on each setting that was filed with another value."""
  return [
    f'--{name} ({filed.settings.get(name)} there, {value} now)'
    for name, value in settings.items()
    if filed.settings.get(name) != value
  ]


def _of_another_run(path: pathlib.Path, differing: Sequence[str]) -> str:
  return (
    f'output_dir {path} belongs to a run with another {", ".join(differing)}; '
    'use the same or choose another output_dir'
  )
