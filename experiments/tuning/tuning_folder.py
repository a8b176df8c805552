"""The folder of a search: its trials and price, which are decided once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import secrets
from typing import Any

from experiments.config import settings as settings_lib
from experiments.running import cells
from experiments.running import jobs as jobs_lib
from experiments.tuning import pricing
from experiments.tuning import search as search_lib
from experiments.tuning import trials as trials_lib
from tff_medical import _files
from tff_medical import _validate
from tff_medical.privacy import data_ledger as data_ledger_lib
from tff_medical.program import ending
from tff_medical.program import run_records

_PRIVATE_NOTE = """Keep this folder secret.

ε of the released model holds if nothing else of the search is known: not the
number of trials, not their settings, not their models or metrics, and not how
long they took.
"""


@dataclasses.dataclass(frozen=True)
class Tuning:
  """A search in its folder.

  Attributes:
    base: Flags common to all trials.
    search: What is searched.
  """

  base: settings_lib.Flags
  search: search_lib.Search

  @property
  def folder(self) -> pathlib.Path:
    """Folder of the search and of what it releases."""
    return pathlib.Path(self.base.output_dir or '')

  @property
  def trials_folder(self) -> pathlib.Path:
    """Folder of the trials, which is private if they are secret."""
    return self.folder / 'private' if self.search.is_secret else self.folder

  @property
  def file(self) -> pathlib.Path:
    """File of the settings and the price."""
    return self.folder / 'tuning.json'

  @property
  def trials_file(self) -> pathlib.Path:
    """File of the candidates of all trials."""
    return self.trials_folder / 'trials.json'

  @property
  def data_ledger(self) -> pathlib.Path:
    """Ledger of the data set: the one given, or one of the search alone."""
    given = self.base.resolve().run.data_ledger
    return pathlib.Path(given or self.folder / 'data_ledger.jsonl')

  def start(self) -> tuple[list[search_lib.Candidate], pricing.Priced]:
    """Returns the trials and their price; goes on with those of the folder.

    Raises:
      InputError: The folder holds something else, the target is out of reach,
        or the data ledger has no room.
    """
    identity = _files.plain_json(
      {'settings': self._identity(), 'search': self.search.describe()}
    )
    if self.file.exists():
      return self._read(identity)
    if self.folder.exists() and (
      not self.folder.is_dir() or any(self.folder.iterdir())
    ):
      raise _validate.InputError(
        f'output_dir {self.folder} holds other files (no {self.file.name}); '
        'choose a new folder'
      )
    candidates = self.search.candidates()
    trials = candidates if self.search.is_secret else self._draw()
    planned = [
      trials_lib.trial_flags(self.base, candidate) for candidate in trials
    ]
    request = data_ledger_lib.Request(secrets.token_hex(16), 'tune', 1)
    priced = jobs_lib.call(pricing.price, self.search, planned, request)
    if self.search.is_secret:
      trials = self._draw()
    with ending.deferred():
      self.folder.mkdir(parents=True, exist_ok=True)
      if self.search.is_secret:
        self.trials_folder.mkdir(0o700)
        note = self.trials_folder / 'KEEP_SECRET.txt'
        _files.write_bytes(note, _PRIVATE_NOTE.encode(), private=True)
      listed = {'trials': [dict(candidate) for candidate in trials]}
      text = json.dumps(listed, indent=2) + '\n'
      _files.write_bytes(self.trials_file, text.encode(), private=True)
      _files.write_json(
        self.file,
        {
          **identity,
          'priced': dataclasses.asdict(priced),
          'versions': run_records.versions(),
        },
      )
    return trials, priced

  def _draw(self) -> list[search_lib.Candidate]:
    return self.search.draw(self.base.seed)

  def _identity(self) -> dict[str, Any]:
    """Returns the given flags that a result depends on."""
    unfixed = settings_lib.may_change() - {'initial_model', 'data_ledger'}
    return dict(self.base.changed(**dict.fromkeys(unfixed)).given)

  def _read(
    self, identity: Mapping[str, Any]
  ) -> tuple[list[search_lib.Candidate], pricing.Priced]:
    """Returns the trials and the price that the folder holds."""
    filed = _files.read_json(self.file)
    for name in identity:
      if filed.get(name) != identity[name]:
        raise _validate.InputError(
          f'output_dir {self.folder} belongs to a search with another {name} '
          f'({filed.get(name)} there, {identity[name]} now); use the same or '
          'choose another output_dir'
        )
    try:
      listed = _files.read_json(self.trials_file)['trials']
      trials = [tuple(candidate.items()) for candidate in listed]
      values = {**filed['priced']}
      for name in ('noise_multipliers', 'epsilons'):
        values[name] = tuple(values[name])
      return trials, pricing.Priced(**values)
    except (FileNotFoundError, KeyError, TypeError, AttributeError) as error:
      raise _validate.InputError(
        f'{self.folder} lacks its list of trials or its price '
        f'({type(error).__name__}); restore the files, as trials are never '
        'drawn again'
      ) from None

  def trainings(
    self, trials: Sequence[search_lib.Candidate], priced: pricing.Priced
  ) -> list[cells.Training]:
    """Returns the training of each trial, with its noise and ledger."""
    trainings = []
    for number, candidate in enumerate(trials):
      # A secret trial may be any candidate, and all of them cost the same.
      index = 0 if self.search.is_secret else number
      name = f'trial_{number + 1:03d}'
      charged: dict[str, Any] = {'data_ledger': None, 'data_budget': None}
      if not self.search.is_secret:
        budget = self.base.data_budget
        if self.base.data_ledger is None:
          budget = self.base.target_epsilon
        charged = {'data_ledger': str(self.data_ledger), 'data_budget': budget}
      given = trials_lib.trial_flags(self.base, candidate).changed(
        target_epsilon=None,
        target_delta=priced.delta,
        noise_multiplier=priced.noise_multipliers[index],
        epsilon_budget=priced.epsilons[index],
        eval_split=search_lib.CHOOSING,
        output_dir=str(cells.cell_folder(self.trials_folder, name)),
        **charged,
      )
      trainings.append(cells.Training(name, given))
    return trainings
