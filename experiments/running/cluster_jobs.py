"""Runs commands on the nodes of a Ray cluster, each in a slot of its own.

A slot is a core, or a GPU where nodes have any. It starts a job as an actor of
`node`, which gets the project's code, runs the same command as on this machine
in a private folder of its node, and brings log and run folder back when the
command has ended. Until then nothing of the run is known here but how many
rounds are done. A job whose node or process is lost begins again in another
slot, from what lies in the sweep's folder.

Privacy. What a lost attempt released was seen by nobody, so that the run that
comes back states its whole ε. A data ledger counts what was spent even then.
Jobs with one therefore need a file system that all nodes share, and work in the
sweep's own folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import fcntl
import importlib
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import types
from typing import Any

from experiments.running import endings
from experiments.running import jobs as jobs_lib
from experiments.running import node
from tff_medical import _files
from tff_medical import _validate
from tff_medical.program import run_records
from tff_medical.runtime.cluster import connection

_PACKAGES = ('tff_medical', 'experiments')
_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Attempts at a job before its losses count as a failure.
_ATTEMPTS = 3
# Seconds for an answer that takes none if the node is well.
_ANSWER_SECS = 60.0
_POLL_SECS = 0.05


@dataclasses.dataclass(frozen=True)
class Needs:
  """What each node must have.

  Attributes:
    inputs: Paths that the jobs read.
    shared: Folders that nodes must share with this machine, locks included.
  """

  inputs: tuple[str, ...] = ()
  shared: tuple[str, ...] = ()

  @contextlib.contextmanager
  def arguments(self) -> Iterator[tuple[Any, ...]]:
    """Yields the arguments of `node.lacking`, valid within the block."""
    with contextlib.ExitStack() as stack:
      probes = dict(stack.enter_context(_probe(f)) for f in self.shared)
      # What is missing here as well is an error of the job itself.
      inputs = [p for p in map(_absolute, self.inputs) if os.path.exists(p)]
      yield run_records.versions(), inputs, probes


@contextlib.contextmanager
def _probe(path: str) -> Iterator[tuple[str, str]]:
  """Yields path and content of a locked file in a folder, which may be new."""
  folder = pathlib.Path(_absolute(path))
  while not folder.is_dir():
    folder = folder.parent
  content = secrets.token_hex(16)
  with tempfile.NamedTemporaryFile(
    'w', encoding='utf-8', dir=folder, prefix='.shared_'
  ) as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
    fcntl.flock(file, fcntl.LOCK_EX)
    yield file.name, content


@dataclasses.dataclass(frozen=True)
class Cluster:
  """A cluster that this process has joined.

  Attributes:
    ray: The module `ray`, connected.
    address: Address by which it was joined.
  """

  ray: types.ModuleType
  address: str

  @classmethod
  def join(cls, address: str) -> Cluster:
    """Joins a cluster.

    Raises:
      InputError: The cluster cannot be joined.
    """
    ray = connection.connect(address)
    ray.cloudpickle.register_pickle_by_value(node)
    return cls(ray, address)

  def check(self, needs: Needs) -> None:
    """Raises `InputError` with what the first node lacks, if one does."""
    strategies = importlib.import_module('ray.util.scheduling_strategies')
    affinity = strategies.NodeAffinitySchedulingStrategy
    lacking = self.ray.remote(node.lacking)
    with needs.arguments() as arguments:
      answers = [
        lacking.options(
          num_cpus=0, scheduling_strategy=affinity(n['NodeID'], soft=False)
        ).remote(*arguments)
        for n in self.ray.nodes()
        if n['Alive']
      ]
      for refusal in self._answers(answers):
        if refusal:
          raise _validate.InputError(refusal)

  def _answers(self, answers: Sequence[Any]) -> Sequence[str]:
    try:
      return self.ray.get(answers, timeout=_ANSWER_SECS)
    except self.ray.exceptions.RayError as error:
      raise _validate.InputError(
        f'a node of the cluster at {self.address} does not answer '
        f'({_in_a_line(error)}); see ray status'
      ) from error

  def slots(self, count: int | None) -> list[Slot]:
    """Returns slots of the cluster.

    Args:
      count: Number of slots; by default one for each GPU or, without GPUs, for
        each core that the nodes were started with.

    Raises:
      InputError: The count is not positive, or the nodes have no core.
    """
    resources = self.ray.cluster_resources()
    gpus, cores = (int(resources.get(name, 0)) for name in ('GPU', 'CPU'))
    if count is None:
      count = gpus or cores
      if not count:
        raise _validate.InputError(
          f'the nodes of the cluster at {self.address} have no cores to give; '
          'start one with --num-cpus=2'
        )
    _validate.positive_int(jobs=count)
    slot = Slot(self, self.ray.put(_code()), bool(gpus))
    return [slot] * count


@dataclasses.dataclass(frozen=True)
class Slot:
  """A core or GPU somewhere in a cluster.

  Attributes:
    cluster: The cluster.
    code: Reference to the project's code.
    has_gpu: Whether a job gets a GPU.
  """

  cluster: Cluster
  code: Any
  has_gpu: bool

  def start(self, job: jobs_lib.Job) -> jobs_lib.Process:
    """Starts a job somewhere."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    return _Process(self, job)

  def actor(self) -> Any:
    """Returns a new actor, which waits for its core or GPU."""
    ray = self.cluster.ray
    options = {'num_cpus': 1, 'scheduling_strategy': 'SPREAD'}
    if self.has_gpu:
      options['num_gpus'] = 1
    return ray.remote(node.Cell).options(**options).remote()


