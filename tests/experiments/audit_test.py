"""Tests of the audit command on tiny runs, honest and broken ones."""

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments import audit
from experiments import train
from experiments.auditing import audited_run
from experiments.config import assembly
from experiments.config import settings as settings_lib
from experiments.modes import base
from experiments.running import exit_codes
from tests.experiments import dense_net
from tests.experiments import finished
from tests.experiments import npz
from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import calibration
from tff_medical.program import training

_CLIENT = {'num_clients': 12, 'clients_per_round': 6.0}
_RECORD = {'privacy_unit': 'record', 'num_clients': 3}
_PRIVATE = {'clipping': 'fixed', 'noise_multiplier': 3.0}


class AuditTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.runs = pathlib.Path(cls.enter_context(tempfile.TemporaryDirectory()))
    cls._train('private', **_CLIENT, **_PRIVATE)
    cls._train('plain', **_CLIENT, clipping='none')

  @classmethod
  def _train(cls, name, **changed):
    settings = settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(cls.runs),
      model=dense_net.MODEL,
      rounds=3,
      output_dir=str(cls.runs / name),
      **changed,
    )
    train.run(settings)

  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)

  def _copy(self, name):
    """Returns a copy of a run's folder for an audit."""
    return pathlib.Path(shutil.copytree(self.runs / name, self.temp / name))

  def _main(self, folder, canaries=100, reference=None):
    """Returns the exit code, the printed text, and audit.json."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      code = audit.main(str(folder), canaries, reference)
    found = json.loads((folder / 'audit.json').read_text())
    return code, printed.getvalue(), found

  def test_honest_run_beside_one_without_privacy(self):
    folder = self._copy('private')
    code, printed, found = self._main(
      folder, reference=str(self.runs / 'plain')
    )
    self.assertEqual(code, 0)
    self.assertIn('No lower bound exceeds its upper bound', printed)
    summary = json.loads((folder / 'summary.json').read_text())
    self.assertAlmostEqual(found['upper_bound'], summary['epsilon'])
    self.assertEqual(found['delta'], summary['delta'])
    self.assertBetween(found['lower_bound'], 0, found['upper_bound'])
    self.assertEqual(found['canaries'], 100)
    self.assertBetween(found['canaries_included'], 20, 80)
    self.assertIn('audited training', found['card']['audited'])
    self.assertEqual(
      found['card']['mechanism']['population'], 112, 'canaries are counted'
    )
    for name in ('run', 'reference'):
      attack = found['membership_inference'][name]['validation']
      self.assertEqual((attack['members'], attack['others']), (60, 12))
      self.assertBetween(attack['auc'], 0, 1)
    self.assertEqual(
      found['attack_auc'],
      found['membership_inference']['run']['validation']['auc'],
    )
    self.assertEqual(
      {p.name for p in (folder / 'audit').iterdir()},
      {'privacy_ledger.jsonl', 'roc.png'},
    )
    with self.assertRaisesRegex(_validate.InputError, 'an earlier audit'):
      self._main(folder)

  def test_a_build_that_leaves_the_noise_out_is_exit_code_1(self):
    folder = self._copy('private')
    real = base.Mode.averaged_process

    def without_noise(mode, task, mechanism):
      return real(mode, task, mechanism.with_noise(0.0))

    with mock.patch.object(base.Mode, 'averaged_process', without_noise):
      code, printed, found = self._main(folder, canaries=200)
    self.assertEqual(code, exit_codes.FAILED)
    self.assertIn('BROKEN', printed)
    self.assertTrue(found['exceeds_upper_bound'])
    self.assertGreater(found['lower_bound'], found['upper_bound'])

  def test_record_level_and_adaptive_clipping(self):
    settings = settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(self.temp),
      privacy_unit='record',
      num_clients=3,
      expected_batch_size=30.0,
      noise_multiplier=0.2,
      rounds=3,
      output_dir=str(self.temp),
    )
    settings = settings.resolve().for_data(3, 60)
    mechanism = assembly.build_mechanism(settings, 60, print)
    rounds = []
    found = audited_run.repeat_with_canaries(
      finished.run(settings),
      self.temp / 'ledger.jsonl',
      100,
      rounds.append,
    ).describe()
    self.assertLen(rounds, 3)
    self.assertFalse(found['exceeds_upper_bound'])
    self.assertAlmostEqual(
      found['upper_bound'],
      accounting.epsilon(
        mechanism.charge_event(), rounds=3, delta=found['delta']
      ),
    )
    self.assertEqual(found['card']['unit'], 'record')
    self.assertEqual(found['card']['mechanism']['population'], 160)
    # With a sampling rate of 1/2 and little noise, the attack succeeds.
    self.assertGreater(found['canary_auc']['best_round'], 0.6)

  @parameterized.parameters(
    {
      'mechanism': 'dp_ftrl',
      'num_clients': 12,
      'clients_per_round': 4.0,
      'rounds_per_tree': 3,
    },
    {'mechanism': 'distributed_dp', 'num_clients': 12},
  )
  def test_other_mechanisms_honest_and_without_noise(self, **changed):
    """The whole command audits an honest run and a run of a broken build."""
    name = changed['mechanism']
    self._train(name, noise_multiplier=4.0, **changed)
    folder = self._copy(name)
    code, _, found = self._main(folder, canaries=100)
    self.assertEqual(code, 0, found)
    summary = json.loads((folder / 'summary.json').read_text())
    self.assertAlmostEqual(found['upper_bound'], summary['epsilon'])
    self.assertEqual(found['card']['mechanism']['population'], 112)
    shutil.rmtree(folder / 'audit')
    real = base.Mode.averaged_process

    def without_noise(mode, task, mechanism):
      return real(mode, task, mechanism.with_noise(0.0))

    with mock.patch.object(base.Mode, 'averaged_process', without_noise):
      code, printed, found = self._main(folder, canaries=200)
    self.assertEqual(code, exit_codes.FAILED, found)
    self.assertIn('BROKEN', printed)

  def test_refuses_other_data_than_the_run_s(self):
    folder = self._copy('private')
    config = json.loads((folder / 'config.json').read_text())
    config['data_digest'] = 'md5:0'
    (folder / 'config.json').write_text(json.dumps(config))
    with self.assertRaisesRegex(_validate.InputError, 'another data_digest'):
      self._main(folder)
    self.assertFalse((folder / 'audit').exists())
    run = audited_run.FinishedRun.load(str(self.runs / 'private'))
    changed = dataclasses.replace(run.config, initial_model_sha256='0')
    run = dataclasses.replace(run, config=changed)
    run.load_data()  # It needs no initial model.
    with self.assertRaisesRegex(
      _validate.InputError, 'another initial model .0 there'
    ):
      run.build_task()

  def test_noise_is_that_of_the_ledger(self):
    """Nothing is calibrated anew, and the summary is not what ε is due to."""
    self._train('calibrated', **_CLIENT, clipping='fixed', target_epsilon=9.0)
    folder = self._copy('calibrated')
    summary = json.loads((folder / 'summary.json').read_text())
    noise = summary['noise_multiplier']
    summary['noise_multiplier'] = 2 * noise
    (folder / 'summary.json').write_text(json.dumps(summary))
    with mock.patch.object(calibration, 'calibrate') as calibrate:
      _, _, found = self._main(folder)
    calibrate.assert_not_called()
    self.assertEqual(found['card']['mechanism']['noise_multiplier'], noise)
    self.assertAlmostEqual(found['upper_bound'], summary['epsilon'])

  def test_refuses_a_private_run_without_its_ledger(self):
    folder = self._copy('private')
    (folder / 'privacy_ledger.jsonl').unlink()
    with self.assertRaisesRegex(
      _validate.InputError, 'lost the noise multiplier.*restore privacy_ledger'
    ):
      self._main(folder)
    self.assertFalse((folder / 'audit').exists())

  def test_without_privacy_there_is_membership_inference_alone(self):
    folder = self._copy('plain')
    with self.assertRaisesRegex(_validate.InputError, 'no guarantee to audit'):
      self._main(folder)
    self.assertFalse((folder / 'audit').exists())
    code, printed, found = self._main(folder, canaries=0)
    self.assertEqual(code, 0)
    self.assertNotIn('lower_bound', found)
    self.assertIn('claimed ε', printed)
    self.assertEqual(found['claimed_epsilon'], 'inf')

  def test_interrupted_leaves_nothing(self):
    folder = self._copy('private')
    before = sorted(folder.iterdir())
    stopped = training.Outcome(1, training.StopReason.INTERRUPTED, None, {})
    with mock.patch.object(training, 'train', return_value=stopped):
      code = audit.main(str(folder), 100, None)
    self.assertEqual(code, exit_codes.INTERRUPTED)
    self.assertEqual(sorted(folder.iterdir()), before)

  def test_refuses_what_is_no_finished_run(self):
    for run_dir, message in (
      (None, 'run_dir must be given'),
      (str(self.temp / 'nothing'), 'not the folder of a run that has ended'),
    ):
      with self.assertRaisesRegex(_validate.InputError, message):
        audit.main(run_dir, 100, None)
    (self.temp / 'config.json').write_text('{"settings": {"no_such": 1}}')
    (self.temp / 'summary.json').write_text('{"noise_multiplier": 1}')
    with self.assertRaisesRegex(_validate.InputError, 'damaged'):
      audit.main(str(self.temp), 100, None)
    with self.assertRaisesRegex(_validate.InputError, 'canaries'):
      audit.main(str(self.temp), -1, None)
    with self.assertRaisesRegex(_validate.InputError, 'would be ignored'):
      audit.main(str(self.temp), 0, None, data_ledger='ledger.jsonl')


class EnlargeTest(parameterized.TestCase):
  @parameterized.parameters(
    {**_CLIENT, **_PRIVATE},
    {**_CLIENT, 'noise_multiplier': 0.5},
    {**_CLIENT, **_PRIVATE, 'max_clients_per_round': 9},
    {'num_clients': 12, 'client_sampling': 'all', **_PRIVATE},
    {**_RECORD, **_PRIVATE},
    {**_RECORD, 'unit_sampling': 'all', **_PRIVATE},
  )
  def test_mechanism_stays_the_same_for_more_units(self, **changed):
    settings = settings_lib.Flags.of(output_dir='x', **changed).resolve()
    settings = settings.for_data(settings.data.num_clients, 12)
    # 36 canaries join the 12 units, and 12 of them take part.
    mode = settings.mode.with_canaries(scale=48 / 12, present=24 / 12)
    larger = dataclasses.replace(settings, mode=mode)
    before, after = (
      assembly.build_mechanism(s, n, print)
      for s, n in ((settings, 12), (larger, 48))
    )
    self.assertAlmostEqual(after.sampling.rate, before.sampling.rate)
    self.assertEqual(after.noise_multiplier, before.noise_multiplier)
    self.assertEqual(after.sampling.population, 48)
    if changed.get('max_clients_per_round'):
      self.assertEqual(after.sampling.max_cohort, 36)
    if 'clipping' not in changed:
      # 24 units take part. All 12 canaries among them are clipped, and so are
      # half of the 12 others.
      self.assertAlmostEqual(after.clipping.target_unclipped_quantile, 0.25)


if __name__ == '__main__':
  absltest.main()
