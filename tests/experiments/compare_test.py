"""Tests of the comparison of variants at one ε."""

import contextlib
import csv
import dataclasses
import io
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from experiments import compare
from experiments.config import settings as settings_lib
from tests import finished_sweeps
from tests.experiments import fake_cells
from tests.experiments import npz
from tff_medical import _files
from tff_medical import _validate
from tff_medical.program import run_folder
from tff_medical.scoring import scored

_WIDE = compare.Variant('Wide model', '--model=cnn')
_ALL = compare.Variant('all clients', '--client_sampling=all')


class CompareTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.output = self.temp / 'out'
    self.base = settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(self.temp),
      num_clients=30,
      clients_per_round=15.0,
      rounds=2,
      clipping='fixed',  # Its calibration is faster.
      target_epsilon=40.0,
      output_dir=str(self.output),
    )

  def _run(self, variants=(_WIDE, _ALL), seeds=2, **changed):
    printed = io.StringIO()
    with (
      contextlib.redirect_stdout(printed),
      contextlib.redirect_stderr(printed),
    ):
      code = compare.run(self.base.changed(**changed), variants, seeds, jobs=2)
    return code, printed.getvalue()

  def _fake_cells(self, fails=()):
    """Replaces trainings, which end at once with an AUC by their name."""

    def finish(job, run):
      seed = int(job.name[-1])
      auc = {'b': 0.8, 'w': 0.7, 'a': 0.9}[job.name[0]] + seed / 100
      summary = finished_sweeps.summary(
        epsilon=39.9,
        delta=0.01,
        noise_multiplier=1.5,
        privacy_unit='client',
        metrics={'auc': auc, 'accuracy': 0.5, 'balanced_accuracy': 0.5},
        eval_split=finished_sweeps.eval_split(job),
      )
      run.write_summary(summary)
      _files.write_json(
        run.config, dataclasses.asdict(finished_sweeps.config())
      )

    return fake_cells.ending(finish, fails)

  def test_another_split_is_evaluated_in_every_cell(self):
    with self._fake_cells() as started:
      _, printed = self._run(seeds=1)
      self.assertIn('| validation AUC |', printed)
      self._run(seeds=1)
      self.assertLen(started, 3)
      _, printed = self._run(seeds=1, eval_split='test')
    self.assertLen(started, 6)
    self.assertIn('| test AUC |', printed)
    with open(self.output / 'results.csv', newline='') as file:
      self.assertEqual(
        [row['eval_split'] for row in csv.DictReader(file)], ['test'] * 3
      )

  def test_real_trainings_at_the_same_epsilon(self):
    code, printed = self._run(variants=[_ALL], seeds=1)
    self.assertEqual(code, 0, printed)
    with open(self.output / 'results.csv', newline='') as file:
      lines = {row['name']: row for row in csv.DictReader(file)}
    self.assertCountEqual(lines, ['base', 'all clients'])
    for line in lines.values():
      self.assertBetween(float(line['epsilon']), 35, 40)
      self.assertBetween(float(line['auc']), 0, 1)
    self.assertGreater(
      float(lines['all clients']['noise_multiplier']),
      float(lines['base']['noise_multiplier']),
    )

  def test_table_is_ordered_and_pairs_seeds(self):
    with self._fake_cells() as started:
      code, printed = self._run()
    self.assertEqual(code, 0)
    self.assertLen(started, 6)
    lines = (self.output / 'results.md').read_text().splitlines()
    self.assertStartsWith(lines[2], '| all clients | `--client_sampling=all` |')
    self.assertStartsWith(lines[3], '| **base** |')
    self.assertIn(
      '| 0.905 ± 0.007 | +0.100 ± 0.000 | not shown | 0.500 ± 0.000 | 3 |',
      lines[2],
    )
    self.assertIn('| -0.100 ± 0.000 |', lines[4])
    self.assertIn(lines[4], printed)
    with Image.open(self.output / 'comparison.png') as image:
      self.assertGreater(image.width, 800)

  @parameterized.parameters((2000, 'helps'), (20, 'not shown'))
  def test_helps_is_said_only_if_images_show_it(self, count, verdict):
    with self._fake_cells():
      self._run()
    labels = np.arange(count) % 2
    for name, strength in (('base', 1.0), ('wide_model', 1.3)):
      rng = np.random.default_rng(int(10 * strength))
      noise = rng.normal(size=(count, 2))
      for seed in (0, 1):
        run = run_folder.RunFolder(
          self.output / 'cells' / f'{name}_seed_{seed}'
        )
        scores = scored.ScoredImages(
          noise + strength * np.eye(2)[labels],
          labels,
          ('a', 'b'),
          split_name='validation',
        )
        run.write_scores(scores, run.read_summary().weights_sha256)
        summary = dataclasses.replace(
          run.read_summary(),
          metrics={
            **run.read_summary().metrics,
            'auc': strength / 2 + seed / 100,
          },
        )
        run.write_summary(summary)
    with self._fake_cells() as started:
      self._run()
    self.assertEmpty(started)
    table = (self.output / 'results.md').read_text().splitlines()
    header, *lines = [line.split('|') for line in table]
    verdicts = {x[1].strip(): x[header.index(' verdict ')] for x in lines[1:]}
    self.assertEqual(verdicts['Wide model'].strip(), verdict)
    self.assertEqual(verdicts['all clients'].strip(), 'not shown')
    self.assertEqual(verdicts['**base**'].strip(), '')

  def test_goes_on_and_takes_more_variants(self):
    with self._fake_cells(fails=['base_seed_1']):
      code, printed = self._run(variants=[_WIDE])
    self.assertEqual(code, 1)
    self.assertIn('error: base_seed_1: error: no luck', printed)
    with self._fake_cells() as started:
      code, printed = self._run()
    self.assertEqual(code, 0)
    self.assertCountEqual(
      [job.name for job in started],
      ['base_seed_1', 'all_clients_seed_0', 'all_clients_seed_1'],
    )
    self.assertIn('3 of 6 trainings are done', printed)

  def test_refuses_cells_with_other_flags(self):
    with self._fake_cells():
      self._run()
    with self.assertRaisesRegex(_validate.InputError, 'cell .* other flags'):
      self._run(rounds=3)
    with self.assertRaisesRegex(_validate.InputError, 'wide_model_seed_0'):
      self._run([compare.Variant('wide model', '--model=cnn --rounds=3')])

  def test_a_variant_that_never_ran_may_be_corrected(self):
    with self._fake_cells(fails=['wide_model_seed_0']):
      self._run([_WIDE], seeds=1)
    wide = compare.Variant('wide model', '--model=cnn --rounds=3')
    with self._fake_cells() as started:
      code, _ = self._run([wide], seeds=1, client_threads=1)
    self.assertEqual(code, 0)
    self.assertIn('--rounds=3', started[0].command)

  def test_refuses_damaged_notes(self):
    with self._fake_cells():
      self._run()
    (self.output / 'comparison.json').write_text('{')
    with self.assertRaisesRegex(_validate.InputError, 'damaged'):
      self._run()

  def test_refuses_a_mixture_of_initial_models(self):
    with self._fake_cells():
      self._run()
    for seed in (0, 1):
      path = self.output / 'cells' / f'base_seed_{seed}' / 'config.json'
      config = finished_sweeps.config(initial_model_sha256=f'{seed}')
      _files.write_json(path, dataclasses.asdict(config))
    with self.assertRaisesRegex(
      _validate.InputError, "'base' started from different initial models"
    ):
      self._run()

  @parameterized.parameters('config.json', 'summary.json')
  def test_a_damaged_cell_is_one_line(self, name):
    with self._fake_cells():
      self._run()
    path = self.output / 'cells' / 'all_clients_seed_1' / name
    for content in ('{"torn', '[]', '{}', '\xff'):
      path.write_bytes(content.encode('latin-1'))
      with self.assertRaisesRegex(_validate.InputError, f'{name}.*damaged'):
        self._run()
    if name == 'config.json':
      path.unlink()
      with self.assertRaisesRegex(_validate.InputError, f'lacks its {name}'):
        self._run()

  def test_a_variant_that_diverged_comes_last(self):
    with self._fake_cells():
      self._run()
    path = self.output / 'cells' / 'all_clients_seed_1' / 'summary.json'
    summary = json.loads(path.read_text())
    summary['metrics']['auc'] = None  # NaN is written as null.
    path.write_text(json.dumps(summary))
    code, _ = self._run()
    self.assertEqual(code, 0)
    lines = (self.output / 'results.md').read_text().splitlines()
    self.assertIn('| nan ± nan | +nan |', lines[-1])

  def test_a_variant_leaves_out_what_it_has_no_use_for(self):
    settings = _ALL.settings(self.base, 3, self.output)
    self.assertIsNone(settings.clients_per_round)
    self.assertEqual(settings.client_sampling, 'all')
    self.assertEqual(settings.seed, 3)
    self.assertEqual(settings.target_epsilon, 40)

  def test_a_variant_takes_back_flags_of_the_base(self):
    base = self.base.changed(
      backbone='scattering', clip_norm=2.0, server_learning_rate=3.0
    )
    text = '--backbone= --server_learning_rate= --model=cnn_small --rounds= '
    variant = compare.Variant('own network', text + '--rounds=3')
    settings = variant.settings(base, 0, self.output)
    self.assertIsNone(settings.backbone)
    self.assertEqual(settings.model, 'cnn_small')
    self.assertEqual(settings.clip_norm, 2.0)
    self.assertEqual(settings.rounds, 3)
    default = self.base.server_learning_rate
    self.assertEqual(settings.server_learning_rate, default)

  @parameterized.parameters(
    ('wide', "variant must be 'NAME: --flag=value"),
    (': --model=cnn', 'variant must be'),
    ('x: --no_such_flag=1', 'no_such_flag'),
    ('x: cnn', 'flags alone'),
    ('x: --no_such_flag=', 'no_such_flag'),
    ('x: --target_epsilon=', 'must have the target_epsilon of the base'),
    ('x: --clipping=fixd', "did you mean 'fixed'"),
    ('x: --rounds=abc', 'rounds'),
    ('x: --local_steps=3', 'local_steps=3 would be ignored'),
    ('x: --target_epsilon=3', 'must have the target_epsilon of the base'),
    ('x: --target_delta=.1', 'must have the target_delta'),
    ('x: --privacy_unit=record', 'must have the privacy_unit'),
    ('x: --seed=7', 'must have the seed'),
    ('x: --cohort_seed=7', 'must have the cohort_seed'),
    ('base: --rounds=3', 'names must differ'),
  )
  def test_refuses_a_variant(self, text, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      self._run([compare.Variant.parse(text)])
    self.assertFalse(self.output.exists())

  @parameterized.parameters(
    ({'target_epsilon': None, 'noise_multiplier': 1.0}, 'target_epsilon must'),
    ({'output_dir': None}, 'output_dir'),
    ({'cohort_seed': 1}, 'cohort_seed must be left out'),
    ({'local_steps': 5}, 'local_steps=5 would be ignored'),
    ({'rounds': 0}, 'rounds'),
  )
  def test_refuses_a_base(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      self._run(**changed)
    self.assertFalse(self.output.exists())

  def test_refuses_a_folder_with_other_files(self):
    self.output.mkdir()
    (self.output / 'thesis.tex').write_text('precious')
    with self.assertRaisesRegex(_validate.InputError, 'holds other files'):
      self._run()


if __name__ == '__main__':
  absltest.main()
