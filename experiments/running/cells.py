"""Trainings of a sweep: their commands, run side by side with a progress bar.

A cell is one training with a name and settings of its own. Its run folder is
`cells/NAME` below the sweep's folder, and its output goes to `logs/NAME.log`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import datetime
import os
import pathlib
import sys
import time

import tqdm

from experiments.config import settings as settings_lib
from experiments.running import cluster_jobs
from experiments.running import exit_codes
from experiments.running import jobs as jobs_lib
from tff_medical import _validate
from tff_medical.program import run_folder
from tff_medical.runtime.cluster import connection

# Settings with paths that a training reads; it makes the others.
INPUTS = ('data_dir', 'image_dir', 'backbone_weights', 'initial_model')
# Value of --cells_on that finds the address by itself.
CLUSTER = 'cluster'
CELLS_ON_HELP = (
  f'Ray cluster that trains, see docs/cluster.md: {CLUSTER} (the one of '
  'RAY_ADDRESS or of this machine), HOST:PORT or ray://HOST:PORT [none: this '
  'machine trains]'
)
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
    run = run_folder.RunFolder(pathlib.Path(self.flags.output_dir or ''))
    return jobs_lib.Job(
      self.name,
      command,
      folder / 'logs' / f'{self.name}.log',
      folder=run.path,
      progress_file=run.metrics.name,
      paths=tuple(_paths(self.flags, _path_settings())),
      inputs=inputs(self.flags),
      is_shared=self.flags.data_ledger is not None,
    )


def inputs(flags: settings_lib.Flags) -> tuple[str, ...]:
  """Returns the files and folders that flags name and a training reads."""
  return tuple(_paths(flags, INPUTS))


def _path_settings() -> Iterator[str]:
  """Yields the settings with paths that a training reads or keeps."""
  for name in settings_lib.owners():
    if settings_lib.field(name).metadata['is_path'] and name != 'output_dir':
      yield name


def _paths(flags: settings_lib.Flags, names: Iterable[str]) -> Iterator[str]:
  for name in names:
    if flags.given.get(name) is not None:
      yield str(flags.given[name])


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


@dataclasses.dataclass(frozen=True)
class Place:
  """Where trainings run, and how many at once.

  Attributes:
    jobs: Number of trainings at once; by default one for each GPU, or else one
      for each core.
    cells_on: '' for this machine, or the Ray cluster: its address, or `CLUSTER`
      for the one of `RAY_ADDRESS` or of this machine.
  """

  jobs: int | None = None
  cells_on: str = ''

  def __post_init__(self) -> None:
    if self.jobs is not None:
      _validate.positive_int(jobs=self.jobs)

  def check(
    self,
    flags: settings_lib.Flags,
    folder: pathlib.Path,
    data_ledger: str | None = None,
  ) -> None:
    """Joins the cluster and checks its nodes, if there is one.

    Args:
      flags: Flags that all trainings have in common.
      folder: Folder of the sweep.
      data_ledger: Ledger that trainings charge beside that of the flags.

    Raises:
      InputError: The cluster cannot be joined, or a node lacks what the
        trainings need.
    """
    if not self.cells_on:
      return
    if flags.runtime == CLUSTER:
      raise _validate.InputError(
        f'cells_on={self.cells_on} would be ignored with runtime={CLUSTER}, '
        'where each training has the whole cluster; leave one of them out'
      )
    ledger = data_ledger or flags.data_ledger
    shared = () if ledger is None else (os.path.dirname(ledger), str(folder))
    self._cluster().check(cluster_jobs.Needs(inputs(flags), shared))

  def slots(self) -> Sequence[jobs_lib.Slot]:
    """Returns the slots of the trainings.

    Raises:
      InputError: The cluster cannot be joined.
    """
    if self.cells_on:
      return self._cluster().slots(self.jobs)
    return jobs_lib.slots(
      self.jobs, jobs_lib.available_cores(), jobs_lib.visible_gpus()
    )

  def _cluster(self) -> cluster_jobs.Cluster:
    address = self.cells_on
    return cluster_jobs.Cluster.join(
      connection.AUTO if address == CLUSTER else address
    )


def run(
  todo: Sequence[Training],
  folder: pathlib.Path,
  place: Place,
  on_end: Callable[[], None] = lambda: None,
) -> Ended:
  """Does all trainings, with one progress bar.

  Args:
    todo: Trainings to do; one that fails does not stop the others.
    folder: Folder of the sweep.
    place: Where the trainings run.
    on_end: Function that is called after each training.

  Raises:
    InputError: The cluster cannot be joined.
  """
  where = place.slots()
  failed: list[str] = []
  progress = _Progress(
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

  def __init__(self, rounds: Mapping[str, int], total: int):
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

  def poll(self, lines: Mapping[str, int]) -> None:
    """Shows the progress of the cells that run.

    Args:
      lines: Lines of metrics.csv by the name of the cell.
    """
    done = self._done + sum(map(self._part, lines, lines.values()))
    self._bar.n = done
    elapsed = time.monotonic() - self._started
    if done:
      left = datetime.timedelta(
        seconds=elapsed / done * (self._bar.total - done)
      )
      end = datetime.datetime.now() + left
      self._bar.set_postfix_str(
        f'end {end:%H:%M}, {len(lines)} running', refresh=False
      )
    now = time.monotonic()
    if now - self._shown >= (0 if sys.stderr.isatty() else _LOG_SECS):
      self._shown = now
      self._bar.refresh()

  def close(self) -> None:
    """Closes the bar, which stays on the screen."""
    self._bar.close()

  def _part(self, name: str, lines: int) -> float:
    if name not in self._rounds:
      return 0.0
    # The first line names the columns.
    return min(1.0, max(0, lines - 1) / self._rounds[name])


def _last_line(log: pathlib.Path) -> str:
  lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
  last = next((line for line in reversed(lines) if line.strip()), '')
  return f'{last.split(chr(13))[-1].strip()} (see {log})'
