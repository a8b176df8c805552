"""Sends signals to a real training command, at moments that are aimed at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_POLL_SECS = 0.002
# A command that has not come to the moment by then never will.
_LIMIT_SECS = 240.0


@dataclasses.dataclass
class Command:
  """A training command that runs, and what it left.

  Attributes:
    output: The run's folder.
    log: The file that gets stdout and stderr.
    process: The command.
  """

  output: pathlib.Path
  log: pathlib.Path
  process: subprocess.Popen

  @classmethod
  def start(
    cls,
    folder: pathlib.Path,
    arguments: Sequence[str],
    module: str = 'train',
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
  ) -> Command:
    """Starts it; the run's folder is `folder/run`.

    Args:
      folder: Folder of the run's folder and of what the command prints.
      arguments: Flags of the command.
      module: Name of the command.
      environment: Variables of the command beside those of this process.
      prefix: Start of the command line, which runs what follows.
    """
    output, log = folder / 'run', folder / 'log'
    command = [*prefix, sys.executable, '-m', f'experiments.{module}']
    with open(log, 'wb') as file:
      process = subprocess.Popen(
        [*command, *arguments, f'--output_dir={output}'],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
        env={**os.environ, **(environment or {})},
      )
    return cls(output, log, process)

  def text(self) -> str:
    """Returns all that it printed."""
    return self.log.read_text(encoding='utf-8', errors='replace')

  def wait_for(self, moment: Callable[[Command], bool]) -> bool:
    """Waits for a moment; returns whether it came before the end."""
    until = time.monotonic() + _LIMIT_SECS
    while not moment(self):
      if self.process.poll() is not None or time.monotonic() > until:
        return False
      time.sleep(_POLL_SECS)
    return True

  def signal(self, signum: int) -> float:
    """Sends a signal; returns the seconds until the command ended."""
    started = time.monotonic()
    self.process.send_signal(signum)
    self.process.wait(_LIMIT_SECS)
    return time.monotonic() - started

  def stop(self) -> None:
    """Kills it, if it still runs."""
    self.process.kill()
    self.process.wait()


def has_handler(pid: int, signum: int = signal.SIGTERM) -> bool:
  """Returns whether a process has a handler of its own for a signal."""
  try:
    lines = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
  except OSError:
    return False
  caught = [line.split()[1] for line in lines if line.startswith('SigCgt:')]
  return any(int(mask, 16) >> (signum - 1) & 1 for mask in caught)


def importing(command: Command) -> bool:
  """Returns whether the command is in its imports."""
  return has_handler(command.process.pid)


def setting_up(command: Command) -> bool:
  """Returns whether TensorFlow is loaded."""
  maps = pathlib.Path(f'/proc/{command.process.pid}/maps').read_text()
  return 'libtensorflow' in maps


def calibrating(command: Command) -> bool:
  """Returns whether the noise is being calibrated."""
  return 'calibrating' in command.text()


def claiming(command: Command) -> bool:
  """Returns whether the folder is being made."""
  return command.output.exists()


def training(command: Command) -> bool:
  """Returns whether a round was saved."""
  return any(command.output.glob('checkpoints/round_*[1-9].npz'))


def exporting(command: Command) -> bool:
  """Returns whether the model is being written."""
  return any(command.output.glob('.saved_model.*.new'))


MOMENTS = {
  moment.__name__: moment
  for moment in (
    importing,
    setting_up,
    calibrating,
    claiming,
    training,
    exporting,
  )
}
