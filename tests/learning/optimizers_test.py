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

  def test_adam_bc_subtracts_the_variance_of_the_noise(self):
    """Tang et al. 2024, Algorithm 1, in float64."""
    stddev, floor = 0.3, 0.25
    optimizer = optimizers.build_server_optimizer(
      'adam_bc', learning_rate=0.1, noise_stddev=stddev, noise_floor=floor
    )
    # The first second moments are above the floor, the later ones below it.
    gradients = [0.5, -0.45, 0.02, -0.01, 0.03]
    weight = m = v = 0.0
    floored = []
    for t, gradient in enumerate(gradients, start=1):
      m = 0.9 * m + 0.1 * gradient
      v = 0.999 * v + 0.001 * gradient**2
      corrected = v / (1 - 0.999**t) - stddev**2
      floored.append(corrected < floor * stddev**2)
      second = max(corrected, floor * stddev**2)
      weight -= 0.1 * m / (1 - 0.9**t) / np.sqrt(second)
      self.assertAlmostEqual(
        _steps(optimizer, gradients[:t]), weight, delta=2e-4
      )
    self.assertEqual(set(floored), {True, False})

  def test_adam_bc_finds_the_gradient_behind_the_noise(self):
    """Steps of plain Adam shrink with the noise, those of DP-AdamBC do not."""
    signal, stddev, rounds = 0.05, 0.1, 800
    rng = np.random.default_rng(0)
    noised = [signal + stddev * n for n in rng.normal(size=rounds).tolist()]
    step = {}
    for name in ('adam', 'adam_bc'):
      optimizer = optimizers.build_server_optimizer(
        name, learning_rate=1.0, noise_stddev=stddev, noise_floor=0.01
      )
      # The first second moments are too few to tell noise from signal.
      half = _steps(optimizer, noised[: rounds // 2])
      step[name] = (half - _steps(optimizer, noised)) / (rounds / 2)
    self.assertAlmostEqual(
      step['adam'], signal / np.hypot(signal, stddev), delta=0.05
    )
    self.assertAlmostEqual(step['adam_bc'], 1.0, delta=0.25)

  def test_adam_bc_of_tiny_noise_does_not_vanish_in_float32(self):
    optimizer = optimizers.build_server_optimizer(
      'adam_bc', learning_rate=1.0, noise_stddev=1e-25, noise_floor=1.0
    )
    self.assertAlmostEqual(
      _steps(optimizer, [2e-25]), -2 / np.sqrt(3), delta=1e-3
    )

  @parameterized.parameters(
    ({'name': 'adam_bc'}, 'noise_stddev must be given.*adam_bc.*choose adam'),
    ({'name': 'adam_bc', 'noise_stddev': 0.0}, 'noise_stddev'),
    (
      {'name': 'adam_bc', 'noise_stddev': 1.0, 'noise_floor': 0.0},
      'noise_floor',
    ),
    (
      {'name': 'adam_bc', 'noise_stddev': 1.0, 'momentum': 0.9},
      'server_momentum .*adam_bc',
    ),
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
