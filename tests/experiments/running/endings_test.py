"""Tests of the end of commands by signals, with real processes."""

import pathlib
import signal
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import psutil

from experiments.running import endings
from experiments.running import exit_codes
from tests.experiments import npz
from tests.faults import signal_faults
from tests.faults import signals
from tff_medical.serving import export

_ROOT = pathlib.Path(__file__).resolve().parents[3]


class SignalTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.arguments = [
      '--dataset=medmnist/breastmnist',
      f'--data_dir={npz.write(self.temp)}',
      '--num_clients=12',
      '--clients_per_round=6',
    ]

  def _end(self, moment, signum, *arguments):
    """Ends a training by a signal at a moment and checks how it ended."""
    command = signals.Command.start(self.temp, [*self.arguments, *arguments])
    self.addCleanup(command.stop)
    self.assertTrue(command.wait_for(moment), command.text())
    secs = command.signal(signum)
    found = signal_faults.problems(command, signum, secs)
    self.assertEmpty(found, command.text())
    return command

  @parameterized.parameters(signals.importing, signals.calibrating)
  def test_before_training_it_is_a_line_and_nothing_is_left(self, moment):
    command = self._end(moment, signal.SIGTERM, '--target_epsilon=30')
    self.assertIn('stopped by SIGTERM; the same command', command.text())
    self.assertFalse(command.output.exists())

  def test_training_saves_and_the_export_is_whole_or_not_there(self):
    noise = '--noise_multiplier=0.2'
    command = self._end(
      signals.training, signal.SIGTERM, noise, '--rounds=3000'
    )
    ledger = command.output / 'privacy_ledger.jsonl'
    charged = ledger.read_text().count('"charges"')
    rounds = f'--rounds={charged + 1}'
    command = self._end(signals.exporting, signal.SIGINT, noise, rounds)
    # The file is complete or, on a slow machine, does not exist.
    if (command.output / 'saved_model').exists():
      export.load_card(command.output / 'saved_model')
    self.assertLessEqual(ledger.read_text().count('"charges"'), charged + 2)


class SweepTest(parameterized.TestCase):
  @parameterized.parameters('checks', 'cells')
  def test_no_process_is_left_behind(self, during):
    temp = pathlib.Path(self.create_tempdir().full_path)
    arguments = [
      '--dataset=medmnist/breastmnist',
      f'--data_dir={npz.write(temp)}',
      '--num_clients=12',
      '--clients_per_round=6',
      '--epsilons=inf',
      '--seeds=1',
      '--rounds=3000',
      '--jobs=2',
    ]
    command = signals.Command.start(temp, arguments, 'tradeoff')
    self.addCleanup(command.stop)
    children = []

    def has_started(command):
      parent = psutil.Process(command.process.pid)
      children[:] = parent.children(recursive=True)
      cells = any(signals.has_handler(child.pid) for child in children)
      return cells if during == 'cells' else bool(children)

    if during == 'cells':
      self.assertTrue(
        command.wait_for(lambda c: any(c.output.glob('logs/*.log'))),
        command.text(),
      )
    self.assertTrue(command.wait_for(has_started), command.text())
    secs = command.signal(signal.SIGTERM)
    found = signal_faults.problems(command, signal.SIGTERM, secs)
    self.assertEmpty(found, command.text())
    _, alive = psutil.wait_procs(children, timeout=20)
    self.assertEmpty(alive)
    for log in command.output.glob('logs/*.log'):
      self.assertNotIn('Traceback', log.read_text())


class InstallTest(absltest.TestCase):
  def test_nothing_slow_is_imported_before_it(self):
    code = (
      'import sys; sys.argv = ["-m"]; import experiments, signal\n'
      'assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL\n'
      'print({m.split(".")[0] for m in sys.modules}'
      ' & {"tensorflow", "tensorflow_federated", "numpy", "absl", "jax"})'
    )
    done = subprocess.run(
      [sys.executable, '-c', code],
      check=True,
      cwd=_ROOT,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.stdout, 'set()\n')

  def test_importing_the_package_elsewhere_changes_no_handler(self):
    code = (
      'import signal; before = signal.getsignal(signal.SIGTERM)\n'
      'import experiments\n'
      'assert signal.getsignal(signal.SIGTERM) == before'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=_ROOT)

  def test_no_signal_reaches_the_interpreter_s_last_moments(self):
    """Python has removed its handlers by then, so a signal would kill it."""
    code = (
      'import sys; sys.argv = ["-m"]; import experiments\n'
      'import os, signal; from experiments.running import command\n'
      'class Late:\n'
      '  def __del__(self, kill=os.kill, pid=os.getpid()):\n'
      '    kill(pid, signal.SIGTERM)\n'
      'late = Late()\n'
      'sys.argv = ["command"]\n'
      'command.run(lambda: print("done"))'
    )
    done = subprocess.run(
      [sys.executable, '-c', code],
      check=False,
      cwd=_ROOT,
      capture_output=True,
      text=True,
    )
    self.assertEqual((done.returncode, done.stdout), (0, 'done\n'), done.stderr)


class ExitCodeTest(parameterized.TestCase):
  def test_codes(self):
    self.assertEqual(exit_codes.INTERRUPTED, 130)
    self.assertEqual(exit_codes.TERMINATED, 143)
    self.assertEqual(exit_codes.of_interrupt(KeyboardInterrupt()), 130)

  def test_without_a_signal_the_code_is_the_command_s(self):
    for code in (None, 0, 1, 2):
      self.assertEqual(endings.exit_code(code), code or 0)


if __name__ == '__main__':
  absltest.main()
