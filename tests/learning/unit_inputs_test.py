"""Models that DP-SGD takes, and those that it refuses by name."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tests.learning import unit_models
from tff_medical import _validate
from tff_medical import learning
from tff_medical import models
from tff_medical import runtime
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_IMAGE = tf.TensorSpec((None, 4), tf.float32)
_LABEL = tf.TensorSpec((None,), tf.int64)


def _mechanism(unit='record'):
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(100, 8),
    clipping=mechanisms.FixedClipping(0.5),
    privacy_unit=unit,
  )


def _keras(several_inputs=False, several_outputs=False):
  image = tf.keras.Input((4,))
  age = tf.keras.Input((4,))
  hidden = tf.keras.layers.Add()([image, age]) if several_inputs else image
  outputs = tf.keras.layers.Dense(2)(hidden)
  return tf.keras.Model(
    [image, age] if several_inputs else image,
    [outputs, outputs] if several_outputs else outputs,
  )


def _functional(spec, **several):
  return tff.learning.models.functional_model_from_keras(
    _keras(**several), models.loss(False), spec
  )


class UnitInputsTest(parameterized.TestCase):
  def test_a_pair_is_as_good_as_a_mapping(self):
    data = unit_models.units(0, 6)
    plain = unit_models.model()
    pair = tff.learning.models.FunctionalModel(
      initial_weights=plain.initial_weights,
      predict_on_batch_fn=tf.function(unit_models.predict),
      loss_fn=unit_models.loss,
      input_spec=tuple(plain.input_spec.values()),
    )
    context = runtime.create_local_context(client_threads=1)
    steps = []
    with tff.framework.get_context_stack().install(context):
      for model in (plain, pair):
        process = learning.build_dp_sgd(model, _mechanism())
        sites = [runtime.tensor_dataset(data, batch_size=4)]
        state = process.next(process.initialize(), sites).state
        steps.append(process.get_model_weights(state).trainable)
    tf.nest.map_structure(np.testing.assert_array_equal, *steps)

  @parameterized.named_parameters(
    (
      'inputs',
      lambda: _functional(((_IMAGE, _IMAGE), _LABEL), several_inputs=True),
      'one tensor as x for DP-SGD, got a tuple of 2; .* build_dp_fed_avg',
    ),
    (
      'named_inputs',
      lambda: _functional(
        collections.OrderedDict(
          x=collections.OrderedDict(image=_IMAGE, age=_IMAGE), y=_LABEL
        ),
        several_inputs=True,
      ),
      'one tensor as x for DP-SGD, got a mapping of image, age',
    ),
    (
      'labels',
      lambda: _functional((_IMAGE, [_LABEL, _LABEL])),
      'one tensor as y for DP-SGD, got a list of 2',
    ),
    (
      'outputs',
      lambda: _functional((_IMAGE, _LABEL), several_outputs=True),
      'must return one tensor for DP-SGD, got a list of 2',
    ),
    ('keras', _keras, 'must be a FunctionalModel for DP-SGD, got Functional'),
    (
      'variable_model',
      lambda: lambda: None,
      'must be a FunctionalModel for DP-SGD, got function',
    ),
  )
  def test_refuses(self, model, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      learning.build_dp_sgd(model(), _mechanism())

  def test_refuses_a_keras_model_at_client_level(self):
    with self.assertRaisesRegex(_validate.InputError, 'got Keras model'):
      learning.build_dp_fed_avg(
        _keras(),
        _mechanism('client'),
        client_optimizer=tff.learning.optimizers.build_sgdm(0.5),
      )


if __name__ == '__main__':
  absltest.main()
