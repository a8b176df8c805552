"""From the settings of the data to images and their clients.

Nothing here imports TensorFlow unless the data set asks for it, so that own
images can be looked at in seconds.
"""

from __future__ import annotations

import dataclasses

from absl import logging
import numpy as np

from experiments.config import data_settings
from experiments.config import open_set_settings
from experiments.config import own_image_settings
from tff_medical.data import images
from tff_medical.data import loading
from tff_medical.data import own_images
from tff_medical.data import partition as partition_lib


def load(
  settings: data_settings.DataSettings,
  own: own_image_settings.OwnImageSettings,
  open_set: open_set_settings.OpenSetSettings,
) -> images.ImageData:
  """Returns the images, and warns of equal ones.

  Raises:
    InputError: The data cannot be used.
  """
  data = loading.load(
    settings.dataset,
    image_size=settings.image_size,
    data_dir=settings.data_dir,
    seed=settings.seed,
    own=own.options() if settings.dataset in own_images.NAMES else None,
    keys=open_set.keys(),
    class_names=open_set.names(),
  )
  if settings.ordinal_labels:
    data = dataclasses.replace(data, is_ordinal=True)
  if data.duplicates:
    logging.warning('%s has duplicates: %s', data.name, data.duplicates)
  return data


def partition(
  settings: data_settings.DataSettings, data: images.ImageData
) -> partition_lib.Partition:
  """Returns the indices of the training images of each client.

  Raises:
    InputError: The images cannot be spread in this way.
  """
  is_skewed = settings.partition in partition_lib.ALPHA_KINDS
  return partition_lib.partition(
    settings.partition,
    data.train,
    num_clients=settings.num_clients,
    alpha=settings.dirichlet_alpha if is_skewed else None,
    rng=np.random.default_rng(settings.seed),
  )
