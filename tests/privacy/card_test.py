"""Tests of what the privacy card says of each mechanism."""

import dataclasses
import json
import pathlib

from absl.testing import absltest

from tff_medical.privacy import card
from tff_medical.privacy import card_format
from tff_medical.privacy import dp_ftrl_mechanism
from tff_medical.privacy import ledger
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.privacy import selection

_CLIPPING = mechanisms.FixedClipping(1.0)


class BuildCardTest(absltest.TestCase):
  def _card(self, mechanism, rounds, **changed):
    path = pathlib.Path(self.create_tempdir().full_path, 'ledger.jsonl')
    with ledger.PrivacyLedger(path, mechanism, delta=1e-3) as book:
      for round_num in rounds:
        book.charge(round_num)
      result = card.build_card(
        mechanism,
        book,
        rounds=max(rounds),
        dataset='x',
        test_metrics={},
        **changed,
      )
    result['text'] = ' '.join(result['not_covered'])
    return json.loads(json.dumps(result))

  def test_of_sampled_clients(self):
    mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.PoissonSampling(100, 10),
      clipping=_CLIPPING,
      noise_multiplier=1.0,
    )
    said = self._card(mechanism, [1, 2, 2], cohort_seed_was_given=True)
    self.assertEqual(said['rounds'], 2)
    self.assertEqual(said['rounds_charged'], 3)
    self.assertEqual(said['charges'], 3)
    self.assertIn('PoissonSampled', said['charge_event'])
    self.assertIn('cohort seed must stay secret', said['text'])
    self.assertIn('cohort seed by the user', said['text'])
    self.assertNotIn('broken units', said['text'])
    said = self._card(mechanism, [1], broken_units_are_published=True)
    self.assertIn('counts of broken units', said['text'])
    self.assertEqual(said['precision'], 'float32')
    said = self._card(mechanism, [1], precision='bfloat16')
    self.assertEqual(said['precision'], 'bfloat16')

  def test_of_trees(self):
    mechanism = dp_ftrl_mechanism.DpFtrlMechanism(
      sampling=dp_ftrl_mechanism.DpFtrlSampling(100, 10, 4),
      clipping=_CLIPPING,
      noise_multiplier=4.0,
    )
    said = self._card(mechanism, [1, 2, 3, 4, 5], cohort_seed_was_given=True)
    self.assertEqual(said['rounds_charged'], 5)
    self.assertEqual(said['charges'], 2)
    self.assertEqual(said['neighboring_relation'], 'replace_special')
    self.assertEqual(said['mechanism']['tree_height'], 3)
    self.assertIn('Checkpoints', said['text'])
    # Nothing rests on the secrecy of who takes part.
    self.assertNotIn('cohort seed', said['text'])
    self.assertNotIn('who took part', said['text'])

  def test_of_records_that_have_copies(self):
    mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.PoissonSampling(100, 10),
      clipping=_CLIPPING,
      noise_multiplier=1.0,
      privacy_unit='record',
    )
    said = self._card(mechanism, [1], largest_group=5)
    self.assertIn('up to 8 images are nearly equal', said['text'])
    for unknown_or_one in (None, 1):
      said = self._card(mechanism, [1], largest_group=unknown_or_one)
      self.assertNotIn('nearly equal', said['text'])
    client = dataclasses.replace(mechanism, privacy_unit='client')
    said = self._card(client, [1], largest_group=5)
    self.assertNotIn('nearly equal', said['text'])

  def _card_after(self, **earlier):
    mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.PoissonSampling(100, 10),
      clipping=_CLIPPING,
      noise_multiplier=1.0,
    )
    initial = {'dataset': 'y', 'epsilon': 'inf', 'delta': None, 'unit': 'none'}
    return self._card(mechanism, [1], initial_model={**initial, **earlier})

  def test_of_a_model_that_started_from_another(self):
    said = self._card_after()
    self.assertEqual(said['initial_model']['dataset'], 'y')
    self.assertIn(
      'The data of a model that this one started from (y), for which that '
      'model promises nothing.',
      said['not_covered'],
    )

  def test_of_a_private_model_that_started_from_another(self):
    private = {'epsilon': 2.5, 'delta': 1e-3, 'unit': 'record'}
    first = {'dataset': 'z', 'epsilon': 'inf', 'delta': None, 'unit': 'none'}
    said = self._card_after(**private, initial_model=first)
    self.assertIn('(y)', said['text'])
    self.assertIn('epsilon 2.5 at delta 0.001 for each record', said['text'])
    self.assertIn('(z), for which that model promises nothing', said['text'])

  def test_of_the_best_says_what_a_selection_keeps_secret(self):
    mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.PoissonSampling(100, 10),
      clipping=_CLIPPING,
      noise_multiplier=4.0,
    )
    trial = mechanism.charge_event()
    said = self._card(mechanism, [1])
    selected = selection.NumberOfTrials(3.0).event(trial)
    for event, is_secret in ((selected, True), (trial, False)):
      best = card.of_the_best(said, event=event, tuning={})
      text = ' '.join(best['not_covered'])
      self.assertEqual('number of trainings' in text, is_secret)
      self.assertIn('than those of this tuning', text)
      self.assertEqual(
        best['tuning'], {'epsilon_of_one_training': said['epsilon']}
      )

  def test_of_pooled_images_nothing_is_covered(self):
    said = card.build_open_card(dataset='x', test_metrics={'auc': 0.9})
    self.assertEqual(card_format.checked(said)['epsilon'], 'inf')
    self.assertRegex(said['not_covered'][0], '^Everything')

  def test_without_noise_nothing_is_covered(self):
    mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.FullParticipation(3), clipping=None
    )
    self.assertRegex(self._card(mechanism, [1])['text'], '^Everything')


if __name__ == '__main__':
  absltest.main()
