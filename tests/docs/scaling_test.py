"""Holds the costs that docs/scaling.md states against the simulation."""

import contextlib
import csv
import dataclasses
import io
import pathlib
import re

from absl.testing import absltest

from experiments import cluster_traffic as command
from experiments.measuring import cluster_simulation
from experiments.measuring import cluster_traffic

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PAGE = _ROOT / 'docs' / 'scaling.md'
_TRAFFIC = _ROOT / 'results' / 'cluster' / 'traffic.csv'


def _traffic():
  """Returns the rows of the published file."""
  with open(_TRAFFIC, encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  return [
    cluster_traffic.Traffic(
      **{
        name: float(value) if name == 'seconds' else int(value or -1)
        for name, value in row.items()
        if name != 'round_num'
      },
      round_num=int(row['round_num']) if row['round_num'] else None,
    )
    for row in rows
  ]


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

  def test_shows_the_published_bytes(self):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      command.print_table(_traffic())
    self.assertIn(f'\n\n{printed.getvalue()}\n', _PAGE.read_text())

  def test_bytes_are_those_of_the_arithmetic(self):
    """The shares that the page states."""
    shares = {}
    for row in _traffic():
      if row.round_num:
        expected = sum(cluster_traffic.expected_megabytes(row)) * 1e6
        shares[row] = (row.driver_sent + row.workers_sent) / expected - 1
    self.assertLen(shares, 3 * 3 * 3)
    for row, share in shares.items():
      is_small = row.parameters == 225_000 and row.workers == 1
      self.assertBetween(share, 0.0015, 0.051 if is_small else 0.023, row)


if __name__ == '__main__':
  absltest.main()
