"""Tests of local DP-SGD against steps computed one example at a time."""

import collections
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.measuring import record_rounds
from tests.learning import unit_models
from tff_medical import _validate
from tff_medical import learning
from tff_medical import runtime
from tff_medical.learning import local_dp_sgd
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.privacy import mechanisms

_STEPS = 3


def _mechanism(clip_norm, noise_multiplier=0.0):
  return local_dp_sgd_mechanism.LocalDpSgdMechanism(
    sampling=local_dp_sgd_mechanism.LocalDpSgdSampling(
      100, rate=0.1, steps=_STEPS
    ),
    clipping=mechanisms.FixedClipping(clip_norm) if clip_norm else None,
    noise_multiplier=noise_multiplier,
    privacy_unit='patient',
  )


def _process(mechanism, model=None, learning_rate=0.5, **changed):
  return learning.build_local_dp_sgd(
    model or unit_models.model(),
    mechanism,
    client_optimizer=tff.learning.optimizers.build_sgdm(learning_rate),
    **changed,
  )


def _dataset(steps, expected):
  arrays = learning.step_arrays(steps, expected)
  return runtime.tensor_dataset(
    arrays, batch_size=len(arrays['x']) // len(steps)
  )


def _steps(seed, counts):
  return [
    unit_models.units(seed + n, count, images=2)
    for n, count in enumerate(counts)
  ]


def _train_one_by_one(steps, expected, clip_norm):
  """Returns the flat change of the weights."""
  start = weights = unit_models.weights()
  for step in steps:
    if not len(step['x']):
      continue
    gradients = unit_models.gradients_one_by_one(weights, step)
    if clip_norm:
      norms = np.linalg.norm(gradients, axis=1, keepdims=True)
      gradients *= np.minimum(1, clip_norm / norms)
    change = 0.5 * gradients.sum(axis=0) / expected
    ends = np.cumsum([w.size for w in weights])[:-1]
    weights = [
      (w - c.reshape(w.shape)).astype(np.float32)
      for w, c in zip(weights, np.split(change, ends))
    ]
  return unit_models.flat(weights) - unit_models.flat(start)


def _change(process, sites):
  state = process.initialize()
  after = process.next(state, sites).state
  return unit_models.flat(
    process.get_model_weights(after).trainable
  ) - unit_models.flat(process.get_model_weights(state).trainable)


class BuildLocalDpSgdTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    context = runtime.create_local_context(client_threads=1)
    self.enter_context(tff.framework.get_context_stack().install(context))

  @parameterized.parameters(0.3, None)
  def test_averages_sites_that_train_alone(self, clip_norm):
    sites = [(_steps(0, (2, 0, 3)), 2.0), (_steps(9, (4, 5, 6)), 6.0)]
    alone = [_train_one_by_one(*site, clip_norm) for site in sites]
    np.testing.assert_allclose(
      _change(
        _process(_mechanism(clip_norm)), [_dataset(*site) for site in sites]
      ),
      (2 * alone[0] + 6 * alone[1]) / 8,
      atol=1e-5,
      rtol=1e-4,
    )

  @parameterized.parameters(1, 3, 100)
  def test_microbatches_only_bound_memory(self, size):
    """Steps of 7 units, one of which is broken, of 3 and of none."""
    steps = _steps(0, (7, 0, 3))
    steps[0]['x'][4] = np.nan
    whole = _change(
      _process(_mechanism(0.3), microbatch_size=7), [_dataset(steps, 3.0)]
    )
    process = _process(_mechanism(0.3), microbatch_size=size)
    parts = _change(process, [_dataset(steps, 3.0)])
    self.assertGreater(np.linalg.norm(whole), 0.01)
    np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-6)

  def test_noise_of_a_step_is_added_once(self):
    """Not once in each microbatch."""
    model = unit_models.line(3000)
    step = collections.OrderedDict(
      x=np.zeros((6, 1, 3000), np.float32),
      y=np.zeros((6, 1), np.float32),
      mask=np.ones((6, 1), np.float32),
    )
    process = _process(_mechanism(0.5, 0.8), model, microbatch_size=1)
    change = _change(process, [_dataset([step] * _STEPS, 4.0)])
    expected = 0.5 * 0.5 * 0.8 / 4.0 * np.sqrt(_STEPS)
    self.assertAlmostEqual(np.std(change) / expected, 1.0, delta=0.05)

  def test_refuses_a_microbatch_of_no_unit(self):
    with self.assertRaisesRegex(_validate.InputError, 'microbatch_size'):
      _process(_mechanism(0.3), microbatch_size=0)

  def test_noise_of_each_step_and_site_has_the_stated_deviation(self):
    model = unit_models.line(3000)
    empty = collections.OrderedDict(
      x=np.zeros((0, 1, 3000), np.float32),
      y=np.zeros((0, 1), np.float32),
      mask=np.zeros((0, 1), np.float32),
    )
    process = _process(_mechanism(0.5, 0.8), model)
    data = _dataset([empty] * _STEPS, 4.0)
    one_site = _change(process, [data])
    expected = 0.5 * 0.5 * 0.8 / 4.0 * np.sqrt(_STEPS)
    self.assertAlmostEqual(np.std(one_site) / expected, 1.0, delta=0.05)
    two_sites = _change(process, [data, data])
    self.assertAlmostEqual(
      np.std(two_sites) / expected, 1 / np.sqrt(2), delta=0.05
    )

  def test_broken_units_and_sites(self):
    """A unit that is not finite is left out; a site that diverges too."""
    steps = _steps(0, (2, 2, 2))
    broken = [collections.OrderedDict(step) for step in steps]
    broken[1]['x'] = np.concatenate([steps[1]['x'], steps[1]['x'][:1] * np.nan])
    broken[1]['y'] = np.concatenate([steps[1]['y'], steps[1]['y'][:1]])
    broken[1]['mask'] = np.concatenate([steps[1]['mask'], [[1, 1]]])
    broken[1]['mask'] = broken[1]['mask'].astype(np.float32)
    process = _process(_mechanism(0.3))
    expected = _change(process, [_dataset(steps, 2.0)])
    found = _change(process, [_dataset(broken, 2.0)])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    diverging = _process(_mechanism(None), learning_rate=1e38)
    np.testing.assert_array_equal(_change(diverging, [_dataset(steps, 2.0)]), 0)

  def test_no_sites(self):
    np.testing.assert_array_equal(_change(_process(_mechanism(0.3)), []), 0)

  def test_publishes_nothing_of_the_units(self):
    process = _process(_mechanism(0.3, 1.0))
    self.assertIsInstance(process, tff.learning.templates.LearningProcess)
    data = [_dataset(_steps(0, (2, 2, 2)), 2.0)]
    metrics = process.next(process.initialize(), data).metrics
    self.assertEqual(metrics['client_work'], ())
    self.assertEqual(metrics['distributor'], ())


