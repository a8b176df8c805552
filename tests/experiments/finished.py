"""Finished runs for tests of audits, made without any training."""

import pathlib

from experiments.auditing import audited_run
from experiments.config import assembly
from tff_medical.program import run_folder
from tff_medical.program import run_records


def run(settings):
  """Returns a finished run of resolved settings, whose data can be loaded."""
  data = assembly.load_task(settings).data
  return audited_run.FinishedRun(
    folder=run_folder.RunFolder(pathlib.Path('no_such_folder')),
    settings=settings,
    summary=None,
    config=run_records.Config(
      settings={},
      data_digest=data.source_digest,
      initial_model_sha256=None,
      versions={},
      run_id='',
    ),
  )
