"""Tests that one bad label, mask or count costs a unit or a site, no round."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tests.learning import unit_models
from tff_medical import learning
from tff_medical import runtime
from tff_medical.privacy import aggregators
from tff_medical.privacy import local_mechanism
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_BAD_CLASSES = (-1, 3, 2**31, -(2**63), 2**63 - 1)
_CLIP_NORM = 0.5
_SPEC = collections.OrderedDict(
  x=tf.TensorSpec((None, 3)), y=tf.TensorSpec((None,), tf.int64)
)


def _gaussian(clip=None, unit='record'):
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(1000, 8.0),
    clipping=clip or mechanisms.FixedClipping(_CLIP_NORM),
    privacy_unit=unit,
  )


def _dataset(data, batch_size=4):
  return runtime.tensor_dataset(
    collections.OrderedDict(data), batch_size=batch_size
  )


def _moved(process, datasets, state=None):
  state = state or process.initialize()
  output = process.next(state, datasets)
  before, after = (
    unit_models.flat(process.get_model_weights(s).trainable)
    for s in (state, output.state)
  )
  return after - before, output.metrics


class _LocalContextTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    context = runtime.create_local_context(client_threads=1)
    self.enter_context(tff.framework.get_context_stack().install(context))


class DpSgdTest(_LocalContextTest):
  def _moved(self, data, multi_label=False, clip=None):
    process = learning.build_dp_sgd(
      unit_models.model(multi_label), _gaussian(clip), count_broken=True
    )
    return _moved(process, [_dataset(data)])

  def _without(self, data, unit):
    """Returns the data with the unit's gradient zero: nothing but padding."""
    data = collections.OrderedDict(data)
    data['mask'] = data['mask'].copy()
    data['mask'][unit] = 0
    return data

  @parameterized.parameters(*_BAD_CLASSES)
  def test_class_out_of_range(self, label):
    data = unit_models.units(0, 6, images=2)
    expected, _ = self._moved(self._without(data, 2))
    data['y'][2, 0] = label
    found, metrics = self._moved(data)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    self.assertEqual(aggregators.broken_units(metrics), 1)

  @parameterized.parameters(-1, 2, 2**62)
  def test_finding_that_is_not_0_or_1(self, label):
    data = unit_models.units(0, 6, multi_label=True)
    expected, _ = self._moved(self._without(data, 5), multi_label=True)
    data['y'][5, 0, 1] = label
    found, metrics = self._moved(data, multi_label=True)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    self.assertEqual(aggregators.broken_units(metrics), 1)

  def test_labels_of_padding_are_no_fault(self):
    data = unit_models.units(0, 6, images=3)
    expected, _ = self._moved(data)
    data['y'][data['mask'] == 0] = 99
    found, metrics = self._moved(data)
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(aggregators.broken_units(metrics), 0)

  def test_all_labels_bad(self):
    data = unit_models.units(0, 6)
    data['y'][:] = 77
    found, metrics = self._moved(data, clip=mechanisms.AdaptiveClipping())
    np.testing.assert_array_equal(found, 0)
    self.assertEqual(aggregators.broken_units(metrics), 6)

  @parameterized.parameters(
    (2.0, 1), (1e30, 1), (np.inf, 1), (1e-30, 1),
    (-1.0, 0), (-np.inf, 0), (np.nan, 0),
  )  # fmt: skip
  def test_mask_is_in_or_out(self, value, meaning):
    for clip in (
      mechanisms.FixedClipping(_CLIP_NORM), mechanisms.AdaptiveClipping(),
    ):  # fmt: skip
      data = unit_models.units(3, 5, images=2)
      data['mask'][1] = meaning
      expected, _ = self._moved(data, clip=clip)
      data['mask'][1] = value
      found, metrics = self._moved(data, clip=clip)
      np.testing.assert_array_equal(found, expected)
      self.assertEqual(aggregators.broken_units(metrics), 0)

  def test_mask_cannot_weigh_one_image_of_a_patient_more(self):
    data = unit_models.units(3, 5, images=2)
    data['mask'][:] = 1
    expected, _ = self._moved(data)
    data['mask'][2] = (1.0, 1e6)
    np.testing.assert_array_equal(self._moved(data)[0], expected)


