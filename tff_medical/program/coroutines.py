"""Calls of coroutines from ordinary functions.

`asyncio.run` fails if an event loop is already running, as in notebooks and
services. Otherwise it removes the main thread's event loop, which
`tff.simulation.run_training_process` and others need afterwards.

>>> async def double(value):
...   return 2 * value
>>> run(double(3))
6
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
import concurrent.futures
import contextvars
import threading
from typing import Any, TypeVar

import tensorflow_federated as tff

_T = TypeVar('_T')
# Time limit for the clean-up of an interrupted coroutine, in seconds.
_CANCEL_SECS = 2.0


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
  """Returns the result of a coroutine, or raises its exception.

  The coroutine runs in a new event loop, which is closed at the end. The loops
  of the calling thread stay as they are. If one of them is running, the
  coroutine runs in a new thread with the caller's context variables and TFF
  context. The caller waits and blocks the running loop.

  Args:
    coroutine: Coroutine that does not wait for tasks of another event loop.
  """
  try:
    asyncio.get_running_loop()
  except RuntimeError:
    return _run(asyncio.new_event_loop(), coroutine)
  return _run_in_thread(coroutine)


def _run(
  loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, _T]
) -> _T:
  """Runs a coroutine in a loop, then closes the loop as `asyncio.run` does."""
  try:
    return loop.run_until_complete(coroutine)
  finally:
    try:
      _cancel_tasks(loop)
      loop.run_until_complete(loop.shutdown_asyncgens())
      loop.run_until_complete(loop.shutdown_default_executor())
    finally:
      loop.close()


def _cancel_tasks(loop: asyncio.AbstractEventLoop) -> None:
  """Cancels the tasks that the coroutine left behind and waits for them."""
  tasks = asyncio.all_tasks(loop)
  for task in tasks:
    task.cancel()
  if tasks:
    loop.run_until_complete(_wait_for(tasks))


async def _wait_for(tasks: set[asyncio.Task[Any]]) -> None:
  await asyncio.gather(*tasks, return_exceptions=True)


def _run_in_thread(coroutine: Coroutine[Any, Any, _T]) -> _T:
  """Runs a coroutine in a thread; an interrupt of the caller cancels it."""
  loop = asyncio.new_event_loop()
  outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()
  # TFF's context stack is local to a thread.
  context = tff.framework.get_context_stack().current
  variables = contextvars.copy_context()

  def target() -> None:
    with tff.framework.get_context_stack().install(context):
      try:
        outcome.set_result(_run(loop, coroutine))
      except BaseException as error:  # noqa: BLE001 - raised in the caller
        outcome.set_exception(error)

  thread = threading.Thread(target=variables.run, args=(target,), daemon=True)
  try:
    thread.start()
    return outcome.result()
  except BaseException:
    if not outcome.done():
      loop.call_soon_threadsafe(_cancel_all, loop)
      concurrent.futures.wait([outcome], _CANCEL_SECS)
    raise


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
  for task in asyncio.all_tasks(loop):
    task.cancel()
