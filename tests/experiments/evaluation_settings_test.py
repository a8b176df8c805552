"""Settings of the evaluation: own metrics, grades, and what needs them."""

import os
import pathlib
import sys

from absl.testing import absltest

from experiments.config import assembly
from experiments.config import settings as settings_lib
from tests.experiments import npz
from tff_medical import _validate


class EvaluationSettingsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(self.temp)
    (self.temp / 'own_scores.py').write_text(
      'def share(p, y):\n  return (p[:, 1] > 0.5).mean()\n'
    )
    self.addCleanup(sys.modules.pop, 'own_scores', None)

  def _task(self, **changed):
    settings = settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(self.temp),
      num_clients=4,
      noise_multiplier=1.0,
      output_dir='run',
      **changed,
    )
    return assembly.load_task(settings.resolve())

  def test_own_metrics_are_computed(self):
    task = self._task(own_metrics='own_scores:share')
    result, _ = task.evaluation(task.keras_model, 'test', 0.9)
    self.assertBetween(result.metrics['own/share'], 0, 1)
    self.assertNotIn('own/share', result.intervals)

  def test_own_metrics_that_cannot_be_used(self):
    for names, message in (
      ('own_scores:no', 'own_metrics .*has no no'),
      ('own_scores', 'own_metrics must be module:function'),
      ('own_scores:share,own_scores:share', 'of different names'),
    ):
      with self.assertRaisesRegex(_validate.InputError, message):
        self._task(own_metrics=names)

  def test_grades(self):
    self.assertFalse(self._task().data.is_ordinal)
    task = self._task(ordinal_labels=True)
    metrics = task.evaluation(task.keras_model, 'validation', 0.9)[0].metrics
    self.assertContainsSubset(['kappa', 'mae'], metrics)


if __name__ == '__main__':
  absltest.main()
