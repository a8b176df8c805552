"""Which weights a model takes over from another, and which it refuses."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import models

_CARD = {'dataset': 'x', 'epsilon': 'inf', 'delta': None, 'unit': 'none'}


def _build(name='cnn_small', channels=1, outputs=2, size=28, seed=0):
  return models.build(
    name, input_shape=(size, size, channels), num_outputs=outputs, seed=seed
  )


def _head(features):
  inputs = tf.keras.Input((features,))
  return tf.keras.Model(inputs, tf.keras.layers.Dense(2, name='logits')(inputs))


def _initial(model=None, class_names=('a', 'b'), card=None):
  model = model or _build(seed=1)
  return models.InitialModel(
    name='runs/public',
    weights=tuple(model.get_weights()),
    class_names=class_names,
    card=card or _CARD,
  )


class PutIntoTest(parameterized.TestCase):
  def test_takes_all_with_the_same_classes(self):
    initial, model = _initial(), _build()
    initial.put_into(model, ('a', 'b'))
    for found, expected in zip(model.get_weights(), initial.weights):
      np.testing.assert_array_equal(found, expected)

  @parameterized.parameters((('a', 'c'),), (('b', 'a'),), (('a', 'b', 'c'),))
  def test_keeps_its_own_last_layer_for_other_classes(self, class_names):
    initial, model = _initial(), _build(outputs=len(class_names))
    own = model.get_weights()
    initial.put_into(model, class_names)
    found = model.get_weights()
    for taken, expected in zip(found[:-2], initial.weights[:-2]):
      np.testing.assert_array_equal(taken, expected)
    self.assertFalse(np.array_equal(found[0], own[0]))
    for kept, expected in zip(found[-2:], own[-2:]):
      np.testing.assert_array_equal(kept, expected)

  @parameterized.named_parameters(
    ('channels', {'channels': 3}, "layer 'conv2d.*shape .3, 3, 3, 16.*grey"),
    ('widths', {'name': 'cnn'}, "layer 'conv2d.*has a weight of shape"),
    ('layers', {'name': 'resnet', 'size': 32}, r'has \d+ weights, the model'),
  )
  def test_refuses_other_shapes(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      _initial().put_into(_build(**changed), ('a', 'b'))

  def test_refuses_to_be_ignored(self):
    initial = _initial(_head(12))
    initial.put_into(_head(12), ('a', 'b'))
    with self.assertRaisesRegex(_validate.InputError, 'would be ignored'):
      initial.put_into(_head(12), ('a', 'c'))
    with self.assertRaisesRegex(_validate.InputError, "layer 'logits'"):
      initial.put_into(_head(16), ('a', 'b'))

  def test_refuses_weights_that_are_not_finite(self):
    model = _build()
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    with self.assertRaisesRegex(_validate.InputError, 'not finite'):
      _initial(model)


class IdentityTest(absltest.TestCase):
  def test_digest_is_of_weights_classes_and_card(self):
    digests = {
      initial.digest
      for initial in (
        _initial(),
        _initial(_build(seed=2)),
        _initial(class_names=('b', 'a')),
        _initial(card={**_CARD, 'dataset': 'y'}),
      )
    }
    self.assertLen(digests, 4)
    self.assertIn(_initial().digest, digests)

  def test_provenance_reaches_back_to_the_first_model(self):
    first = _initial().provenance
    self.assertEqual(first, {**_CARD, 'sha256': _initial().digest})
    second = _initial(card={**_CARD, 'dataset': 'y', 'initial_model': first})
    self.assertEqual(second.provenance['initial_model'], first)


if __name__ == '__main__':
  absltest.main()
