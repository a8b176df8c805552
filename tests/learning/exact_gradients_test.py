"""Tests that per-record gradients are exact or refused, for each Keras layer.

Expected gradients are those of the Keras model itself, image by image in eager
mode. They share no code with the ways or with the reference of the check.
"""

import collections
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tests.learning import keras_layers
from tests.learning import unit_models
from tff_medical import _validate
from tff_medical import learning
from tff_medical import models
from tff_medical import runtime
from tff_medical.learning import exact_gradients
from tff_medical.learning import unit_gradients
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_UNITS, _IMAGES = 3, 2

_CENTRAL = mechanisms.GaussianMechanism(
  sampling=sampling.PoissonSampling(1000, 4.0),
  clipping=mechanisms.FixedClipping(1e3),
  noise_multiplier=0.0,
  privacy_unit='record',
)
_LOCAL = local_dp_sgd_mechanism.LocalDpSgdMechanism(
  sampling=local_dp_sgd_mechanism.LocalDpSgdSampling(100, rate=0.1, steps=1),
  clipping=mechanisms.FixedClipping(1e3),
  noise_multiplier=0.0,
  privacy_unit='record',
)


def _randomize(keras_model, rng):
  """Gives the weights values that tell them apart; all are in use."""
  keras_model.set_weights(
    [rng.uniform(-0.6, 0.6, w.shape) for w in keras_model.get_weights()]
  )


def _units(spec, rng):
  """Returns units of two images; the second image of a unit is padding."""
  shape = (_UNITS, _IMAGES, *spec.shape[1:])
  x = (
    rng.integers(4, size=shape) if spec.dtype.is_integer else rng.random(shape)
  )
  return collections.OrderedDict(
    x=x.astype(spec.dtype.as_numpy_dtype),
    y=rng.integers(keras_layers.CLASSES, size=(_UNITS, _IMAGES)),
    mask=np.array([[1, 1], [1, 0], [1, 1]], np.float32),
  )


def _eager_gradients(keras_model, data):
  """Returns the gradient of each unit, [units, ...] for each weight."""
  loss = models.loss(multi_label=False)
  units = []
  for x, y, mask in zip(data['x'], data['y'], data['mask']):
    total = [np.zeros(w.shape) for w in keras_model.trainable_weights]
    for k in np.flatnonzero(mask):
      with tf.GradientTape() as tape:
        value = loss(y[k : k + 1], keras_model(x[k : k + 1], training=True))
      gradients = tape.gradient(value, keras_model.trainable_weights)
      for part, gradient in zip(total, gradients):
        part += tf.convert_to_tensor(gradient).numpy() / mask.sum()
    units.append(total)
  return [np.stack(parts) for parts in zip(*units)]


def _means(gradients, mask):
  """Returns the gradient of each unit, from those of its images."""
  shares = mask / mask.sum(axis=1, keepdims=True)
  return [
    np.einsum('uk,uk...->u...', shares, g.reshape(*mask.shape, *g.shape[1:]))
    for g in gradients
  ]


def _run(model, way, data):
  """Returns the gradients of the units, [units, ...] for each weight."""
  (gradients,) = _run_each(model, way, [data])
  return gradients


def _run_each(model, way, batches):
  """Returns the gradients of each batch of units, by one graph."""
  with tf.Graph().as_default() as graph:
    batch = collections.OrderedDict(
      (name, tf.compat.v1.placeholder(spec.dtype, spec.shape))
      for name, spec in unit_gradients.batch_spec(model).items()
    )
    weights = tff.learning.models.ModelWeights(
      tuple(tf.constant(w) for w in model.initial_weights[0]), ()
    )
    gradients = unit_gradients.unit_gradients(model, way, weights, batch)
    with tf.compat.v1.Session(graph=graph) as session:
      return [
        session.run(list(gradients), {batch[k]: data[k] for k in batch})
        for data in batches
      ]


def _flat(gradients):
  """Returns [units, parameters]."""
  return np.concatenate([g.reshape(len(g), -1) for g in gradients], axis=1)


def _records(data):
  """Returns each image of the units as a unit of its own."""
  return collections.OrderedDict(
    (name, values.reshape((-1, 1, *values.shape[2:])))
    for name, values in data.items()
  )


def _functional(predict, weights, **changed):
  arguments = {
    'initial_weights': (weights, ()),
    'predict_on_batch_fn': tf.function(predict),
    'loss_fn': unit_models.loss,
    'input_spec': unit_models.model().input_spec,
  }
  return tff.learning.models.FunctionalModel(**{**arguments, **changed})


