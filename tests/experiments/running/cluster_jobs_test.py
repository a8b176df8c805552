"""Tests of jobs on a real Ray cluster of two nodes."""

import io
import os
import pathlib
import subprocess
import sys
import tarfile
import time

from absl.testing import absltest
from absl.testing import parameterized
import psutil

from experiments.running import cluster_jobs
from experiments.running import jobs
from experiments.running import node
from tests import ray_clusters
from tff_medical import _validate

_ROOT = pathlib.Path(__file__).resolve().parents[3]
# A job that counts its starts here, writes into its run folder there, and goes
# on when it may.
_WORK = """
import os, pathlib, sys, time
folder = pathlib.Path([a for a in sys.argv if a.startswith('--out')][0][6:])
assert pathlib.Path.cwd().parent in pathlib.Path(os.environ['TMPDIR']).parents
steps, gate = int(sys.argv[1]), pathlib.Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
table = folder / 'table'
done = len(table.read_text().splitlines()) if table.exists() else 0
print(f'begins at {done}', flush=True)
with open(gate.with_name('starts'), 'a') as starts:
  starts.write(f'{os.getpid()} {pathlib.Path.cwd()}\\n')
try:
  for step in range(done, steps):
    with open(table, 'a') as file:
      file.write(f'{step}\\n')
    while step == 1 and not gate.exists():
      time.sleep(0.02)
except KeyboardInterrupt:
  (folder / 'saved').touch()
  sys.exit(130)
(folder / 'secret').write_text('kept')
(folder / 'secret').chmod(0o640)
print(f'{steps} steps')
sys.exit(int(sys.argv[3]))
"""


def _wait_for(condition, secs=60):
  until = time.monotonic() + secs
  while not condition():
    if time.monotonic() > until:
      raise AssertionError('it did not come to pass')
    time.sleep(0.02)


