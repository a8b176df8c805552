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
  folder: pathlib.Path, tally: cases.Tally, *, tries: int, seed: int
) -> None:
  """Tries signals at random moments: while it joins, and within passes."""
  rng = random.Random(seed)
  progress = cases.Progress(tally)
  with ray_clusters.Cluster(0, 1, 1) as cluster:
    for number in range(tries):
      signum = (signal.SIGINT, signal.SIGTERM)[number % 2]
      twice = number % 3 == 2
      joins = number % 4 == 3
      rounds = rng.choice(sorted(_EPOCHS))
      training = cluster_training.Training(
        cluster, folder / f'signal{number}', _flags(folder, rounds)
      )
      try:
        lost = _try(training, cluster, signum, joins, twice, rng)
        if lost is None:
          continue  # The run had ended before.
        lost += _go_on(training)
      finally:
        training.command.stop()
      tally.add('signals')
      progress.show()
      if lost:
        when = 'while it joins' if joins else f'in {rounds} rounds'
        times = 'twice' if twice else 'once'
        tally.lose(f'{signum.name} {times} {when}: {", ".join(lost)}')


def _flags(folder: pathlib.Path, rounds: str) -> list[str]:
  """Returns flags of a run of `long` or `short` rounds."""
  return cluster_training.flags(
    folder,
    '--clients_per_round=6',
    '--clipping=fixed',
    '--noise_multiplier=1',
    f'--client_epochs={_EPOCHS[rounds]}',
    f'--rounds={_ROUNDS}',
  )


def _go_on(training: cluster_training.Training) -> list[str]:
  """Starts the same command; returns what is wrong at its end."""
  training.start()
  problem = training.end()
  if problem:
    return [problem]
  return signal_faults.problems_after(training.command, _ROUNDS)


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
