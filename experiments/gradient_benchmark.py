"""Measures the cost of per-example gradients in record-level DP-SGD.

A step of plain SGD needs the gradient of the batch. A step of DP-SGD needs the
gradient of each record, its norm, and the sum of the clipped gradients. The
contenders are:

- plain: the gradient of the batch's summed loss, in one pass.
- rules: `learning.unit_gradients`, by the rules of `layer_gradients`, clipped.
- vectorized: `tf.vectorized_map` over the records, clipped in the same way.

Images are grey, 28 x 28. A batch is a site's micro-batch on one thread, as in
the local runtime on a CPU. Figures are medians over steps. A ratio is the
median of the ratios within each step. The clip norm is so large that all three
contenders have the same result.

    python -m experiments.gradient_benchmark --json=gradient_benchmark.json
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import functools
import statistics
from typing import Any

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_integer('steps', 50, 'number of measured steps')
  absl_flags.DEFINE_integer('warm_up', 5, 'number of steps before them')
  absl_flags.DEFINE_string('json', None, 'file for the figures')
  command.parse()

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.measuring import timing
from tff_medical import _validate
from tff_medical import models
from tff_medical.learning import unit_clipping
from tff_medical.learning import unit_gradients

SHAPE = (28, 28, 1)
WORKLOADS = (('cnn_small', 32), ('cnn_small', 256), ('cnn', 32), ('cnn', 256))
_CLIP_NORM = 1e6

_Gradients = tuple[tf.Tensor, ...]


def model(name: str) -> tff.learning.models.FunctionalModel:
  """Returns a model of `tff_medical.models` for two classes."""
  spec = collections.OrderedDict(
    x=tf.TensorSpec((None, *SHAPE), tf.float32),
    y=tf.TensorSpec((None,), tf.int64),
  )
  return tff.learning.models.functional_model_from_keras(
    models.build(name, input_shape=SHAPE, num_outputs=2, seed=0),
    models.loss(multi_label=False),
    spec,
  )


def contenders(
  network: tff.learning.models.FunctionalModel, batch_size: int
) -> dict[str, Callable[[], Sequence[np.ndarray]]]:
  """Returns functions that compute the sum of the records' gradients."""
  rng = np.random.default_rng(0)
  values = (
    *network.initial_weights[0],
    rng.random((batch_size, *SHAPE), np.float32),
    rng.integers(2, size=batch_size),
  )
  ways = {'plain': _plain, 'rules': _rules, 'vectorized': _vectorized}
  return {
    name: functools.partial(_compiled(way, network), *values)
    for name, way in ways.items()
  }


def _compiled(
  way: Callable[..., _Gradients], network: tff.learning.models.FunctionalModel
) -> Callable[..., Sequence[np.ndarray]]:
  """Returns a function of weights, x and y that runs on one thread.

  The function belongs to a session: a Keras model that TFF made functional is
  usable in a plain graph only.
  """
  threads = tf.compat.v1.ConfigProto(
    intra_op_parallelism_threads=1, inter_op_parallelism_threads=1
  )
  with tf.Graph().as_default() as graph:
    weights = tuple(
      tf.compat.v1.placeholder(w.dtype, w.shape)
      for w in network.initial_weights[0]
    )
    x, y = (
      tf.compat.v1.placeholder(spec.dtype, spec.shape)
      for spec in (network.input_spec['x'], network.input_spec['y'])
    )
    total = way(network, weights, x, y)
    session = tf.compat.v1.Session(graph=graph, config=threads)
  return session.make_callable(total, [*weights, x, y])


def _plain(
  network: Any, weights: _Gradients, x: tf.Tensor, y: tf.Tensor
) -> _Gradients:
  loss = network.loss(network.predict_on_batch((weights, ()), x, True), y)
  size = tf.cast(tf.shape(x)[0], tf.float32)
  return tuple(tf.gradients(size * loss, weights))


def _rules(
  network: Any, weights: _Gradients, x: tf.Tensor, y: tf.Tensor
) -> _Gradients:
  batch = collections.OrderedDict(
    x=x[:, tf.newaxis],
    y=y[:, tf.newaxis],
    mask=tf.ones((tf.shape(x)[0], 1)),
  )
  return _clipped_sum(
    unit_gradients.unit_gradients(
      network,
      unit_gradients.by_rules,
      tff.learning.models.ModelWeights(weights, ()),
      batch,
    )
  )


def _vectorized(
  network: Any, weights: _Gradients, x: tf.Tensor, y: tf.Tensor
) -> _Gradients:
  def gradient(record: tuple[tf.Tensor, tf.Tensor]) -> _Gradients:
    image, label = record
    output = network.predict_on_batch((weights, ()), image[tf.newaxis], True)
    loss = network.loss(output, label[tf.newaxis])
    return tuple(tf.gradients(loss, weights))

  return _clipped_sum(tf.vectorized_map(gradient, (x, y)))


def _clipped_sum(gradients: _Gradients) -> _Gradients:
  norms = unit_clipping.global_norms(gradients)
  factors = unit_clipping.clip_factors(norms, tf.constant(_CLIP_NORM))
  return unit_clipping.weighted_sum(
    gradients, tf.math.is_finite(norms), factors
  )


def summarize(seconds: dict[str, list[float]]) -> dict[str, float]:
  """Returns medians in milliseconds, and ratios to the plain gradient."""
  summary = {
    f'{name}_millis': 1000 * statistics.median(values)
    for name, values in seconds.items()
  }
  for name in ('rules', 'vectorized'):
    summary[f'{name}_to_plain'] = timing.median_ratio(
      seconds[name], seconds['plain']
    )
  return summary


def main(steps: int, warm_up: int, json: str | None) -> None:
  """Runs the command."""
  _validate.positive_int(steps=steps)
  _validate.non_negative(warm_up=warm_up)
  results = {}
  for name, batch_size in WORKLOADS:
    seconds = timing.measure(
      contenders(model(name), batch_size), warm_up, steps
    )
    results[f'{name}, batches of {batch_size}'] = summarize(seconds)
  timing.print_table(results)
  if json:
    timing.write_json(json, results, steps=steps)


if __name__ == '__main__':
  _FLAGS = absl_flags.FLAGS
  command.run(lambda: main(_FLAGS.steps, _FLAGS.warm_up, _FLAGS.json))
