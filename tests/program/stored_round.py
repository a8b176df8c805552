"""One record-level round on a sparse file of images, and what it cost.

    python -m tests.program.stored_round FOLDER IMAGES SIDE

Prints JSON: `peak_mib`, memory beyond that after the imports, and `read_mib`,
bytes that were read from files since then.
"""

import json
import os
import pathlib
import re
import sys

import numpy as np

from tff_medical import learning
from tff_medical import runtime
from tff_medical.data import equal_images
from tff_medical.data import images
from tff_medical.data import partition as partition_lib
from tff_medical.data import pixels
from tff_medical.data import units as units_lib
from tff_medical.learning import tasks
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import feeds

_CLIENTS = 8
_EXPECTED_BATCH = 256
_HELD_OUT = 1000


def _status(name):
  """Returns a value of this process in MiB.

  The peak of `resource.getrusage` would be that of the process that started
  this one, if it had more: the system keeps it when another program is run.
  """
  text = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(rf'{name}:\s+(\d+) kB', text)[1]) / 2**10


def _read_mib():
  text = pathlib.Path('/proc/self/io').read_text()
  return int(re.search(r'rchar: (\d+)', text)[1]) / 2**20


def stored_split(path, count, side):
  """Returns a split of black images that take no room on the disk."""
  with open(path, 'wb') as file:
    os.truncate(file.fileno(), count * side * side)
  return images.Split(
    images=pixels.StoredPixels(path, (count, side, side, 1), digest=path.name),
    labels=np.arange(count) % 2,
  )


def stored_data(folder, count, side):
  """Returns a data set of `count` training images."""
  splits = {
    name: stored_split(folder / f'{name}.raw', n, side)
    for name, n in (
      ('train', count),
      ('validation', _HELD_OUT),
      ('test', _HELD_OUT),
    )
  }
  return images.ImageData(
    name='stored',
    **splits,
    class_names=('a', 'b'),
    source_digest=images.content_digest(splits),
    counted_duplicates=equal_images.Duplicates(within={}, across={}),
  )


def main(folder, count, side):
  """Runs the round."""
  memory, read = _status('VmRSS'), _read_mib()
  runtime.set_local_context()
  data = stored_data(pathlib.Path(folder), count, side)
  assert not data.duplicates
  partition = partition_lib.partition(
    'dirichlet',
    data.train,
    num_clients=_CLIENTS,
    alpha=0.5,
    rng=np.random.default_rng(0),
  )
  task = tasks.Task(data, partition, 'cnn_small')
  feed = feeds.UnitFeed(
    data.train, units_lib.record_units(partition), _CLIENTS, microbatch_size=32
  )
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(feed.num_units, _EXPECTED_BATCH),
    clipping=mechanisms.FixedClipping(1.0),
    noise_multiplier=1.0,
    privacy_unit='record',
  )
  process = learning.build_dp_sgd(task.tff_model, mechanism)
  cohort = mechanism.sampling.draw(cohort_seed=3, round_num=1, attempt=1)
  output = process.next(process.initialize(), feed(cohort))
  metrics = task.evaluate(process.get_model_weights(output.state), 'test')
  assert np.isfinite(metrics['loss'])
  cost = {
    'drawn': len(cohort),
    'peak_mib': _status('VmHWM') - memory,
    'read_mib': _read_mib() - read,
  }
  print(json.dumps(cost), flush=True)


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
