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
from tff_medical.learning import labels
from tff_medical.privacy import aggregators
from tff_medical.privacy import local_dp_sgd_mechanism
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


class ValidTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('findings', [[-1, 0], [1, -1]], np.float32, 2, [True, True]),
    ('integer_findings', [[-1, 0], [1, -2]], np.int64, 2, [True, False]),
    ('classes', [-1, 1], np.int64, 2, [False, True]),
    ('classes_as_floats', [-1, 1], np.float32, 2, [False, True]),
    ('classes_in_a_column', [[-1], [1]], np.int64, 2, [False, True]),
    ('one_output', [[-1], [1]], np.int64, 1, [False, True]),
  )
  def test_unknown_is_a_label_of_findings_alone(
    self, values, dtype, outputs, expected
  ):
    found = labels.valid(
      tf.constant(np.array(values, dtype)), tf.zeros((2, outputs))
    )
    self.assertEqual(found.numpy().tolist(), expected)


class DpSgdTest(_LocalContextTest):
  def _process(self, multi_label=False, clip=None):
    return learning.build_dp_sgd(
      unit_models.model(multi_label), _gaussian(clip), count_broken=True
    )

  def _assert_leaves_out(self, process, data, change, index, value):
    """Asserts that a unit with a bad label counts as one of gradient zero."""
    without = collections.OrderedDict(data, mask=data['mask'].copy())
    without['mask'][index[0]] = 0
    expected, _ = _moved(process, [_dataset(without)])
    bad = collections.OrderedDict(data)
    bad[change] = data[change].copy()
    bad[change][index] = value
    found, metrics = _moved(process, [_dataset(bad)])
    np.testing.assert_allclose(found, expected, atol=1e-7)
    self.assertEqual(aggregators.broken_units(metrics), 1)

  def test_class_out_of_range(self):
    process = self._process()
    data = unit_models.units(0, 6, images=2)
    for label in _BAD_CLASSES:
      self._assert_leaves_out(process, data, 'y', (2, 0), label)

  def test_finding_that_is_not_0_or_1(self):
    process = self._process(multi_label=True)
    data = unit_models.units(0, 6, multi_label=True)
    for label in (-2, 2, 2**62):
      self._assert_leaves_out(process, data, 'y', (5, 0, 1), label)

  def test_labels_of_padding_are_no_fault(self):
    process = self._process()
    data = unit_models.units(0, 6, images=3)
    expected, _ = _moved(process, [_dataset(data)])
    data['y'][data['mask'] == 0] = 99
    found, metrics = _moved(process, [_dataset(data)])
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(aggregators.broken_units(metrics), 0)

  def test_all_labels_bad(self):
    data = unit_models.units(0, 6)
    data['y'][:] = 77
    process = self._process(clip=mechanisms.AdaptiveClipping())
    found, metrics = _moved(process, [_dataset(data)])
    np.testing.assert_array_equal(found, 0)
    self.assertEqual(aggregators.broken_units(metrics), 6)

  @parameterized.parameters(
    (mechanisms.FixedClipping(_CLIP_NORM),), (mechanisms.AdaptiveClipping(),)
  )
  def test_mask_is_in_or_out(self, clip):
    process = self._process(clip=clip)
    data = unit_models.units(3, 5, images=2)
    for meaning, values in (
      (1, (2.0, 1e30, np.inf, 1e-30, 0.5)),
      (0, (-1.0, -np.inf, np.nan)),
    ):
      data['mask'][1] = meaning
      expected = process.next(process.initialize(), [_dataset(data)]).state
      for value in values:
        data['mask'][1] = value
        found = process.next(process.initialize(), [_dataset(data)])
        self.assertEqual(aggregators.broken_units(found.metrics), 0)
        # The weights and the clip norm.
        tf.nest.map_structure(
          np.testing.assert_array_equal, found.state, expected
        )

  def test_mask_cannot_weigh_one_image_of_a_patient_more(self):
    process = self._process()
    data = unit_models.units(3, 5, images=2)
    data['mask'][:] = 1
    expected, _ = _moved(process, [_dataset(data)])
    data['mask'][2] = (1.0, 1e6)
    found, _ = _moved(process, [_dataset(data)])
    np.testing.assert_array_equal(found, expected)


