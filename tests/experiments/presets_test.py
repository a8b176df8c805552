"""Tests that every preset can be run and states what it reached."""

import pathlib
import re

from absl import flags as absl_flags
from absl.testing import absltest
from absl.testing import parameterized

import experiments
from experiments.config import flags

_PRESETS = sorted(
  (pathlib.Path(experiments.__file__).parent / 'presets').glob('*.flags')
)


class PresetsTest(parameterized.TestCase):
  @parameterized.parameters(*[(p,) for p in _PRESETS])
  def test_resolves_and_names_its_command(self, path):
    values = absl_flags.FlagValues()
    read = flags.define(values)
    values(['train', f'--flagfile={path}', '--output_dir=x'], known_only=True)
    given = read()
    if path.name.startswith(
      ('tradeoff', 'study')
    ):  # The cells of a sweep decide the budget.
      given = given.changed(target_epsilon=1.0)
    self.assertGreater(given.resolve().mode.rounds, 0)
    header = ''.join(
      line for line in path.read_text().splitlines() if line.startswith('#')
    )
    self.assertRegex(header, r'python -m experiments\.\w+|make demo')

  @parameterized.parameters(*[(p,) for p in _PRESETS if 'mnist' in p.name])
  def test_states_measured_metrics(self, path):
    header = path.read_text()
    self.assertRegex(header, r'# .*AUC')
    if 'eps' in path.name:
      target = re.search(r'--target_epsilon=([\d.]+)', header).group(1)
      self.assertRegex(header, rf'# .*ε {target}|# .*ε [\d.]+')


if __name__ == '__main__':
  absltest.main()
