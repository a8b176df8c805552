"""Tests of the training command, from flags to files."""

import csv
import dataclasses
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
import numpy as np
from tensorboard.backend.event_processing import event_accumulator

from experiments import references
from experiments import train
from experiments.auditing import audited_run
from experiments.config import assembly
from experiments.config import settings as settings_lib
from tests.experiments import dense_net
from tests.experiments import npz
from tff_medical import _validate
from tff_medical.auditing import verification
from tff_medical.data import loading
from tff_medical.privacy import accounting
from tff_medical.privacy import calibration
from tff_medical.privacy import class_counts
from tff_medical.privacy import events
from tff_medical.program import checkpoints
from tff_medical.program import run_folder
from tff_medical.program import training
from tff_medical.scoring import metrics
from tff_medical.serving import export
from tff_medical.serving import pretrained

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CALIBRATED = {'noise_multiplier': None, 'target_epsilon': 30.0}


def _settings(folder):
  """Returns the settings of a run in a folder that has its data, too."""
  return settings_lib.Flags.of(
    dataset='medmnist/breastmnist',
    data_dir=npz.write(folder),
    num_clients=12,
    clients_per_round=6.0,
    model=dense_net.MODEL,
    rounds=4,
    rounds_per_eval=2,
    noise_multiplier=0.2,
    output_dir=str(folder / 'run'),
  )


def _name(kind, changed):
  """Returns the name of a folder for what is trained with these settings."""
  return ' '.join((kind, *(f'{n}={v}' for n, v in sorted(changed.items()))))


class TrainTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enter_context(tempfile.TemporaryDirectory())
    cls.shared = pathlib.Path(folder)

  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.output = self.temp / 'run'
    self.settings = _settings(self.temp)

  def _run(self, **changed):
    return train.run(self.settings.changed(**changed))

  def _finish(self, **changed):
    """Puts a finished run in place, which is trained once for all tests."""
    folder = self.shared / _name('run', changed)
    if not folder.exists():
      folder.mkdir()
      train.run(_settings(folder).changed(**changed))
    shutil.copytree(folder / 'run', self.output)

  def _json(self, name):
    return json.loads((self.output / name).read_text())

  def _metrics(self):
    with open(self.output / 'metrics.csv', newline='') as file:
      return list(csv.DictReader(file))

  def _charges(self):
    return (self.output / 'privacy_ledger.jsonl').read_text().count('"charges"')

  def _command(self, *arguments, **settings):
    """Runs the command in a separate process."""
    given = self.settings.changed(**settings).arguments()
    return [sys.executable, '-m', 'experiments.train', *given, *arguments]

  def test_a_dry_run_says_what_would_run_and_writes_no_file_of_a_run(self):
    folder = self.temp / 'here'
    folder.mkdir()
    config = folder / 'config.json'
    config.write_text('{"of": "another program"}')
    flags = self.settings.changed(
      output_dir=None,
      clipping='fixed',
      noise_multiplier=None,
      target_epsilon=4.0,
      rounds=6,
    )
    # The flags hold settings alone, and no folder for results.
    done = subprocess.run(
      [sys.executable, '-m', 'experiments.train', '--dry_run']
      + flags.arguments(),
      cwd=folder,
      env={**os.environ, 'PYTHONPATH': str(_ROOT)},
      check=True,
      capture_output=True,
      text=True,
    )
    self.assertEqual(list(folder.iterdir()), [config])
    lines = dict(
      re.split(r' {2,}', line, maxsplit=1)
      for line in done.stdout.splitlines()
      if re.match(r'\S+( \S+)* {2,}', line)
    )
    self.assertEqual(
      list(lines),
      ['data', 'model', 'training', 'noise', 'ε by round', 'time'],
    )
    self.assertIn('12 clients', lines['data'])
    self.assertIn('6 of 12 clients per round', lines['training'])
    noise = float(re.search(r'noise multiplier ([\d.]+)', lines['noise'])[1])
    shown = {
      int(number): float(value)
      for number, value in re.findall(r'(\d+): ([\d.]+)', lines['ε by round'])
    }
    self.assertEqual(list(shown), [1, 2, 3, 6])
    for number, value in shown.items():
      exact = accounting.epsilon(
        dp_accounting.PoissonSampledDpEvent(
          0.5, dp_accounting.GaussianDpEvent(noise)
        ),
        rounds=number,
        delta=accounting.default_delta(12),
      )
      # The noise multiplier is shown with four digits.
      self.assertBetween(value, exact - 1e-3, exact + 2e-3)
    self.assertLessEqual(shown[6], 4.0)
    self.assertIn('for 6 rounds and 3 evaluations', lines['time'])
    # Own images are prepared, and so copied, by a dry run as well.
    self.assertIn('only the caches of images', done.stdout)

  @parameterized.parameters('cnn_smal', 'no_such_module:build', 'os:no_such')
  def test_a_wrong_model_is_refused_before_the_data_is_loaded(self, model):
    with mock.patch.object(loading, 'load') as load:
      with self.assertRaisesRegex(_validate.InputError, '^model '):
        self._run(model=model)
    load.assert_not_called()
    self.assertFalse(self.output.exists())

  def test_leaves_every_file_that_it_promises(self):
    self._finish()
    self.assertContainsSubset(
      {
        'config.json',
        'metrics.csv',
        'scores.npz',
        'tensorboard',
        'privacy_ledger.jsonl',
        'checkpoints',
        'summary.json',
        'saved_model',
      },
      {p.name for p in self.output.iterdir()},
    )
    config = self._json('config.json')
    self.assertEqual(config['settings']['clients_per_round'], 6)
    self.assertEqual(config['settings']['clip_norm'], 0.1)
    self.assertIn('tensorflow-federated', config['versions'])
    rows = self._metrics()
    self.assertEqual([row['round'] for row in rows], ['1', '2', '3', '4'])
    self.assertEqual(
      [bool(r['validation/auc']) for r in rows], [False, True] * 2
    )
    self.assertLess(float(rows[0]['epsilon']), float(rows[3]['epsilon']))
    self.assertGreater(float(rows[3]['clip_norm']), 0)
    summary = self._json('summary.json')
    self.assertEqual(summary['rounds'], 4)
    self.assertEqual(summary['stop_reason'], 'completed')
    self.assertAlmostEqual(summary['epsilon'], float(rows[3]['epsilon']))
    self.assertGreater(summary['epsilon_rdp'], 0)
    self.assertAlmostEqual(summary['delta'], 12**-1.1)
    self.assertAlmostEqual(
      summary['metrics']['auc'], float(rows[3]['validation/auc'])
    )
    events = event_accumulator.EventAccumulator(
      str(self.output / 'tensorboard')
    )
    self.assertContainsSubset(
      {'epsilon', 'clip_norm', 'validation/auc'},
      set(events.Reload().Tags()['tensors']),
    )

  def test_card_in_the_model_states_what_the_ledger_says(self):
    self._finish()
    card = export.load_card(self.output / 'saved_model')
    summary = self._json('summary.json')
    self.assertEqual(card['epsilon'], summary['epsilon'])
    self.assertEqual(card['rounds'], 4)
    self.assertEqual(card['mechanism']['noise_multiplier'], 0.2)
    lines = (self.output / 'privacy_ledger.jsonl').read_text().splitlines()
    self.assertEqual(card['ledger_sha256'], json.loads(lines[-1])['digest'])

  def test_metrics_are_on_validation_images_until_test_is_asked_for(self):
    self._finish()
    first = self._json('summary.json')
    card = export.load_card(self.output / 'saved_model')
    self.assertEqual(first['eval_split'], 'validation')
    self.assertEqual(card['test_metrics'], {})
    self.assertEqual(card['validation_metrics'], first['metrics'])
    table = (self.output / 'metrics.csv').read_bytes()
    charges = self._charges()
    outcome = self._run(eval_split='test')
    summary = self._json('summary.json')
    card = export.load_card(self.output / 'saved_model')
    self.assertEqual(summary['eval_split'], 'test')
    self.assertEqual(card['test_metrics'], summary['metrics'])
    self.assertNotIn('validation_metrics', card)
    settings = self.settings.resolve()
    expected = assembly.load_task(settings).evaluate(outcome.weights, 'test')
    self.assertLess(expected.items(), summary['metrics'].items())
    self.assertIn('sensitivity_at/normal, benign', summary['metrics'])
    self.assertNotIn('sensitivity_at/normal, benign', first['metrics'])
    self.assertEqual(card['metric_intervals'], summary['intervals'])
    self.assertEqual(card['fitted_on_validation'], summary['fitted'])
    scores = run_folder.RunFolder(self.output).read_scores()
    self.assertEqual(scores.split_name, 'test')
    again = metrics.metrics(scores)
    for name, value in expected.items():
      self.assertAlmostEqual(again[name], value, msg=name)
    status = (self.output / 'scores.npz').stat()
    self.assertEqual(status.st_mode & 0o777, 0o600)
    # Nothing was trained or charged again, and rounds have no test metric.
    self.assertEqual(summary['weights_sha256'], first['weights_sha256'])
    self.assertEqual(self._charges(), charges)
    self.assertEqual((self.output / 'metrics.csv').read_bytes(), table)

  def test_data_without_validation_images(self):
    task = assembly.load_task(self.settings.resolve())
    data = dataclasses.replace(
      task.data, validation=task.data.validation.take(np.array([], int))
    )
    without = dataclasses.replace(task, data=data)
    with mock.patch.object(assembly, 'load_task', return_value=without):
      with self.assertRaisesRegex(
        _validate.InputError, 'has none; give eval_split=test'
      ):
        self._run()
      self.assertFalse(self.output.exists())
      self._run(eval_split='test')
    self.assertEqual(set(self._metrics()[0]), {'round', 'epsilon', 'clip_norm'})
    self.assertIn('auc', self._json('summary.json')['metrics'])

  def test_publishes_no_statistic_of_client_data(self):
    """Neither cohort sizes nor client losses reach a published file."""
    self._finish()
    allowed = {'round', 'epsilon', 'clip_norm'}
    for name in set(self._metrics()[0]) - allowed:
      self.assertRegex(
        name,
        '^validation/(loss|accuracy|balanced_accuracy|auc|f1|ece|sensitivity/.*|specificity/.*)$',
      )
    seed = (self.output / 'checkpoints' / 'cohort_seed.secret').read_text()
    for path in self.output.rglob('*'):
      if path.is_file() and path.name != 'cohort_seed.secret':
        self.assertNotIn(seed.strip().encode(), path.read_bytes(), path)

  @parameterized.parameters(
    {}, {'privacy_unit': 'record', 'clients_per_round': None}
  )
  def test_broken_units_are_published_on_request(self, **changed):
    self._run(publish_broken_units=True, **changed)
    self.assertEqual([r['broken_units'] for r in self._metrics()], ['0'] * 4)
    card = export.load_card(self.output / 'saved_model')
    self.assertIn('broken units', ' '.join(card['not_covered']))

  def test_calibrates_to_the_target_and_keeps_it(self):
    self._finish(**_CALIBRATED)
    summary = self._json('summary.json')
    self.assertLessEqual(summary['epsilon'], 30)
    self.assertGreater(summary['epsilon'], 29)

  def test_refuses_a_budget_that_has_no_room_for_a_round(self):
    with self.assertRaisesRegex(
      _validate.InputError, 'epsilon_budget 0.5 has no room .* costs ε '
    ):
      self._run(epsilon_budget=0.5)
    self.assertFalse(self.output.exists())

  def test_stops_before_it_exceeds_the_budget(self):
    event = dp_accounting.PoissonSampledDpEvent(
      0.5, dp_accounting.GaussianDpEvent(0.2)
    )
    epsilon = accounting.epsilon(
      event, rounds=1, delta=accounting.default_delta(12)
    )
    outcome = self._run(epsilon_budget=epsilon * 1.01)
    self.assertEqual(outcome.reason, training.StopReason.BUDGET_SPENT)
    summary = self._json('summary.json')
    self.assertEqual(summary['rounds'], 1)
    self.assertEqual(summary['stop_reason'], 'budget_spent')
    self.assertIn('budget', summary['stop_message'])
    self.assertEqual(
      export.load_card(self.output / 'saved_model')['epsilon'], epsilon
    )

  def test_goes_on_where_it_stopped(self):
    self._finish(rounds=2)
    self._run()
    self.assertEqual(self._charges(), 4)
    self.assertEqual([r['round'] for r in self._metrics()], list('1234'))
    self.assertEqual(self._json('summary.json')['rounds'], 4)

  def test_refuses_another_run_s_folder_and_names_what_differs(self):
    self._finish(rounds=2)
    before = self._json('config.json')
    with self.assertRaisesRegex(
      _validate.InputError,
      r'--seed \(0 there, 4 now\), '
      r'--client_learning_rate \(0.1 there, 0.2 now\)',
    ):
      self._run(client_learning_rate=0.2, seed=4)
    # Before any data is loaded, and before the noise of that run is taken over.
    with mock.patch.object(loading, 'load') as load:
      with self.assertRaisesRegex(
        _validate.InputError,
        r'another --target_epsilon \(None there, 3.0 now\)',
      ):
        self._run(noise_multiplier=None, target_epsilon=3.0)
    load.assert_not_called()
    npz.write(self.temp, counts=(64, 12, 24))
    with self.assertRaisesRegex(
      _validate.InputError, r'another data \(hmac-sha256:\w+ there, hmac'
    ):
      self._run()
    self.assertEqual(self._json('config.json'), before)

  def _public_model(self, **changed):
    """Returns a public model, which is trained once for all tests."""
    name = _name('public', changed)
    folder = self.shared / name
    if not folder.exists():
      settings = settings_lib.Flags.of(
        dataset='medmnist/pneumoniamnist',
        data_dir=npz.write(self.shared, 'pneumoniamnist'),
        num_clients=12,
        model=dense_net.MODEL,
        output_dir=str(folder),
      )
      references.run('central', settings.changed(**changed))
    return str(shutil.copytree(folder / 'saved_model', self.temp / name))

  def test_starts_from_a_public_model_and_says_so(self):
    public = self._public_model()
    earlier = pretrained.load(public)
    # The steps are too small to change the initial weights visibly.
    outcome = self._run(
      initial_model=public, rounds=1, server_learning_rate=1e-6
    )
    trained = outcome.weights.trainable
    np.testing.assert_allclose(trained[0], earlier.weights[0], atol=1e-4)
    card = export.load_card(self.output / 'saved_model')
    self.assertEqual(card['initial_model']['dataset'], earlier.card['dataset'])
    self.assertEqual(card['initial_model']['sha256'], earlier.digest)
    self.assertEqual(
      pretrained.load(self.output / 'saved_model').datasets,
      tuple(
        f'medmnist/{name} (not the official file)'
        for name in ('breastmnist', 'pneumoniamnist')
      ),
    )
    self.assertIn(
      '(medmnist/pneumoniamnist (not the official file))',
      ' '.join(card['not_covered']),
    )
    config = self._json('config.json')
    self.assertEqual(config['settings']['initial_model'], public)
    self.assertEqual(config['initial_model_sha256'], earlier.digest)

  def test_recipe_by_its_two_commands(self):
    data = f'--data_dir={npz.write(self.temp, "pneumoniamnist")}'
    reference = [sys.executable, '-m', 'experiments.references', data]
    reference += ['--kind=central', '--dataset=medmnist/pneumoniamnist']
    reference += ['--num_clients=3', f'--output_dir={self.temp / "public"}']
    public = str(self.temp / 'public' / 'saved_model')
    for command in (
      reference,
      self._command(initial_model=public, rounds=1, model=None),
    ):
      subprocess.run(command, cwd=_ROOT, check=True, capture_output=True)
    card = export.load_card(self.output / 'saved_model')
    self.assertEqual(card['initial_model']['epsilon'], 'inf')
    self.assertLess(card['epsilon'], float('inf'))

  def test_goes_on_only_with_the_same_initial_model(self):
    public = self._public_model()
    self._run(initial_model=public, rounds=1)
    moved = shutil.copytree(public, self.temp / 'moved')
    self._run(initial_model=str(moved), rounds=2)
    self.assertEqual(self._charges(), 2)
    shutil.rmtree(public)
    shutil.copytree(self._public_model(seed=5), public)
    for other in (public, None):
      with self.assertRaisesRegex(
        _validate.InputError, 'another --initial_model .*there, '
      ):
        self._run(initial_model=other, rounds=3)
    self.assertEqual(self._charges(), 2)

  def test_refuses_an_initial_model_that_does_not_fit(self):
    public = self._public_model(model='cnn_small')
    for changed, message in (
      ({'initial_model': public, 'model': 'cnn'}, "layer 'conv2d"),
      ({'initial_model': str(self.temp)}, 'not a model exported'),
    ):
      with self.assertRaisesRegex(_validate.InputError, message):
        self._run(**changed)
    self.assertFalse(self.output.exists())

  def test_refuses_an_initial_model_of_the_same_data(self):
    public = self._public_model()
    self._run(initial_model=public, rounds=1)
    own = str(self.output / 'saved_model')
    again = self.temp / 'again'
    with self.assertRaisesRegex(_validate.InputError, 'breastmnist as well'):
      self._run(initial_model=own, output_dir=str(again))
    self.assertFalse(again.exists())
    self._run(
      initial_model=own,
      output_dir=str(again),
      rounds=1,
      clipping='none',
      noise_multiplier=None,
    )
    card = export.load_card(again / 'saved_model')
    self.assertEqual(card['epsilon'], 'inf')

  def test_calibrated_noise_is_for_the_planned_rounds_only(self):
    self._finish(**_CALIBRATED)
    with self.assertRaisesRegex(_validate.InputError, '--rounds'):
      self._run(**_CALIBRATED, rounds=6)

  def test_a_run_goes_on_with_the_noise_of_an_earlier_version(self):
    """Whose calibration gave more of it, as its epsilon was coarser."""
    calibrate = calibration.calibrate

    def more(mechanism, **arguments):
      calibrated = calibrate(mechanism, **arguments)
      return calibrated.with_noise(1.01 * calibrated.noise_multiplier)

    flags = {**_CALIBRATED, 'rounds': 2}
    with mock.patch.object(calibration, 'calibrate', more):
      self._run(**flags)
    first = self._json('summary.json')
    outcome = self._run(**flags)
    self.assertEqual(outcome.rounds, 2)
    second = self._json('summary.json')
    self.assertEqual(first['noise_multiplier'], second['noise_multiplier'])
    self.assertEqual(first['epsilon'], second['epsilon'])

  def test_seed_repeats_data_weights_and_partition_never_the_noise(self):
    weights = []
    for name in ('a', 'b', 'c', 'd'):
      private = name in 'ab'
      outcome = self._run(
        output_dir=str(self.temp / name),
        cohort_seed=3,
        clipping='adaptive' if private else 'none',
        noise_multiplier=0.2 if private else None,
      )
      weights.append(np.ravel(outcome.weights.trainable[0]))
    self.assertFalse(np.allclose(weights[0], weights[1]))
    np.testing.assert_allclose(weights[2], weights[3], atol=1e-5)
    card = export.load_card(self.temp / 'a' / 'saved_model')
    self.assertIn('cohort seed by the user', ' '.join(card['not_covered']))

  @parameterized.parameters(
    ({'mechanism': 'dp_ftrl', 'clients_per_round': 3.0}, 'dp_ftrl'),
    (
      {
        'mechanism': 'distributed_dp',
        'clients_per_round': None,
        'noise_multiplier': 3.0,
      },
      'distributed_dp',
    ),
    ({'max_clients_per_round': 8}, 'dp_fed_avg'),
    ({'client_sampling': 'all', 'clients_per_round': None}, 'dp_fed_avg'),
    (
      {
        'proximal_strength': 0.1,
        'client_learning_rate_schedule': 'cosine',
        'augment': 'flip,rotate,crop,brightness',
        'model': None,
      },
      'dp_fed_avg',
    ),
    (
      {
        'privacy_unit': 'record',
        'clients_per_round': None,
        'augmentations': 2,
        'augment': 'flip,rotate,crop,brightness',
        'server_optimizer': 'adam_bc',
        'server_learning_rate': 0.01,
        'server_learning_rate_schedule': 'cosine',
        'ema_decay': 0.5,
        'model': None,
      },
      'dp_sgd',
    ),
    (
      {
        'privacy_unit': 'record',
        'mechanism': 'local_dp_sgd',
        'clients_per_round': None,
        'num_clients': 3,
        'noise_multiplier': 1.0,
      },
      'local_dp_sgd',
    ),
    (
      {
        'privacy_unit': 'patient',
        'clients_per_round': None,
        'partition': 'natural_site',
        'num_clients': None,
        'dataset': 'synthetic',
        'data_dir': None,
      },
      'dp_sgd',
    ),
  )
  def test_every_mechanism_trains_and_states_what_it_is(self, changed, name):
    outcome = self._run(rounds=2, **changed)
    self.assertEqual(outcome.rounds, 2)
    card = export.load_card(self.output / 'saved_model')
    self.assertEqual(name, card['mechanism']['mechanism'])
    self.assertEqual(card['unit'], changed.get('privacy_unit', 'client'))
    self.assertLess(card['epsilon'], np.inf)
    self.assertTrue(
      all(np.all(np.isfinite(w)) for w in outcome.weights.trainable)
    )

  @parameterized.parameters(
    ({'privacy_unit': 'record'}, 'all', 60),
    (
      {
        'privacy_unit': 'patient',
        'partition': 'natural_site',
        'dataset': 'synthetic',
        'data_dir': None,
      },
      'all',
      None,
    ),
    (
      {
        'privacy_unit': 'record',
        'mechanism': 'local_dp_sgd',
        'num_clients': 3,
        'local_steps': 2,
      },
      'local_all',
      60,
    ),
  )
  def test_all_units_in_every_round(self, changed, sampler, population):
    flags = {'clients_per_round': None, 'num_clients': None, **changed}
    self._run(rounds=3, noise_multiplier=3.0, unit_sampling='all', **flags)
    card = export.load_card(self.output / 'saved_model')
    self.assertEqual(card['sampling'], sampler)
    self.assertEqual(card['mechanism']['sampling_rate'], 1)
    if population:
      self.assertEqual(card['mechanism']['population'], population)
    self.assertEqual(
      card['charge_event'], 'GaussianDpEvent(noise_multiplier=3.0)'
    )
    self.assertNotIn('who took part', ' '.join(card['not_covered']))
    # Composed Gaussians are one Gaussian.
    charges = 3 * changed.get('local_steps', 1)
    exact = dp_accounting.get_epsilon_gaussian(
      3.0 / charges**0.5, card['delta']
    )
    self.assertBetween(card['epsilon'], exact, exact + 1e-3)
    checks = {c.what: c for c in verification.verify(self.output)}
    self.assertTrue(all(c.is_right for c in checks.values()), checks)
    rate = checks['ledger: sampling_rate of mechanism and event']
    self.assertEqual(rate.found, '1.0 and 1.0')

  @parameterized.parameters('dp_sgd', 'local_dp_sgd')
  def test_noised_class_weights_are_paid_for_and_kept(self, mechanism):
    flags = {
      'privacy_unit': 'record',
      'mechanism': mechanism,
      'clients_per_round': None,
      'num_clients': 3,
      'noise_multiplier': None,
      'target_epsilon': 2.0,
      'class_weights': 'noised',
      'class_count_noise': 4.0,
    }
    drawn = []
    draw = class_counts.ClassCountRelease.draw

    def spy(release, exact):
      drawn.append(exact)
      return draw(release, exact)

    with mock.patch.object(class_counts.ClassCountRelease, 'draw', spy):
      self._run(rounds=2, **flags)
      lines = (self.output / 'privacy_ledger.jsonl').read_text().splitlines()
      header, first, *_ = map(json.loads, lines)
      # A second start goes on with the counts that were paid for.
      self._run(rounds=2, **flags)
    self.assertLen(drawn, 1)
    np.testing.assert_array_equal(drawn[0].sum(axis=0), [30, 30])
    self.assertLen(drawn[0], 3 if mechanism == 'local_dp_sgd' else 1)
    card = export.load_card(self.output / 'saved_model')
    for stated in (header, card):
      self.assertEqual(
        stated['event_before'], 'GaussianDpEvent(noise_multiplier=4.0)'
      )
      self.assertLen(stated['class_counts'], 2)
    self.assertEqual(card['class_counts'], header['class_counts'])
    # The target covers the counts and all rounds, and hardly more.
    self.assertBetween(card['epsilon'], 1.9, 2.0)
    rounds_alone = accounting.epsilon(
      events.parse_event(header['event']),
      rounds=first['charges'],
      delta=card['delta'],
    )
    self.assertGreater(first['epsilon'], rounds_alone)
    checks = verification.verify(self.output)
    self.assertTrue(all(c.is_right for c in checks), checks)
    self.assertTrue(
      all(c.is_right for c in verification.verify(self.output / 'saved_model'))
    )
    # Counts that are lost are not drawn again: that would be a second release.
    ledger = self.output / 'privacy_ledger.jsonl'
    content = ledger.read_bytes()
    for left in (None, b''):
      ledger.unlink(missing_ok=True)
      if left is not None:
        ledger.write_bytes(left)
      with self.assertRaisesRegex(
        _validate.InputError, 'lost the class counts'
      ):
        self._run(rounds=2, **flags)
    ledger.write_bytes(content)
    # An audit repeats the training with the weights that were published.
    audited = audited_run.FinishedRun.load(str(self.output)).build_task()
    self.assertEqual(
      audited.class_weights, class_counts.ClassCounts.of(header).weights()
    )
    # A card that leaves the counts out states an ε that does not follow.
    path = self.output / 'saved_model' / 'assets' / 'privacy_card.json'
    lying = json.loads(path.read_text())
    del lying['event_before'], lying['class_counts']
    path.write_text(json.dumps(lying))
    wrong = [c.what for c in verification.verify(self.output) if not c.is_right]
    self.assertContainsSubset(
      ['card: event_before', 'card: class_counts', 'card: ε from its event'],
      wrong,
    )

  def test_all_records_take_the_same_steps_whatever_the_cohort_seed(self):
    plain = {
      'privacy_unit': 'record',
      'clients_per_round': None,
      'noise_multiplier': None,
      'clipping': 'none',
    }
    weights = [
      self._run(
        **plain, **batch, cohort_seed=seed, output_dir=str(self.temp / name)
      ).weights.trainable
      for seed, name, batch in (
        (None, 'a', {'unit_sampling': 'all'}),
        (2, 'b', {'expected_batch_size': 60.0}),
        (3, 'c', {'expected_batch_size': 59.0}),
      )
    ]
    for a, b in zip(weights[0], weights[1]):
      np.testing.assert_allclose(a, b, atol=1e-6)
    difference = max(
      np.abs(a - c).max() for a, c in zip(weights[0], weights[2])
    )
    self.assertGreater(difference, 1e-4)

  def test_runs_on_tff_s_own_runtime_in_a_process_of_its_own(self):
    log = self.temp / 'log'
    with open(log, 'wb') as file:
      done = subprocess.run(
        self._command(runtime='tff', rounds=2),
        check=False,
        cwd=_ROOT,
        stdout=file,
        stderr=file,
        timeout=300,
      )
    self.assertEqual(done.returncode, 0, log.read_text())
    self.assertIn('2 rounds: all planned rounds were run', log.read_text())

  def test_ctrl_c_saves_and_the_next_start_goes_on(self):
    """Interrupts the real command as a terminal does."""
    log = self.temp / 'log'
    settings = {'rounds': 3000}
    with open(log, 'wb') as file:
      command = subprocess.Popen(
        self._command(**settings), cwd=_ROOT, stdout=file, stderr=file
      )
      saved = self.output / 'checkpoints'
      while command.poll() is None and not list(saved.glob('round_*[1-9].npz')):
        time.sleep(0.05)
      command.send_signal(signal.SIGINT)
      self.assertEqual(command.wait(timeout=120), 130, log.read_text())
    self.assertNotIn('Traceback', log.read_text())
    summary = self._json('summary.json')
    self.assertEqual(summary['stop_reason'], 'interrupted')
    done = summary['rounds']
    self.assertEqual(checkpoints.Checkpoints(saved).rounds()[-1], done)
    # A round that took too long after the signal was charged and discarded.
    self.assertBetween(self._charges(), done, done + 1)
    self._run(rounds=done + 1)
    self.assertEqual(self._json('summary.json')['rounds'], done + 1)

  def test_disk_full_stops_with_a_line_and_the_last_round_loads(self):
    """A limit on file size makes the real write of a checkpoint fail."""
    self._finish(rounds=2)
    log = self.temp / 'log'
    limit = (
      self.output / 'checkpoints' / 'round_000002.npz'
    ).stat().st_size // 2

    def limit_files():
      signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'}
    with open(log, 'wb') as file:
      done = subprocess.run(
        self._command(),
        check=False,
        cwd=_ROOT,
        stdout=file,
        stderr=file,
        preexec_fn=limit_files,
        env=environment,
        timeout=300,
      )
    self.assertEqual(done.returncode, 1, log.read_text())
    self.assertIn('error: stopped, as the disk failed', log.read_text())
    self.assertNotIn('Traceback', log.read_text())
    self.assertEqual(self._charges(), 3)
    outcome = self._run()
    self.assertEqual(outcome.rounds, 4)
    self.assertEqual(self._charges(), 5)  # Round 3 was paid for twice.

  @parameterized.parameters(
    ({'dataset': 'medmnist/brestmnist'}, "did you mean 'medmnist/breast"),
    ({'model': 'resnett'}, "did you mean 'resnet'"),
    ({'num_clients': 61}, 'num_clients must be at most the 60'),
    ({'image_size': 29}, 'image_size'),
    ({'clients_per_round': 12.0}, 'clients_per_round must be below'),
    ({'partition': 'natural_site', 'num_clients': None}, 'site'),
    ({'server_optimizer': 'adagrad'}, 'server_optimizer must be one of'),
    ({'noise_multiplier': 0.7}, 'noise_multiplier must be below 0.6'),
    (
      {'noise_multiplier': None, 'target_epsilon': 0.01, 'rounds': 1000},
      'target_epsilon 0.01 is out of reach for 1000 rounds',
    ),
    ({'data_dir': '/nowhere'}, 'breastmnist.npz'),
  )
  def test_bad_input_writes_nothing(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      self._run(**changed)
    self.assertFalse(self.output.exists())

  @parameterized.parameters(
    ({'train_labels': None}, 'train_labels'),
    ({'test_labels': np.full((24, 1), 7, np.uint8)}, '7'),
    ({'val_images': np.zeros((12, 28, 28), np.float32)}, 'val_images'),
    ({'train_images': np.zeros((60, 20, 20), np.uint8)}, 'train_images'),
    ({'train_labels': np.zeros((59, 1), np.uint8)}, '59'),
  )
  def test_wrong_arrays_in_the_file(self, changed, message):
    npz.write(self.temp, **changed)
    with self.assertRaisesRegex(_validate.InputError, message):
      self._run()
    self.assertFalse(self.output.exists())

  def test_truncated_file(self):
    path = self.temp / 'breastmnist.npz'
    path.write_bytes(path.read_bytes()[:-200])
    with self.assertRaisesRegex(_validate.InputError, 'breastmnist.npz'):
      self._run()
    self.assertFalse(self.output.exists())

  def test_folder_with_other_files(self):
    self.output.mkdir()
    (self.output / 'thesis.tex').write_text('precious')
    with self.assertRaisesRegex(_validate.InputError, 'holds other files'):
      self._run()
    self.assertEqual([p.name for p in self.output.iterdir()], ['thesis.tex'])

  def test_a_bad_flag_is_one_line_and_exit_code_2(self):
    """With all others; `commands_test` has more that are wrong alone."""
    done = subprocess.run(
      self._command('--clipping=adaptve'),
      check=False,
      cwd=_ROOT,
      # Another test's import may have set the level of TensorFlow's logs.
      env={k: v for k, v in os.environ.items() if k != 'TF_CPP_MIN_LOG_LEVEL'},
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 2, done.stderr)
    lines = done.stderr.strip().splitlines()
    self.assertLen(lines, 1)
    self.assertRegex(lines[0], "^error: .*did you mean 'adaptive'")
    self.assertFalse(self.output.exists())


if __name__ == '__main__':
  absltest.main()