class LocalDpSgdTest(_LocalContextTest):
  def _process(self, multi_label=False):
    mechanism = local_mechanism.LocalGaussianMechanism(
      sampling=local_mechanism.LocalPoissonSampling(100, rate=0.1, steps=3),
      clipping=mechanisms.FixedClipping(_CLIP_NORM),
    )
    return learning.build_local_dp_sgd(
      unit_models.model(multi_label),
      mechanism,
      client_optimizer=tff.learning.optimizers.build_sgdm(0.5),
    )

  def _arrays(self, expected=2.0):
    steps = [unit_models.units(n, 2, images=2) for n in range(3)]
    return learning.step_arrays(steps, expected)

  @parameterized.parameters(*_BAD_CLASSES)
  def test_class_out_of_range(self, label):
    arrays = self._arrays()
    without = collections.OrderedDict(arrays, mask=arrays['mask'].copy())
    without['mask'][3] = 0
    process = self._process()
    expected, _ = _moved(process, [_dataset(without, 2)])
    arrays['y'][3, 0] = label
    found, _ = _moved(process, [_dataset(arrays, 2)])
    np.testing.assert_allclose(found, expected, atol=1e-7)

  @parameterized.parameters(np.inf, 1e9, np.nan, -3.0)
  def test_mask_is_in_or_out(self, value):
    arrays = self._arrays()
    arrays['mask'][3] = value > 0
    process = self._process()
    expected, _ = _moved(process, [_dataset(arrays, 2)])
    arrays['mask'][3] = value
    found, _ = _moved(process, [_dataset(arrays, 2)])
    np.testing.assert_array_equal(found, expected)

  @parameterized.parameters(np.nan, 0.0, -2.0, np.inf, -np.inf, 1e30, 3.0, 1e-9)
  def test_expected_units_are_one_number_or_the_site_is_left_out(self, value):
    """Of one row, which may be a unit's: it changes nothing but the site."""
    process = self._process()
    good = _dataset(self._arrays(), 2)
    expected, _ = _moved(process, [good])
    for rows in ([0], [3], [4, 5]):
      arrays = self._arrays()
      arrays['expected_units'][rows] = value
      found, _ = _moved(process, [good, _dataset(arrays, 2)])
      np.testing.assert_allclose(found, expected, atol=1e-7)
      found, _ = _moved(process, [_dataset(arrays, 2)])
      np.testing.assert_array_equal(found, 0)

  @parameterized.parameters(np.nan, 0.0, -2.0, np.inf, 1e30)
  def test_expected_units_of_all_rows(self, value):
    found, _ = _moved(self._process(), [_dataset(self._arrays(value), 2)])
    np.testing.assert_array_equal(found, 0)


def _keras_model():
  return tf.keras.Sequential(
    [
      tf.keras.layers.InputLayer((3,)),
      tf.keras.layers.Dense(4, 'relu', kernel_initializer='ones'),
      tf.keras.layers.Dense(2, kernel_initializer='zeros'),
    ]
  )


def _functional_model(loss, spec):
  return tff.learning.models.functional_model_from_keras(
    _keras_model(), loss, spec
  )


def _variable_model(loss, spec):
  return lambda: tff.learning.models.from_keras_model(
    _keras_model(), loss=loss, input_spec=spec
  )


class DpFedAvgTest(parameterized.TestCase):
  @parameterized.product(
    build=(_functional_model, _variable_model),
    label=(-1, 2, 2**62),
    context=(
      lambda: runtime.create_local_context(client_threads=1),
      tff.backends.native.create_sync_local_cpp_execution_context,
    ),
  )
  def test_a_client_with_a_bad_label_sends_nothing(self, build, label, context):
    def client(seed, bad=False):
      rng = np.random.default_rng(seed)
      y = rng.integers(2, size=7)
      y[5] = label if bad else y[5]
      x = rng.normal(size=(7, 3)).astype(np.float32)
      return _dataset({'x': x, 'y': y}, 3)

    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    process = learning.build_dp_fed_avg(
      build(loss, _SPEC),
      _gaussian(unit='client'),
      client_optimizer=tff.learning.optimizers.build_sgdm(0.1),
      count_broken=True,
    )
    with tff.framework.get_context_stack().install(context()):
      expected, metrics = _moved(process, [client(0), client(1)])
      self.assertEqual(aggregators.broken_units(metrics), 0)
      found, metrics = _moved(process, [client(0), client(2, True), client(1)])
    self.assertEqual(aggregators.broken_units(metrics), 1)
    self.assertGreater(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(found, expected, atol=1e-7)

  @parameterized.parameters(_functional_model, _variable_model)
  def test_findings(self, build):
    spec = collections.OrderedDict(_SPEC, y=tf.TensorSpec((None, 2)))
    loss = tf.keras.losses.BinaryCrossentropy(from_logits=True)
    process = learning.build_dp_fed_avg(
      build(loss, spec),
      _gaussian(unit='client'),
      client_optimizer=tff.learning.optimizers.build_sgdm(0.1),
      count_broken=True,
    )
    x = np.ones((4, 3), np.float32)
    y = np.eye(4, 2, dtype=np.float32)
    context = runtime.create_local_context(client_threads=1)
    with tff.framework.get_context_stack().install(context):
      for value, broken in ((1.0, 0), (1e6, 1), (-1.0, 1), (np.nan, 1)):
        data = y.copy()
        data[2, 1] = value
        found, metrics = _moved(process, [_dataset({'x': x, 'y': data})])
        self.assertEqual(aggregators.broken_units(metrics), broken)
        self.assertEqual(np.abs(found).max() == 0, bool(broken))


if __name__ == '__main__':
  absltest.main()
