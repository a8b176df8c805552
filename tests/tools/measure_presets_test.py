"""Tests of the table of presets and of the presets' headers."""

import dataclasses
import json
import math
import pathlib
import re

from absl.testing import absltest

from tests import finished_sweeps
from tff_medical import _validate
from tff_medical.reporting import run_tables
from tools import measure_presets

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _summary(epsilon, auc, seconds):
  return finished_sweeps.summary(
    epsilon=epsilon,
    metrics={'auc': auc, 'accuracy': 0.5, 'balanced_accuracy': 0.25},
    seconds=seconds,
  )


class MeasurePresetsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.runs = run_tables.table(
      [
        run_tables.row('one', 0, _summary(7.99, 0.9, 10)),
        run_tables.row('one', 1, _summary(7.98, 0.8, 30)),
        run_tables.row('two', 0, _summary(math.inf, 0.95, 5)),
      ]
    )

  def test_table_and_header_have_mean_and_spread(self):
    lines = measure_presets.table(self.runs).splitlines()
    self.assertLen(lines, 4)
    self.assertEqual(
      lines[2],
      '| `one` | record | 7.99 | 1.0e-03 | 0.850 ± 0.071 | 0.500 ± 0.000 | '
      '0.250 ± 0.000 | 20 |',
    )
    self.assertIn('| `two` | - | none | - | 0.950 |', lines[3])
    self.assertIn(
      'ε 7.990 at δ 0.001; test AUC 0.850 ± 0.071',
      measure_presets.reached(self.runs[:2]),
    )
    self.assertIn('no privacy', measure_presets.reached(self.runs[2:]))

  def test_results_are_kept_and_measured_again(self):
    path = pathlib.Path(self.create_tempdir().full_path, 'presets.csv')
    self.assertEmpty(run_tables.read(path))
    run_tables.write(path, self.runs)
    again = [run_tables.row('two', 0, _summary(math.inf, 0.99, 5))]
    merged = measure_presets.merge(
      run_tables.read(path), run_tables.table(again)
    )
    self.assertEqual(list(merged['auc']), [0.9, 0.8, 0.99])

  def _write_config(self, run, settings):
    config = finished_sweeps.config(settings=settings)
    (run / 'config.json').write_text(json.dumps(dataclasses.asdict(config)))

  def test_run_of_other_flags_is_refused(self):
    name = 'retinamnist_record_eps1'
    run = pathlib.Path(self.create_tempdir().full_path)
    text = (measure_presets.PRESETS / f'{name}.flags').read_text()
    settings = {
      'dataset': 'medmnist/retinamnist',
      'eval_split': 'test',
      'backbone': 'efficientnet-lite0',
      'backbone_layers': 'block_5',
      'privacy_unit': 'record',
      'num_clients': 8,
      'partition': 'dirichlet',
      'dirichlet_alpha': 0.5,
      'unit_sampling': 'all',
      'microbatch_size': 1024,
      'rounds': 50,
      'clipping': 'fixed',
      'clip_norm': 1.0,
      'class_weights': 'noised',
      'server_learning_rate': 1.0,
      'rounds_per_eval': 50,
      'target_epsilon': 1.0,
    }
    self.assertLen(re.findall('^--', text, re.M), len(settings))
    self._write_config(run, settings)
    measure_presets.check_flags(run, name)
    for other in ({**settings, 'target_epsilon': 3.0}, {'rounds': 50}):
      self._write_config(run, other)
      with self.assertRaisesRegex(
        _validate.InputError, 'but the preset retinamnist_record_eps1 has'
      ):
        measure_presets.check_flags(run, name)

  def test_header_is_replaced(self):
    path = pathlib.Path(self.create_tempdir().full_path, 'a.flags')
    path.write_text('# What.\n# reached: nothing\n--rounds=1\n')
    measure_presets.write_header(path, 'AUC 1')
    self.assertEqual(
      path.read_text(), '# What.\n# reached: AUC 1\n--rounds=1\n'
    )

  def test_a_page_has_the_table_of_the_results(self):
    runs = run_tables.read(measure_presets.RESULTS)
    self.assertNotEmpty(runs)
    self.assertIn(
      measure_presets.table(runs), (_ROOT / 'docs' / 'results.md').read_text()
    )

  def test_presets_have_what_the_results_say(self):
    runs = run_tables.read(measure_presets.RESULTS)
    for path in measure_presets.PRESETS.glob('*mnist*.flags'):
      preset = runs[runs['name'] == path.stem]
      self.assertNotEmpty(preset, path)
      self.assertIn(
        f'# reached: {measure_presets.reached(preset)}\n', path.read_text()
      )

  def test_private_pneumonia_is_within_two_points_of_the_non_private(self):
    runs = run_tables.read(measure_presets.RESULTS)
    aucs = runs.groupby('name')['auc'].agg(run_tables.mean)
    self.assertGreater(
      aucs['pneumoniamnist_record_eps8'],
      aucs['pneumoniamnist_record_nonprivate'] - 0.02,
    )
    self.assertGreater(aucs['pneumoniamnist_fedavg'], 0.93)


if __name__ == '__main__':
  absltest.main()
