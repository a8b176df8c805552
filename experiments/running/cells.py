"""Trainings of a sweep: their commands, run side by side with a progress bar.

A cell is one training with a name and settings of its own. Its run folder is
`cells/NAME` below the sweep's folder, and its output goes to `logs/NAME.log`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import datetime
import pathlib
import sys
import time

import tqdm

from experiments.config import settings as settings_lib
from experiments.running import exit_codes
from experiments.running import jobs as jobs_lib
from tff_medical.program import run_folder

# Seconds between lines of progress where stderr is a file.
_LOG_SECS = 30


@dataclasses.dataclass(frozen=True)
class Training:
  """A training to be done.

  Attributes:
    name: Name of the cell, hence of its run folder.
    flags: Settings of the run; `output_dir` is the run folder.
    module: Command of `experiments` that does the training.
    extra: Flags of the command beside the settings.
  """

  name: str
  flags: settings_lib.Flags
  module: str = 'train'
  extra: tuple[str, ...] = ()

  def job(self, folder: pathlib.Path) -> jobs_lib.Job:
    """Returns the command, whose log is kept below the sweep's `folder`."""
    command = [sys.executable, '-m', f'experiments.{self.module}', *self.extra]
    command += self.flags.arguments()
    return jobs_lib.Job(
      self.name, command, folder / 'logs' / f'{self.name}.log'
    )


def cell_folder(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the run folder of a cell of the sweep in `folder`."""
  return folder / 'cells' / name


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a run over cells ended.

  Attributes:
    failed: Line for each cell that failed, with its name and last message.
    exit_code: Exit code of the command, one of `exit_codes`.
  """

  failed: Sequence[str]
  exit_code: int

  @property
  def interrupted(self) -> bool:
    """Returns whether a signal ended the command before all cells were done."""
    return self.exit_code not in (exit_codes.OK, exit_codes.FAILED)


def run(
  todo: Sequence[Training],
  folder: pathlib.Path,
  jobs: int | None,
  on_end: Callable[[], None] = lambda: None,
) -> Ended:
  """Does all trainings, with one progress bar.

  Args:
    todo: Trainings to do; one that fails does not stop the others.
    folder: Folder of the sweep.
    jobs: Number of trainings at once; by default one for each GPU, or else one
      for each core.
    on_end: Function that is called after each training.

  Raises:
    InputError: The number of jobs is not positive.
  """
  where = jobs_lib.slots(
    jobs, jobs_lib.available_cores(), jobs_lib.visible_gpus()
  )
  failed: list[str] = []
  progress = _Progress(
    folder,
    {t.name: t.flags.rounds for t in todo if t.module == 'train'},
    len(todo),
  )

  def on_job_end(job: jobs_lib.Job, code: int) -> None:
    progress.end()
    if code:
      failed.append(f'{job.name}: {_last_line(job.log)}')
    on_end()

  code = None
  try:
    jobs_lib.run(
      [training.job(folder) for training in todo],
      where[: max(1, len(todo))],
      on_end=on_job_end,
      on_poll=progress.poll,
    )
  except KeyboardInterrupt as error:
    code = exit_codes.of_interrupt(error)
  finally:
    progress.close()
  if code is None:
    code = exit_codes.FAILED if failed else exit_codes.OK
  return Ended(failed, code)


class _Progress:
  """The bar of all cells; a cell that runs counts by its share of rounds."""

  def __init__(
    self, folder: pathlib.Path, rounds: Mapping[str, int], total: int
  ):
    self._folder = folder
    self._rounds = rounds
    self._done = 0
    self._shown = 0.0
    self._started = time.monotonic()
    self._bar = tqdm.tqdm(
      total=total,
      bar_format='{l_bar}{bar}| {n:.1f}/{total} cells '
      '[{elapsed}<{remaining}{postfix}]',
    )

  def end(self) -> None:
    """Counts a cell that has ended."""
    self._done += 1

  def poll(self, names: Sequence[str]) -> None:
    """Shows the progress of the cells that run."""
    done = self._done + sum(map(self._part, names))
    self._bar.n = done
    elapsed = time.monotonic() - self._started
    if done:
      left = datetime.timedelta(
        seconds=elapsed / done * (self._bar.total - done)
      )
      end = datetime.datetime.now() + left
      self._bar.set_postfix_str(
        f'end {end:%H:%M}, {len(names)} running', refresh=False
      )
    now = time.monotonic()
    if now - self._shown >= (0 if sys.stderr.isatty() else _LOG_SECS):
      self._shown = now
      self._bar.refresh()

  def close(self) -> None:
    """Closes the bar, which stays on the screen."""
    self._bar.close()

  def _part(self, name: str) -> float:
    path = run_folder.RunFolder(cell_folder(self._folder, name)).metrics
    if name not in self._rounds or not path.exists():
      return 0.0
    lines = path.read_bytes().count(b'\n') - 1
    return min(1.0, max(0, lines) / self._rounds[name])


def _last_line(log: pathlib.Path) -> str:
  lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
  last = next((line for line in reversed(lines) if line.strip()), '')
  return f'{last.split(chr(13))[-1].strip()} (see {log})'
