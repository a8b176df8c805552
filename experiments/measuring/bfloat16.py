"""Contender of the benchmark: the local runtime with `precision=bfloat16`.

The process is the benchmark's, except that its client optimizer marks the
training step, as that of `learning.build_dp_fed_avg` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow_federated as tff

from tff_medical import runtime
from tff_medical.learning import client_training


def rounds(
  build: Callable[[Any], tff.learning.templates.LearningProcess],
  datasets: Sequence[Any],
  threads: int | None,
) -> Callable[[], None]:
  """Returns a function that runs the next round.

  Args:
    build: Function from a wrapper of the client optimizer to the process.
    datasets: Dataset of each client.
    threads: Number of clients that run at once on the CPU; None for one on each
      core.

  Raises:
    InputError: The processor does not compute in bfloat16.
  """
  context = runtime.create_local_context(threads, precision='bfloat16')
  with tff.framework.get_context_stack().install(context):
    process = build(client_training.in_marked_steps)
    state = process.initialize()

  def run() -> None:
    nonlocal state
    with tff.framework.get_context_stack().install(context):
      state = process.next(state, list(datasets)).state

  return run
