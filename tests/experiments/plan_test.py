"""Tests of the planning command."""

import contextlib
import csv
import io
import pathlib
import subprocess
import sys
from unittest import mock

from absl import flags as absl_flags
from absl.testing import absltest
from absl.testing import parameterized
from PIL import Image

from experiments import plan
from tff_medical import _validate
from tff_medical.data import loading


def _run(*arguments):
  """Runs the command with few parameters; returns the printed text."""
  values = absl_flags.FlagValues()
  plan.define_flags(values)
  values(['plan', *arguments])
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    plan.main(values)
  return printed.getvalue()


class PlanTest(parameterized.TestCase):
  def test_the_command_counts_the_parameters_of_the_model(self):
    done = subprocess.run(
      [sys.executable, '-m', 'experiments.plan', '--epsilons=8', '--rounds=5'],
      cwd=pathlib.Path(__file__).resolve().parents[2],
      capture_output=True,
      check=False,
      text=True,
    )
    self.assertEqual((done.returncode, done.stderr), (0, ''))
    expected = _run('--epsilons=8', '--num_parameters=14260', '--rounds=5')
    self.assertEqual(done.stdout, expected)

  def test_a_line_for_each_unit_and_epsilon(self):
    printed = _run('--epsilons=2,1', '--num_parameters=5000', '--rounds=20')
    lines = [x.split() for x in printed.splitlines()]
    table = [x[:2] for x in lines if len(x) > 6 and x[1] in ('1', '2')]
    self.assertEqual(
      table,
      [['client', '1'], ['client', '2'], ['record', '1'], ['record', '2']],
    )

  def test_the_hopeless_is_called_so(self):
    printed = _run(
      '--epsilons=1',
      '--num_clients=20',
      '--clients_per_round=10',
      '--num_parameters=100000',
    )
    text = ' '.join(printed.split())
    self.assertIn('client level, ε 1 is hopeless. What would help:', text)
    self.assertIn('protect records', text)

  def test_files(self):
    folder = pathlib.Path(self.create_tempdir().full_path, 'new')
    _run('--epsilons=1', '--num_parameters=5000', f'--output_dir={folder}')
    with open(folder / 'plan.csv', encoding='utf-8') as file:
      rows = list(csv.DictReader(file))
    self.assertEqual([r['unit'] for r in rows], ['client', 'record'])
    self.assertEqual(rows[0]['parameters'], '5000')
    self.assertGreater(float(rows[0]['noise_multiplier']), 0.3)
    with Image.open(folder / 'plan.png') as image:
      self.assertGreater(len(set(image.convert('L').getdata())), 20)

  def test_a_cap_costs_noise_or_epsilon(self):
    arguments = (
      '--epsilons=18.93',
      '--num_parameters=5000',
      '--num_clients=40',
      '--clients_per_round=8',
      '--target_delta=.01',
      '--clipping=fixed',
    )
    printed = ' '.join(_run('--max_clients_per_round=10', *arguments).split())
    self.assertRegex(
      printed,
      r'A cap of 10 clients at ε 18.93 takes a noise multiplier of 1.000',
    )
    self.assertNotIn('A cap', _run(*arguments))

  @parameterized.parameters(
    ('synthetic', 3000, 14_260),
    ('synthetic_rgb', 3000, 14_548),
    ('medmnist/pneumoniamnist', 4708, 14_194),
    ('medmnist/dermamnist', 7007, None),
  )
  def test_data_sets(self, dataset, records, parameters):
    data = loading.source(dataset)
    self.assertEqual(data.num_train, records)
    if parameters:
      self.assertEqual(plan.count_parameters('cnn_small', 28, data), parameters)

  def test_a_batch_of_all_records_is_named_so(self):
    printed = _run(
      '--epsilons=8',
      '--num_records=500',
      '--expected_batch_size=500',
      '--num_parameters=100',
    )
    self.assertIn('record level: all 500 records in each of', printed)

  def test_a_new_data_set_is_a_line_in_one_place(self):
    new = loading.Source(500, 3, ('healthy', 'ill'), load=None)
    with mock.patch.dict(loading.DATASETS, {'new': new}):
      printed = _run('--epsilons=8', '--dataset=new', '--model=cnn_small')
    self.assertIn('25 of 500 records expected', printed)
    parameters = plan.count_parameters('cnn_small', 28, new)
    self.assertIn(f'{parameters:,} parameters', printed)

  @parameterized.parameters(
    (['--epsilons=2,x'], "epsilons.*'x'"),
    (['--epsilons=-1'], 'epsilons'),
    (['--epsilons=nan'], 'epsilons'),
    (['--epsilons='], 'epsilons must name at least one'),
    (['--epsilons=inf'], 'epsilons must be finite'),
    (['--dataset=medmnist/pneumonia'], 'did you mean'),
    (['--model=cnn_smal'], "did you mean 'cnn_small'"),
    (['--clipping=none'], 'clipping'),
    (['--max_clients_per_round=20'], 'max_cohort must be at least'),
    (['--clients_per_round=301'], 'clients_per_round must be at most'),
    (['--expected_batch_size=-3'], 'expected_batch_size'),
    (['--num_clients=0'], 'num_clients'),
    (['--image_size=0'], 'image_size'),
    (['--rounds=0'], 'rounds'),
    (['--target_delta=2'], 'delta'),
  )
  def test_refuses(self, arguments, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      _run(*arguments)


if __name__ == '__main__':
  absltest.main()