def _matrix(weights, x):
  return tf.reshape(x, (-1, 60)) @ weights[0][0]


def _in_map_fn(weights, x, training=True):
  del training
  matrix, bias = weights[0]
  rows = tf.reshape(x, (-1, 60))
  return tf.map_fn(lambda row: tf.linalg.matvec(matrix, row, True), rows) + bias


def _in_while_loop(weights, x, training=True):
  del training
  matrix, bias = weights[0]
  _, rows = tf.while_loop(
    lambda i, _: i < 3,
    lambda i, rows: (i + 1, tf.tanh(rows + bias)),
    (0, tf.reshape(x, (-1, 60)) @ matrix),
    maximum_iterations=3,
  )
  return rows


def _in_loop_and_outside(weights, x, training=True):
  del training
  matrix, bias = weights[0]
  rows = tf.reshape(x, (-1, 60)) @ matrix
  return tf.map_fn(lambda row: row * bias, rows) + bias


_LOOPS = (_in_map_fn, _in_while_loop, _in_loop_and_outside)


def _loop_weights():
  rng = np.random.default_rng(3)
  shapes = ((60, 3), (3,))
  return tuple(rng.normal(0, 0.2, s).astype(np.float32) for s in shapes)


class KerasLayersTest(parameterized.TestCase):
  @parameterized.parameters(*keras_layers.EXACT)
  def test_is_exact(self, name):
    rng = np.random.default_rng(5)
    keras_model = keras_layers.keras_model(*keras_layers.EXACT[name])
    _randomize(keras_model, rng)
    spec = tf.TensorSpec(
      keras_model.inputs[0].shape, keras_model.inputs[0].dtype
    )
    data = _units(spec, rng)
    records = _records(data)
    variables = [w.numpy() for w in keras_model.trainable_weights]
    expected_records = _eager_gradients(keras_model, records)
    expected = _means(expected_records, data['mask'])
    model = keras_layers.functional(keras_model)
    way = exact_gradients.find_way(model)
    largest = max(np.abs(g).max() for g in expected)
    # TFF orders weights by their creation.
    computed = _run_each(model, way, (data, records))
    for of, gradients in zip((expected, expected_records), computed):
      self.assertLen(gradients, len(variables))
      for weight, gradient in zip(model.initial_weights[0], gradients):
        (i,) = (i for i, v in enumerate(variables) if np.array_equal(v, weight))
        np.testing.assert_allclose(
          gradient, of[i], rtol=1e-4, atol=2e-6 * largest
        )

  @parameterized.parameters(*keras_layers.REFUSED)
  def test_is_refused_by_name(self, name):
    keras_model = keras_layers.keras_model(*keras_layers.REFUSED[name])
    with self.assertRaisesRegex(_validate.InputError, f"'{name}.*'"):
      models.check_federated(keras_model)

  def test_no_layer_is_left_out(self):
    """A layer of a later Keras has to be added to a list."""
    with_weights = set()
    for shape, apply in (
      *keras_layers.EXACT.values(),
      *keras_layers.REFUSED.values(),
    ):
      with_weights |= keras_layers.classes_with_weights(
        keras_layers.keras_model(shape, apply)
      )
    every = {
      layer.__name__
      for layer in vars(keras_layers.layers).values()
      if isinstance(layer, type)
      and issubclass(layer, keras_layers.layers.Layer)
    }
    without_weights = every - with_weights - keras_layers.ABSTRACT
    self.assertSameElements(without_weights, keras_layers.WITHOUT_WEIGHTS)