class _Process:
  """A job in the cluster; the interface is `jobs.Process`."""

  def __init__(self, slot: Slot, job: jobs_lib.Job):
    self._slot = slot
    self._ray = slot.cluster.ray
    self._job = job
    self._code: int | None = None
    self._signum: int | None = None
    self._lines = 0
    self._lost = 0
    self._probes = contextlib.ExitStack()
    self._begin()

  def poll(self) -> int | None:
    """Returns the exit code, None while the job is not over."""
    if self._code is None and self._ray.wait([self._answer], timeout=0)[0]:
      try:
        self._code = self._next(self._ray.get(self._answer))
      except (
        self._ray.exceptions.RayError,
        ConnectionError,
        tarfile.TarError,
        ValueError,  # What came back is not what was sent.
      ) as error:
        self._code = self._on_loss(error)
      if self._code is not None:
        self._release()
    return self._code

  def progress(self) -> int:
    """Returns the number of lines of the job's progress file."""
    return self._lines

  def send_signal(self, signum: int) -> None:
    """Sends the command a signal; one that has not begun never will."""
    if self._code is not None:
      return
    self._signum = signum
    if self._is_beginning:
      self.kill()
    else:
      self._actor.signal.remote(signum)

  def wait(self, timeout: float | None = None) -> int:
    """Returns the exit code at the end of the job.

    Raises:
      subprocess.TimeoutExpired: It did not end in time.
    """
    until = None if timeout is None else time.monotonic() + timeout
    while True:
      code = self.poll()
      if code is not None:
        return code
      if until is not None and time.monotonic() > until:
        raise subprocess.TimeoutExpired(self._job.command, timeout or 0.0)
      time.sleep(_POLL_SECS)

  def kill(self) -> None:
    """Ends the job at once; nothing comes back."""
    if self._code is None:
      self._code = -signal.SIGKILL
      self._release()

  def _begin(self) -> None:
    """Sends the job to a node."""
    job, folder = self._job, self._job.folder
    partial, aside = _beside(folder)
    if aside.exists() and not folder.exists():
      aside.rename(folder)
    for leftover in (partial, aside):
      shutil.rmtree(leftover, ignore_errors=True)
    shared = (str(folder), str(job.log.parent)) if job.is_shared else ()
    needs = Needs(job.inputs, shared)
    arguments = self._probes.enter_context(needs.arguments())
    run = str(folder.resolve()) if job.is_shared else f'cells/{job.name}'
    goes_on = folder.exists() and not job.is_shared
    self._is_beginning = True
    self._actor = self._slot.actor()
    self._answer = self._actor.begin.remote(
      self._slot.code,
      _PACKAGES,
      _arguments(job, run),
      run,
      job.progress_file,
      node.packed({node.RUN: folder}) if goes_on else b'',
      str(job.log.resolve()) if job.is_shared else '',
      {
        endings.JOB_VARIABLE: '1',
        'TF_CPP_MIN_LOG_LEVEL': '2',
        # Models and metrics of the user's own are imported from there.
        'PYTHONPATH': os.getcwd(),
      },
      arguments,
    )

  def _next(self, answer: Any) -> int | None:
    """Goes on after an answer of the actor; returns the exit code at the end."""
    if self._is_beginning:
      self._probes.close()
      self._is_beginning = False
      if answer:
        self._say(f'error: {answer}')
        return 2
    else:
      code, self._lines = answer
      if code is not None:
        self._bring_back()
        return int(code)
    self._answer = self._actor.poll.remote()
    return None

  def _bring_back(self) -> None:
    """Brings log and run folder here, in place of what was there."""
    count = self._get(self._actor.pack.remote())
    if not count:
      return
    folder = self._job.folder
    partial, aside = _beside(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix='.') as temp:
      back, log = pathlib.Path(temp, 'back.tar'), pathlib.Path(temp, 'log')
      with open(back, 'wb') as file:
        for number in range(count):
          file.write(self._get(self._actor.part.remote(number)))
      with open(back, 'rb') as file:
        names = node.unpack(file, {node.RUN: partial, node.LOG: log}, sync=True)
      with open(self._job.log, 'ab') as whole:
        whole.write(log.read_bytes())
    if node.RUN in names:
      if folder.exists():
        folder.rename(aside)
      partial.rename(folder)
      _files.sync_folder(folder.parent)
      shutil.rmtree(aside, ignore_errors=True)

  def _get(self, answer: Any) -> Any:
    return self._ray.get(answer, timeout=_ANSWER_SECS)

  def _on_loss(self, error: Exception) -> int | None:
    """Begins again after a loss; returns an exit code where that is no use."""
    self._release()
    self._lost += 1
    self._lines = 0
    if self._signum is not None:
      return 128 + self._signum
    if self._lost == _ATTEMPTS:
      self._say(
        f'error: lost {_ATTEMPTS} times on the cluster at '
        f'{self._slot.cluster.address}, at last: {_in_a_line(error)}'
      )
      return 1
    self._say(
      'the process or node of this cell was lost, and with it all that it had '
      'done; it begins again'
      if not self._job.is_shared
      else 'the process or node of this cell was lost; another goes on'
    )
    self._begin()
    return None

  def _release(self) -> None:
    """Gives the slot back, and removes the job's files from the node."""
    self._probes.close()
    with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
      # The cleaner of a killed actor does the same.
      self._ray.kill(self._actor)

  def _say(self, line: str) -> None:
    with open(self._job.log, 'a', encoding='utf-8') as log:
      log.write(f'{line}\n')


def _beside(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns the names for the new and the old folder during a replacement."""
  return (
    folder.with_name(f'.{folder.name}{_files.PARTIAL_SUFFIX}'),
    folder.with_name(f'.{folder.name}.old'),
  )


def _absolute(path: str) -> str:
  return os.path.abspath(os.path.expanduser(path))


def _arguments(job: jobs_lib.Job, run: str) -> list[str]:
  """Returns the arguments of Python on a node: absolute inputs, its folder."""
  paths = {path: _absolute(path) for path in job.paths}
  paths[str(job.folder)] = run
  arguments = []
  for argument in job.command[1:]:
    name, equals, value = argument.partition('=')
    arguments.append(f'{name}{equals}{paths.get(value, value)}')
  return arguments


def _code() -> bytes:
  """Returns an archive of this project's packages."""
  return node.packed({name: _ROOT / name for name in _PACKAGES})


def _in_a_line(error: Exception) -> str:
  return ' '.join(str(error).split())[:300]
