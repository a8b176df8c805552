"""Signals at aimed and at random moments of real trainings, many of them.

    python -m tests.faults.signal_faults --tries=40

Prints how many were tried, how many survived and what was lost. A training
survives if it ends within 10 seconds with the code of the signal, without a
traceback, and the same command afterwards comes to its end with a ledger that
has a charge for every round. It takes about half a minute a try.
"""

import argparse
import json
import pathlib
import random
import signal
import sys
import tempfile
import time

from tests.experiments import npz
from tests.faults import signals

END_SECS = 10.0
_ROUNDS = 12


def _arguments(data_dir):
  return [
    '--dataset=medmnist/breastmnist',
    f'--data_dir={data_dir}',
    '--num_clients=12',
    '--clients_per_round=6',
    '--target_epsilon=30',
    f'--rounds={_ROUNDS}',
  ]


def problems(command, signum, secs):
  """Returns what a command did wrong that a signal ended."""
  found = []
  if command.process.returncode != 128 + signum:
    found.append(f'exit code {command.process.returncode}')
  if secs > END_SECS:
    found.append(f'{secs:.1f} s')
  if 'Traceback' in command.text():
    found.append('traceback')
  half = [p.name for p in command.output.glob('.saved_model*')]
  if half:
    found.append(f'left {half}')
  return found


def problems_after(command, rounds=_ROUNDS):
  """Returns what is wrong with a run that was started again, and ended."""
  if command.process.returncode:
    return [f'started again: {command.text()[-300:]}']
  summary = json.loads((command.output / 'summary.json').read_text())
  ledger = (command.output / 'privacy_ledger.jsonl').read_text()
  if summary['rounds'] != rounds or ledger.count('"charges"') < rounds:
    return [f'{summary["rounds"]} rounds, charges {ledger.count("charges")}']
  if not (command.output / 'saved_model' / 'saved_model.pb').exists():
    return ['no model']
  return []


def _try(folder, data_dir, moment, signum, rng):
  """Returns the problems of one try; None if the moment never came."""
  command = signals.Command.start(folder, _arguments(data_dir))
  try:
    if not command.wait_for(moment):
      return None
    time.sleep(rng.random() * rng.choice([0.0, 0.05, 1.0]))
    if command.process.poll() is not None:
      return None
    found = problems(command, signum, command.signal(signum))
  finally:
    command.stop()
  again = signals.Command.start(folder, _arguments(data_dir))
  again.process.wait()
  return found + problems_after(again)


def main():
  """Runs all tries; returns 1 if one of them failed."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--tries', type=int, default=24)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  rng = random.Random(options.seed)
  tried = survived = 0
  with tempfile.TemporaryDirectory() as temporary:
    data_dir = npz.write(pathlib.Path(temporary))
    for number in range(options.tries):
      name = list(signals.MOMENTS)[number % len(signals.MOMENTS)]
      signum = rng.choice([signal.SIGINT, signal.SIGTERM])
      folder = pathlib.Path(temporary, str(number))
      folder.mkdir()
      found = _try(folder, data_dir, signals.MOMENTS[name], signum, rng)
      if found is None:
        print(f'{number} {name}: it had ended before', flush=True)
        continue
      tried += 1
      survived += not found
      print(
        f'{number} {name}, {signal.Signals(signum).name}: '
        f'{", ".join(found) or "survived"}',
        flush=True,
      )
  print(f'tried {tried}, survived {survived}, lost {tried - survived}')
  return int(survived != tried)


if __name__ == '__main__':
  sys.exit(main())