class FindWayTest(parameterized.TestCase):
  @parameterized.parameters(*_LOOPS)
  def test_weights_inside_of_loops(self, predict):
    weights = _loop_weights()
    model = _functional(predict, weights)
    way = exact_gradients.find_way(model)
    batches = [unit_models.units(0, 4, images) for images in (1, 3)]
    for data, gradients in zip(batches, _run_each(model, way, batches)):
      expected = unit_models.gradients_one_by_one(weights, data, predict)
      np.testing.assert_allclose(
        _flat(gradients), expected, rtol=1e-4, atol=1e-6
      )

  @parameterized.parameters(*_LOOPS)
  def test_rules_do_not_take_a_weight_in_a_loop_for_unused(self, predict):
    model = _functional(predict, _loop_weights())
    with self.assertRaisesRegex(unit_gradients.NoRuleError, 'While'):
      _run(model, unit_gradients.by_rules, unit_models.units(0, 2))

  def test_each_way_is_exact_for_a_model_with_rules(self):
    data = unit_models.units(0, 4, 3)
    expected = unit_models.gradients_one_by_one(unit_models.weights(), data)
    for way in exact_gradients._WAYS:
      gradients = _flat(_run(unit_models.model(), way, data))
      np.testing.assert_allclose(gradients, expected, rtol=1e-4, atol=1e-6)

  def test_takes_the_fastest_way(self):
    way = exact_gradients.find_way(unit_models.model())
    self.assertIs(way, unit_gradients.by_rules)

  def test_a_weight_without_use_is_allowed(self):
    weights = (*_loop_weights(), np.ones(7, np.float32))
    model = _functional(
      lambda w, x, training=True: _matrix(w, x) + w[0][1], weights
    )
    way = exact_gradients.find_way(model)
    self.assertIs(way, unit_gradients.by_rules)
    gradients = _run(model, way, unit_models.units(0, 4))
    np.testing.assert_array_equal(gradients[2], np.zeros((4, 7)))

  @parameterized.parameters(
    ('one weight is left out', lambda g: (*g[:-1], tf.zeros_like(g[-1]))),
    ('a weight is off by 1 %', lambda g: (g[0], 1.01 * g[1], *g[2:])),
    ('units are swapped', lambda g: tuple(v[::-1] for v in g)),
    ('units are averaged', lambda g: tuple(0 * v + v[:1] for v in g)),
    ('one unit is not finite', lambda g: (*g[:-1], g[-1] / [[1.0], [0.0]])),
  )
  def test_a_wrong_way_is_not_taken(self, _, fault):
    def wrong(*arguments):
      return fault(unit_gradients.by_rules(*arguments))

    ways = (wrong, unit_gradients.vectorized)
    with mock.patch.object(exact_gradients, '_WAYS', ways):
      way = exact_gradients.find_way(unit_models.model())
    self.assertIs(way, unit_gradients.vectorized)

  def test_no_exact_way_is_refused(self):
    def wrong(*arguments):
      *gradients, last = unit_gradients.by_rules(*arguments)
      return (*gradients, tf.zeros_like(last))

    with mock.patch.object(exact_gradients, '_WAYS', (wrong,)):
      with self.assertRaisesRegex(
        _validate.InputError, r'exact gradient for each record.*weight 4 \('
      ):
        exact_gradients.find_way(unit_models.model())

  def test_initial_weights_hide_no_fault(self):
    """Before a scale of 0 the gradient of every other weight is 0."""
    kernel, scale, *others = unit_models.weights()
    weights = (kernel, 0 * scale, *others)
    model = _functional(unit_models.predict, weights)

    def wrong(*arguments):
      gradients = unit_gradients.by_rules(*arguments)
      return (tf.zeros_like(gradients[0]), *gradients[1:])

    ways = (wrong, unit_gradients.vectorized)
    with mock.patch.object(exact_gradients, '_WAYS', ways):
      way = exact_gradients.find_way(model)
    self.assertIs(way, unit_gradients.vectorized)

  def test_random_layers_are_compared_in_inference(self):
    keras_model = keras_layers.keras_model(
      (6, 5, 2), lambda x: keras_layers.layers.Dropout(0.5)(x)
    )
    way = exact_gradients.find_way(keras_layers.functional(keras_model))
    self.assertIs(way, unit_gradients.by_rules)

  def test_random_weights_need_a_way_that_runs_in_training(self):
    def predict(weights, x, training=True):
      matrix, bias = weights[0]
      if training:
        matrix = tf.nn.dropout(matrix, 0.5)
      return tf.reshape(x, (-1, 60)) @ matrix + bias

    way = exact_gradients.find_way(_functional(predict, _loop_weights()))
    self.assertIs(way, unit_gradients.vectorized)

  def test_is_the_same_in_every_process(self):
    """The check draws nothing from NumPy's or TensorFlow's shared generators."""
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    exact_gradients.find_way(unit_models.model())
    self.assertEqual(np.random.get_state()[1].tolist(), before)

  @parameterized.parameters(
    unit_models.model(),
    unit_models.model(multi_label=True),
    unit_models.line(4),
  )
  def test_labels_are_valid(self, model):
    """An invalid label would make the gradients of its unit NaN."""
    self.assertIs(exact_gradients.find_way(model), unit_gradients.by_rules)


@tf.custom_gradient
def _normalized_gradient(x):
  """Divides by a norm over the whole batch."""
  return tf.identity(x), lambda gradient: gradient / tf.norm(gradient)