class LocalDpSgdTest(_LocalContextTest):
  def setUp(self):
    super().setUp()
    mechanism = local_dp_sgd_mechanism.LocalDpSgdMechanism(
      sampling=local_dp_sgd_mechanism.LocalDpSgdSampling(
        100, rate=0.1, steps=3
      ),
      clipping=mechanisms.FixedClipping(_CLIP_NORM),
    )
    self.process = learning.build_local_dp_sgd(
      unit_models.model(),
      mechanism,
      client_optimizer=tff.learning.optimizers.build_sgdm(0.5),
    )

  def _moved(self, *sites):
    return _moved(self.process, [_dataset(site, 2) for site in sites])[0]

  def _arrays(self, expected=2.0):
    steps = [unit_models.units(n, 2, images=2) for n in range(3)]
    return learning.step_arrays(steps, expected)

  def test_class_out_of_range(self):
    arrays = self._arrays()
    arrays['mask'][3] = 0
    expected = self._moved(arrays)
    arrays['mask'][3] = 1
    for label in _BAD_CLASSES:
      arrays['y'][3, 0] = label
      np.testing.assert_allclose(self._moved(arrays), expected, atol=1e-7)

  def test_mask_is_in_or_out(self):
    arrays = self._arrays()
    for value in (np.inf, 1e9, np.nan, -3.0):
      arrays['mask'][3] = value > 0
      expected = self._moved(arrays)
      arrays['mask'][3] = value
      np.testing.assert_array_equal(self._moved(arrays), expected)

  def test_expected_units_are_one_number_or_the_site_is_left_out(self):
    """Of one row, which may be a unit's: it changes nothing but the site."""
    good = self._arrays()
    expected = self._moved(good)
    for value in (np.nan, 0.0, -2.0, np.inf, -np.inf, 1e30, 3.0, 1e-9):
      for rows in ([0], [3], [4, 5]):
        arrays = self._arrays()
        arrays['expected_units'][rows] = value
        np.testing.assert_allclose(
          self._moved(good, arrays), expected, atol=1e-7
        )
        np.testing.assert_array_equal(self._moved(arrays), 0)

  def test_expected_units_of_all_rows(self):
    for value in (np.nan, 0.0, -2.0, np.inf, 1e30, 10.2):
      np.testing.assert_array_equal(self._moved(self._arrays(value)), 0)
    self.assertGreater(np.abs(self._moved(self._arrays(10.0))).max(), 0)


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
    context=(
      lambda: runtime.create_local_context(client_threads=1),
      tff.backends.native.create_sync_local_cpp_execution_context,
    ),
  )
  def test_a_client_with_a_bad_label_sends_nothing(self, build, context):
    def client(seed, label=None):
      rng = np.random.default_rng(seed)
      y = rng.integers(2, size=7)
      y[5] = y[5] if label is None else label
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
      self.assertGreater(np.abs(expected).max(), 1e-3)
      for label in (-1, 2, 2**62):
        clients = [client(0), client(2, label), client(1)]
        found, metrics = _moved(process, clients)
        self.assertEqual(aggregators.broken_units(metrics), 1)
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
      for value, broken in ((1.0, 0), (1e6, 1), (-2.0, 1), (np.nan, 1)):
        data = y.copy()
        data[2, 1] = value
        found, metrics = _moved(process, [_dataset({'x': x, 'y': data})])
        self.assertEqual(aggregators.broken_units(metrics), broken)
        self.assertEqual(np.abs(found).max() == 0, bool(broken))


if __name__ == '__main__':
  absltest.main()
