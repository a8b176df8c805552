"""Tests that bfloat16 reaches forward and backward passes, and nothing else."""

import collections
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.measuring import record_rounds
from tff_medical import _validate
from tff_medical import runtime
from tff_medical.learning import dp_fed_avg
from tff_medical.learning import dp_sgd
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.runtime import cohort
from tff_medical.runtime import devices
from tff_medical.runtime import precision

_CPU = devices.Placement(('CPU:0',), 1, 'client_threads')
_CLIP_NORM = 0.01
_COHORT = 2.0
# Half a unit in the last of 8 bits, and what is far below it.
_ROUNDING = 2.0**-9
_NO_ROUNDING = 2.0**-18

needs_bfloat16 = absltest.skipUnless(
  precision._has_extension(),
  'The processor has no bfloat16: its rewriting did not run.',
)


def _context(number_format):
  return runtime.LocalContext(cohort.Cohort(_CPU), precision=number_format)


def _run(number_format, comp, *args):
  context = _context(number_format)
  with tff.framework.get_context_stack().install(context):
    return comp(*args)


def _reduction(step):
  """Returns a computation that folds batches of rows [N, 64] at a client."""
  spec = tff.SequenceType(tff.TensorType(np.float32, [None, 64]))

  @tff.tensorflow.computation(spec)
  def reduce(data):
    return data.reduce(tf.zeros((64, 64)), step)

  @tff.federated_computation(tff.FederatedType(spec, tff.CLIENTS))
  def comp(data):
    return tff.federated_map(reduce, data)

  return comp


def _squared(total, rows):
  return total + tf.matmul(rows, rows, transpose_a=True)


def _marked_step(total, rows):
  precision.mark()
  return _squared(total, rows)


def _step_with_part(total, rows):
  # The product outside of the marked part stands for clipping and summing.
  part = precision.apart(lambda a: tf.matmul(a, a, transpose_a=True), rows)
  return total + tf.matmul(part, tf.eye(64))


@needs_bfloat16
class RewritingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rows = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    self.exact = rows.astype(np.float64).T @ rows
    self.rows = rows
    rounded = tf.cast(tf.cast(rows, tf.bfloat16), tf.float64).numpy()
    self.rounded = rounded.T @ rounded

  def _error(self, number_format, step, of):
    for data in (
      runtime.tensor_dataset(self.rows, batch_size=32),
      tf.data.Dataset.from_tensors(self.rows),
    ):
      (result,) = _run(number_format, _reduction(step), [data])
      yield np.abs(result - of).max() / np.abs(of).max()

  @parameterized.parameters(_marked_step, _step_with_part)
  def test_marked_functions_are_rounded(self, step):
    for error in self._error('bfloat16', step, self.exact):
      self.assertGreater(error, 1e-4)
      self.assertLess(error, 4 * _ROUNDING)

  @parameterized.parameters(
    ('bfloat16', _squared), ('float32', _marked_step), ('float32', _squared)
  )
  def test_others_are_not(self, number_format, step):
    for error in self._error(number_format, step, self.exact):
      self.assertLess(error, 1e-6)

  def test_the_function_around_a_part_is_not_rounded(self):
    scales = []

    def step(total, rows):
      part = precision.apart(lambda a: tf.matmul(a, a, transpose_a=True), rows)
      # 1 + 2**-12 is 1 in bfloat16.
      scale = tf.eye(64) * (1 + 2.0**-12)
      return total + tf.matmul(part, scale) - part

    for data in (runtime.tensor_dataset(self.rows, batch_size=32),):
      (result,) = _run('bfloat16', _reduction(step), [data])
      scales.append(np.diag(result) / np.diag(self.exact))
    np.testing.assert_allclose(scales, 2.0**-12, rtol=0.05)


def _gaussian(unit):
  """Returns a mechanism that clips and adds no noise."""
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(population=100, expected_cohort=_COHORT),
    clipping=mechanisms.FixedClipping(_CLIP_NORM),
    privacy_unit=unit,
  )


def _images(*counts):
  rng = np.random.default_rng(0)
  return collections.OrderedDict(
    x=rng.random((*counts, 28, 28, 1), np.float32),
    y=rng.integers(2, size=counts),
  )