class RefusalTest(parameterized.TestCase):
  def _assert_refused(self, message, predict, weights=None, **changed):
    model = _functional(predict, weights or _loop_weights(), **changed)
    with self.assertRaisesRegex(_validate.InputError, message) as caught:
      exact_gradients.find_way(model)
    self.assertNotIn('\n', str(caught.exception))

  def test_a_gradient_that_depends_on_the_batch(self):
    self._assert_refused(
      r'exact gradient for each record.*weight 0 \(shape \[60, 3\], used by '
      r"'classifier/MatMul'\)",
      lambda w, x, training=True: _normalized_gradient(
        tf.matmul(tf.reshape(x, (-1, 60)), w[0][0], name='classifier/MatMul')
      ),
    )

  def test_images_that_influence_each_other(self):
    self._assert_refused(
      'each image on its own.*GroupNormalization',
      lambda w, x, training=True: _matrix(w, x - tf.reduce_mean(x, axis=0)),
    )

  def test_gradients_that_are_not_finite(self):
    matrix, bias = _loop_weights()
    self._assert_refused(
      r'finite gradients.*weight 0 .*initial value',
      lambda w, x, training=True: _matrix(w, x) + w[0][1],
      (np.full_like(matrix, np.nan), bias),
    )

  def test_an_operation_without_a_gradient(self):
    self._assert_refused(
      'must have a gradient.*ResizeArea',
      lambda w, x, training=True: _matrix(
        w, tf.compat.v1.image.resize_area(x * w[0][1][0], (6, 5))
      ),
    )

  def test_several_outputs(self):
    self._assert_refused(
      'must return one tensor',
      lambda w, x, training=True: (_matrix(w, x), _matrix(w, x)),
    )

  @parameterized.parameters(
    (
      {'image': tf.TensorSpec((None, 60))},
      'one tensor as x .* a mapping of image; stack them',
    ),
    (tf.TensorSpec((None, None, 60)), 'every size after the batch'),
  )
  def test_inputs(self, spec, message):
    y = tf.TensorSpec((None,), tf.int64)
    self._assert_refused(
      message,
      lambda w, x, training=True: _matrix(w, x),
      input_spec=collections.OrderedDict(x=spec, y=y),
    )


class ProcessesTest(absltest.TestCase):
  """A recurrent layer, whose weights are in a loop, through both processes."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(5)
    keras_model = keras_layers.keras_model(*keras_layers.EXACT['simple_rnn'])
    _randomize(keras_model, rng)
    spec = tf.TensorSpec((None, 5, 4))
    self.data = _records(_units(spec, rng))
    gradients = _eager_gradients(keras_model, self.data)
    self.expected = [g[self.data['mask'][:, 0] > 0].sum(0) for g in gradients]
    self.model = keras_layers.functional(keras_model)

  def _assert_step(self, process, data, context):
    with tff.framework.get_context_stack().install(context):
      state = process.initialize()
      before = process.get_model_weights(state).trainable
      state = process.next(state, [data]).state
      after = process.get_model_weights(state).trainable
    for w, v, total in zip(before, after, self.expected):
      np.testing.assert_allclose(w - v, total / 4, atol=1e-5)

  def test_dp_sgd(self):
    process = learning.build_dp_sgd(self.model, _CENTRAL)
    data = runtime.tensor_dataset(self.data, batch_size=4)
    for context in (
      runtime.create_local_context(client_threads=1),
      tff.backends.native.create_sync_local_cpp_execution_context(),
    ):
      self._assert_step(process, data, context)

  def test_local_dp_sgd(self):
    process = learning.build_local_dp_sgd(
      self.model,
      _LOCAL,
      client_optimizer=tff.learning.optimizers.build_sgdm(1.0),
    )
    arrays = learning.step_arrays([self.data], 4.0)
    data = runtime.tensor_dataset(arrays, batch_size=len(arrays['x']))
    self._assert_step(
      process, data, runtime.create_local_context(client_threads=1)
    )

  def test_both_refuse_what_is_not_exact(self):
    model = _functional(
      lambda w, x, training=True: _normalized_gradient(_matrix(w, x)),
      _loop_weights(),
    )
    for build, mechanism, arguments in (
      (learning.build_dp_sgd, _CENTRAL, {}),
      (
        learning.build_local_dp_sgd,
        _LOCAL,
        {'client_optimizer': tff.learning.optimizers.build_sgdm(1.0)},
      ),
    ):
      with self.assertRaisesRegex(_validate.InputError, 'exact gradient'):
        build(model, mechanism, **arguments)


if __name__ == '__main__':
  absltest.main()