@absltest.skipUnless(ray_clusters.is_installed(), 'Ray is not installed')
class ClusterJobsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.ray_cluster = ray_clusters.Cluster.of_class(cls, 1, 1)
    cls.cluster = cluster_jobs.Cluster.join(cls.ray_cluster.address)
    cls.addClassCleanup(cls.cluster.ray.shutdown)

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.gate = self.folder / 'gate'

  def _job(self, name, steps=3, code=0, **more):
    run = self.folder / 'cells' / name
    command = [sys.executable, '-c', _WORK, str(steps), str(self.gate)]
    return jobs.Job(
      name,
      [*command, str(code), f'--out={run}'],
      self.folder / 'logs' / f'{name}.log',
      folder=run,
      progress_file='table',
      **more,
    )

  def _run(self, todo, on_poll=lambda lines: None, count=None):
    codes = {}
    jobs.run(
      todo,
      self.cluster.slots(count),
      on_end=lambda job, code: codes.update({job.name: code}),
      on_poll=on_poll,
    )
    return codes

  def _starts(self):
    """Returns the process and the working directory of each start so far."""
    try:
      lines = (self.folder / 'starts').read_text().splitlines()
    except FileNotFoundError:
      return []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]

  def _nothing_is_left(self):
    for _, path in self._starts():
      _wait_for(lambda p=path: not os.path.exists(p))

  def test_what_a_job_leaves_comes_back(self):
    self.gate.touch()
    codes = self._run([self._job('good'), self._job('bad', code=3)])
    self.assertEqual(codes, {'good': 0, 'bad': 3})
    for name in codes:
      run = self.folder / 'cells' / name
      self.assertEqual((run / 'table').read_text(), '0\n1\n2\n')
      self.assertEqual((run / 'secret').stat().st_mode & 0o777, 0o640)
      log = (self.folder / 'logs' / f'{name}.log').read_text()
      self.assertEqual(log, 'begins at 0\n3 steps\n')
    self._nothing_is_left()
    self.assertCountEqual(
      [p.name for p in (self.folder / 'cells').iterdir()], codes
    )

  def test_runs_in_a_private_folder_and_tells_its_progress(self):
    seen, modes = set(), set()

    def on_poll(lines):
      seen.update(lines.values())
      for _, path in self._starts() if lines else ():
        modes.add(pathlib.Path(path).parent.stat().st_mode & 0o777)
        self.assertFalse((self.folder / 'cells').exists())
        if 2 in seen:
          self.gate.touch()

    self._run([self._job('cell')], on_poll)
    self.assertEqual(modes, {0o700})
    self.assertIn(2, seen)

  def test_side_by_side_on_two_nodes(self):
    running = set()

    def on_poll(lines):
      running.add(len(self._starts()))
      if 2 in running:
        self.gate.touch()

    self.assertEqual(
      self._run([self._job('a'), self._job('b')], on_poll), {'a': 0, 'b': 0}
    )

  def test_from_a_machine_outside_the_cluster(self):
    self.gate.touch()
    job = self._job('cell')
    program = (
      'import pathlib, sys\n'
      'from experiments.running import cluster_jobs, jobs\n'
      'cluster = cluster_jobs.Cluster.join(sys.argv[1])\n'
      'cluster.check(cluster_jobs.Needs())\n'
      'folder, log = map(pathlib.Path, sys.argv[2:4])\n'
      'job = jobs.Job("cell", sys.argv[4:], log, folder, "table")\n'
      'jobs.run([job], cluster.slots(None), on_end=lambda j, c: print(c))\n'
    )
    arguments = map(str, (job.folder, job.log, *job.command))
    address = self.ray_cluster.client_address
    done = subprocess.run(
      [sys.executable, '-c', program, address, *arguments],
      check=False,
      capture_output=True,
      cwd=_ROOT,
      text=True,
      timeout=120,
    )
    self.assertEqual((done.stdout, done.stderr), ('0\n', ''))
    self.assertEqual((job.folder / 'table').read_text(), '0\n1\n2\n')

  def test_a_job_goes_on_with_its_run_folder(self):
    run = self.folder / 'cells' / 'cell'
    run.mkdir(parents=True)
    (run / 'table').write_text('0\n1\n')
    (run / 'stale').touch()
    self.gate.touch()
    self._run([self._job('cell')])
    self.assertEqual((run / 'table').read_text(), '0\n1\n2\n')
    self.assertTrue((run / 'stale').exists())  # It went there and came back.
    log = (self.folder / 'logs' / 'cell.log').read_text()
    self.assertIn('begins at 2', log)

  @parameterized.parameters(False, True)
  def test_a_killed_worker_costs_its_job_no_more_than_a_start(self, is_shared):
    killed = []

    def on_poll(lines):
      del lines
      starts = self._starts()
      if starts and not killed:
        # The process of the actor, which is the training's parent.
        actor = psutil.Process(starts[0][0]).parent()
        training = psutil.Process(starts[0][0])
        killed.append(actor.pid)
        actor.kill()
        training.wait(60)  # The kernel kills it.
        self.gate.touch()

    codes = self._run([self._job('cell', is_shared=is_shared)], on_poll)
    self.assertEqual(codes, {'cell': 0})
    run = self.folder / 'cells' / 'cell'
    self.assertEqual((run / 'table').read_text(), '0\n1\n2\n')
    self.assertLen(self._starts(), 2)
    self.assertFalse(psutil.pid_exists(self._starts()[0][0]))
    log = (self.folder / 'logs' / 'cell.log').read_text()
    if is_shared:
      self.assertIn('another goes on\nbegins at 2\n', log)
    else:
      self.assertIn('it begins again\nbegins at 0\n', log)
      self.assertEqual(
        log.count('begins at'), 1
      )  # The other is seen by nobody.
    self._nothing_is_left()

  def test_a_job_that_is_lost_again_and_again_fails(self):
    def on_poll(lines):
      del lines
      for pid, _ in self._starts():
        if psutil.pid_exists(pid):
          psutil.Process(pid).parent().kill()

    codes = self._run([self._job('cell')], on_poll)
    self.assertEqual(codes, {'cell': 1})
    log = (self.folder / 'logs' / 'cell.log').read_text()
    self.assertIn('error: lost 3 times', log.splitlines()[-1])
    self.assertFalse((self.folder / 'cells' / 'cell').exists())

  def test_an_interrupt_brings_back_what_was_saved(self):
    def on_poll(lines):
      if 2 in lines.values():
        raise KeyboardInterrupt

    with self.assertRaises(KeyboardInterrupt):
      self._run([self._job('cell'), self._job('next')], on_poll, count=1)
    run = self.folder / 'cells' / 'cell'
    self.assertTrue((run / 'saved').exists())
    self.assertEqual((run / 'table').read_text(), '0\n1\n')
    self.assertLen(self._starts(), 1)
    self._nothing_is_left()
    self.gate.touch()
    self.assertEqual(self._run([self._job('cell')]), {'cell': 0})
    self.assertEqual((run / 'table').read_text(), '0\n1\n2\n')

  def test_a_replacement_that_was_cut_in_two_is_mended(self):
    cells = self.folder / 'cells'
    (cells / '.cell.old').mkdir(parents=True)
    (cells / '.cell.old' / 'table').write_text('0\n1\n')
    (cells / '.cell.partial').mkdir()
    self.gate.touch()
    job = self._job('cell')
    self._run([job])
    self.assertStartsWith(job.log.read_text(), 'begins at 2\n')
    self.assertEqual((cells / 'cell' / 'table').read_text(), '0\n1\n2\n')
    self.assertEqual([p.name for p in cells.iterdir()], ['cell'])

  def test_what_nodes_lack_is_found_before_anything_starts(self):
    self.cluster.check(cluster_jobs.Needs((str(_ROOT),), (str(self.folder),)))
    with (
      absltest.mock.patch.object(
        cluster_jobs.run_records, 'versions', return_value={'numpy': '0.1'}
      ),
      self.assertRaisesRegex(_validate.InputError, 'numpy .* has 0.1; install'),
    ):
      self.cluster.check(cluster_jobs.Needs())

  def test_a_node_that_lacks_something_fails_the_job_alone(self):
    self.gate.touch()
    job = self._job('cell')
    with absltest.mock.patch.object(
      cluster_jobs.run_records, 'versions', return_value={'numpy': '0.1'}
    ):
      self.assertEqual(self._run([job]), {'cell': 2})
    self.assertIn('error: the node', job.log.read_text())
    self.assertEmpty(self._starts())


class LackingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_inputs(self):
    missing = str(self.folder / 'images')
    self.assertIn(missing, node.lacking({}, [missing], {}))
    self.assertEqual(node.lacking({}, [str(self.folder)], {}), '')

  def test_versions(self):
    self.assertIn('python', node.lacking({'python': '2.7'}, [], {}))
    self.assertIn('not at all', node.lacking({'no-such': '1'}, [], {}))

  def test_a_folder_is_shared_if_its_locks_are(self):
    with cluster_jobs.Needs((), (str(self.folder),)).arguments() as arguments:
      self.assertEqual(node.lacking(*arguments), '')
      (path,) = arguments[2]
      self.assertIn('another file', node.lacking({}, [], {path: 'other'}))
      pathlib.Path(path).rename(self.folder / 'moved')
      self.assertIn('No such file', node.lacking(*arguments))
      pathlib.Path(path).write_text(arguments[2][path])  # As a copy would be.
      self.assertIn('locks do not reach', node.lacking(*arguments))

  def test_a_new_folder_is_shared_by_the_one_that_it_will_be_in(self):
    new = self.folder / 'new' / 'newer'
    with cluster_jobs.Needs((), (str(new),)).arguments() as arguments:
      (path,) = arguments[2]
      self.assertEqual(pathlib.Path(path).parent, self.folder)
    self.assertEmpty(list(self.folder.iterdir()))


class CoresTest(absltest.TestCase):
  def test_each_cell_of_a_node_has_a_core_until_there_are_no_more(self):
    folder = self.create_tempdir().full_path
    cores = sorted(os.sched_getaffinity(0))
    cells = [object.__new__(node.Cell) for _ in (*cores, None)]
    with absltest.mock.patch.object(
      node.tempfile, 'gettempdir', return_value=folder
    ):
      shares = [cell._cores() for cell in cells]
      self.assertEqual(shares, [*({core} for core in cores), {*cores}])
      cells[0]._core.close()  # As when its process ends.
      last = cells.pop()  # It has no core of its own.
      self.assertEqual(last._cores(), {cores[0]})
    for cell in (*cells, last):
      cell._core.close()


class UnpackTest(absltest.TestCase):
  def test_refuses_what_would_leave_the_folder(self):
    target = pathlib.Path(self.create_tempdir().full_path, 'run')
    for name, kind in (
      ('run/../../x', tarfile.REGTYPE),
      ('/etc/x', tarfile.REGTYPE),
      ('other/x', tarfile.REGTYPE),
      ('run/x', tarfile.SYMTYPE),
    ):
      archive = io.BytesIO()
      with tarfile.open(fileobj=archive, mode='w') as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, '/etc/passwd'
        tar.addfile(member)
      archive.seek(0)
      with self.assertRaisesRegex(ValueError, 'unexpected entry'):
        node.unpack(archive, {'run': target})
    self.assertFalse(target.exists())


if __name__ == '__main__':
  absltest.main()
