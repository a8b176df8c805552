"""Source of a run's feed that the workers of a cluster open themselves.

A worker loads the images as the settings say, on its own machine. The source
holds no data, and nothing that must stay secret: the seed of the cohorts is left
out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

import tensorflow_federated as tff

from experiments.config import assembly
from experiments.config import settings as settings_lib
from tff_medical import _validate
from tff_medical.program import client_groups
from tff_medical.program import feeds
from tff_medical.program import recipe_feeds
from tff_medical.runtime import cluster
from tff_medical.runtime import recipes


@dataclasses.dataclass(frozen=True)
class FeedSource:
  """Feed of a run, on any machine that holds the same images.

  Attributes:
    settings: Settings of the run, with paths that do not depend on the working
      directory.
    data_digest: Digest of the images.
    kind: Name of the feed's class, which depends on the machine's devices.
  """

  settings: settings_lib.Settings
  data_digest: str
  kind: str

  @classmethod
  def of(cls, parts: assembly.Assembly) -> FeedSource:
    """Returns the source of a run's feed."""
    settings = parts.settings
    groups: dict[str, Any] = {
      name: _with_absolute_paths(getattr(settings, name))
      for name in ('data', 'own', 'open_set', 'model')
    }
    run = dataclasses.replace(
      settings.run, output_dir=None, data_ledger=None, cohort_seed=None
    )
    return cls(
      dataclasses.replace(settings, run=run, **groups),
      parts.task.data.source_digest,
      type(parts.feed).__name__,
    )

  @functools.cached_property
  def digest(self) -> str:
    """Digest of all that decides the feed."""
    return hashlib.sha256(repr(self).encode()).hexdigest()

  def open(self) -> recipes.Loader:
    """Returns the function from a part of the feed to its dataset.

    Raises:
      InputError: The images are not on this machine, or others are.
    """
    task = assembly.load_task(self.settings)
    if task.data.source_digest != self.data_digest:
      raise _validate.InputError(
        f'dataset {self.settings.data.dataset} has other images on a worker '
        'than on the driver; copy the same files to all nodes'
      )
    feed: Any = self.settings.mode.feed(task)
    if type(feed).__name__ != self.kind:
      raise _validate.InputError(
        'some nodes of the cluster have GPUs and others have none, the driver '
        'included; use nodes of one kind'
      )

    return recipe_feeds.FeedLoader(feed)


def for_runtime(parts: assembly.Assembly) -> assembly.Assembly:
  """Returns a run's objects, with a feed of recipes on a cluster.

  Raises:
    InputError: No node of the cluster has the images.
  """
  context = tff.framework.get_context_stack().current
  if not isinstance(context, cluster.ClusterContext):
    return parts
  feed: Any = parts.feed
  if isinstance(feed, (feeds.UnitFeed, client_groups.ClientGroupFeed)):
    # As many datasets whatever workers there are, so that sums stay the same.
    feed = dataclasses.replace(feed, at_once=context.portions)
  source = FeedSource.of(parts)
  recipe_feed = recipe_feeds.RecipeFeed(feed, source)
  context.open(source, recipe_feed.note)
  return dataclasses.replace(parts, feed=recipe_feed)


def _with_absolute_paths(group: Any) -> Any:
  """Returns a group of settings whose paths are absolute."""
  paths = {
    field.name: str(pathlib.Path(getattr(group, field.name)).absolute())
    for field in dataclasses.fields(group)
    if field.metadata.get('is_path') and getattr(group, field.name) is not None
  }
  return dataclasses.replace(group, **paths)
