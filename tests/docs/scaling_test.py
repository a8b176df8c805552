"""Holds the costs that docs/scaling.md states against the simulation."""

import dataclasses
import pathlib
import re

from absl.testing import absltest

from experiments.measuring import cluster_simulation

_PAGE = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'scaling.md'


class ScalingPageTest(absltest.TestCase):
  def test_states_each_cost(self):
    stated = re.findall(r'^\| `(\w+)` \| (\S+) \|', _PAGE.read_text(), re.M)
    defaults = dataclasses.asdict(cluster_simulation.Costs())
    self.assertEqual(
      dict(stated), {name: str(value) for name, value in defaults.items()}
    )

  def test_a_simulated_row_is_what_the_command_prints(self):
    """Rounds of little work repeat the page to its digits."""
    text = _PAGE.read_text()
    outcome = cluster_simulation.simulate(
      cluster_simulation.Round(1_000, 11_000_000, 60.0, 100),
      cluster_simulation.Costs(),
    )
    self.assertIn(
      f'| {outcome.seconds:.1f} ({outcome.efficiency:.2f}) '
      f'{outcome.bottleneck} |',
      re.search(r'^\| 11,000,000 \| 1,000 .*$', text, re.M)[0],
    )


if __name__ == '__main__':
  absltest.main()
