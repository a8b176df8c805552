import dataclasses
import pickle
from unittest import mock

from absl import logging
from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical.data import clients as clients_lib
from tff_medical.data import images
from tff_medical.data import units as units_lib
from tff_medical.learning import batched_clients
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.program import client_groups
from tff_medical.program import feeds
from tff_medical.program import recipe_feeds
from tff_medical.runtime import recipes

_CLIENTS = 12


@dataclasses.dataclass(frozen=True)
class _Here:
  """Source that counts how often it is opened."""

  kind: str
  opened: list = dataclasses.field(default_factory=list, compare=False)

  @property
  def digest(self):
    return self.kind

  def open(self):
    self.opened.append(self.kind)
    return recipe_feeds.FeedLoader(feed_of(self.kind))


def feed_of(kind):
  rng = np.random.default_rng(0)
  rows = np.split(np.arange(300), np.sort(rng.choice(299, 11, False) + 1))
  split = images.Split(
    images=rng.integers(256, size=(300, 4, 4, 1), dtype=np.uint8),
    labels=rng.integers(3, size=300),
  )
  by_client = feeds.ClientFeed(
    clients_lib.ImageClientData(split, tuple(rows)), batch_size=8, epochs=2
  )
  units = units_lib.record_units(tuple(rows))
  sampling = local_dp_sgd_mechanism.LocalDpSgdSampling(
    rate=0.5, steps=3, population=300
  )
  return {
    'clients': by_client,
    'groups': client_groups.ClientGroupFeed(
      by_client, batched_clients.GroupSize(clients=4, images=200)
    ),
    'units': feeds.UnitFeed(split, units, _CLIENTS, 64, at_once=3),
    'steps': feeds.LocalStepsFeed(split, units, _CLIENTS, sampling),
  }[kind]


class RecipeFeedTest(parameterized.TestCase):
  @parameterized.parameters('clients', 'groups', 'units', 'steps')
  def test_recipes_are_the_datasets_of_the_feed(self, kind):
    feed = feed_of(kind)
    drawn = (
      np.array([7, 0, 3, 11, 4])
      if kind in ('clients', 'groups')
      else np.random.default_rng(1).choice(300, 150, False)
    )
    source = _Here(kind)
    by_recipe = recipe_feeds.RecipeFeed(feed, source)
    datasets = by_recipe(drawn)
    self.assertEqual(source.opened, [])
    expected = feed(drawn)
    self.assertLen(datasets, len(expected))
    for a, b in zip(datasets, expected):
      tf.nest.map_structure(
        lambda spec, one: self.assertTrue(spec.is_compatible_with(one)),
        a.element_spec,
        next(iter(b)),
      )
      # What travels is the recipe alone.
      recipe = pickle.loads(pickle.dumps(a.recipe))
      self.assertLess(len(pickle.dumps(a.recipe)), 4000)
      loaded = recipes.load(recipe)
      for one, other in zip(loaded, b):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)
    self.assertEqual(by_recipe.num_units, feed.num_units)
    self.assertLen(by_recipe.without_data(), len(feed.without_data()))

  def test_costs_are_numbers_of_images(self):
    feed = feed_of('clients')
    by_recipe = recipe_feeds.RecipeFeed(feed, _Here('clients'))
    costs = [d.recipe.cost for d in by_recipe(np.arange(_CLIENTS))]
    sizes = [len(feed.clients.client_arrays(i)['y']) for i in feed.clients.ids]
    self.assertEqual(costs, sizes)


def damaged_feed(kind, damaged):
  """Returns a feed with clients whose images cannot be read."""
  feed = feed_of(kind)
  clients = feed.clients if kind == 'clients' else feed.inner.clients
  read = clients.client_arrays

  def client_arrays(client_id):
    if clients.ids.index(client_id) in damaged:
      raise FileNotFoundError(f'/ward/{client_id} is damaged')
    return read(client_id)

  # The class is frozen, and the instance is this test's own.
  object.__setattr__(clients, 'client_arrays', client_arrays)
  return feed


@parameterized.parameters('clients', 'groups')
class UnreadableTest(parameterized.TestCase):
  """Clients that only another process finds unreadable."""

  def _round(self, feed, loaders, drawn):
    """Loads a round's parts elsewhere, in turn; returns what was found."""
    for i, part in enumerate(feed.inner.parts(drawn)):
      loaders[i % len(loaders)](part.key)
    return [loader.take_findings() for loader in loaders]

  def _logs(self, run):
    with self.assertLogs(level='WARNING') as logs:
      run()
    return sorted(logs.output)

  def test_the_driver_says_what_one_machine_says(self, kind):
    drawn = np.array([7, 0, 3, 11, 4, 9, 2])
    here = damaged_feed(kind, {3, 4})
    feed = recipe_feeds.RecipeFeed(feed_of(kind), _Here(kind))
    loaders = [
      recipe_feeds.FeedLoader(damaged_feed(kind, {3, 4})) for _ in range(2)
    ]
    expected = self._logs(lambda: here(drawn))
    self.assertLen(expected, 2)
    self.assertIn('/ward/', expected[0])
    found = self._round(feed, loaders, drawn)
    self.assertEqual(self._logs(lambda: feed.note(found)), expected)
    # Another worker reads the clients in the next round.
    found = self._round(feed, loaders[::-1], drawn)
    with mock.patch.object(logging, 'warning') as warning:
      feed.note(found)
    warning.assert_not_called()

  def test_none_of_many_is_the_fault_of_the_source(self, kind):
    everybody = set(range(_CLIENTS))
    loaders = [
      recipe_feeds.FeedLoader(damaged_feed(kind, everybody)) for _ in range(3)
    ]
    feed = recipe_feeds.RecipeFeed(feed_of(kind), _Here(kind))
    with self.assertRaises(_validate.InputError) as here:
      damaged_feed(kind, everybody)(np.arange(10))
    with self.assertRaises(_validate.InputError) as elsewhere:
      feed.note(self._round(feed, loaders, np.arange(10)))
    self.assertStartsWith(
      str(elsewhere.exception), 'none of the 10 clients that were drawn can be'
    )
    self.assertStartsWith(str(elsewhere.exception), str(here.exception)[:60])

  def test_one_of_many_is_enough(self, kind):
    others = set(range(_CLIENTS)) - {9}
    loaders = [
      recipe_feeds.FeedLoader(damaged_feed(kind, others)) for _ in range(3)
    ]
    feed = recipe_feeds.RecipeFeed(feed_of(kind), _Here(kind))
    # The one that is read comes last.
    feed.note(self._round(feed, loaders, np.arange(_CLIENTS)))


class SourceTest(absltest.TestCase):
  def test_a_source_is_opened_once(self):
    source = _Here('clients')
    with mock.patch.object(recipes, '_loaders', {}):
      for part in (0, 1, 0):
        recipes.load(recipes.Recipe(source, part))
    self.assertEqual(source.opened, ['clients'])


if __name__ == '__main__':
  absltest.main()