class MemoryTest(absltest.TestCase):
  def test_gradients_of_a_microbatch_alone_are_in_memory(self):
    """A step of 1,024 units of 64 kB of gradients and more of activations."""
    script = (
      'import sys\n'
      'from tests.learning import local_dp_sgd_test\n'
      'local_dp_sgd_test.print_peak(int(sys.argv[1]))\n'
    )
    peaks = []
    for size in (1024, 16):
      done = subprocess.run(
        [sys.executable, '-c', script, str(size)],
        cwd=pathlib.Path(__file__).parents[2],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
      )
      peaks.append(float(done.stdout.split()[-1]))
    whole, parts = peaks
    self.assertGreater(whole - parts, 200, peaks)


def print_peak(microbatch_size):
  """Prints the peak of the memory of one step, in MiB."""
  context = runtime.create_local_context(client_threads=1)
  with tff.framework.get_context_stack().install(context):
    model = record_rounds.functional_model('cnn_small')
    x, y = record_rounds.images(model, 1024)
    step = collections.OrderedDict(
      x=x[:, np.newaxis],
      y=y[:, np.newaxis],
      mask=np.ones((len(x), 1), np.float32),
    )
    process = _process(_mechanism(0.3), model, microbatch_size=microbatch_size)
    process.next(process.initialize(), [_dataset([step], 10.0)])
  status = pathlib.Path('/proc/self/status').read_text()
  print(int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 2**10, flush=True)


class RuntimesTest(absltest.TestCase):
  def test_tff_runs_the_same(self):
    process = _process(_mechanism(0.3))
    data = [_dataset(_steps(0, (2, 0, 3)), 2.0)]
    changes = []
    for context in (
      runtime.create_local_context(client_threads=1),
      tff.backends.native.create_sync_local_cpp_execution_context(),
    ):
      with tff.framework.get_context_stack().install(context):
        changes.append(_change(process, data))
    np.testing.assert_allclose(*changes, atol=1e-5)


class StepArraysTest(absltest.TestCase):
  def test_pads_each_step(self):
    steps = _steps(0, (2, 0, 1))
    arrays = local_dp_sgd.step_arrays(steps, 1.5)
    self.assertEqual(arrays['x'].shape, (6, 2, *unit_models.SHAPE))
    np.testing.assert_array_equal(arrays['x'][:2], steps[0]['x'])
    np.testing.assert_array_equal(arrays['mask'][2:4], 0)
    np.testing.assert_array_equal(arrays['y'][4:5], steps[2]['y'])
    np.testing.assert_array_equal(arrays['mask'][5], 0)
    np.testing.assert_array_equal(arrays['expected_units'], 1.5)

  def test_a_round_without_units_still_has_its_steps(self):
    arrays = local_dp_sgd.step_arrays(_steps(0, (0, 0, 0)), 1.5)
    self.assertEqual(arrays['x'].shape[0], 3)
    tf.nest.map_structure(
      np.testing.assert_array_equal, arrays['mask'], np.zeros((3, 2))
    )


if __name__ == '__main__':
  absltest.main()
