"""Ctrl-C and SIGTERM for a real training on a real Ray cluster."""

from __future__ import annotations

import pathlib
import random
import signal
import time

from tests import ray_clusters
from tests.faults import cases
from tests.faults import cluster_training
from tests.faults import signal_faults
from tests.runtime.cluster import nodes

_ROUNDS = 3
# Epochs of rounds that last longer, and much shorter, than a command waits.
_EPOCHS = {'long': 300, 'short': 10}
# More than two signals that count as one, and less than a command waits.
_SECOND_AFTER_SECS = 0.6


def try_signals(
  cluster: ray_clusters.Cluster,
  folder: pathlib.Path,
  tally: cases.Tally,
  *,
  tries: int,
  seed: int,
) -> None:
  """Tries signals at random moments: while it joins, and within passes."""
  rng = random.Random(seed)
  progress = cases.Progress(tally)
  for number in range(tries):
    signum = (signal.SIGINT, signal.SIGTERM)[number % 2]
    twice = number % 3 == 2
    rounds = rng.choice(sorted(_EPOCHS))
    joins = number % 4 == 3
    flags = cluster_training.flags(
      folder,
      '--clients_per_round=6',
      '--clipping=fixed',
      '--noise_multiplier=1',
      f'--client_epochs={_EPOCHS[rounds]}',
      f'--rounds={_ROUNDS}',
    )
    name = (
      f'signal {number}, {signum.name} {"twice" if twice else "once"}, '
      f'{"while it joins" if joins else f"in {rounds} rounds"}'
    )
    training = cluster_training.Training(cluster, folder / f'{number}', flags)
    try:
      found = _try(training, cluster, signum, joins, twice, rng)
    finally:
      training.command.stop()
    if found is None:
      continue
    tally.add('signals')
    training.start()
    problem = training.end()
    found += (
      [problem]
      if problem
      else signal_faults.problems_after(training.command, _ROUNDS)
    )
    if found:
      tally.lose(f'{name}: {", ".join(found)}')
    progress.show()


def _try(
  training: cluster_training.Training,
  cluster: ray_clusters.Cluster,
  signum: signal.Signals,
  joins: bool,
  twice: bool,
  rng: random.Random,
) -> list[str] | None:
  """Returns the problems of one try; None if the run had ended before."""
  if joins:
    came = training.wait_for(lambda: bool(nodes.worker_pids(cluster)))
  else:
    came = training.wait(1)
  time.sleep(rng.uniform(0, 2))
  if not came or training.has_ended:
    return None
  command = training.command
  started = time.monotonic()
  if twice:
    command.process.send_signal(signum)
    time.sleep(_SECOND_AFTER_SECS)
  if command.process.poll() is None:
    command.signal(signum)
  found = signal_faults.problems(command, signum, time.monotonic() - started)
  if f'stopped by {signum.name}' not in command.text() and (
    twice or joins or 'Results in' not in command.text()
  ):
    found.append(f'it says {training.last_line()}')
  if not nodes.wait_until(lambda: not nodes.worker_pids(cluster), seconds=30):
    found.append('workers are left')
  return found
