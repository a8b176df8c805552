"""Tests that TFF's worker process ends with its parent, in real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

from absl.testing import absltest
import psutil

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SECS = 60.0

# Computes in TFF's own runtime, as a notebook does, and waits for its end.
_PROGRAM = """
import asyncio, gc, signal, sys
import psutil
import tensorflow_federated as tff
from tff_medical.runtime import tff_worker

tff_worker.guard()
tff_worker.guard()

@tff.tensorflow.computation
def seven():
  return 7

async def compute():
  return seven()

assert asyncio.run(compute()) == 7
[worker] = psutil.Process().children()
for one in (signal.SIGINT, signal.SIGTERM):
  signal.signal(one, lambda signum, frame: None)
print('WORKER', worker.pid, worker.name(), flush=True)
sys.stdin.readline()
assert seven() == 7
assert psutil.Process().children() == [worker]
print('COMPUTED', flush=True)
# TFF ends a worker by SIGINT, and waits, when nothing holds its context.
tff.backends.native.set_sync_local_cpp_execution_context()
del seven
gc.collect()
assert not psutil.Process().children()
print('ENDED', flush=True)
"""


def _is_running(pid):
  try:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


def _kill(pid):
  """Kills what holds the pipes of the parent, which a reader waits for."""
  if _is_running(pid):
    os.kill(pid, signal.SIGKILL)


@absltest.skipUnless(sys.platform == 'linux', 'the kernel of Linux does it')
class TffWorkerTest(absltest.TestCase):
  def _start(self, **options):
    parent = subprocess.Popen(
      [sys.executable, '-c', textwrap.dedent(_PROGRAM)],
      cwd=_ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
      **options,
    )
    self.addCleanup(parent.communicate)
    self.addCleanup(parent.kill)
    for line in parent.stdout:
      if line.startswith('WORKER'):
        _, pid, name = line.split()
        self.addCleanup(_kill, int(pid))
        self.assertEqual(name, 'worker_binary')
        self.assertTrue(_is_running(int(pid)))
        return parent, int(pid)
    self.fail(parent.stderr.read())

  def _assert_gone(self, pid):
    until = time.monotonic() + _SECS
    while _is_running(pid):
      self.assertLess(time.monotonic(), until, 'the worker was left behind')
      time.sleep(0.05)

  def test_ends_with_a_killed_parent(self):
    parent, worker = self._start()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    self._assert_gone(worker)

  def test_ends_with_its_parent_in_silence(self):
    # As a shell starts what ends in &: TFF alone would wait for ever.
    parent, worker = self._start(
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    output, errors = parent.communicate('go on\n', timeout=_SECS)
    self.assertEqual(parent.returncode, 0, errors)
    self.assertIn('ENDED', output)
    self.assertNotIn('Traceback', errors)
    self._assert_gone(worker)

  def test_lives_on_when_the_group_is_asked_to_end(self):
    """The round that the parent finishes then must not fail."""
    parent, worker = self._start()
    for signum in (signal.SIGINT, signal.SIGTERM):
      os.killpg(parent.pid, signum)
    os.kill(worker, signal.SIGTERM)
    output, errors = parent.communicate('go on\n', timeout=_SECS)
    self.assertIn('COMPUTED', output, errors)
    self._assert_gone(worker)


if __name__ == '__main__':
  absltest.main()
