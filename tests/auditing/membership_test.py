"""Tests of membership inference on models that leak all, nothing, a little."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import special
from sklearn import metrics
import tensorflow as tf

from tff_medical import _validate
from tff_medical.auditing import membership
from tff_medical.data import images
from tff_medical.privacy import card_format
from tff_medical.serving import export

_CARD = {key: 0 for key in card_format.REQUIRED_KEYS}


def _probabilities(rng, labels, margin, classes=3):
  logits = rng.normal(size=(len(labels), classes))
  logits[np.arange(len(labels)), labels] += margin
  return special.softmax(logits, axis=1)


class MembershipTest(parameterized.TestCase):
  def _attack(self, margin, count=600):
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 3, (2, count))
    return membership.attack(
      _probabilities(rng, inside, margin),
      inside,
      _probabilities(rng, outside, 0.0),
      outside,
    )

  def test_a_model_that_leaks_nothing(self):
    for attack in self._attack(0.0):
      self.assertBetween(attack.auc, 0.42, 0.58)
      self.assertLess(attack.tpr_at_1_fpr, 0.06)

  def test_a_model_that_remembers_everybody(self):
    best = self._attack(20.0)[0]
    self.assertGreater(best.auc, 0.999)
    self.assertGreater(best.tpr_at_1_fpr, 0.99)

  def test_loss_threshold_is_the_textbook_s(self):
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 3, (2, 300))
    members = _probabilities(rng, inside, 1.0)
    others = _probabilities(rng, outside, 0.0)
    found = {
      a.name: a for a in membership.attack(members, inside, others, outside)
    }
    self.assertEqual(
      set(found),
      {'threshold_attack', 'threshold_entropy_attack', 'logistic_regression'},
    )
    scores = np.concatenate(
      [p[np.arange(300), y] for p, y in ((members, inside), (others, outside))]
    )
    expected = metrics.roc_auc_score(np.repeat([1, 0], 300), scores)
    attack = found['threshold_attack']
    self.assertAlmostEqual(attack.auc, expected)
    self.assertAlmostEqual(
      metrics.auc(attack.false_positive_rates, attack.true_positive_rates),
      expected,
    )

  def test_multi_label(self):
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 2, (2, 200, 4))
    sure = np.where(inside == 1, 0.9, 0.1)
    found = membership.attack(sure, inside, np.full((200, 4), 0.5), outside)
    self.assertEqual([a.name for a in found], ['threshold_attack'])
    self.assertEqual(found[0].auc, 1)

  def test_unknown_findings_tell_nothing(self):
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 2, (2, 300, 4))
    # Members have fewer known findings, of which the model knows nothing.
    inside[:, 1:] = np.where(rng.random((300, 3)) < 0.8, -1, inside[:, 1:])
    unsure = np.full((300, 4), 0.5)
    self.assertEqual(
      membership.attack(unsure, inside, unsure, outside)[0].auc, 0.5
    )
    # It remembers their known findings, and errs in the unknown ones.
    outside[200:] = -1
    sure = np.where(inside == 1, 0.9, np.where(inside == 0, 0.1, 0.999))
    attack = membership.attack(sure, inside, unsure, outside)[0]
    self.assertEqual((attack.auc, attack.members, attack.others), (1, 300, 200))

  def test_is_repeatable_and_leaves_the_global_generator(self):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first = [a.auc for a in self._attack(0.5)]
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    self.assertEqual(first, [a.auc for a in self._attack(0.5)])

  def test_an_exported_model_that_knows_its_images(self):
    """Its logit of class 1 is the first pixel, which gives members' labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    pixels = np.where(np.arange(120) < 60, 255 * labels, 128)
    pictures = np.broadcast_to(
      pixels[:, None, None, None].astype(np.uint8), (120, 4, 4, 1)
    )
    model = tf.keras.Sequential(
      [tf.keras.layers.Flatten(), tf.keras.layers.Dense(2, use_bias=False)]
    )
    model.build((None, 4, 4, 1))
    kernel = np.zeros((16, 2), np.float32)
    kernel[0] = [-6, 6]
    kernel[1] = [3, -3]  # the same for all pixels: centres the logit
    model.set_weights([kernel])
    folder = pathlib.Path(self.create_tempdir().full_path, 'saved_model')
    export.save(
      folder,
      model,
      class_names=('no', 'yes'),
      multi_label=False,
      privacy_card={**_CARD, 'epsilon': 'inf'},
    )
    splits = [
      images.Split(images=pictures[part], labels=labels[part])
      for part in (slice(60), slice(60, 120))
    ]
    found = membership.attack_model(folder, *splits)
    self.assertGreater(found[0].auc, 0.95)

  def test_a_folder_without_a_model(self):
    with self.assertRaisesRegex(_validate.InputError, 'has no model'):
      membership.predict(
        self.create_tempdir().full_path, np.zeros((1, 4, 4, 1), np.uint8)
      )


if __name__ == '__main__':
  absltest.main()
