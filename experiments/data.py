r"""Shows what a data set holds before anything is trained on it.

    python -m experiments.data --dataset=synthetic --output_dir=look
    python -m experiments.data --dataset=folder --data_dir=IMAGES \
        --partition=natural_site --output_dir=look

Prints the counts by site, class and split, and the findings to know before a
training. The folder gets data_report.unnoised.html with contact sheets, grey
levels, decoding rules, clients, equal and nearly equal images, and the same as
CSV and PNG. Nothing of it is noised or covered by any ε: it is for whoever
holds the data, and has to stay where the images are.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import pathlib

from experiments.config import client_images
from experiments.config import fields
from experiments.config import flags
from experiments.config import settings as settings_lib
from experiments.running import command
from tff_medical import _validate
from tff_medical.data import overview as overview_lib
from tff_medical.data import partition as partition_lib
from tff_medical.program import ending
from tff_medical.reporting import data_report

# --privacy_unit decides the number of clients where none is given.
FLAGS = (*settings_lib.DATA_FLAGS, 'privacy_unit', 'output_dir')


def check(given: settings_lib.Flags) -> pathlib.Path:
  """Returns the output folder.

  Raises:
    InputError: A flag cannot be used, would be ignored or is missing.
  """
  for name, value in given.given.items():
    if name not in FLAGS:
      raise _validate.InputError(
        f'{name}={value} would be ignored by a look at the data; leave it out'
      )
  given.resolve_data()
  if given.output_dir is None:
    raise _validate.InputError('output_dir must be given: --output_dir=FOLDER')
  folder = pathlib.Path(fields.local_path('output_dir', given.output_dir))
  if folder.exists() and not folder.is_dir():
    raise _validate.InputError(
      f'output_dir must be a folder, got the file {str(folder)!r}; give another'
    )
  return folder


def main(read_flags: Callable[[], settings_lib.Flags]) -> None:
  """Runs the command."""
  given = read_flags()
  folder = check(given)
  settings, own, open_set = given.resolve_data()
  data = client_images.load(settings, own, open_set)
  if settings.num_clients and 'num_clients' not in given.given:
    # A default must not keep anybody from looking at few images.
    most = partition_lib.most_clients(data.train)
    fitting = min(settings.num_clients, most)
    settings = dataclasses.replace(settings, num_clients=fitting)
  partition = client_images.partition(settings, data)
  overview = overview_lib.of(data)
  print(data_report.count_table(overview))
  with ending.deferred():
    findings = data_report.write(data, overview, partition, folder)
  print()
  print('\n'.join(findings))
  print(f'Un-noised report in {folder / data_report.PAGE}')


if __name__ == '__main__':
  _read = flags.define()
  command.parse(check=lambda: check(_read()), settings=FLAGS)
  command.run(functools.partial(main, _read))
