"""Tests of running commands side by side."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl.testing import absltest
from absl.testing import parameterized
import psutil

from experiments.running import jobs
from tff_medical import _validate
from tff_medical.program import ending

_ROOT = pathlib.Path(__file__).resolve().parents[3]
# This program waits for ever, and writes a file when it is interrupted.
_PATIENT = """
import pathlib, sys, time
try:
  pathlib.Path(sys.argv[1], 'started').touch()
  while True: time.sleep(0.05)
except KeyboardInterrupt:
  pathlib.Path(sys.argv[1], 'saved').touch()
"""


# This program gets a signal at the worst moment: the process of the call has
# just started, and waits for its task.
_SIGNALLED = """
import os, signal, sys, time
from multiprocessing import util
from experiments.running import jobs
from tff_medical.program import ending

spawn, signum = util.spawnv_passfds, signal.Signals(int(sys.argv[1]))

def spawn_and_end(path, arguments, fds):
  pid = spawn(path, arguments, fds)
  if 'spawn_main' in str(arguments):
    print(pid, flush=True)
    time.sleep(float(sys.argv[2]))
    os.killpg(0, signum) if signum is signal.SIGINT else signal.raise_signal(signum)
  return pid

util.spawnv_passfds = spawn_and_end
end = ending.End()
end.install()
try:
  jobs.call(time.sleep, 60)
except ending.Ended as error:
  print(signal.Signals(error.signum).name)
