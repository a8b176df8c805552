"""Tests of the costs of a cluster, without one."""

import pathlib
import pickle
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow_federated as tff

from experiments.measuring import client_sizes
from experiments.measuring import cluster_costs
from experiments.measuring import cluster_hosts
from experiments.measuring import cluster_traffic
from experiments.measuring import driver_costs
from experiments.measuring import light_workers
from tff_medical.runtime import graphs
from tff_medical.runtime.cluster import context as context_lib
from tff_medical.runtime.cluster import pool


class _RecordingRay(light_workers.InstantRay):
  """Ray that notes how large the objects in its store are."""

  def __init__(self):
    self.sizes = []

  def put(self, value):
    self.sizes.append(len(pickle.dumps(value, protocol=5)))
    return super().put(value)


class _NoWorker(light_workers.LightPool):
  def wait(self):
    raise ConnectionError('no worker')


class PassTest(parameterized.TestCase):
  @parameterized.parameters((1, 1, 1), (3, 20, 50), (10, 16, 16))
  def test_light_workers_count_each_client_once(
    self, workers, portions, clients
  ):
    # The pass itself raises where the count is wrong.
    ray = light_workers.InstantRay()
    seconds, jobs = cluster_costs._pass_secs(
      ray, ray.actors(workers), portions, clients, 1
    )
    self.assertGreater(seconds, 0)
    self.assertBetween(jobs, portions, 2 * portions - 1)
    if workers == 1:
      self.assertEqual(jobs, portions)

  def test_a_wrong_count_is_seen(self):
    ray = light_workers.InstantRay()
    with mock.patch.object(
      light_workers.LightWorker, 'take', lambda *unused: (None, [7])
    ):
      with self.assertRaisesRegex(RuntimeError, 'not counted all'):
        cluster_costs._pass_secs(ray, ray.actors(1), 4, 4, 1)

  def test_a_round_puts_its_weights_into_the_store_and_nothing_as_large(self):
    ray = _RecordingRay()
    context = context_lib.ClusterContext(
      ray,
      _NoWorker([]),
      graphs.Options.on(['CPU:0'], 'float32'),
      4,
      0,
    )
    parameters = 50 * driver_costs.INPUTS
    process = driver_costs.dense_process(parameters)
    with tff.framework.get_context_stack().install(context):
      state = process.initialize()
      data = cluster_traffic.datasets(4)
      with self.assertRaisesRegex(pool.ClusterError, 'no worker'):
        process.next(state, data)
    weights = [size for size in ray.sizes if size >= 4 * parameters]
    self.assertLen(weights, 1)
    self.assertLess(weights[0], 4 * parameters + 10_000)


class DiaryTest(absltest.TestCase):
  def test_names_the_processes_that_have_loaded_several_clients(self):
    path = pathlib.Path(self.create_tempdir().full_path, 'diary')
    diary = cluster_costs.Diary(str(path))
    with mock.patch.object(cluster_costs, '_CLIENT_SECS', 0):
      load = diary.open()
      for client in range(9):
        self.assertIsNone(cluster_costs._busy(path) if client else None)
        load(client)
    own = cluster_costs.os.getpid()
    self.assertEqual(
      cluster_costs._entries(path), [(client, own) for client in range(9)]
    )
    self.assertIsNone(cluster_costs._busy(path))
    with open(path, 'a', encoding='utf-8') as file:
      file.writelines(f'{client} 1\n' for client in range(9))
      file.write('10 ')  # A line that is being written.
    self.assertEqual(cluster_costs._busy(path), {1, own})


class HostsTest(absltest.TestCase):
  def test_reads_the_counters_of_the_link(self):
    text = (
      'Inter-|   Receive                       |  Transmit\n'
      ' face |bytes packets errs drop fifo frame compressed multicast|bytes\n'
      '    lo:       9       1    0    0    0     0          0         0   8 1\n'
      ' link0: 1234567     890    1    2    3     4          5         6 77 1\n'
    )
    self.assertEqual(cluster_hosts.parse_link_bytes(text), (1_234_567, 77))
    with self.assertRaisesRegex(ValueError, 'link0'):
      cluster_hosts.parse_link_bytes(text.replace('link0', 'eth0'))


class ClientSizesTest(absltest.TestCase):
  def test_sigma_is_that_of_a_lognormal(self):
    rng = np.random.default_rng(0)
    for sigma in (0.2, 0.8):
      sizes = rng.lognormal(3.0, sigma, 400_000)
      self.assertAlmostEqual(client_sizes.sigma(sizes), sigma, delta=0.01)
    self.assertEqual(client_sizes.sigma(np.full(5, 7)), 0.0)


if __name__ == '__main__':
  absltest.main()
