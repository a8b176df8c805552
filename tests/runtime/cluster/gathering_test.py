"""A pass over clients on workers that die at any moment, in a simulated Ray.

Totals are strings that show in which order they were merged. So a portion that
counted twice, or in another place, is seen. The calls of a worker's two threads
run in any order.
"""

import collections
import random
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from tff_medical.runtime.cluster import gathering
from tff_medical.runtime.cluster import messages
from tff_medical.runtime.cluster import paces
from tff_medical.runtime.cluster import pool as pool_lib
from tff_medical.runtime.cluster import portions
from tff_medical.runtime.cluster import signs

_MAX_STEPS = 100_000


class _RayError(Exception):
  pass


class _RayTaskError(_RayError):
  def __init__(self, cause):
    super().__init__()
    self.cause = cause


class _RayActorError(_RayError):
  pass


class _Ref:
  """Result of a call: None while it is not there."""

  def __init__(self):
    self.value = None  # A list of one value.
    self.error = None
    self.node = None

  @property
  def is_ready(self):
    return self.value is not None or self.error is not None


class _Method:
  def __init__(self, actor, name, num_returns=1):
    self._call = actor.ray.call, actor, name, num_returns

  def options(self, num_returns):
    return _Method(self._call[1], self._call[2], num_returns)

  def remote(self, *arguments):
    call, actor, name, num_returns = self._call
    refs = call(actor, name, arguments, num_returns)
    return refs if num_returns > 1 else refs[0]


class _Actor:
  """A worker of the simulation, with the calls that wait for it."""

  def __init__(self, ray, node):
    self.ray = ray
    self.node = node
    self.calls = {
      thread: collections.deque() for thread in ('run', 'totals', 'signs')
    }
    self.error = None  # What its callers get, once it is dead.
    self.is_silent = False
    self.results = None

  run = property(lambda self: _Method(self, 'run'))
  take = property(lambda self: _Method(self, 'take'))
  add = property(lambda self: _Method(self, 'add'))
  answer = property(lambda self: _Method(self, 'answer'))

  def die(self, error):
    self.error = self.error or error
    for calls in self.calls.values():
      for _, _, refs in calls:
        for ref in refs:
          ref.error = self.error
      calls.clear()


