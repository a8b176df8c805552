"""Each part starts as the frozen network, trains alone, and has exact gradients."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tests.models.backbones import installed_weights
from tff_medical import _validate
from tff_medical import models
from tff_medical.learning import exact_gradients
from tff_medical.learning import unit_gradients
from tff_medical.models import backbones

_LITE = 'efficientnet-lite0'
_OPTIONS = {
  'image_shape': (28, 28, 1),
  'num_outputs': 3,
  'seed': 4,
  'image_size': 32,
}


def _split(part, end):
  return backbones.trainable(_LITE, part, layers=[end], **_OPTIONS)


def _images(count=3):
  rng = np.random.default_rng(0)
  return rng.random((count, 28, 28, 1)).astype(np.float32)


def _inputs(split, images):
  """Returns what the trained part takes."""
  return images if split.frozen is None else split.frozen(images).numpy()


def _functional(split):
  return tff.learning.models.functional_model_from_keras(
    split.trained,
    models.loss(multi_label=False),
    collections.OrderedDict(
      x=tf.TensorSpec(split.trained.input.shape, tf.float32),
      y=tf.TensorSpec((None,), tf.int64),
    ),
  )


@installed_weights.needed
class PartsTest(parameterized.TestCase):
  @parameterized.product(
    part=('last_block', 'norms', 'all'), end=('stem', 'block_3', 'head')
  )
  def test_starts_as_the_head_on_the_frozen_network(self, part, end):
    head, split = _split('head', end), _split(part, end)
    expected = head.trained(head.frozen(_images()))
    logits = split.trained(_inputs(split, _images()))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    self.assertEqual(split.layers, (end,))
    self.assertEqual(split.provenance['trained_part'], part)
    self.assertEqual(split.provenance['sha256'], head.provenance['sha256'])

  @parameterized.parameters(
    ('head', 'block_3', ['dense']),
    ('last_block', 'block_3', ['block_3', 'dense']),
    ('last_block', 'head', ['block_16', 'dense', 'head']),
    ('last_block', 'stem', ['dense', 'stem']),
    ('norms', 'block_1', ['block_1', 'dense', 'stem']),
    ('all', 'block_1', ['block_1', 'dense', 'stem']),
  )
  def test_trains_the_named_part_alone(self, part, end, names):
    split = _split(part, end)
    models.check_federated(split.trained)
    if split.frozen is not None:
      self.assertEmpty(split.frozen.trainable_weights)
    trained = split.trained.trainable_weights
    layers = {
      '_'.join(w.name.split('/')[0].split('_')[: 1 + w.name.startswith('b')])
      for w in trained
    }
    layers = {'dense' if name == 'logits' else name for name in layers}
    self.assertEqual(sorted(layers), names)
    kinds = {w.name.split('/')[1].split(':')[0] for w in trained}
    if part == 'norms':
      self.assertEqual(kinds, {'scale', 'offset', 'kernel', 'bias'})
      self.assertLen([w for w in trained if 'kernel' in w.name], 1)
      self.assertNotEmpty(split.trained.non_trainable_weights)
    else:
      self.assertEmpty(split.trained.non_trainable_weights)

  @parameterized.parameters(
    ('last_block', 'block_3'), ('norms', 'block_2'), ('all', 'block_2')
  )
  def test_goes_through_tff_with_exact_and_fast_gradients(self, part, end):
    split = _split(part, end)
    expected = split.trained(_inputs(split, _images())).numpy()
    model = _functional(split)
    self.assertIs(exact_gradients.find_way(model), unit_gradients.by_rules)
    # What was trained is put back by its place.
    for weights, variables in zip(
      model.initial_weights,
      (
        split.trained.trainable_variables,
        split.trained.non_trainable_variables,
      ),
    ):
      self.assertLen(weights, len(variables))
      for weight, variable in zip(weights, variables):
        np.testing.assert_array_equal(weight, variable)
    models.restore_eager(split.trained)
    np.testing.assert_array_equal(
      split.trained(_inputs(split, _images())), expected
    )

  @parameterized.parameters('head', 'last_block', 'norms')
  def test_both_parts_are_one_model(self, part):
    split = _split(part, 'block_1')
    expected = split.trained(_inputs(split, _images())).numpy()
    _functional(split)  # Keras models do not work after it.
    model = split.joined()
    np.testing.assert_allclose(model(_images()), expected, atol=1e-6)
    models.restore_eager(model)
    self.assertEqual(
      [id(w) for w in model.trainable_weights],
      [id(w) for w in split.trained.trainable_weights],
    )
    split.trained.trainable_weights[-1].assign_add([1.0, 2.0, 3.0])
    np.testing.assert_allclose(
      model(_images()), expected + [1.0, 2.0, 3.0], atol=1e-5
    )

  def test_the_frozen_kernels_stay_in_place_in_a_step(self):
    split = _split('norms', 'block_1')
    model = _functional(split)
    x, y = _images(4), np.array([0, 1, 2, 0])
    with tf.Graph().as_default() as graph:
      trainable, constants = (
        tuple(tf.constant(w) for w in weights)
        for weights in model.initial_weights
      )
      before = model.loss(
        model.predict_on_batch((trainable, constants), x, True), y
      )
      gradients = tf.gradients(before, trainable)
      stepped = tuple(w - 0.01 * g for w, g in zip(trainable, gradients))
      after = model.loss(
        model.predict_on_batch((stepped, constants), x, True), y
      )
      with tf.compat.v1.Session(graph=graph) as session:
        before, after, gradients = session.run((before, after, gradients))
    self.assertLess(after, before)
    for gradient in gradients:
      self.assertGreater(np.abs(gradient).max(), 0)


class ErrorTest(parameterized.TestCase):
  @parameterized.parameters(
    (_LITE, 'hed', {}, "did you mean 'head'"),
    ('scattering', 'norms', {}, "trainable must be 'head'"),
    ('savedmodel:x', 'all', {}, "trainable must be 'head'"),
    ('lite0', 'head', {}, 'backbone must be one of'),
    (_LITE, 'all', {'layers': ['stem', 'head']}, 'layers must be one name'),
    (_LITE, 'all', {'layers': []}, 'got none'),
    (_LITE, 'all', {'layers': ['top']}, 'must be among stem'),
    (_LITE, 'all', {'image_size': 33}, 'a multiple of 32'),
    (_LITE, 'head', {'num_outputs': 0}, 'num_outputs must be positive'),
  )
  def test_refuses(self, name, part, options, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      backbones.trainable(name, part, **{**_OPTIONS, **options})


if __name__ == '__main__':
  absltest.main()
