"""A process that has imported TensorFlow once, and forks a child a case.

An import takes seconds, a fork milliseconds. The process never runs a
TensorFlow operation itself, whose threads no fork would carry over. Children
may end in any way: killed at a time, by themselves, or at their time limit.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import faulthandler
import functools
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT_SECS = 120.0
FAILED = 70


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a child ended.

  Attributes:
    result: What its function returned; None if it did not return.
    code: The exit code; minus the signal if one ended it.
    timed_out: Whether the time limit ended it.
    output: What it printed, the end of it.
    seconds: How long it took.
  """

  result: Any
  code: int
  timed_out: bool
  output: str
  seconds: float

  @property
  def was_killed(self) -> bool:
    """Whether a kill ended it, and not the time limit."""
    return self.code == -signal.SIGKILL and not self.timed_out


class Forks:
  """Runs functions in forked children; a context manager."""

  def __init__(self, *preload: str):
    """Starts the process, which imports the modules named `preload`."""
    self._process = subprocess.Popen(
      [sys.executable, '-W', 'ignore', '-m', 'tests.faults.forks', *preload],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      cwd=ROOT,
      env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3', 'PYTHONPATH': str(ROOT)},
      text=True,
    )

  def __enter__(self) -> Forks:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()

  def run(
    self,
    function: str,
    *,
    kill_after: float | None = None,
    timeout: float = TIMEOUT_SECS,
    **arguments: Any,
  ) -> Ended:
    """Returns how a child ended that called `module:function(**arguments)`.

    Args:
      function: The module and the name in it.
      kill_after: The child is killed after so many seconds.
      timeout: So is it after these, which counts as a fault of its own.
      **arguments: Plain JSON values.
    """
    request = dict(
      function=function,
      arguments=arguments,
      kill_after=kill_after,
      timeout=timeout,
    )
    self._process.stdin.write(json.dumps(request) + '\n')
    self._process.stdin.flush()
    answer = self._process.stdout.readline()
    if not answer:
      raise RuntimeError('the process that forks has ended')
    return Ended(**json.loads(answer))


@functools.cache
def shared(*preload: str) -> Forks:
  """Returns one for all tests of this process, ended with it."""
  return Forks(*preload)


def _serve(requests: Any, answers: Any) -> None:
  for line in requests:
    answers.write(json.dumps(_run(json.loads(line))) + '\n')
    answers.flush()


def _run(request: dict[str, Any]) -> dict[str, Any]:
  with tempfile.TemporaryDirectory(prefix='faults_') as folder:
    started = time.monotonic()
    # A pipe, as no limit on the size of files holds for it.
    output, end = os.pipe()
    child = os.fork()
    if not child:
      os.close(output)
      _be_child(request, pathlib.Path(folder), end)
    os.close(end)
    os.set_blocking(output, False)
    text = bytearray()
    code, timed_out = _wait(
      child,
      lambda: text.extend(_drain(output)),
      request['kill_after'],
      request['timeout'],
    )
    os.close(output)
    result = None
    with contextlib.suppress(OSError, ValueError):
      result = json.loads(pathlib.Path(folder, 'result').read_text())
    return dict(
      result=result,
      code=code,
      timed_out=timed_out,
      output=text.decode(errors='replace')[-20_000:],
      seconds=time.monotonic() - started,
    )


def _drain(pipe: int) -> bytes:
  """Returns what is in a pipe now."""
  found = b''
  with contextlib.suppress(BlockingIOError):
    while part := os.read(pipe, 2**16):
      found += part
  return found


def _wait(
  child: int,
  drain: Callable[[], None],
  kill_after: float | None,
  timeout: float,
) -> tuple[int, bool]:
  """Waits for a child and kills it at its time; returns code, timed out."""
  started = time.monotonic()
  limit = timeout if kill_after is None else kill_after
  killed = False
  while True:
    ended, status = os.waitpid(child, os.WNOHANG)
    drain()
    if ended:
      code = os.waitstatus_to_exitcode(status)
      return code, killed and kill_after is None
    if not killed and time.monotonic() - started >= limit:
      os.kill(child, signal.SIGKILL)
      killed = True
    time.sleep(0.001)


def _be_child(
  request: dict[str, Any], folder: pathlib.Path, output: int
) -> None:
  code = FAILED
  try:
    for descriptor in (1, 2):
      os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    faulthandler.enable()
    module, name = request['function'].split(':')
    function = getattr(importlib.import_module(module), name)
    result = function(**request['arguments'])
    (folder / 'result').write_text(json.dumps(result))
    code = 0
  except BaseException:  # noqa: BLE001 - Whatever it is, it is told.
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
  """Serves the process that started this one."""
  answers = os.fdopen(os.dup(1), 'w')
  # Nothing that is imported may print between the answers.
  os.dup2(2, 1)
  for name in sys.argv[1:]:
    module = importlib.import_module(name)
    getattr(module, 'before_fork', lambda: None)()
  _serve(sys.stdin, answers)
  answers.close()
  os._exit(0)


if __name__ == '__main__':
  main()