def _norm_of_sum(number_format, process, data):
  """Returns the norm of the sum that the server got, in double precision."""
  with tff.framework.get_context_stack().install(_context(number_format)):
    before = process.initialize()
    after = process.next(before, data).state
    before, after = map(process.get_model_weights, (before, after))
  steps = [
    np.asarray(b, np.float64) - a
    for a, b in zip(after.trainable, before.trainable)
  ]
  norm = np.sqrt(sum(np.square(step).sum() for step in steps))
  return norm * _COHORT, steps


def _dp_sgd():
  """Returns DP-SGD, and the data of one site with one record."""
  tf.keras.utils.set_random_seed(0)  # How much is rounded varies by weights.
  process = dp_sgd.build_dp_sgd(
    record_rounds.functional_model('cnn_small'), _gaussian('record')
  )
  batch = _images(1, 1)
  batch['mask'] = np.ones((1, 1), np.float32)
  return process, [runtime.tensor_dataset(batch, batch_size=4)]


def _dp_fed_avg():
  """Returns DP-FedAvg, and the data of one client."""
  tf.keras.utils.set_random_seed(0)
  process = dp_fed_avg.build_dp_fed_avg(
    record_rounds.functional_model('cnn_small'),
    _gaussian('client'),
    client_optimizer=tff.learning.optimizers.build_sgdm(0.1),
  )
  return process, [runtime.tensor_dataset(_images(16), batch_size=8)]


@needs_bfloat16
class ClippingTest(parameterized.TestCase):
  @parameterized.parameters(_dp_sgd, _dp_fed_avg)
  def test_what_is_sent_has_the_clip_norm_in_float32(self, build):
    process, data = build()
    exact, exact_steps = _norm_of_sum('float32', process, data)
    norm, steps = _norm_of_sum('bfloat16', process, data)
    # The weights are of order 1, so that their difference has few digits.
    for value in (exact, norm):
      self.assertAlmostEqual(value / _CLIP_NORM, 1, delta=2e-4)
    error = max(np.abs(a - b).max() for a, b in zip(steps, exact_steps))
    self.assertGreater(error, 0)  # The passes were rounded.
    largest = max(np.abs(step).max() for step in exact_steps)
    self.assertLess(error, 0.1 * largest)

  def test_a_rewriting_that_reaches_the_clip_is_seen(self):
    def together(function, *args):
      precision.mark()
      return function(*args)

    with mock.patch.object(precision, 'apart', together):
      process, data = _dp_sgd()
    norm, _ = _norm_of_sum('bfloat16', process, data)
    self.assertGreater(abs(norm / _CLIP_NORM - 1), 5e-4)

  def test_a_rewriting_of_everything_is_refused(self):
    option = {'auto_mixed_precision_onednn_bfloat16': True}
    tf.config.optimizer.set_experimental_options(option)
    self.addCleanup(
      tf.config.optimizer.set_experimental_options, dict.fromkeys(option, False)
    )
    with self.assertRaisesRegex(
      _validate.InputError, 'onednn_bfloat16 .* must be False, got True'
    ):
      runtime.create_local_context(client_threads=1)


class CheckTest(parameterized.TestCase):
  def _cpu_info(self, text):
    file = self.create_tempfile(content=text).full_path
    path = precision.pathlib.Path(file)
    return mock.patch.object(precision, '_CPU_INFO', path)

  @parameterized.parameters('avx512_bf16', 'amx_bf16')
  def test_processors_with_bfloat16(self, extension):
    with self._cpu_info(f'vendor_id : x\nflags\t\t: fpu {extension} sse2\n'):
      precision.check('bfloat16', ['CPU:0'])

  @parameterized.parameters(
    'flags : fpu avx512f avx512_bf16x\n', 'Features : bf16\n', ''
  )
  def test_processors_without(self, text):
    with self._cpu_info(text):
      precision.check('float32', ['CPU:0'])
      with self.assertRaisesRegex(
        _validate.InputError, 'precision must be float32 on this processor'
      ) as caught:
        precision.check('bfloat16', ['CPU:0'])
    self.assertNotIn('\n', str(caught.exception))

  def test_gpus(self):
    precision.check('float32', ['GPU:0'])
    with self.assertRaisesRegex(
      _validate.InputError, 'precision must be float32 on GPU:0, got bfloat16'
    ):
      precision.check('bfloat16', ['CPU:0', 'GPU:0'])

  def test_unknown(self):
    with self.assertRaisesRegex(_validate.InputError, 'precision'):
      runtime.create_local_context(client_threads=1, precision='float16')


if __name__ == '__main__':
  absltest.main()
