"""One pass over clients in this process: their work, and the fold of results."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.runtime import cohort as cohort_lib
from tff_medical.runtime import nodes
from tff_medical.runtime import plan as plan_lib

# Value of each leaf; a leaf at the clients has a list with one value a client.
Environment = Mapping[nodes.Leaf, Any]


def run(
  cohort: cohort_lib.Cohort,
  work: plan_lib.Pass,
  env: Environment,
  clients: int,
  *,
  has_state: bool,
) -> dict[nodes.Leaf, Any]:
  """Visits clients and returns the leaves that the pass computes.

  Args:
    cohort: Threads and devices of the clients.
    work: Pass of a plan.
    env: Values of the leaves that the pass reads.
    clients: Number of clients.
    has_state: Whether the computation holds variables, which clients that run
      at once must not share.

  Returns:
    The totals of all folds, and of each kept leaf the values of all clients.

  Raises:
    ClientError: The computation of a client failed.
  """
  kept: dict[nodes.Leaf, list[Any]] = {
    leaf: [None] * clients for leaf in work.kept
  }
  shared = [_shared(work.work.inputs, env, name) for name in cohort.devices]
  captured = [env[leaf] for leaf in work.captured]

  def key(slot: Hashable) -> Hashable:
    return slot if has_state else None

  def run_client(index: int, slot: cohort_lib.Slot) -> list[Any]:
    from_server = shared[slot.lane]
    args = [
      from_server[leaf] if leaf in from_server else env[leaf][index]
      for leaf in work.work.inputs
    ]
    with tf.device(slot.device):
      placed = cohort.placed_on(slot.lane)
      outputs = work.work.step(args, key(slot), placed)
    by_leaf = dict(zip(work.work.outputs, outputs))
    for leaf in work.kept:
      kept[leaf][index] = by_leaf[leaf]
    return [by_leaf[leaf] for leaf in work.values]

  def fold(lane: int, total: list[Any], result: list[Any]) -> list[Any]:
    if not work.folds:
      return total
    with tf.device(cohort.devices[lane]):
      return work.accumulate([*captured, *total, *result], key(lane))

  zero = [env[leaf] for leaf in work.zeros]
  totals = cohort.run(clients, run_client, fold, zero)
  with tf.device(cohort.devices[0]):
    total = totals.pop(0) if totals else zero
    for other in totals:
      total = work.merge([*captured, *total, *other])
  return {**kept, **dict(zip(work.totals, total))}


def _shared(
  leaves: Sequence[nodes.Leaf], env: Environment, device: str
) -> dict[nodes.Leaf, Any]:
  """Returns the values that clients share, with tensors on a device."""
  shared = {}
  with tf.device(device):
    for leaf in leaves:
      if not leaf.node.at_clients:
        value = env[leaf]
        if isinstance(leaf.type_spec, tff.TensorType):
          value = tf.identity(value)
        shared[leaf] = value
  return shared
