"""Tests of joining a real Ray cluster, and of what refuses it."""

import os
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import psutil

from tests import ray_clusters
from tff_medical import _validate
from tff_medical.runtime.cluster import connection

_ROOT = pathlib.Path(__file__).resolve().parents[3]
# This program joins, runs a task that prints, and says what it kept.
_JOIN = """
import signal, sys
from tff_medical import _validate
from tff_medical.runtime.cluster import connection
mine = lambda *unused: None
signal.signal(signal.SIGTERM, mine)
try:
  ray = connection.connect(sys.argv[1])
except _validate.InputError as error:
  sys.exit(f'error: {error}')
assert connection.connect(sys.argv[1]) is ray
assert signal.getsignal(signal.SIGTERM) is mine
assert 'tensorflow' not in sys.modules
@ray.remote
def work():
  print('a line of a worker')
  return 6 * 7
print(ray.get(work.remote()))
try:
  connection.connect('elsewhere:1')
except _validate.InputError as error:
  print(error)
"""
# This program loses a worker, and waits for what Ray has to say.
_LOSE = """
import os, sys, time
from tff_medical.runtime.cluster import connection
ray = connection.connect(sys.argv[1])
@ray.remote(max_retries=0)
def work():
  os.kill(os.getpid(), 9)
try:
  ray.get(work.remote())
except ray.exceptions.WorkerCrashedError:
  print('lost')
time.sleep(2)
"""
# This program gets a signal while it joins, and another one afterwards.
_SIGNALLED = """
import os, signal, sys
import ray._private.worker
from tff_medical.runtime.cluster import connection
got = []
signal.signal(signal.SIGTERM, lambda *unused: got.append(1))
join = ray._private.worker.connect
def join_after_a_signal(*args, **options):
  os.kill(os.getpid(), signal.SIGTERM)
  return join(*args, **options)
ray._private.worker.connect = join_after_a_signal
connection.connect(sys.argv[1])
os.kill(os.getpid(), signal.SIGTERM)
print('signals:', len(got))
"""
# The first program in a process whose Ray is another version.
_OTHER_VERSION = f"""
import ray
ray.__version__ = '2.0.1'
{_JOIN}
"""


_with_tokens = absltest.skipUnless(
  ray_clusters.has_tokens(), 'Ray knows no tokens before 2.52'
)
_LOOPBACK = 'RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'


def _run(address, program=_JOIN, **environment):
  kept = {n: v for n, v in os.environ.items() if not n.startswith('RAY_')}
  kept[_LOOPBACK] = '0'
  return subprocess.run(
    [sys.executable, '-c', program, address],
    check=False,
    capture_output=True,
    cwd=_ROOT,
    env={**kept, **environment},
    text=True,
    timeout=120,
  )


class AddressTest(parameterized.TestCase):
  @parameterized.parameters(
    '', 'host', 'ray://', 'ray://host', 'host:', ':6379', 'host:0', 'host:65536'
  )
  def test_refuses_what_is_no_address(self, address):
    with self.assertRaisesRegex(_validate.InputError, 'cluster_address'):
      connection.connect(address)

  def test_a_broken_ray_is_no_traceback(self):
    folder = pathlib.Path(self.create_tempdir().full_path, 'ray')
    folder.mkdir()
    (folder / '__init__.py').write_text('raise ImportError("no driver.so")')
    with (
      absltest.mock.patch.object(sys, 'path', [str(folder.parent)]),
      absltest.mock.patch.dict(sys.modules),
      self.assertRaisesRegex(
        _validate.InputError,
        r'ray, which is broken \(no driver.so\): pip install --no-deps -r req',
      ),
    ):
      sys.modules.pop('ray', None)
      connection.connect('127.0.0.1:1')

  def test_without_ray_the_remedy_is_named(self):
    with (
      absltest.mock.patch.dict(sys.modules, {'ray': None}),
      self.assertRaisesRegex(
        _validate.InputError,
        'ray, which is not installed: pip install --no-deps -r requirements-cl',
      ),
    ):
      connection.connect('127.0.0.1:1')


