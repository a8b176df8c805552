"""Records of a run: what it was started with, and how it ended.

`Config` is stored as config.json and `Summary` as summary.json. `of` takes the
values of such a file and checks them; `run_folder` reads and writes the files.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import importlib.metadata
import math
import platform
from typing import Any

from tff_medical import _validate
from tff_medical.scoring import intervals

_PACKAGES = (
  'tensorflow',
  'tensorflow-federated',
  'tensorflow-privacy',
  'tensorflow-datasets',
  'dp-accounting',
  'numpy',
)
# Reasons of a stop after which a run is not resumed.
ENDED = ('completed', 'budget_spent', 'skipped', 'diverged')


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration that a run was started with.

  Attributes:
    settings: All resolved settings by name, as plain values.
    data_digest: Digest that identifies the data; keyed unless the data is
      public.
    initial_model_sha256: Digest of the initial model; None without one.
    versions: Versions of Python and of the packages that affect the results.
    run_id: Identity of the run, in hexadecimal.
    backbone_sha256: Digest of the frozen layers; None without any.
  """

  settings: Mapping[str, Any]
  data_digest: str
  initial_model_sha256: str | None
  versions: Mapping[str, str]
  run_id: str
  backbone_sha256: str | None = None

  @classmethod
  def of(cls, values: Mapping[str, Any]) -> Config:
    """Returns the configuration of values from JSON.

    Raises:
      KeyError: A value is missing.
      TypeError: A value is of another type.
    """
    config = cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})
    if not (
      isinstance(config.settings, dict)
      and isinstance(config.versions, dict)
      and isinstance(config.data_digest, str)
      and isinstance(config.run_id, str)
      and isinstance(config.initial_model_sha256, (str, type(None)))
      and isinstance(config.backbone_sha256, (str, type(None)))
    ):
      raise TypeError('a value is of another type')
    return config


@dataclasses.dataclass(frozen=True)
class Summary:
  """End of a run.

  Attributes:
    rounds: Number of completed rounds, over all starts of the run.
    stop_reason: Reason of the end, from `ENDED`, or 'interrupted'.
    stop_message: Reason of the end in words.
    epsilon: Stated epsilon; inf without privacy.
    metrics: Metrics on the images of `eval_split`, by name; NaN if undefined;
      empty after an interruption.
    seconds: Duration of the last start of the run, in seconds.
    accountant: Accountant of `epsilon`: 'PLD', 'RDP' or 'none'.
    epsilon_rdp: Epsilon by RDP, as a check.
    delta: Delta of both values of epsilon; None without privacy.
    noise_multiplier: Noise multiplier of the mechanism; None without one.
    privacy_unit: Privacy unit of the guarantee, or 'none'.
    rounds_charged: Number of charged attempts at rounds.
    charges: Number of charges.
    ledger_sha256: Digest of the ledger.
    weights_sha256: `checkpoints.weights_digest` of the model.
    run_id: Identity of the run; '' for a reference without a ledger.
    eval_split: Split of `metrics`: 'validation' or 'test'. Older summaries lack
      it, and have metrics on the test images.
    intervals: Low and high end of the 95 % bootstrap interval, by the name of
      the metric.
    fitted: Numbers fitted on the validation images, by name.
  """

  rounds: int
  stop_reason: str
  stop_message: str
  epsilon: float
  metrics: Mapping[str, float]
  seconds: float = math.nan
  accountant: str = 'none'
  epsilon_rdp: float = math.inf
  delta: float | None = None
  noise_multiplier: float | None = None
  privacy_unit: str = 'none'
  rounds_charged: int = 0
  charges: int = 0
  ledger_sha256: str = ''
  weights_sha256: str = ''
  run_id: str = ''
  eval_split: str = 'test'
  intervals: Mapping[str, intervals.Interval] = dataclasses.field(
    default_factory=dict
  )
  fitted: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, values: Mapping[str, Any]) -> Summary:
    """Returns the summary of values from JSON.

    Raises:
      KeyError: A required value is missing.
      ValueError: A value is of another type.
      OverflowError: A number is too large.
    """
    return cls(
      **{
        field.name: _typed(values[field.name], str(field.type))
        for field in dataclasses.fields(cls)
        if field.name in values or _is_required(field)
      }
    )

  @property
  def has_ended(self) -> bool:
    """Whether the run has ended and is not resumed."""
    return self.stop_reason in ENDED


def versions() -> dict[str, str]:
  """Returns the versions of Python and of packages that affect the results."""
  packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {'python': platform.python_version(), **packages}


def _is_required(field: dataclasses.Field[Any]) -> bool:
  return field.default is field.default_factory is dataclasses.MISSING


def _typed(value: Any, kind: str) -> Any:
  """Returns a JSON value in the type of a field of `Summary`.

  Args:
    value: Value from JSON.
    kind: Type of the field, as its annotation reads.
  """
  if kind.startswith('Mapping'):
    if not isinstance(value, dict):
      raise ValueError(f'{value!r} is no object')
    if 'Interval' in kind:
      return {name: _interval(part) for name, part in value.items()}
    return {name: _number(part) for name, part in value.items()}
  if kind == 'str':
    if not isinstance(value, str):
      raise ValueError(f'{value!r} is no text')
    return value
  if kind == 'int':
    return _validate.count(value)
  if value is None and 'None' in kind:
    return None
  return _number(value)


def _interval(value: Any) -> intervals.Interval:
  if not isinstance(value, list) or len(value) != 2:
    raise ValueError(f'{value!r:.200} is no interval')
  return _number(value[0]), _number(value[1])


def _number(value: Any) -> float:
  """Returns a number as `_files.plain_json` writes it: null is NaN."""
  if value is None:
    return math.nan
  if isinstance(value, bool) or not isinstance(value, (int, float, str)):
    raise ValueError(f'{value!r} is no number')
  return float(value)