class _Ray:
  """Ray, and the pool of workers: both act at random, by a seed.

  Attributes:
    deaths: Number of processes and nodes that died or fell silent.
    runs: Number of runs of each portion that were begun.
    most_at_once: Largest number of workers that had a portion at once.
  """

  exceptions = types.SimpleNamespace(
    RayError=_RayError,
    RayTaskError=_RayTaskError,
    RayActorError=_RayActorError,
  )

  def __init__(self, seed, *, death, silence=0.0, lost_report=0.0):
    self._random = random.Random(seed)
    # How often runs are quicker than totals on their way.
    self._runs_first = self._random.choice((0.0, 0.5, 0.95))
    self._death = death
    self._silence = silence
    self._lost_report = lost_report
    self._steps = 0
    self._alive = set()
    self._members = {}
    self._numbers = iter(range(_MAX_STEPS))
    self.deaths = 0
    self.runs = collections.Counter()
    self.most_at_once = 0
    self._signs = signs.Signs(self)
    for _ in range(self._random.randint(1, 6)):
      self._alive.add(f'node {len(self._alive)}')
    self.refresh()

  # The pool.

  @property
  def ready(self):
    return list(self._members.values())

  def refresh(self):
    for member in self.ready:
      if member.node not in self._alive:
        self.lose(member)
    actors = {number: m.actor for number, m in self._members.items()}
    for number in self._signs.silent(actors):
      self.lose(self._members[number])
    for node in sorted(self._alive - {m.node for m in self.ready}):
      number = next(self._numbers)
      self._members[number] = pool_lib.Member(
        number, node, '', _Actor(self, node), None
      )

  def wait_for_workers(self):
    if not self._alive:
      self._alive.add(f'node {next(self._numbers)}')
    self.refresh()

  def lose(self, member):
    self._members.pop(member.number, None)
    member.actor.die(_RayActorError())

  # Ray.

  def now(self):
    return float(self._steps)

  def call(self, actor, name, arguments, num_returns):
    refs = [_Ref() for _ in range(num_returns)]
    if actor.error is not None:
      for ref in refs:
        ref.error = actor.error
    else:
      thread = {'run': 'run', 'answer': 'signs'}.get(name, 'totals')
      actor.calls[thread].append((name, arguments, refs))
    if name == 'run':
      portion = arguments[3].number
      self.runs[portion] += 1
      self.most_at_once = max(self.most_at_once, self._running(portion))
    return refs

  def _running(self, portion):
    """Returns the number of workers that run a portion, or will."""
    return sum(
      portion in [a[3].number for _, a, _ in member.actor.calls['run']]
      for member in self.ready
    )

  def cancel(self, ref):
    pass

  def wait(self, refs, **unused):
    for _ in range(self._random.choice((1, 1, 2, 5, 20))):
      self._step()
    done = [ref for ref in refs if ref.is_ready]
    return ([self._random.choice(done)] if done else []), []

  def get(self, ref):
    if isinstance(ref, list):
      return [self.get(r) for r in ref]
    while not ref.is_ready:
      self._step()
    if ref.error is not None:
      raise ref.error
    if isinstance(ref.value[0], str) and ref.node not in self._alive:
      raise _RayError('the object was lost with its node')
    if self._random.random() < self._lost_report:
      raise _RayError('the report was lost')
    return ref.value[0]

  def _step(self):
    self._steps += 1
    if self._steps > _MAX_STEPS:
      raise AssertionError('the pass does not end')
    actors = [m.actor for m in self.ready if m.actor.error is None]
    if actors and self._steps < 2000 and self._random.random() < self._death:
      self._kill(self._random.choice(actors))
    if actors and self._steps < 2000 and self._random.random() < self._silence:
      self.deaths += 1
      self._random.choice(actors).is_silent = True
    busy = [
      (actor, calls)
      for actor in actors
      if not actor.is_silent
      for calls in actor.calls.values()
      if calls
    ]
    runs = [
      (actor, calls) for actor, calls in busy if calls is actor.calls['run']
    ]
    if runs and self._random.random() < self._runs_first:
      busy = runs
    if busy:
      self._work(*self._random.choice(busy))

  def _kill(self, actor):
    self.deaths += 1
    kind = self._random.choice(('process', 'memory', 'node'))
    if kind == 'node':
      self._alive.discard(actor.node)
      if self._random.random() < 0.8:
        self._alive.add(f'node {next(self._numbers)}')
    # Ray has an error of its own for a worker that it killed for its memory.
    actor.die(_RayError() if kind == 'memory' else _RayActorError())

  def _work(self, actor, calls):
    # Calls that are about totals may overtake each other.
    if calls is actor.calls['totals']:
      calls.rotate(self._random.randrange(len(calls)))
    name, arguments, refs = calls.popleft()
    results = [None]
    if name != 'answer':
      call, *rest = arguments
      if actor.results is None:
        tree = portions.Tree(call.portions)
        actor.results = portions.Results(
          portions.Totals(tree, '({} {})'.format)
        )
      results = self._result(actor, name, rest, refs)
    for ref, result in zip(refs, results):
      ref.value, ref.node = [result], actor.node

  def _result(self, actor, name, rest, refs):
    if name == 'add':
      span, total = rest
      if total.error is not None or total.node not in self._alive:
        refs[0].error = _RayTaskError(_RayError('lost'))
        return []
      actor.results.add(span, total.value[0])
      return [None]
    keep, *rest = rest
    actor.results.keep(keep)
    if name == 'take':
      return [None, actor.results.take(*rest)]
    run, portion = rest
    span = portions.Span(portion.number, portion.number + 1)
    actor.results.put(run, span, str(portion.number))
    return [messages.Report([[portion.number]])]


