"""Sources of client data for tests; processes of a cluster import them."""

import dataclasses
import logging
import os
import pathlib
import time

import numpy as np

from tff_medical import runtime
from tff_medical.data import clients as data_clients
from tff_medical.data import images
from tff_medical.program import feeds
from tff_medical.program import recipe_feeds


@dataclasses.dataclass(frozen=True)
class Gated:
  """Data of a client: its number. Chosen clients wait until the gate is open.

  Attributes:
    folder: Folder in which a client leaves a file NUMBER.PID when it is loaded.
    waits: Numbers of the clients that wait for the file `open`.
    waits_once: Numbers of the clients that wait in the process that is the first
      to load them, and in no other.
    dies: Numbers of the clients at which the process ends at once.
    fails: Numbers of the clients that cannot be loaded.
    secret: Text that loading a client prints, logs and names in errors.
    needs_folder: Whether the folder has to be there when the data is opened.
  """

  folder: str
  waits: tuple = ()
  waits_once: tuple = ()
  dies: tuple = ()
  fails: tuple = ()
  secret: str = ''
  needs_folder: bool = False

  @property
  def digest(self):
    return repr(self)

  def open(self):
    folder = pathlib.Path(self.folder)
    if self.needs_folder:
      folder.stat()

    def load(number):
      (folder / f'{number}.{os.getpid()}').touch()
      if self.secret:
        print(self.secret, flush=True)
        logging.getLogger().error('client %s', self.secret)
      if number in self.dies:
        os._exit(1)
      if number in self.fails:
        # No kind of error that a worker might expect.
        raise RuntimeError(f'client {self.secret} is broken')
      waits = number in self.waits
      if number in self.waits_once:
        try:
          (folder / f'first{number}').touch(exist_ok=False)
          waits = True
        except FileExistsError:
          pass
      while waits and not (folder / 'open').exists():
        time.sleep(0.02)
      return runtime.tensor_dataset(np.array([number], np.int64), batch_size=1)

    return load


@dataclasses.dataclass(frozen=True)
class Wards:
  """Images of clients, of which chosen ones cannot be read by a worker.

  Attributes:
    damaged: Numbers of the clients that cannot be read.
    secret: Text in the errors.
  """

  damaged: tuple = ()
  secret: str = ''

  @property
  def digest(self):
    return repr(self)

  def feed(self):
    """Returns the feed of 12 clients with the label of their number each."""
    split = images.Split(
      images=np.zeros((12, 2, 2, 1), np.uint8), labels=np.arange(12)
    )
    clients = data_clients.ImageClientData(split, tuple(np.arange(12)[:, None]))
    read = clients.client_arrays

    def client_arrays(client_id):
      number = clients.ids.index(client_id)
      if number in self.damaged:
        raise FileNotFoundError(f'{self.secret}/{number}.png')
      return read(client_id)

    object.__setattr__(clients, 'client_arrays', client_arrays)
    return feeds.ClientFeed(clients, batch_size=1)

  def open(self):
    return recipe_feeds.FeedLoader(self.feed())


def loaded(folder):
  """Returns pairs of client and process, in which clients were loaded."""
  names = [path.name for path in pathlib.Path(folder).glob('*.*')]
  return [tuple(map(int, name.split('.'))) for name in names]
