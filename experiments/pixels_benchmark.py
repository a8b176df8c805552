"""Measures the cost of stored pixels against an array in memory.

A file of random images is written, read, and trained on. The contenders are:

- memory: the images as one array.
- stored: `data.pixels.StoredPixels`.
- memory_map: `numpy.memmap`, which the project does not use.

`read` fetches the images of a draw. `read_cold` does so after the system was
asked to drop the file's pages, as for a data set far larger than the memory.
`round` is a round of record-level DP-SGD of `cnn_small` on the draw, including
the read. Every turn has a new draw. Figures are medians over turns. A ratio is
the median of the ratios within each turn.

    python -m experiments.pixels_benchmark --json=pixels_benchmark.json
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import os
import pathlib
import statistics
import tempfile

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_integer('images', 20_000, 'number of images in the file')
  absl_flags.DEFINE_integer('image_size', 64, 'height and width in pixels')
  absl_flags.DEFINE_integer(
    'channels', 1, 'number of channels: 1 (grey) or 3 (RGB)'
  )
  absl_flags.DEFINE_integer('drawn', 256, 'number of images per draw')
  absl_flags.DEFINE_integer('turns', 10, 'number of measured turns')
  absl_flags.DEFINE_integer('warm_up', 2, 'number of turns before them')
  absl_flags.DEFINE_string(
    'folder',
    None,
    'folder of the temporary file, which is removed at the end [/tmp]',
  )
  absl_flags.DEFINE_string('json', None, 'file for the figures')
  command.parse()

import numpy as np
import tensorflow_federated as tff

from experiments.measuring import timing
from tff_medical import _validate
from tff_medical import learning
from tff_medical import runtime
from tff_medical.data import images as images_lib
from tff_medical.data import pixels
from tff_medical.data import units as units_lib
from tff_medical.learning import tasks
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import feeds

_CLIENTS = 8
_MICROBATCH_SIZE = 32

Contenders = dict[str, Callable[[], object]]


@dataclasses.dataclass(frozen=True)
class Workload:
  """The file and the draws.

  Attributes:
    images: Number of images in the file.
    image_size: Height and width in pixels.
    channels: Number of channels, 1 or 3.
    drawn: Number of images per draw.
  """

  images: int = 20_000
  image_size: int = 64
  channels: int = 1
  drawn: int = 256

  def __post_init__(self) -> None:
    _validate.positive_int(**dataclasses.asdict(self))
    _validate.within(1, self.images - 1, drawn=self.drawn)

  @property
  def shape(self) -> pixels.Shape:
    """Shape (N, H, W, C)."""
    return self.images, self.image_size, self.image_size, self.channels


@contextlib.contextmanager
def stored_file(work: Workload, folder: str | None) -> Iterator[pathlib.Path]:
  """Writes a file of random images, and removes it at the end."""
  with tempfile.TemporaryDirectory(dir=folder) as temporary:
    path = pathlib.Path(temporary, 'images.raw')
    rng = np.random.default_rng(0)
    with open(path, 'wb') as file:
      for _ in range(work.images):
        file.write(rng.bytes(int(np.prod(work.shape[1:]))))
      file.flush()
      os.fsync(file.fileno())  # Pages that are not on disk cannot be dropped.
    yield path


def forget_pages(path: pathlib.Path) -> None:
  """Asks the system to drop all pages of a file from memory."""
  with open(path, 'rb') as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def readers(work: Workload, path: pathlib.Path) -> Contenders:
  """Returns functions that read the next draw."""
  array = np.fromfile(path, np.uint8).reshape(work.shape)
  stored = pixels.StoredPixels(path, work.shape)
  mapped = np.memmap(path, np.uint8, 'r', shape=work.shape)
  return {
    name: functools.partial(_read_next, source, _draws(work))
    for name, source in (
      ('memory', array),
      ('stored', stored),
      ('memory_map', mapped),
    )
  }


def cold_readers(work: Workload, path: pathlib.Path) -> Contenders:
  """Returns functions that read the next draw from the disk.

  Before each there is a function that makes the system drop the pages.
  """
  contenders: Contenders = {}
  for name, source in (
    ('stored', lambda: pixels.StoredPixels(path, work.shape)),
    ('memory_map', lambda: np.memmap(path, np.uint8, 'r', shape=work.shape)),
  ):
    contenders[f'forget {name}'] = functools.partial(forget_pages, path)
    contenders[name] = functools.partial(_open_and_read, source, _draws(work))
  return contenders


def rounds(work: Workload, path: pathlib.Path) -> Contenders:
  """Returns functions that run the next round of DP-SGD."""
  array = np.fromfile(path, np.uint8).reshape(work.shape)
  sources: dict[str, pixels.ArrayOrPixels] = {
    'memory': array,
    'stored': pixels.StoredPixels(path, work.shape),
  }
  return {name: _training(work, source) for name, source in sources.items()}


def _draws(work: Workload) -> Iterator[np.ndarray]:
  rng = np.random.default_rng(1)
  while True:
    yield np.sort(rng.choice(work.images, work.drawn, replace=False))


def _read_next(
  source: pixels.ArrayOrPixels, draws: Iterator[np.ndarray]
) -> np.ndarray:
  return pixels.read(source, next(draws))


def _open_and_read(
  open_source: Callable[[], pixels.ArrayOrPixels], draws: Iterator[np.ndarray]
) -> np.ndarray:
  # A memory map keeps its pages as long as it lives.
  return _read_next(open_source(), draws)


def _training(
  work: Workload, source: pixels.ArrayOrPixels
) -> Callable[[], None]:
  split = images_lib.Split(source, np.arange(work.images) % 2)
  data = images_lib.ImageData('random', split, split, split, ('a', 'b'))
  partition = tuple(np.array_split(np.arange(work.images), _CLIENTS))
  feed = feeds.UnitFeed(
    split, units_lib.record_units(partition), _CLIENTS, _MICROBATCH_SIZE
  )
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(feed.num_units, work.drawn),
    clipping=mechanisms.FixedClipping(1.0),
    noise_multiplier=1.0,
    privacy_unit='record',
  )
  task = tasks.Task(data, partition, 'cnn_small')
  process = learning.build_dp_sgd(task.tff_model, mechanism)
  state, draws = process.initialize(), _draws(work)

  def run() -> None:
    nonlocal state
    state = process.next(state, feed(next(draws))).state

  return run


def summarize(seconds: dict[str, list[float]]) -> dict[str, float]:
  """Returns medians in milliseconds, and ratios to the first contender."""
  first, *others = names = [n for n in seconds if not n.startswith('forget')]
  summary = {
    f'{name}_millis': 1000 * statistics.median(seconds[name]) for name in names
  }
  for name in others:
    summary[f'{name}_to_{first}'] = timing.median_ratio(
      seconds[name], seconds[first]
    )
  return summary


_MEASURED = (
  ('read', readers),
  ('read_cold', cold_readers),
  ('round', rounds),
)


def main(
  work: Workload,
  *,
  turns: int,
  warm_up: int,
  folder: str | None,
  json: str | None,
) -> None:
  """Runs the benchmark."""
  _validate.positive_int(turns=turns)
  _validate.non_negative(warm_up=warm_up)
  context = runtime.create_local_context()
  results = {}
  with tff.framework.get_context_stack().install(context):
    with stored_file(work, folder) as path:
      for name, build in _MEASURED:
        seconds = timing.measure(build(work, path), warm_up, turns)
        results[name] = summarize(seconds)
  timing.report(
    results, json, **dataclasses.asdict(work), turns=turns, warm_up=warm_up
  )


def _main(values: absl_flags.FlagValues) -> None:
  work = Workload(
    values.images, values.image_size, values.channels, values.drawn
  )
  main(
    work,
    turns=values.turns,
    warm_up=values.warm_up,
    folder=values.folder,
    json=values.json,
  )


if __name__ == '__main__':
  command.run(functools.partial(_main, absl_flags.FLAGS))