class _Pool:
  def __init__(self, ray):
    self._ray = ray

  ready = property(lambda self: self._ray.ready)

  def refresh(self):
    self._ray.refresh()

  def wait(self):
    self._ray.wait_for_workers()

  def lose(self, member):
    self._ray.lose(member)


def merged(tree, span):
  """Returns the total that an undisturbed pass has."""
  if span.end - span.first == 1:
    return str(span.first)
  left, right = tree.children(span)
  return f'({merged(tree, left)} {merged(tree, right)})'


def gathered(seed, *, is_late=False, **faults):
  """Runs a pass with random faults; all workers are late, or none is.

  Returns:
    Number of portions, result, and the simulated Ray.
  """
  ray = _Ray(seed, **faults)
  chosen = random.Random(seed)
  number = chosen.randint(1, 20)
  work = [messages.Portion(i, i, 1, {}) for i in range(number)]
  call = messages.Call(0, messages.Shared('0', []), 0, [], number)
  costs = [chosen.uniform(1, 2) for _ in work]
  homes = {i: chosen.randint(0, 5) for i in range(number)}
  # A silent worker is found by looking for it.
  look_secs = chosen.choice((0.0, 1e9)) if 'silence' not in faults else 0.0
  with (
    mock.patch.object(gathering, '_LOOK_SECS', look_secs),
    mock.patch.object(gathering, '_LATE_LOOK_SECS', 0.0),
    mock.patch.object(signs, '_ASK_SECS', 10),
    mock.patch.object(signs, '_SILENT_SECS', 300),
    mock.patch.object(signs, '_LONGEST_LOOK_SECS', 1e9),
    mock.patch.object(gathering, '_MAX_LOSSES', 10**6),
    mock.patch.object(paces, '_LATE', 0.0 if is_late else 1e9),
    mock.patch.object(paces, '_GRACE_SECS', 0.0),
    mock.patch.object(gathering.time, 'monotonic', ray.now),
  ):
    result = gathering.Gathering(
      ray, _Pool(ray), call, work, costs, homes
    ).run()
  return number, result, ray


class GatheringTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'death': 0.0}, 0),
    ({'death': 0.02}, 100),
    ({'death': 0.15}, 1000),
    ({'death': 0.05, 'lost_report': 0.02}, 300),
    ({'death': 0.0, 'is_late': True}, 0),
    ({'death': 0.02, 'is_late': True}, 100),
    ({'death': 0.15, 'is_late': True}, 1000),
    ({'death': 0.05, 'lost_report': 0.02, 'is_late': True}, 300),
    ({'death': 0.01, 'silence': 0.01}, 100),
    ({'death': 0.01, 'silence': 0.01, 'is_late': True}, 100),
  )
  def test_each_portion_counts_once_in_its_place(self, faults, deaths):
    total_deaths = 0
    for seed in range(100):
      number, (total, kept), ray = gathered(seed, **faults)
      tree = portions.Tree(number)
      self.assertEqual(total, merged(tree, tree.root), seed)
      self.assertEqual(kept, [[[i]] for i in range(number)], seed)
      self.assertLessEqual(ray.most_at_once, 2 if 'is_late' in faults else 1)
      total_deaths += ray.deaths
    self.assertGreaterEqual(total_deaths, deaths)

  def test_a_total_that_is_on_its_way_to_another_worker_is_not_merged(self):
    # It takes one death at the right moment. One of these passes has it.
    for seed in range(3090, 3100):
      number, (total, _), _ = gathered(seed, death=0.1)
      tree = portions.Tree(number)
      self.assertEqual(total, merged(tree, tree.root), seed)

  @parameterized.parameters(False, True)
  def test_a_portion_runs_twice_where_a_worker_is_late(self, is_late):
    runs = [
      gathered(seed, death=0.0, is_late=is_late)[2].runs for seed in range(50)
    ]
    most = max(max(each.values()) for each in runs)
    self.assertEqual(most, 2 if is_late else 1)


if __name__ == '__main__':
  absltest.main()
