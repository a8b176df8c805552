"""Own models: found by name, checked, and refused in one line."""

import os
import pathlib
import sys
import textwrap

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import models

_SHAPE = (8, 8, 1)


def _net(shape, num_outputs, seed, activation=None, **dense):
  inputs = tf.keras.Input(shape)
  initial = tf.keras.initializers.GlorotUniform(seed)
  flat = tf.keras.layers.Flatten()(inputs)
  outputs = tf.keras.layers.Dense(
    num_outputs,
    name='last',
    activation=activation,
    kernel_initializer=initial,
    **dense,
  )(flat)
  return tf.keras.Model(inputs, outputs)


class _Forgetful(tf.keras.layers.Layer):
  """Its config leaves out its factor, which has a default."""

  def __init__(self, factor=1.0, **kwargs):
    super().__init__(**kwargs)
    self.factor = factor

  def call(self, x):
    return self.factor * x

  def get_config(self):
    return super().get_config()


class _Weighted(_Forgetful):
  """Has a weight only for a factor that its config leaves out."""

  def build(self, input_shape):
    if self.factor != 1.0:
      self.add_weight('weight', (1,))


def _weighted(shape, num_outputs, seed):
  model = _net(shape, num_outputs, seed)
  return tf.keras.Model(model.input, _Weighted(3.0)(model.output))


def _forgetful(shape, num_outputs, seed):
  model = _net(shape, num_outputs, seed)
  outputs = _Forgetful(3.0)(model.output)
  return tf.keras.Model(model.input, outputs)


def _batch_norm(shape, num_outputs, seed):
  model = _net(shape, num_outputs, seed)
  norm = tf.keras.layers.BatchNormalization(name='norm')
  return tf.keras.Model(model.input, norm(model.output))


def _fails(shape, num_outputs, seed):
  raise RuntimeError('no weights\nat this place')


class BuildTest(parameterized.TestCase):
  def test_a_function_gets_shape_outputs_and_seed(self):
    first, same, other = (
      models.build(_net, input_shape=_SHAPE, num_outputs=3, seed=seed)
      for seed in (1, 1, 2)
    )
    self.assertEqual(first.output_shape, (None, 3))
    np.testing.assert_array_equal(first.get_weights()[0], same.get_weights()[0])
    self.assertFalse(
      np.allclose(first.get_weights()[0], other.get_weights()[0])
    )

  @parameterized.named_parameters(
    ('fails', _fails, r'_fails fails with .* \(RuntimeError: no weights\)$'),
    ('no_model', lambda *_: 3, 'must return a Keras model, got a int'),
    ('arguments', lambda shape: None, 'TypeError'),
    (
      'input',
      lambda shape, n, seed: _net((9, 9, 1), n, seed),
      r'must take images of shape \(None, 8, 8, 1\), got \(None, 9, 9, 1\)',
    ),
    (
      'output',
      lambda shape, n, seed: _net(shape, 7, seed),
      r'must return logits of shape \(None, 2\), got \(None, 7\)',
    ),
    (
      'softmax',
      lambda *a: _net(*a, activation='softmax'),
      "layer 'last' ends the model of .* in softmax; return logits",
    ),
    (
      'softmax_layer',
      lambda *a: tf.keras.Sequential([_net(*a), tf.keras.layers.Softmax()]),
      "layer 'softmax.*' ends the model of .* in softmax",
    ),
    ('batch_norm', _batch_norm, "layer 'norm' is a BatchNormalization"),
    ('clone', _forgetful, 'differs from its clone'),
    (
      'clone_fails',
      _weighted,
      r'cannot be cloned, .* \(ValueError: You called',
    ),
  )
  def test_refuses(self, function, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      models.build(function, input_shape=_SHAPE, num_outputs=2, seed=0)


class FindTest(parameterized.TestCase):
  """Modules in the working directory."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    before = os.getcwd()
    self.addCleanup(os.chdir, before)
    os.chdir(self.folder)
    self.path = list(sys.path)

  def _write(self, name, text):
    path = self.folder / f'{name}.py'
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text))
    dotted = name.replace('/', '.')
    self.addCleanup(sys.modules.pop, dotted, None)

  def test_finds_functions_of_modules_and_packages(self):
    self._write('own_nets_a', 'def build(*a): return 1')
    self._write('own_package/nets', 'def build(*a): return 2')
    self.addCleanup(sys.modules.pop, 'own_package', None)
    self.assertEqual(models.find('own_nets_a:build')(), 1)
    self.assertEqual(models.find('own_package.nets:build')(), 2)
    self.assertEqual(sys.path, self.path)

  def test_finds_our_own_without_building_them(self):
    model = models.find('cnn_small')(_SHAPE, 2, 0)
    self.assertEqual(model.count_params(), 14194)

  @parameterized.named_parameters(
    ('no_module', 'own_nets_no:build', 'no module own_nets_no in the working'),
    (
      'function',
      'own_nets_b:buildx',
      'no buildx; did you mean own_nets_b:build',
    ),
    ('no_function', 'own_nets_b:zzzz', 'own_nets_b has no zzzz$'),
    ('value', 'own_nets_b:size', 'size is a int; name a function'),
    ('broken', 'own_nets_c:build', r'imported \(SyntaxError: invalid'),
    ('needs', 'own_nets_d:build', r'\(ModuleNotFoundError: .*own_nets_missing'),
    ('path', 'own/nets.py:build', 'must be module:function with the dotted'),
    ('half', 'own_nets_b:', 'must be module:function with the dotted'),
    (
      'ours',
      'cnn_smal',
      "module:function, .*, got 'cnn_smal'; did you mean 'cnn_s",
    ),
  )
  def test_refuses(self, name, message):
    self._write('own_nets_b', 'size = 3\ndef build(*a): return 1')
    self._write('own_nets_c', 'def build(:')
    self._write('own_nets_d', 'import own_nets_missing')
    with self.assertRaisesRegex(_validate.InputError, message) as raised:
      models.find(name)
    self.assertNotIn('\n', str(raised.exception))
    self.assertEqual(sys.path, self.path)


if __name__ == '__main__':
  absltest.main()
