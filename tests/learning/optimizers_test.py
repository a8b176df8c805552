"""Tests of the server optimizers by name."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical.learning import optimizers


def _steps(optimizer, gradients):
  spec = tf.TensorSpec((), tf.float32)
  state, weight = optimizer.initialize(spec), tf.constant(0.0)
  for gradient in gradients:
    state, weight = optimizer.next(state, weight, tf.constant(gradient))
  return float(weight)


class BuildServerOptimizerTest(parameterized.TestCase):
  def test_sgd_adds_the_update(self):
    optimizer = optimizers.build_server_optimizer('sgd', learning_rate=1.0)
    self.assertAlmostEqual(_steps(optimizer, [-0.5, -0.25]), 0.75, places=6)

  def test_sgd_with_momentum(self):
    optimizer = optimizers.build_server_optimizer(
      'sgd', learning_rate=1.0, momentum=0.9
    )
    # v1 = -1, v2 = 0.9 * -1 - 1 = -1.9.
    self.assertAlmostEqual(_steps(optimizer, [-1.0, -1.0]), 2.9, places=5)

  def test_adam_as_reddi_et_al_set_it(self):
    optimizer = optimizers.build_server_optimizer('adam', learning_rate=0.1)
    # Bias-corrected first step: lr * g / (|g| + eps), eps scaled by TFF's form.
    m, v = 0.1 * -2.0, 0.01 * 4.0
    corrected = 0.1 * np.sqrt(1 - 0.99) / (1 - 0.9)
    expected = -corrected * m / (np.sqrt(v) + 1e-3)
    self.assertAlmostEqual(_steps(optimizer, [-2.0]), expected, places=5)

  def test_yogi_moves_against_the_gradient(self):
    optimizer = optimizers.build_server_optimizer('yogi', learning_rate=0.1)
    self.assertGreater(_steps(optimizer, [-2.0]), 0)

  @parameterized.parameters(
    ({'name': 'adm'}, "server_optimizer .*did you mean 'adam'"),
    ({'learning_rate': 0.0}, 'server_learning_rate'),
    ({'name': 'adam', 'momentum': 0.9}, 'server_momentum .*adam'),
    ({'momentum': 1.0}, 'server_momentum'),
    ({'momentum': -0.1}, 'server_momentum'),
  )
  def test_refuses(self, changed, message):
    arguments = {'name': 'sgd', 'learning_rate': 1.0, **changed}
    with self.assertRaisesRegex(_validate.InputError, message):
      optimizers.build_server_optimizer(**arguments)


if __name__ == '__main__':
  absltest.main()
