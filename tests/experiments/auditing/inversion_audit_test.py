"""Tests of gradient inversion in the audit, on tiny runs."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from experiments import audit
from experiments import train
from experiments.auditing import inversion_audit
from experiments.config import assembly
from experiments.config import settings as settings_lib
from tests.experiments import finished
from tests.experiments import npz
from tff_medical import _validate
from tff_medical import models
from tff_medical.auditing import inversion
from tff_medical.data import label_values

_CLIENT = {
  'num_clients': 12,
  'clients_per_round': 6.0,
  'clipping': 'adaptive',
  'clip_norm': 0.01,
  'client_learning_rate': 0.5,
  'noise_multiplier': 0.5,
}
_RECORD = {
  'privacy_unit': 'record',
  'expected_batch_size': 30.0,
  'num_clients': 3,
  'clipping': 'fixed',
  'clip_norm': 0.02,
  'noise_multiplier': 3.0,
}


class InversionAuditTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.runs = pathlib.Path(cls.enter_context(tempfile.TemporaryDirectory()))

  def _settings(self, **changed):
    return settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(self.runs),
      rounds=1,
      output_dir=str(self.runs / self.id()),
      **changed,
    )

  def _train(self, **changed):
    settings = self._settings(**changed)
    with contextlib.redirect_stdout(io.StringIO()):
      train.run(settings)
    return pathlib.Path(settings.output_dir)

  def _unfinished(self, **changed):
    settings = self._settings(**changed).resolve()
    return finished.run(settings)

  def test_whole_command(self):
    folder = self._train(**_CLIENT)
    quick = functools.partial(inversion.InversionAttack, iterations=3, starts=1)
    printed = io.StringIO()
    with (
      mock.patch.object(inversion, 'InversionAttack', quick),
      contextlib.redirect_stdout(printed),
    ):
      code = audit.main(str(folder), 0, None, inversion_images=2)
    self.assertEqual(code, 0)
    found = json.loads((folder / 'audit.json').read_text())['inversion']
    self.assertEqual(found['images'], 2)
    for view in ('raw', 'clipped', 'noised', 'blind'):
      self.assertGreater(found[view]['psnr'], 0)
      self.assertBetween(found[view]['ssim'], -1, 1)
    for view in ('raw', 'clipped'):
      self.assertEqual(found[view]['labels_told'], 1)
    self.assertIn('do not publish', printed.getvalue())
    self.assertEqual(
      {p.name for p in (folder / 'audit').iterdir()},
      {'roc.png', 'inversion.png'},
    )
    with Image.open(folder / 'audit' / 'inversion.png') as image:
      self.assertGreater(image.width, 600)

  @parameterized.named_parameters(
    ('client', _CLIENT, 12, 0.5), ('record', _RECORD, 60, 1.0)
  )
  def test_attacks_what_the_first_round_would_show(self, changed, units, rate):
    run = self._unfinished(**changed)
    attacked = []

    def remember(attack, update, label, seed):
      del attack, seed
      attacked.append((update, label))
      return np.zeros((28, 28, 1), np.float32)

    folder = pathlib.Path(self.create_tempdir().full_path)
    with mock.patch.object(inversion.InversionAttack, 'reconstruct', remember):
      inversion_audit.invert(run, folder, 1)
    (raw, label), (clipped, _), (noised, _) = [
      (np.concatenate([np.ravel(u) for u in update]), label)
      for update, label in attacked
    ]
    task = assembly.load_task(run.settings)
    gradients = [
      inversion.gradient_of(
        task.keras_model,
        models.loss(multi_label=False),
        image.astype(np.float32) / 255,
        label,
      )
      for image in task.data.train.images
    ]
    nearest = min(
      np.abs(raw - rate * np.concatenate([np.ravel(p) for p in g])).max()
      for g in gradients
    )
    self.assertLess(nearest, 1e-6, 'the update is that of a training image')
    clip_norm = changed['clip_norm']
    self.assertGreater(np.linalg.norm(raw), clip_norm)
    np.testing.assert_allclose(
      clipped, raw * clip_norm / np.linalg.norm(raw), rtol=1e-4, atol=1e-9
    )
    mechanism = assembly.build_mechanism(run.settings, units, print)
    stddev = clip_norm * mechanism.value_noise_multiplier
    self.assertAlmostEqual((noised - clipped).std() / stddev, 1, delta=0.03)

  def test_noise_is_fresh(self):
    run = self._unfinished(**_RECORD)
    mechanism = assembly.build_mechanism(run.settings, 60, print)
    raw = [np.ones(5, np.float32)]
    first, second = (
      inversion_audit._views(raw, mechanism)['noised'][0] for _ in range(2)
    )
    self.assertFalse(np.any(first == second))

  def test_several_local_steps(self):
    run = self._unfinished(**_CLIENT, client_epochs=2)
    task = assembly.load_task(run.settings)
    model, loss = task.keras_model, models.loss(multi_label=False)
    image = task.data.train.images[0].astype(np.float32) / 255
    start = model.get_weights()
    arguments = (model, loss, image, np.int64(0))
    update = inversion_audit._update(*arguments, run.settings.mode)
    first = inversion.gradient_of(*arguments)
    model.set_weights([w - 0.5 * g for w, g in zip(start, first)])
    second = inversion.gradient_of(*arguments)
    for found, a, b in zip(update, first, second):
      np.testing.assert_allclose(found, 0.5 * (a + b), atol=1e-6)

  @parameterized.parameters(
    (
      {'mechanism': 'dp_ftrl', 'noise_multiplier': 1.0, 'num_clients': 12},
      'mechanism=dp_ftrl',
    ),
    ({'clipping': 'none', 'num_clients': 12}, 'no noise'),
  )
  def test_refuses_runs_of_other_kinds(self, changed, message):
    run = self._unfinished(**changed)
    with self.assertRaisesRegex(_validate.InputError, message):
      inversion_audit.check(run, run.load_data().train, 1)

  def test_refuses_more_images_than_there_are(self):
    run = self._unfinished(**_RECORD)
    train = run.load_data().train
    inversion_audit.check(run, train, 60)
    with self.assertRaisesRegex(_validate.InputError, 'at most 60'):
      inversion_audit.check(run, train, 61)

  def test_images_without_a_known_label_are_not_attacked(self):
    run = self._unfinished(**_RECORD)
    labels = np.full((60, 2), label_values.UNKNOWN)
    labels[[3, 7, 20], 1] = 0
    train = dataclasses.replace(run.load_data().train, labels=labels)
    inversion_audit.check(run, train, 3)
    with self.assertRaisesRegex(_validate.InputError, 'at most 3'):
      inversion_audit.check(run, train, 4)

  def test_wrong_flag(self):
    command = '-m experiments.audit --run_dir=nowhere --inversion_images=-1'
    ended = subprocess.run(
      [sys.executable, *command.split()],
      capture_output=True,
      text=True,
      env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
    )
    self.assertEqual(ended.returncode, 2)
    self.assertIn('inversion_images', ended.stderr)


if __name__ == '__main__':
  absltest.main()
