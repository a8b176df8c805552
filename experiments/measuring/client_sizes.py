"""Spread of clients' sizes in partitions of a data set.

The simulation draws the durations of clients from a lognormal distribution. Its
`client_sigma` is the one whose durations have the coefficient of variation of
the clients' numbers of images.

    python -m experiments.measuring.client_sizes medmnist/pneumoniamnist \
        FOLDER_WITH_NPZ 470
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np

from tff_medical.data import loading
from tff_medical.data import partition as partition_lib

_PARTITIONS = (
  ('iid', None),
  ('dirichlet', 0.3),
  ('dirichlet', 0.1),
  ('quantity_skew', 5.0),
  ('quantity_skew', 1.0),
)


def sigma(sizes: np.ndarray) -> float:
  """Returns the sigma of a lognormal with the sizes' coefficient of variation.

  Args:
    sizes: Number of images of each client, positive, [N].
  """
  variation = np.std(sizes) / np.mean(sizes)
  return float(np.sqrt(np.log1p(variation**2)))


def main(dataset: str, data_dir: str, num_clients: str) -> None:
  """Prints the sigma of several partitions of the training images."""
  with tempfile.TemporaryDirectory() as folder:
    data = loading.load(dataset, data_dir=data_dir, tfds_dir=folder)
  print('| partition | smallest client | largest client | sigma |')
  print('|' + ' --- |' * 4)
  for kind, alpha in _PARTITIONS:
    rows = partition_lib.partition(
      kind,
      data.train,
      num_clients=int(num_clients),
      alpha=alpha,
      rng=np.random.default_rng(0),
    )
    name = kind if alpha is None else f'{kind}, alpha {alpha:g}'
    sizes = rows.sizes
    print(f'| {name} | {min(sizes)} | {max(sizes)} | {sigma(sizes):.2f} |')


if __name__ == '__main__':
  main(*sys.argv[1:])
