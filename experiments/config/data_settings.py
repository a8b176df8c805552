"""Settings of the images, and of their partition over clients: flags of Data."""

from __future__ import annotations

import dataclasses
from typing import Optional

from experiments.config import fields
from tff_medical import _validate
from tff_medical.data import loading
from tff_medical.data import own_images
from tff_medical.data import partition as partition_lib


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Settings of the images, and of their partition over clients."""

  dataset: str = fields.setting(
    'synthetic',
    f'the images: {loading.names()}; synthetic ones are generated, without a '
    'download; folder and table are your own; tfds is the catalogue of TensorFlow '
    'Datasets, npz a file with the keys of MedMNIST',
  )
  data_dir: Optional[str] = fields.setting(
    None,
    'folder with NAME.npz, without which MedMNIST sets are downloaded; folder '
    'or archive of the images with --dataset=folder, file with --dataset=table, '
    'folder of FILE with npz:FILE, of files fetched by hand with tfds:NAME',
    may_change=True,
    is_path=True,
  )
  image_size: int = fields.setting(
    28,
    'height and width in pixels; 28, 64, 128 or 224 for MedMNIST',
    low=8,
    high=512,
  )
  partition: str = fields.setting(
    'iid', 'partition of images over clients', choices=partition_lib.KINDS
  )
  dirichlet_alpha: float = fields.setting(
    0.5,
    'Dirichlet concentration of labels or sizes; smaller values skew more',
    only_if={'partition': partition_lib.ALPHA_KINDS},
    low=1e-6,
    high=1e6,
  )
  num_clients: Optional[int] = fields.setting(
    None,
    'number of clients [300 where clients are protected, else 8 sites]',
    only_if={'partition': partition_lib.COUNTED_KINDS},
    low=1,
    high=1_000_000,
  )
  ordinal_labels: bool = fields.setting(
    False,
    'whether the classes are grades in the order of their names, which adds '
    'quadratic weighted kappa and mean absolute error; so known of retinamnist',
    may_change=True,
  )
  seed: int = fields.setting(
    0,
    'seed of data, partition and initial weights, never of the noise',
    low=0,
    high=2**31 - 1,
  )

  def __post_init__(self) -> None:
    loading.source(self.dataset)
    if self.dataset in own_images.NAMES and self.data_dir is None:
      raise _validate.InputError(
        f'data_dir must be given with dataset={self.dataset}: '
        '--data_dir=FOLDER or ARCHIVE, or FILE of a table'
      )
