"""Whole rounds of record-level DP-SGD, and the memory of one.

The contenders of a round are:

- round: draw, feed, clipping, noise and the server's step, as in training.
- by_site: the same with one dataset for each of 8 sites.
- plain: the gradient of a batch of as many records, without TFF and without
  privacy, one part of the batch for each core.

    python -m experiments.measuring.record_rounds cnn_million 1024

prints the peak of the resident memory in MiB after two rounds.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import itertools
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.measuring import memory
from experiments.measuring import networks
from tff_medical import learning
from tff_medical import models
from tff_medical import runtime
from tff_medical.data import images as images_lib
from tff_medical.data import units as units_lib
from tff_medical.learning import unit_gradients
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import feeds
from tff_medical.runtime import devices

_SITES = 8
# A draw has one batch of this many batches on average.
_BATCHES = 4
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _cnn_small() -> tf.keras.Model:
  return models.build('cnn_small', input_shape=(28, 28, 1), num_outputs=2)


def _cnn_million() -> tf.keras.Model:
  """Returns a CNN of 966,024 parameters, nearly all in convolutions."""
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input((28, 28, 3)),
      *(
        tf.keras.layers.Conv2D(filters, 3, strides, 'same', activation='relu')
        for filters, strides in ((64, 2), (128, 2), (256, 2), (256, 1))
      ),
      tf.keras.layers.GlobalAveragePooling2D(),
      tf.keras.layers.Dense(8),
    ]
  )


MODELS: dict[str, Callable[[], tf.keras.Model]] = {
  'cnn_small': _cnn_small,
  'cnn_dense': networks.cnn,
  'cnn_million': _cnn_million,
}


def functional_model(name: str) -> tff.learning.models.FunctionalModel:
  """Returns a model of `MODELS` as a functional model of TFF."""
  keras_model = MODELS[name]()
  spec = collections.OrderedDict(
    x=tf.TensorSpec(keras_model.input_shape),
    y=tf.TensorSpec((None,), tf.int64),
  )
  return tff.learning.models.functional_model_from_keras(
    keras_model, models.loss(multi_label=False), spec
  )


def images(
  model: tff.learning.models.FunctionalModel, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns random images [count, H, W, C] in 0..1 and labels 0 or 1."""
  rng = np.random.default_rng(0)
  shape = model.input_spec['x'].shape[1:]
  return (
    rng.random((count, *shape), np.float32),
    rng.integers(2, size=count),
  )


def plain_gradient(
  model: Any, weights: tuple[tf.Tensor, ...], x: tf.Tensor, y: tf.Tensor
) -> tuple[tf.Tensor, ...]:
  """Returns the gradient of a batch's summed loss, in one pass."""
  # Inside of a function TensorFlow would compute the gradient of x as well.
  with unit_gradients.inlined_functions():
    loss = model.loss(model.predict_on_batch((weights, ()), x, True), y)
  size = tf.cast(tf.shape(x)[0], tf.float32)
  return tuple(tf.gradients(size * loss, weights))


@contextlib.contextmanager
def contenders(
  name: str, batch_size: int
) -> Iterator[dict[str, Callable[[], Any]]]:
  """Yields functions that run the next round; see the module's docstring."""
  model = functional_model(name)
  cores = devices.available_cores()
  context = runtime.create_local_context()
  with (
    tff.framework.get_context_stack().install(context),
    concurrent.futures.ThreadPoolExecutor(cores) as pool,
  ):
    yield {
      'plain': _plain(model, batch_size, cores, pool),
      'round': _rounds(model, batch_size, by_site=False),
      'by_site': _rounds(model, batch_size, by_site=True),
    }


def _plain(
  model: tff.learning.models.FunctionalModel,
  batch_size: int,
  parts: int,
  pool: concurrent.futures.Executor,
) -> Callable[[], Any]:
  weights = model.initial_weights[0]
  with tf.Graph().as_default() as graph:
    inputs = [tf.compat.v1.placeholder(w.dtype, w.shape) for w in weights]
    inputs += [
      tf.compat.v1.placeholder(model.input_spec[k].dtype, (None, *shape))
      for k, shape in (('x', model.input_spec['x'].shape[1:]), ('y', ()))
    ]
    total = plain_gradient(model, tuple(inputs[:-2]), *inputs[-2:])
    threads = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1)
    session = tf.compat.v1.Session(graph=graph, config=threads)
  gradient = session.make_callable(total, inputs)
  x, y = (np.array_split(v, parts) for v in images(model, batch_size))

  def run() -> list[np.ndarray]:
    sums = pool.map(lambda part: gradient(*weights, *part), zip(x, y))
    return [sum(values) for values in zip(*sums)]

  return run


def _rounds(
  model: tff.learning.models.FunctionalModel, batch_size: int, by_site: bool
) -> Callable[[], None]:
  population = _BATCHES * batch_size
  x, labels = images(model, population)
  split = images_lib.Split((255 * x).astype(np.uint8), labels)
  units = units_lib.record_units(
    tuple(np.array_split(np.arange(population), _SITES))
  )
  microbatch = unit_gradients.microbatch_size(model)
  feed = feeds.UnitFeed(split, units, _SITES, microbatch)
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(population, float(batch_size)),
    clipping=mechanisms.FixedClipping(1.0),
    noise_multiplier=1.0,
    privacy_unit='record',
  )
  process = learning.build_dp_sgd(model, mechanism)
  state, numbers = process.initialize(), itertools.count(1)

  def run() -> None:
    nonlocal state
    drawn = mechanism.sampling.draw(
      cohort_seed=0, round_num=next(numbers), attempt=1
    )
    datasets = feed(drawn)
    if by_site:
      datasets = [
        runtime.tensor_dataset(
          units.arrays(split, of_site), batch_size=microbatch
        )
        for of_site in units.by_client(drawn, _SITES)
      ]
    state = process.next(state, datasets).state

  return run


def peak_mib(name: str, batch_size: int) -> float:
  """Returns the peak of the memory of a process that runs two rounds.

  Raises:
    CalledProcessError: The process failed.
  """
  done = subprocess.run(
    [sys.executable, '-m', __name__, name, str(batch_size)],
    cwd=_ROOT,
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  return float(done.stdout.split()[-1])


def main(name: str, batch_size: int) -> None:
  """Runs two rounds and prints the peak in MiB."""
  context = runtime.create_local_context()
  with tff.framework.get_context_stack().install(context):
    run = _rounds(functional_model(name), batch_size, by_site=False)
    run()
    run()
  print(memory.peak_mib(), flush=True)


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]))
