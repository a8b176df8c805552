"""Tests of training without federation and without privacy."""

import json
import pathlib
from unittest import mock

from absl.testing import absltest
import numpy as np

from experiments import references
from experiments.config import settings as settings_lib
from tests.experiments import npz
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import partition
from tff_medical.data import phantoms
from tff_medical.learning import tasks
from tff_medical.serving import export


class ReferencesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.output = self.temp / 'run'
    self.data_dir = npz.write(self.temp)

  def _run(self, kind, **settings):
    settings = settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=self.data_dir,
      output_dir=str(self.output),
      **settings,
    )
    references.run(kind, settings)
    return json.loads((self.output / 'summary.json').read_text())

  def test_central_learns_from_all_images(self):
    summary = self._run('central', num_clients=12)
    self.assertEqual(summary['stop_reason'], 'completed')
    self.assertEqual(summary['epsilon'], 'inf')
    self.assertGreater(summary['metrics']['auc'], 0.95)
    self.assertTrue((self.output / 'config.json').exists())
    card = export.load_card(self.output / 'saved_model')
    self.assertEqual(card['epsilon'], 'inf')
    self.assertEqual(
      card['dataset'], 'medmnist/breastmnist (not the official file)'
    )
    self.assertEqual(card['validation_metrics'], summary['metrics'])
    self.assertEqual(card['test_metrics'], {})
    self.assertLen(card['not_covered'], 1)

  def test_the_other_split_replaces_the_metrics(self):
    validation = self._run('central', num_clients=12)
    again = self._run('central', num_clients=12)
    self.assertEqual(again, validation)
    test = self._run('central', num_clients=12, eval_split='test')
    self.assertEqual(
      [validation['eval_split'], test['eval_split']], ['validation', 'test']
    )
    self.assertNotEqual(validation['metrics'], test['metrics'])
    card = export.load_card(self.output / 'saved_model')
    self.assertEqual(card['test_metrics'], test['metrics'])
    self.assertNotIn('validation_metrics', card)

  def test_clients_too_small_to_train_alone_are_skipped(self):
    summary = self._run('per_site', num_clients=21)
    self.assertEqual(summary['stop_reason'], 'skipped')
    self.assertIn('21 clients have too few', summary['stop_message'])
    self.assertEqual(summary['metrics'], {})

  def test_few_clients_train_alone_each_on_its_own(self):
    trained = []

    def fit(task, rows):
      del task
      trained.append(rows)
      return len(trained) / 10

    with mock.patch.multiple(
      references,
      _fit=fit,
      _evaluate=lambda _, model, split_name: {'auc': model},
    ):
      summary = self._run('per_site', num_clients=3)
    self.assertFalse((self.output / 'saved_model').exists())
    self.assertAlmostEqual(summary['metrics']['auc'], 0.2)
    self.assertLen(trained, 3)
    np.testing.assert_array_equal(
      np.sort(np.concatenate(trained)), np.arange(60)
    )

  def test_natural_sites_are_tested_on_their_own_images(self):
    spec = phantoms.PhantomSpec(
      num_train=60, num_validation=20, num_test=20, num_sites=2
    )
    splits = phantoms.generate(spec)
    data = images.ImageData(
      'synthetic',
      **splits,
      class_names=phantoms.CLASS_NAMES[:4],
      site_names=phantoms.site_names(spec),
    )
    task = tasks.Task(
      data,
      partition.iid(data.train, 15, np.random.default_rng(0)),
      'cnn_small',
    )
    sites = references._sites(task)
    self.assertLen(sites, 2)
    for number, site in enumerate(sites):
      self.assertEqual(set(data.train.sites[site.rows]), {number})
    found = [
      {'auc': 0.5, 'site/0/auc': 0.6, 'site/1/auc': 0.1},
      {'auc': 0.7, 'site/0/auc': 0.2, 'site/1/auc': 0.8},
    ]
    with mock.patch.multiple(
      references, _fit=mock.DEFAULT, _evaluate=mock.Mock(side_effect=found)
    ):
      metrics = references._metrics(task, sites, 'test')
    self.assertAlmostEqual(metrics.pop('auc'), 0.6)
    self.assertEqual(metrics, {'site/0/auc': 0.6, 'site/1/auc': 0.8})

  def test_done_once(self):
    first = self._run('central', num_clients=12)
    with mock.patch.object(references, '_fit') as fit:
      again = self._run('central', num_clients=12)
    fit.assert_not_called()
    self.assertEqual(again, first)

  def test_refuses_what_would_be_ignored(self):
    for changed in (
      {'target_epsilon': 1.0},
      {'clipping': 'fixed'},
      {'ema_decay': 0.9},
      {'rounds': 7},
    ):
      (name,) = changed
      with self.assertRaisesRegex(_validate.InputError, f'{name}=.*ignored'):
        self._run('central', num_clients=12, **changed)
    self.assertFalse(self.output.exists())

  def test_refuses(self):
    with self.assertRaisesRegex(_validate.InputError, 'kind must be one of'):
      self._run('alone')
    with self.assertRaisesRegex(_validate.InputError, 'would be ignored'):
      self._run('central', target_epsilon=1.0)
    with self.assertRaisesRegex(_validate.InputError, 'num_clients'):
      self._run('central', num_clients=61)
    self.assertFalse(self.output.exists())


if __name__ == '__main__':
  absltest.main()
