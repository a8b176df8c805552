"""Tests of the count of bytes that rounds on a cluster move."""

import contextlib
import csv
import io
import os
import shutil
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments import cluster_traffic as command
from experiments.measuring import cluster_hosts
from experiments.measuring import cluster_traffic
from tests import ray_clusters
from tff_medical import _validate
from tff_medical.runtime.cluster import portions


def _values(**changed):
  values = dict(
    parameters=['200000'], workers=['1', '2'], clients=8, rounds=2, csv=None
  )
  return types.SimpleNamespace(**{**values, **changed})


def _traffic(**changed):
  values = dict(
    parameters=1_000_000,
    workers=2,
    round_num=1,
    merges=3,
    driver_sent=8_100_000,
    driver_received=4_050_000,
    workers_sent=16_100_000,
    most_received=12_000_000,
    seconds=1.0,
  )
  return cluster_traffic.Traffic(**{**values, **changed})


def _problem():
  """Returns why this machine cannot make hosts, or ''."""
  if not ray_clusters.is_installed():
    return 'requirements-cluster.txt is not installed'
  try:
    cluster_hosts.check()
  except _validate.InputError as error:
    return str(error)
  return ''


class MergesTest(parameterized.TestCase):
  @parameterized.parameters(
    ([0], 0),
    ([0, 0, 1, 1], 1),
    ([0, 1, 0, 1], 2),
    ([0, 1, 1, 0], 3),
    # The tree over five portions is (4, 1).
    ([0, 0, 0, 0, 1], 1),
    ([2, 0, 1, 1, 2], 2),
  )
  def test_counts_the_merges_of_totals_of_two_workers(self, places, number):
    self.assertEqual(cluster_traffic.merges(dict(enumerate(places))), number)

  def test_portions_in_blocks_need_one_merge_for_each_further_worker(self):
    for workers in (1, 2, 4, 8):
      blocks = portions.cut([1.0] * 32, workers)
      places = {p: n for n, block in enumerate(blocks) for p in block}
      self.assertEqual(cluster_traffic.merges(places), workers - 1)


class TableTest(parameterized.TestCase):
  def test_states_figures_beside_the_arithmetic(self):
    rows = [
      _traffic(round_num=0, driver_sent=9_000_000),
      _traffic(round_num=1, driver_sent=8_300_000),
      _traffic(round_num=2),
      _traffic(round_num=3, driver_sent=8_000_000),
      _traffic(parameters=0, round_num=None, merges=0, driver_sent=40_000),
    ]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      command.print_table(rows)
    lines = printed.getvalue().splitlines()
    self.assertEqual(
      lines[2:4],
      [
        '| 1,000,000 | 2 | first | 3 | 9.00 (8.00) | 4.05 (4.00) | '
        '12.05 (12.00) |',
        '| 1,000,000 | 2 | later | 3 | 8.10 (8.00) | 4.05 (4.00) | '
        '12.05 (12.00) |',
      ],
    )
    self.assertStartsWith(lines[4], '| - | 2 | idle, 1 s | 0 | 0.04 (0.00) |')
    self.assertLen(lines, 5)

  @parameterized.parameters(
    ({'parameters': ['2500']}, 'parameters must be multiples of 1,000'),
    ({'parameters': ['1000']}, 'parameters must be multiples of 1,000'),
    ({'parameters': ['2e6']}, "parameters must be whole numbers, got '2e6'"),
    ({'workers': ['0']}, 'workers must be positive'),
    ({'workers': ['65']}, 'workers must lie between'),
    ({'clients': 0}, 'clients'),
    ({'rounds': 0}, 'rounds'),
  )
  def test_refuses(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      command.main(_values(**changed))

  def test_refuses_a_machine_without_namespaces(self):
    with mock.patch.object(os, 'geteuid', return_value=1000):
      with self.assertRaisesRegex(
        _validate.InputError, 'need root, got .*1000'
      ):
        command.main(_values())
    with (
      mock.patch.object(os, 'geteuid', return_value=0),
      mock.patch.object(shutil, 'which', return_value=None),
    ):
      with self.assertRaisesRegex(_validate.InputError, 'install iproute2'):
        command.main(_values())


@absltest.skipIf(_problem(), _problem())
class RealHostsTest(absltest.TestCase):
  def test_weights_reach_each_host_once_and_totals_only_where_they_merge(self):
    path = self.create_tempfile().full_path
    with contextlib.redirect_stdout(io.StringIO()):
      command.main(_values(workers=['2'], csv=path))
    with open(path, encoding='utf-8', newline='') as file:
      rows = [
        {k: float(v or -1) for k, v in row.items()}
        for row in csv.DictReader(file)
      ]
    self.assertLen(rows, 3 + 1)
    model = 4 * 200_000
    for row in rows:
      if row['round_num'] < 1:
        continue
      workers = int(row['workers'])
      received = row['workers_sent'] - row['driver_received']
      total = row['driver_sent'] + received
      # Some host may serve another one with the weights.
      self.assertAlmostEqual(
        total / model, workers + row['merges'], delta=0.15 * workers
      )
      self.assertAlmostEqual(row['driver_received'] / model, 1, delta=0.15)


if __name__ == '__main__':
  absltest.main()