"""


def _wait_for(path):
  while not path.exists():
    time.sleep(0.02)


class JobsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.slots = jobs.slots(2, jobs.available_cores(), [])

  def _job(self, name, code):
    command = [sys.executable, '-c', code, str(self.folder)]
    return jobs.Job(name, command, self.folder / 'logs' / f'{name}.log')

  def _run(self, todo, slots=None, **more):
    codes = {}
    jobs.run(
      todo,
      slots or self.slots,
      on_end=lambda job, code: codes.update({job.name: code}),
      **more,
    )
    return codes

  def test_exit_codes_and_logs(self):
    codes = self._run(
      [
        self._job('good', 'print("hello")'),
        self._job(
          'bad', 'import sys; print("oh", file=sys.stderr); sys.exit(3)'
        ),
        self._job('third', ''),
      ]
    )
    self.assertEqual(codes, {'good': 0, 'bad': 3, 'third': 0})
    self.assertEqual((self.folder / 'logs' / 'good.log').read_text(), 'hello\n')
    self.assertEqual((self.folder / 'logs' / 'bad.log').read_text(), 'oh\n')

  def test_side_by_side(self):
    """Each of two jobs waits for the other."""
    code = (
      'import pathlib, sys, time\n'
      'folder = pathlib.Path(sys.argv[1])\n'
      '(folder / "{}").touch()\n'
      'while not (folder / "{}").exists(): time.sleep(0.02)'
    )
    codes = self._run(
      [
        self._job('a', code.format('a', 'b')),
        self._job('b', code.format('b', 'a')),
      ]
    )
    self.assertEqual(codes, {'a': 0, 'b': 0})

  def test_no_more_at_once_than_slots(self):
    seen = []
    self._run(
      [self._job(name, '') for name in 'abc'],
      self.slots[:1],
      on_poll=lambda names: seen.append(len(names)),
    )
    self.assertLessEqual(max(seen), 1)

  def test_progress_is_the_lines_of_a_file(self):
    code = (
      'import pathlib, sys, time\n'
      'folder = pathlib.Path(sys.argv[1])\n'
      '(folder / "table").write_text("a\\nb\\nc\\n")\n'
      'while not (folder / "seen").exists(): time.sleep(0.02)'
    )
    job = self._job('counts', code)
    job = dataclasses.replace(job, folder=self.folder, progress_file='table')
    seen = set()

    def on_poll(lines):
      seen.update(lines.items())
      if ('counts', 3) in seen:
        (self.folder / 'seen').touch()

    self.assertEqual(self._run([job], on_poll=on_poll), {'counts': 0})
    self.assertIn(('counts', 3), seen)

  def test_an_interrupt_lets_jobs_save(self):
    def interrupt(names):
      del names
      if (self.folder / 'started').exists():
        raise KeyboardInterrupt

    with self.assertRaises(KeyboardInterrupt):
      self._run([self._job('patient', _PATIENT)], on_poll=interrupt)
    self.assertTrue((self.folder / 'saved').exists())

  @absltest.skipUnless(sys.platform == 'linux', 'the kernel of Linux does it')
  def test_jobs_of_a_killed_parent_save_and_end(self):
    code = (
      'import pathlib, sys; from experiments.running import jobs\n'
      'log = pathlib.Path(sys.argv[2], "log")\n'
      'job = jobs.Job("x", [sys.executable, "-c", *sys.argv[1:]], log)\n'
      'jobs.run([job], jobs.slots(1, [0], []), on_end=print)'
    )
    parent = subprocess.Popen(
      [sys.executable, '-c', code, _PATIENT, str(self.folder)],
      cwd=_ROOT,
      # A shell so starts a command that ends in &.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    _wait_for(self.folder / 'started')
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait_for(self.folder / 'saved')


class CallTest(parameterized.TestCase):
  def test_gives_what_the_function_gives(self):
    self.assertEqual(jobs.call(divmod, 7, 2), (3, 1))
    with self.assertRaisesRegex(ZeroDivisionError, 'by zero'):
      jobs.call(divmod, 7, 0)

  @parameterized.product(signum=ending.SIGNALS, secs=(0.0, 0.05))
  def test_a_signal_while_it_starts(self, signum, secs):
    done = subprocess.run(
      [sys.executable, '-c', _SIGNALLED, str(int(signum)), str(secs)],
      check=True,
      cwd=_ROOT,
      capture_output=True,
      text=True,
      timeout=60,
      start_new_session=True,
    )
    pid, ended = done.stdout.split()
    self.assertEqual((ended, done.stderr), (signum.name, ''))
    self.assertFalse(psutil.pid_exists(int(pid)))


class SlotsTest(parameterized.TestCase):
  def test_cores_are_dealt_out(self):
    found = jobs.slots(2, [0, 1, 2, 5, 6], [])
    self.assertEqual([set(s.cores) for s in found], [{0, 2, 6}, {1, 5}])
    self.assertNotIn('CUDA_VISIBLE_DEVICES', found[0].environment)

  def test_more_slots_than_cores_share_them(self):
    found = jobs.slots(3, [4, 5], [])
    self.assertEqual([set(s.cores) for s in found], [{4}, {5}, {4}])

  def test_one_slot_a_core_or_a_gpu(self):
    self.assertLen(jobs.slots(None, [0, 1, 2], []), 3)
    found = jobs.slots(None, list(range(8)), ['0', '3'])
    devices = [s.environment['CUDA_VISIBLE_DEVICES'] for s in found]
    self.assertEqual(devices, ['0', '3'])
    self.assertLen(found[0].cores, 4)

  def test_a_job_has_its_slot_alone(self):
    cores = jobs.available_cores()
    log = pathlib.Path(self.create_tempdir().full_path, 'log')
    code = 'import os; print(os.sched_getaffinity(0), os.environ["X"])'
    slot = jobs.LocalSlot(frozenset(cores[-1:]), {'X': 'y'})
    job = jobs.Job('a', [sys.executable, '-c', code], log)
    jobs.run([job], [slot], on_end=lambda job, code: None)
    self.assertEqual(log.read_text(), f'{{{cores[-1]}}} y\n')

  def test_hidden_gpus_are_not_used(self):
    os.environ['CUDA_VISIBLE_DEVICES'] = '2,3'
    self.addCleanup(os.environ.pop, 'CUDA_VISIBLE_DEVICES')
    self.assertEqual(jobs.visible_gpus(), ['2', '3'])
    os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
    self.assertEqual(jobs.visible_gpus(), [])

  def test_refuses(self):
    with self.assertRaisesRegex(_validate.InputError, 'jobs'):
      jobs.slots(0, [0], [])


if __name__ == '__main__':
  absltest.main()
