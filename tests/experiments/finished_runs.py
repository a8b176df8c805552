"""Runs that can be audited, though nobody trained them."""

import pathlib

from experiments import audited_run
from experiments.config import assembly
from tff_medical.program import run_folder


def of(settings, folder):
  """Returns a run with these settings, as an audit finds it.

  Args:
    settings: Resolved.
    folder: The run's; it need not exist.
  """
  data = assembly.load_task(settings).data
  config = run_folder.Config(
    settings={},
    data_digest=data.source_digest,
    initial_model_sha256=None,
    versions={},
    run_id='0f',
  )
  return audited_run.FinishedRun(
    run_folder.RunFolder(pathlib.Path(folder)), settings, None, config
  )
