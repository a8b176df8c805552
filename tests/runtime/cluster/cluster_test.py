"""The cluster runtime on real nodes that are killed, started and left alone."""

import collections
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import psutil
import tensorflow as tf
import tensorflow_federated as tff

from tests.runtime.cluster import nodes
from tests.runtime.cluster import sources
from tff_medical import _validate
from tff_medical import runtime
from tff_medical.program import recipe_feeds
from tff_medical.runtime import cluster as cluster_lib
from tff_medical.runtime import precision
from tff_medical.runtime import recipes
from tff_medical.runtime.cluster import gathering
from tff_medical.runtime.cluster import pool as pool_lib
from tff_medical.runtime.cluster import portions
from tff_medical.runtime.cluster import signs
from tff_medical.runtime.cluster import versions

_NUMBERS = tff.SequenceType(tff.TensorType(np.int64, [None]))
_ROOT = pathlib.Path(__file__).resolve().parents[3]


@tff.tensorflow.computation(_NUMBERS)
def _bit(numbers):
  """Returns the power of two of a client's number."""
  return numbers.reduce(
    tf.constant(0, tf.int64),
    lambda total, n: total + tf.bitwise.left_shift(tf.ones([], tf.int64), n[0]),
  )


@tff.federated_computation(tff.FederatedType(_NUMBERS, tff.CLIENTS))
def _bits(numbers):
  """Adds one bit a client: a client that counts twice, or never, is seen."""
  return tff.federated_sum(tff.federated_map(_bit, numbers))


def cohort(source, clients):
  spec = tf.TensorSpec([None], tf.int64)
  return [
    recipes.recipe_dataset(recipes.Recipe(source, number), spec)
    for number in range(clients)
  ]


def run_in(context, comp, *args):
  with tff.framework.get_context_stack().install(context):
    return comp(*args)


class InBackground:
  """A computation in a thread."""

  def __init__(self, context, comp, *args):
    self._result = None
    self._error = None

    def run():
      try:
        self._result = run_in(context, comp, *args)
      except Exception as error:  # noqa: BLE001 - raised by `result`
        self._error = error

    self._thread = threading.Thread(target=run)
    self._thread.start()

  def result(self):
    self._thread.join(240)
    if self._error is not None:
      raise self._error
    return self._result


class ClusterTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls._cluster = cls.enter_context(nodes.cluster(workers=2))
    cls._shared = None

  def setUp(self):
    super().setUp()
    while len(self._alive()) < 2:
      self._cluster.add(1)
    if self._shared is None:
      type(self)._shared = nodes.context(self._cluster)
    self._context = self._shared
    self._folder = self.create_tempdir().full_path

  def _alive(self):
    """Returns the worker nodes that were not stopped."""
    return [node for node in self._cluster.nodes[1:] if node.poll() is None]

  def _close(self):
    """Gives the resources of the nodes to somebody else."""
    self._context.close()
    type(self)._shared = None

  def _open(self):
    (pathlib.Path(self._folder) / 'open').touch()

  def _is_loaded(self, number):
    return any(n == number for n, _ in sources.loaded(self._folder))

  def _started(self, *waits, clients=60):
    """Starts a round and returns it while the clients `waits` are loaded."""
    source = sources.Gated(self._folder, waits=waits)
    self.addCleanup(self._open)
    work = InBackground(self._context, _bits, cohort(source, clients))
    self.assertTrue(nodes.wait_until(lambda: all(map(self._is_loaded, waits))))
    return work

  def _both_work(self):
    """Runs a round; returns whether two workers had clients."""
    source = sources.Gated(self.create_tempdir().full_path)
    run_in(self._context, _bits, cohort(source, 60))
    return len({pid for _, pid in sources.loaded(source.folder)}) == 2

  def test_a_killed_worker(self):
    # Clients 0 and 40 are in the blocks of different workers.
    work = self._started(0, 40)
    pid = next(p for n, p in sources.loaded(self._folder) if n == 40)
    before = len(sources.loaded(self._folder))
    nodes.kill(pid)
    self._open()
    self.assertEqual(work.result(), 2**60 - 1)
    # What the worker had done was done again.
    self.assertGreater(len(sources.loaded(self._folder)), 60)
    self.assertGreater(before, 2)

  def test_a_killed_node(self):
    work = self._started(0, 40)
    pid = next(p for n, p in sources.loaded(self._folder) if n == 40)
    node = next(
      n for n in self._alive() if pid in nodes.worker_pids(self._cluster, n)
    )
    self._cluster.stop(node)
    self._open()
    self.assertEqual(work.result(), 2**60 - 1)
    self.assertEqual(self._context.workers, 1)
    # The next round is run by the node that is left, then by a new one, too.
    empty = sources.Gated(self.create_tempdir().full_path)
    self.assertEqual(run_in(self._context, _bits, cohort(empty, 60)), 2**60 - 1)
    self._cluster.add(1)
    self.assertTrue(nodes.wait_until(self._both_work))

  def test_a_late_worker_does_not_hold_the_round(self):
    self.addCleanup(self._open)
    held = sources.Gated(self._folder, waits_once=(40,))
    self.assertEqual(run_in(self._context, _bits, cohort(held, 60)), 2**60 - 1)
    # Its first process still waits at client 40. What it had done before counts.
    pids = [pid for n, pid in sources.loaded(self._folder) if n == 40]
    self.assertLen(pids, 2)
    loaded = collections.Counter(n for n, _ in sources.loaded(self._folder))
    self.assertLess(sum(count > 1 for count in loaded.values()), 10)
    # Nor does it hold the next round.
    later = sources.Gated(self.create_tempdir().full_path)
    self.assertEqual(run_in(self._context, _bits, cohort(later, 60)), 2**60 - 1)
    self._open()
    self.assertTrue(nodes.wait_until(self._both_work))
    self.assertEqual(self._context.workers, 2)

  def test_a_worker_that_stands_still_is_given_up(self):
    work = self._started(0, 40)
    pid = next(p for n, p in sources.loaded(self._folder) if n == 40)
    later = cohort(sources.Gated(self.create_tempdir().full_path), 60)

    def is_given_up():
      # However short the rounds are.
      self.assertEqual(run_in(self._context, _bits, later), 2**60 - 1)
      return not psutil.pid_exists(pid)

    with (
      mock.patch.object(signs, '_ASK_SECS', 0.5),
      mock.patch.object(signs, '_SILENT_SECS', 3.0),
    ):
      os.kill(pid, signal.SIGSTOP)
      self._open()
      self.assertEqual(work.result(), 2**60 - 1)
      self.assertTrue(nodes.wait_until(is_given_up))

  def test_no_node_left(self):
    self._close()
    context = nodes.context(self._cluster)
    self.addCleanup(context.close)
    import ray  # Not before a cluster has set its variables.

    for node in self._alive():
      self._cluster.stop(node)
    self.assertTrue(
      nodes.wait_until(lambda: sum(node['Alive'] for node in ray.nodes()) == 1)
    )
    data = cohort(sources.Gated(self._folder), 10)
    with mock.patch.object(
      context._pool,
      '_options',
      pool_lib.WorkerOptions(None, 'float32', 3.0),
    ):
      with self.assertRaisesRegex(cluster_lib.ClusterError, 'no node with a'):
        run_in(context, _bits, data)
    self._cluster.add(1)
    self.assertEqual(run_in(context, _bits, data), 2**10 - 1)

  def test_a_client_that_kills_workers(self):
    source = sources.Gated(self._folder, dies=(7,))
    with mock.patch.object(gathering, '_MAX_LOSSES', 1):
      with self.assertRaisesRegex(
        cluster_lib.ClusterError, 'workers died with clients 7 to 8'
      ):
        run_in(self._context, _bits, cohort(source, 60))

  def test_random_kills_change_no_bit(self):
    rng = np.random.default_rng(0)
    data = [
      runtime.tensor_dataset(
        {
          'x': rng.normal(size=(n, 5)).astype(np.float32),
          'y': rng.integers(3, size=n),
        },
        batch_size=4,
      )
      for n in rng.integers(1, 30, size=40)
    ]
    spec = data[0].element_spec

    def model():
      network = tf.keras.Sequential(
        [tf.keras.layers.Dense(3, input_shape=(5,), kernel_initializer='ones')]
      )
      return tff.learning.models.functional_model_from_keras(
        network,
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        spec,
      )

    process = tff.learning.algorithms.build_unweighted_fed_avg(
      model(),
      tff.learning.optimizers.build_sgdm(0.1),
      tff.learning.optimizers.build_sgdm(0.1, 0.9),
    )
    chosen = np.random.default_rng(1)

    def train(context, rounds, kills):
      """Returns the weights after rounds in which workers are killed."""
      with tff.framework.get_context_stack().install(context):
        state = process.initialize()
        for number in range(rounds):
          stop = threading.Event()

          def kill(number=number, stop=stop):
            stop.wait(chosen.uniform(0, 0.3))
            pids = nodes.worker_pids(self._cluster)
            if number in kills and pids:
              nodes.kill(chosen.choice(pids))

          thread = threading.Thread(target=kill)
          thread.start()
          state = process.next(state, data).state
          stop.set()
          thread.join()
        return process.get_model_weights(state).trainable

    undisturbed = train(self._context, 10, kills=())
    disturbed = train(self._context, 10, kills=(0, 3, 5, 8))
    local = train(runtime.create_local_context(client_threads=1), 10, kills=())
    for a, b, c in zip(undisturbed, disturbed, local):
      np.testing.assert_array_equal(a, b)
      np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)

  def test_portions_wait_for_the_workers_that_had_them(self):
    source = sources.Gated(self._folder)
    run_in(self._context, _bits, cohort(source, 60))
    (homes,) = self._context._homes[self._context._compiled(_bits)].values()
    self.assertLen(homes, self._context.portions)
    before = dict(homes)
    with mock.patch.object(
      portions, 'Assignment', wraps=portions.Assignment
    ) as assignment:
      run_in(self._context, _bits, cohort(source, 60))
    self.assertEqual(assignment.call_args.args[1], before)

  def test_data_that_no_node_has_is_refused(self):
    self._close()
    context = nodes.context(self._cluster)
    self.addCleanup(context.close)
    missing = sources.Gated(f'{self._folder}/missing', needs_folder=True)
    with self.assertRaisesRegex(
      _validate.InputError, r'node \S+: FileNotFoundError.*missing'
    ):
      context.open(missing)

  def test_errors_name_the_client_of_the_cohort(self):
    @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
    def check(values):
      checked = tff.tensorflow.computation(
        lambda x: tf.debugging.check_numerics(x, 'not a number'), np.float32
      )
      return tff.federated_sum(tff.federated_map(checked, values))

    values = [0.0] * 50
    values[33] = float('nan')
    with self.assertRaises(runtime.ClientError) as raised:
      run_in(self._context, check, values)
    self.assertEqual(raised.exception.client_index, 33)
    self.assertIn('not a number', str(raised.exception))
    self.assertEqual(run_in(self._context, check, [1.0] * 50), 50.0)

  def test_nothing_of_a_client_is_in_the_files_of_the_cluster(self):
    secret = 'patient-4711-of-ward-3'
    good = sources.Gated(self._folder, secret=secret)
    run_in(self._context, _bits, cohort(good, 20))
    bad = sources.Gated(self._folder, secret=secret, fails=(3,))
    with self.assertRaisesRegex(runtime.ComputationError, secret):
      run_in(self._context, _bits, cohort(bad, 20))
    self._assert_not_in_files(secret)

  def _assert_not_in_files(self, secret):
    """Checks that no file of the cluster holds a text."""
    files = [
      path
      for path in pathlib.Path(self._cluster.folder).rglob('*')
      if path.is_file() and not path.is_symlink()
    ]
    self.assertNotEmpty([path for path in files if path.suffix == '.log'])
    for path in files:
      self.assertNotIn(secret.encode(), path.read_bytes(), path)

  def test_the_driver_says_which_clients_a_worker_cannot_read(self):
    secret = '/ward-4/patient-0815'
    source = sources.Wards(damaged=(3, 7, 8), secret=secret)
    feed = recipe_feeds.RecipeFeed(sources.Wards().feed(), source)
    self._context.open(source, feed.note)
    data_type = tff.SequenceType(
      tff.types.tensorflow_to_type(feed.element_spec)
    )

    @tff.tensorflow.computation(data_type)
    def labels(data):
      return data.reduce(np.int64(0), lambda total, b: total + b['y'][0])

    @tff.federated_computation(tff.FederatedType(data_type, tff.CLIENTS))
    def total(data):
      return tff.federated_sum(tff.federated_map(labels, data))

    everybody = np.arange(12)
    with self.assertLogs(level='WARNING') as expected:
      source.feed()(everybody)
    with self.assertLogs(level='WARNING') as actual:
      self.assertEqual(
        run_in(self._context, total, feed(everybody)), sum(range(12)) - 18
      )
    self.assertEqual(sorted(actual.output), sorted(expected.output))
    self.assertIn(secret, actual.output[0])
    self._assert_not_in_files(secret)

  @absltest.skipUnless(
    os.geteuid() == 0 and shutil.which('setpriv'), 'only root is another user'
  )
  def test_other_users_cannot_read_what_is_spilled(self):
    run_in(self._context, _bits, cohort(sources.Gated(self._folder), 2))
    folders = [
      *pathlib.Path(self._cluster.folder).glob('*/session_2*/ray_spilled*')
    ]
    # Each node has a folder, that of the driver as well, which has no worker.
    self.assertGreaterEqual(len(folders), 3)
    for folder in folders:
      self.assertEqual(folder.stat().st_mode & 0o777, 0o700)
    # Nothing else keeps others out.
    self._cluster.folder.chmod(0o755)
    self.addCleanup(self._cluster.folder.chmod, 0o700)
    import ray  # Not before a cluster has set its variables.

    arrays = [
      np.frombuffer(secrets.token_bytes(16) * 2**21, np.uint8) for _ in range(5)
    ]
    refs = [ray.put(array) for array in arrays]  # Twice the store of a node.

    def spilled():
      return [path for folder in folders for path in folder.iterdir()]

    self.assertTrue(nodes.wait_until(spilled))
    for folder in folders:
      self.assertEqual(folder.stat().st_mode & 0o777, 0o700)
    path = spilled()[0]

    def nobody_can_read():
      return subprocess.run(
        [
          *('setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'),
          *('head', '-c1', path),
        ],
        check=False,
        capture_output=True,
      )

    self.assertIn(b'Permission denied', nobody_can_read().stderr)
    path.parent.chmod(0o755)
    self.addCleanup(path.parent.chmod, 0o700)
    self.assertEqual(nobody_can_read().returncode, 0)
    for ref, array in zip(refs, arrays):
      np.testing.assert_array_equal(ray.get(ref), array)

  def test_workers_end_with_a_killed_driver(self):
    self._close()
    program = textwrap.dedent(f"""
        import time
        from tff_medical.runtime import cluster
        context = cluster.create_cluster_context({self._cluster.address!r})
        print('ready', flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen(
      [sys.executable, '-c', program],
      stdout=subprocess.PIPE,
      cwd=_ROOT,
      env={**os.environ, 'PYTHONPATH': str(_ROOT)},
    ) as driver:
      self.assertEqual(driver.stdout.readline(), b'ready\n')
      pids = nodes.worker_pids(self._cluster)
      self.assertLen(pids, 2)
      driver.send_signal(signal.SIGKILL)
    self.assertTrue(
      nodes.wait_until(
        lambda: not any(map(psutil.pid_exists, pids)), seconds=30
      )
    )

  def test_nodes_with_other_code_are_refused(self):
    self._close()
    with (
      mock.patch.object(versions, '_digest_of_code', return_value='another'),
      self.assertRaisesRegex(
        _validate.InputError, 'tff_medical .* and another; install the same'
      ),
    ):
      nodes.context(self._cluster)

  def test_nodes_that_cannot_compute_so_are_refused(self):
    self._close()
    # No node of this test has a processor for which TensorFlow has float16.
    with (
      mock.patch.object(
        precision, 'PRECISIONS', (*precision.PRECISIONS, 'float16')
      ),
      self.assertRaisesRegex(_validate.InputError, 'float16'),
    ):
      nodes.context(self._cluster, precision='float16')

  @parameterized.parameters(
    ({'worker_cores': 0}, 'worker_cores'),
    ({'worker_cores': 2}, 'worker_cores must be at most 1'),
    ({'portions_at_most': 0}, 'portions_at_most'),
    ({'precision': 'float64'}, 'precision'),
  )
  def test_wrong_arguments(self, arguments, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      nodes.context(self._cluster, **arguments)


if __name__ == '__main__':
  absltest.main()
