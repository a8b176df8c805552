"""Tests of running coroutines beside any event loop."""

import asyncio
import collections
import contextvars
import os
import signal
import threading
import unittest

from absl.testing import absltest
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import runtime
from tff_medical.program import coroutines


async def _double(value):
  await asyncio.sleep(0)
  return 2 * value


async def _fail():
  await asyncio.sleep(0)
  raise LookupError('not there')


def _process():
  """Returns a process that adds the clients' values to its state."""

  @tff.federated_computation()
  def initialize():
    return tff.federated_value(np.float32(0), tff.SERVER)

  @tff.tensorflow.computation(
    tff.SequenceType(tff.TensorType(np.float32, [None]))
  )
  def total(batches):
    return batches.reduce(np.float32(0), lambda s, b: s + tf.reduce_sum(b))

  @tff.tensorflow.computation(np.float32, np.float32)
  def add(a, b):
    return a + b

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(total.type_signature.parameter, tff.CLIENTS),
  )
  def next_fn(state, data):
    summed = tff.federated_sum(tff.federated_map(total, data))
    state = tff.federated_map(add, (state, summed))
    return state, tff.federated_zip(collections.OrderedDict(total=state))

  return tff.templates.IterativeProcess(
    initialize, next_fn, next_is_multi_arg=True
  )


def _client_data():
  return [
    tf.data.Dataset.from_tensor_slices(np.float32([1.0, 2.0])).batch(2)
  ] * 2


class WithoutLoopTest(absltest.TestCase):
  def _begin_as_a_new_process(self):
    """Has the main thread's loop made when it is first asked for."""
    before = asyncio.get_event_loop_policy()
    self.addCleanup(asyncio.set_event_loop_policy, before)
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())

  def test_result_and_error(self):
    self.assertEqual(coroutines.run(_double(3)), 6)
    with self.assertRaisesRegex(LookupError, 'not there'):
      coroutines.run(_fail())

  def test_the_thread_keeps_its_event_loop(self):
    self._begin_as_a_new_process()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    self.addCleanup(loop.close)
    coroutines.run(_double(3))
    self.assertIs(asyncio.get_event_loop(), loop)
    self.assertEqual(loop.run_until_complete(_double(1)), 2)

  def test_the_main_thread_still_gets_its_first_event_loop(self):
    self._begin_as_a_new_process()
    coroutines.run(_double(3))
    loop = asyncio.get_event_loop()
    self.addCleanup(loop.close)
    self.assertEqual(loop.run_until_complete(_double(1)), 2)

  def test_works_in_a_thread_without_a_loop(self):
    results = []
    thread = threading.Thread(
      target=lambda: results.append(coroutines.run(_double(4)))
    )
    thread.start()
    thread.join()
    self.assertEqual(results, [8])

  def test_tasks_left_behind_are_cancelled(self):
    cancelled = []

    async def wait():
      try:
        await asyncio.sleep(1000)
      except asyncio.CancelledError:
        cancelled.append(True)
        raise

    async def leave_a_task():
      task = asyncio.get_running_loop().create_task(wait())
      await asyncio.sleep(0)
      return task

    self.assertTrue(coroutines.run(leave_a_task()).cancelled())
    self.assertEqual(cancelled, [True])

  def test_run_training_process_works_afterwards(self):
    self._begin_as_a_new_process()
    coroutines.run(_double(3))
    self.addCleanup(asyncio.get_event_loop().close)
    with tff.framework.get_context_stack().install(
      runtime.create_local_context(client_threads=1)
    ):
      state = tff.simulation.run_training_process(
        _process(),
        lambda round_num: _client_data(),
        total_rounds=2,
        metrics_managers=[tff.program.MemoryReleaseManager()],
      )
    self.assertEqual(state, 12)


class InRunningLoopTest(unittest.IsolatedAsyncioTestCase):
  async def test_result_and_error(self):
    loop = asyncio.get_running_loop()
    self.assertEqual(coroutines.run(_double(3)), 6)
    with self.assertRaisesRegex(LookupError, 'not there'):
      coroutines.run(_fail())
    self.assertIs(asyncio.get_running_loop(), loop)
    self.assertEqual(await _double(2), 4)

  async def test_context_variables_and_tff_s_context_are_the_callers(self):
    variable = contextvars.ContextVar('variable')
    variable.set(5)

    async def look():
      return variable.get(), tff.framework.get_context_stack().current

    context = runtime.create_local_context(client_threads=1)
    with tff.framework.get_context_stack().install(context):
      self.assertEqual(coroutines.run(look()), (5, context))

  async def test_interrupt_cancels_it(self):
    cancelled = []

    async def interrupt():
      os.kill(os.getpid(), signal.SIGINT)
      try:
        await asyncio.sleep(1000)
      except asyncio.CancelledError:
        cancelled.append(True)
        raise

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
      with self.assertRaises(KeyboardInterrupt):
        coroutines.run(interrupt())
    finally:
      signal.signal(signal.SIGINT, before)
    self.assertEqual(cancelled, [True])

  async def test_the_local_runtime_computes(self):
    context = runtime.create_local_context(client_threads=2)
    with tff.framework.get_context_stack().install(context):
      process = _process()
      state = process.initialize()
      for _ in range(2):
        state = process.next(state, _client_data())[0]
    self.assertEqual(state, 12)


if __name__ == '__main__':
  absltest.main()
