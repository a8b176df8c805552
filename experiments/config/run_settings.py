"""Settings of how and where a training runs, and of its output: flags of Run."""

from __future__ import annotations

import dataclasses
from typing import Optional

from experiments.config import fields
from tff_medical import _files
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.scoring import fitted


@dataclasses.dataclass(frozen=True)
class RunSettings:
  """Settings of how and where the training runs, and of its output."""

  rounds_per_eval: int = fields.setting(
    10,
    'rounds between evaluations on the validation images',
    may_change=True,
    low=1,
    high=1_000_000,
  )
  eval_split: str = fields.setting(
    'validation',
    'split of the final metrics: validation while settings are chosen, test '
    'for the figures that are reported; rounds are never evaluated on test',
    choices=images.EVAL_SPLITS,
    may_change=True,
  )
  fixed_specificity: float = fields.setting(
    fitted.DEFAULT_SPECIFICITY,
    'specificity at which the sensitivity on test images is stated; validation '
    'images give the threshold',
    only_if={'eval_split': (images.TEST,)},
    may_change=True,
    low=0.01,
    high=0.999,
  )
  own_metrics: Optional[str] = fields.setting(
    None,
    'metrics of your own: module:function, more after commas; each a function '
    'of probabilities [N, K] and labels that returns a number',
    may_change=True,
  )
  cohort_seed: Optional[int] = fields.setting(
    None,
    'seed of the cohorts [secret, from the operating system]',
    low=0,
    high=2**128 - 1,
  )
  runtime: str = fields.setting(
    'local',
    'runtime of TFF computations: this process (local), the machines of a Ray '
    "cluster (cluster) or TFF's own (tff)",
    choices=('local', 'cluster', 'tff'),
    may_change=True,
  )
  cluster_address: str = fields.setting(
    'auto',
    'Ray cluster: auto for the one that this machine belongs to, HOST:PORT, or '
    'ray://HOST:PORT from outside of it',
    only_if={'runtime': ('cluster',)},
    may_change=True,
  )
  client_threads: Optional[int] = fields.setting(
    None,
    'clients that train at once on the CPU, with runtime=cluster on each node '
    '[one for each core]',
    only_if={'runtime': ('local', 'cluster')},
    may_change=True,
    low=1,
    high=256,
  )
  client_devices: Optional[str] = fields.setting(
    None,
    'devices that train clients, e.g. GPU:0,GPU:1 [all GPUs, or else the CPU]',
    only_if={'runtime': ('local',)},
    may_change=True,
  )
  clients_per_device: Optional[int] = fields.setting(
    None,
    'clients that train at once on each device [1]',
    only_if={'runtime': ('local',)},
    may_change=True,
    low=1,
    high=64,
  )
  precision: str = fields.setting(
    'float32',
    'numbers in forward and backward passes: bfloat16 is faster on processors '
    'that have it; weights, clipping, sums and noise stay float32',
    only_if={'runtime': ('local', 'cluster')},
    choices=('float32', 'bfloat16'),
  )
  data_ledger: Optional[str] = fields.setting(
    None,
    'file in which all runs on the same data are charged against one budget; '
    'started if it is missing',
    may_change=True,
    is_path=True,
  )
  data_budget: Optional[float] = fields.setting(
    None,
    'largest ε of all runs of the data_ledger together, with which the file is '
    'started; fixed from then on',
    may_change=True,
    low=1e-6,
    high=1e6,
  )
  export_diverged: bool = fields.setting(
    False,
    'whether to export even a model that has diverged, which is of no use',
    may_change=True,
  )
  output_dir: Optional[str] = fields.setting(
    None,
    'folder that gets all files of the run',
    may_change=True,
    is_path=True,
  )

  def __post_init__(self) -> None:
    if self.output_dir is not None:
      _files.check_no_pattern('output_dir', self.output_dir)
    if self.data_budget is not None and self.data_ledger is None:
      raise _validate.InputError(
        f'data_budget={self.data_budget} would be ignored without a '
        'data_ledger; leave it out'
      )
