r"""Counts the bytes that rounds on a cluster move from host to host.

Each node of the cluster is a host of its own, as far as the kernel can do that:
a network namespace with one link, and a /dev/shm of its own. The bytes come
from the kernel's counters of these links. They hold the headers of packets, of
which a link without a wire has fewer. The command needs root and iproute2.

A row of the table is a model and a number of workers: the first round, in which
computations travel, and the one of the others that moved the median of bytes.
In brackets stands what the arithmetic of docs/scaling.md says. Rows without a
model are times without a round.

    python -m experiments.cluster_traffic --csv=traffic.csv
"""

from __future__ import annotations

import csv
import dataclasses
import functools

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_list(
    'parameters',
    ['225000', '2000000', '11000000'],
    'numbers of weights of the models, multiples of 1,000',
  )
  absl_flags.DEFINE_list('workers', ['1', '2', '4'], 'numbers of workers')
  absl_flags.DEFINE_integer('clients', 64, 'number of clients of a round')
  absl_flags.DEFINE_integer('rounds', 3, 'number of rounds after the first one')
  absl_flags.DEFINE_string('csv', None, 'file for the figures of all rounds')
  command.parse()

from experiments.measuring import cluster_hosts
from experiments.measuring import cluster_traffic
from tff_medical import _validate

_INPUTS = 1_000
# Addresses of hosts, and memory, end beyond it.
_MAX_WORKERS = 64


def _numbers(texts: list[str], name: str) -> list[int]:
  try:
    numbers = [int(text) for text in texts]
  except ValueError:
    raise _validate.InputError(
      f'{name} must be whole numbers, got {",".join(texts)!r}; separate them '
      'by commas'
    ) from None
  for number in numbers:
    _validate.positive_int(**{name: number})
  return numbers


def _check_parameters(parameters: list[int]) -> None:
  for number in parameters:
    if number < 2 * _INPUTS or number % _INPUTS:
      raise _validate.InputError(
        f'parameters must be multiples of {_INPUTS:,} from {2 * _INPUTS:,} on, '
        f'got {number}; round it'
      )


def print_table(rows: list[cluster_traffic.Traffic]) -> None:
  """Prints the table of docs/scaling.md."""
  print(
    '| parameters | workers | rounds | merges across workers | MB from the '
    'driver | MB to the driver | MB from worker to worker |'
  )
  print('|' + ' --- |' * 7)
  groups: dict[tuple[int, int, str], list[cluster_traffic.Traffic]] = {}
  for row in rows:
    kind = {None: f'idle, {row.seconds:.0f} s', 0: 'first'}.get(
      row.round_num, 'later'
    )
    groups.setdefault((row.parameters, row.workers, kind), []).append(row)
  for (parameters, workers, kind), group in groups.items():
    # The numbers of merges differ from round to round: a typical round.
    group.sort(key=lambda row: row.driver_sent + row.workers_sent)
    row = group[len(group) // 2]
    measured = (row.driver_sent, row.driver_received, row.between_workers)
    cells = [
      # Counters are read one after the other: no -0.00 for some bytes too few.
      f'{round(number / 1e6, 2) + 0.0:,.2f} ({expected:,.2f})'
      for number, expected in zip(
        measured, cluster_traffic.expected_megabytes(row)
      )
    ]
    name = f'{parameters:,}' if parameters else '-'
    print(
      f'| {name} | {workers} | {kind} | {row.merges} | {" | ".join(cells)} |'
    )


def _write_csv(path: str, rows: list[cluster_traffic.Traffic]) -> None:
  names = [field.name for field in dataclasses.fields(cluster_traffic.Traffic)]
  with open(path, 'w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, names, lineterminator='\n')
    writer.writeheader()
    for row in rows:
      seconds = round(row.seconds, 3)
      writer.writerow({**dataclasses.asdict(row), 'seconds': seconds})


def main(values: absl_flags.FlagValues) -> None:
  """Counts the bytes of the rounds that the flags describe."""
  parameters = _numbers(values.parameters, 'parameters')
  _check_parameters(parameters)
  workers = _numbers(values.workers, 'workers')
  _validate.within(1, _MAX_WORKERS, workers=max(workers))
  _validate.positive_int(clients=values.clients, rounds=values.rounds)
  cluster_hosts.check()
  rows = cluster_traffic.measure(
    parameters, workers, values.clients, values.rounds
  )
  print_table(rows)
  if values.csv:
    _write_csv(values.csv, rows)


if __name__ == '__main__':
  command.run(functools.partial(main, absl_flags.FLAGS))
