"""Measures the cost of per-example gradients in record-level DP-SGD.

A step of plain SGD needs the gradient of the batch. A step of DP-SGD needs the
gradient of each record, its norm, and the sum of the clipped gradients. The
contenders are, each with one thread:

- plain: the gradient of the batch's summed loss, in one pass.
- rules: `learning.unit_gradients`, by the rules of `layer_gradients`, clipped,
  in microbatches of `unit_gradients.microbatch_size`.
- vectorized: `tf.vectorized_map` over the records, clipped in the same way.
- torch_plain, opacus_hooks, opacus_ghost: PyTorch's plain gradient, and the two
  modes of Opacus, in a Python of their own that --opacus_python names.

Images are 28 x 28. `cnn_small` (14,194 parameters) takes grey ones, `cnn_dense`
(225,352 parameters) those of `experiments.benchmark`. The clip norm is so large
that plain, rules and vectorized have the same result.

Whole rounds follow, on all cores, with draw, feed and noise; see
`measuring.record_rounds`. The last figure is the peak memory of a round of a
model of 1 million parameters, in a process of its own.

Figures are medians over steps. A ratio is the median of the ratios within each
step.

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
  absl_flags.DEFINE_list('contenders', ['plain', 'rules'], 'ways to compare')
  absl_flags.DEFINE_string(
    'opacus_python',
    None,
    'path of a Python with Opacus, which runs torch_plain, opacus_hooks and '
    'opacus_ghost',
  )
  absl_flags.DEFINE_string('json', None, 'file for the figures')
  command.parse()

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.measuring import opacus_steps
from experiments.measuring import record_rounds
from experiments.measuring import timing
from tff_medical import _validate
from tff_medical.learning import unit_clipping
from tff_medical.learning import unit_gradients

WORKLOADS = (
  ('cnn_small', 256),
  ('cnn_small', 1024),
  ('cnn_dense', 256),
  ('cnn_dense', 1024),
)
_CLIP_NORM = 1e6

_Gradients = tuple[tf.Tensor, ...]


def contenders(
  names: Sequence[str], model: str, batch_size: int
) -> dict[str, Callable[[], Any]]:
  """Returns functions that compute the sum of the records' gradients.

  Args:
    names: Names of contenders that run in this process.
    model: One of `record_rounds.MODELS`.
    batch_size: Number of records.
  """
  network = record_rounds.functional_model(model)
  x, y = record_rounds.images(network, batch_size)
  return {
    name: functools.partial(
      _in_microbatches if name == 'rules' else _at_once,
      _compiled(_WAYS[name], network),
      unit_gradients.microbatch_size(network),
      network.initial_weights[0],
      x,
      y,
    )
    for name in names
  }


def _at_once(
  run: Callable[..., Any], size: int, weights: Any, x: Any, y: Any
) -> Sequence[np.ndarray]:
  del size
  return run(*weights, x, y)


def _in_microbatches(
  run: Callable[..., Any], size: int, weights: Any, x: Any, y: Any
) -> Sequence[np.ndarray]:
  parts = -(-len(x) // size)
  sums = [
    run(*weights, *part)
    for part in zip(np.array_split(x, parts), np.array_split(y, parts))
  ]
  return [sum(values) for values in zip(*sums)]


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


_WAYS = {
  'plain': record_rounds.plain_gradient,
  'rules': _rules,
  'vectorized': _vectorized,
}


def summarize(
  seconds: dict[str, list[float]], of: str = 'rules'
) -> dict[str, float]:
  """Returns medians in milliseconds, and the ratios of one contender.

  Args:
    seconds: Seconds of each step, by contender.
    of: Contender whose ratios to all others are stated.
  """
  summary = {
    f'{name}_millis': 1000 * statistics.median(values)
    for name, values in seconds.items()
  }
  for name, values in seconds.items():
    if name != of and of in seconds:
      summary[f'{of}_to_{name}'] = timing.median_ratio(seconds[of], values)
  return summary


def _measure_steps(
  names: Sequence[str],
  python: str | None,
  work: tuple[str, int],
  warm_up: int,
  steps: int,
) -> dict[str, float]:
  of_opacus = [name for name in names if name in opacus_steps.CONTENDERS]
  here = [name for name in names if name not in of_opacus]
  processes = {
    name: opacus_steps.OpacusProcess(python or '', *work, name)
    for name in of_opacus
  }
  try:
    every: dict[str, Callable[[], object]] = {
      **contenders(here, *work),
      **processes,
    }
    return summarize(timing.measure(every, warm_up, steps))
  finally:
    for process in processes.values():
      process.close()


def main(
  *,
  steps: int,
  warm_up: int,
  names: Sequence[str] = ('plain', 'rules'),
  opacus_python: str | None = None,
  json: str | None = None,
) -> None:
  """Runs the command."""
  _validate.positive_int(steps=steps)
  _validate.non_negative(warm_up=warm_up)
  for name in names:
    _validate.one_of((*_WAYS, *opacus_steps.CONTENDERS), contenders=name)
  if opacus_python is None and set(names) & set(opacus_steps.CONTENDERS):
    raise _validate.InputError(
      'contenders of PyTorch need opacus_python, the path of a Python with '
      'Opacus, got none; give it, or leave them out'
    )
  results: dict[str, dict[str, Any]] = {}
  for work in WORKLOADS:
    results[f'step of {work[0]}, batches of {work[1]}'] = _measure_steps(
      names, opacus_python, work, warm_up, steps
    )
  for work in WORKLOADS:
    with record_rounds.contenders(*work) as rounds:
      seconds = timing.measure(rounds, warm_up, steps)
    results[f'round of {work[0]}, batches of {work[1]}'] = summarize(
      seconds, of='round'
    )
  results['round of cnn_million, batches of 1024'] = {
    'peak_mib': record_rounds.peak_mib('cnn_million', 1024)
  }
  timing.report(results, json, steps=steps)


def _main(values: absl_flags.FlagValues) -> None:
  main(
    steps=values.steps,
    warm_up=values.warm_up,
    names=values.contenders,
    opacus_python=values.opacus_python,
    json=values.json,
  )


if __name__ == '__main__':
  command.run(functools.partial(_main, absl_flags.FLAGS))