@absltest.skipUnless(ray_clusters.is_installed(), 'Ray is not installed')
class ClusterTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.cluster = ray_clusters.Cluster(1).__enter__()
    cls.addClassCleanup(cls.cluster.__exit__)

  def _refused(self, done, *parts):
    """Checks that there is one line, with all parts."""
    self.assertEqual(done.returncode, 1, done.stderr)
    self.assertEqual(done.stdout, '')
    (line,) = done.stderr.splitlines()
    for part in parts:
      self.assertIn(part, line)

  @parameterized.parameters('address', 'client_address', 'auto')
  def test_joins_quietly_and_once(self, kind):
    environment = dict(self.cluster.environment)
    address = getattr(self.cluster, kind, kind)
    if kind == 'auto':
      environment['RAY_ADDRESS'] = self.cluster.address
    done = _run(address, **environment)
    self.assertEqual((done.returncode, done.stderr), (0, ''))
    answer, refusal = done.stdout.splitlines()
    self.assertEqual(answer, '42')
    self.assertIn('use one cluster a process', refusal)

  def test_a_lost_worker_prints_nothing(self):
    done = _run(self.cluster.address, _LOSE, **self.cluster.environment)
    self.assertEqual((done.stdout, done.stderr), ('lost\n', ''))

  @_with_tokens
  def test_signals_are_those_of_the_process(self):
    done = _run(self.cluster.address, _SIGNALLED, **self.cluster.environment)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(done.stdout, 'signals: 2\n')

  def test_uses_a_token_without_being_told_the_mode(self):
    path = str(self.cluster.token_file)
    done = _run(self.cluster.address, RAY_AUTH_TOKEN_PATH=path)
    self.assertEqual((done.returncode, done.stderr), (0, ''))

  @_with_tokens
  def test_a_ray_that_was_imported_before_learns_of_the_token(self):
    path = str(self.cluster.token_file)
    program = f'import ray\n{_JOIN}'
    done = _run(self.cluster.address, program, RAY_AUTH_TOKEN_PATH=path)
    self.assertEqual((done.returncode, done.stderr), (0, ''))

  @parameterized.parameters('address', 'client_address')
  @_with_tokens
  def test_refuses_a_wrong_or_missing_token(self, kind):
    address = getattr(self.cluster, kind)
    done = _run(address, RAY_AUTH_TOKEN='0' * 64)
    self._refused(done, 'another token', 'RAY_AUTH_TOKEN_PATH')
    done = _run(address, RAY_AUTH_TOKEN_PATH='/no/such/file')
    self._refused(done, 'this process has none', 'RAY_AUTH_TOKEN_PATH')

  def test_listens_on_loopback_alone(self):
    listening = {
      connection.laddr.ip.removeprefix('::ffff:')
      for process in self.cluster.processes()
      for connection in process.net_connections('tcp')
      if connection.status == psutil.CONN_LISTEN
    }
    self.assertEqual(listening, {'127.0.0.1'})

  def test_names_the_variable_of_a_cluster_on_loopback(self):
    environment = {**self.cluster.environment, _LOOPBACK: '1'}
    done = _run(self.cluster.address, **environment)
    self._refused(done, f'{_LOOPBACK}=0')

  @parameterized.parameters('127.0.0.1', 'ray://127.0.0.1')
  def test_refuses_where_nobody_listens(self, host):
    port = ray_clusters.free_port()
    done = _run(f'{host}:{port}', **self.cluster.environment)
    self._refused(done, 'refused', f'{host}:{port}', 'ray start --head')

  def test_refuses_the_port_of_another_service(self):
    client_port = self.cluster.client_address.rpartition(':')[2]
    host = self.cluster.address.rpartition(':')[0]
    done = _run(f'{host}:{client_port}', **self.cluster.environment)
    self._refused(done, 'not the port', '--port')
    done = _run(f'ray://{self.cluster.address}', **self.cluster.environment)
    self._refused(done, 'not the port', '--ray-client-server-port')

  @parameterized.parameters('address', 'client_address')
  def test_refuses_another_version_of_ray(self, kind):
    address = getattr(self.cluster, kind)
    done = _run(address, _OTHER_VERSION, **self.cluster.environment)
    self._refused(done, '2.0.1', 'requirements-cluster.txt')

  def test_silence_is_no_cluster(self):
    with ray_clusters.socket.create_server(('127.0.0.1', 0)) as silent:
      port = silent.getsockname()[1]
      done = _run(f'127.0.0.1:{port}', **self.cluster.environment)
    self._refused(done, 'no answer of Ray', 'ray start')


@absltest.skipUnless(ray_clusters.is_installed(), 'Ray is not installed')
class OpenClusterTest(absltest.TestCase):
  def test_a_cluster_without_tokens_must_be_asked_for(self):
    with ray_clusters.Cluster(1, mode='disabled') as cluster:
      for address in (cluster.address, cluster.client_address):
        for path in ('/no/such/file', str(cluster.token_file)):
          done = _run(address, RAY_AUTH_TOKEN_PATH=path)
          self.assertEqual(done.returncode, 1, done.stdout)
          self.assertIn('RAY_AUTH_MODE=disabled', done.stderr)
        done = _run(address, RAY_AUTH_MODE='disabled')
        self.assertEqual((done.returncode, done.stderr), (0, ''))


if __name__ == '__main__':
  absltest.main()
