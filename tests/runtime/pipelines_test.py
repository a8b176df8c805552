import collections
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import runtime
from tff_medical.runtime import cohort
from tff_medical.runtime import devices
from tff_medical.runtime import pipelines
from tff_medical.runtime import plan
from tff_medical.runtime import tensor_data

_CASES = 400
_SPEC = tff.SequenceType(tff.TensorType(np.int64, [None]))


@functools.cache
def _context():
  return runtime.LocalContext(
    cohort.Cohort(devices.Placement(('CPU:0',), 2, 'client_threads'))
  )


@functools.cache
def _reader(passes=1, loop=False):
  """Returns the computation that lists all batches of each client."""

  def add(state, batch):
    values, sizes = state
    size = tf.size(batch, tf.int64)
    return tf.concat([values, batch], 0), tf.concat([sizes, [size]], 0)

  def read(dataset):
    empty = tf.zeros([0], tf.int64)
    return dataset.reduce((empty, empty), add)

  @tf.function
  def read_in_loop(dataset):
    values = sizes = tf.zeros([0], tf.int64)
    for batch in dataset:
      tf.autograph.experimental.set_loop_options(
        shape_invariants=[
          (values, tf.TensorShape([None])),
          (sizes, tf.TensorShape([None])),
        ]
      )
      values, sizes = add((values, sizes), batch)
    return values, sizes

  @tff.tensorflow.computation(_SPEC)
  def work(dataset):
    return [(read_in_loop if loop else read)(dataset) for _ in range(passes)]

  return tff.federated_computation(
    lambda data: tff.federated_map(work, data),
    tff.FederatedType(_SPEC, tff.CLIENTS),
  )


def _split(values, sizes):
  ends = np.cumsum(sizes)
  return [list(values[e - s : e]) for s, e in zip(sizes, ends)]


def _read(datasets, passes=1, loop=False):
  """Returns the batches that the runtime reads: [client][pass][batch]."""
  with tff.framework.get_context_stack().install(_context()):
    clients = _reader(passes, loop)(datasets)
  return [[_split(*one) for one in client] for client in clients]


def _expected(dataset):
  return [list(batch) for batch in dataset.as_numpy_iterator()]


def _negated(batch):
  return -batch


def _scaled(batch):
  return batch * 3 + tf.size(batch, tf.int64)


# Transformations of examples or batches, each with a random number.
_STEPS = {
  'take': lambda d, n: d.take(n - 1),
  'skip': lambda d, n: d.skip(n // 2),
  'repeat': lambda d, n: d.repeat(n % 3 + 1),
  'shuffle': lambda d, n: d.shuffle(n + 1, seed=n),
  'shuffle_once': lambda d, n: d.shuffle(
    n + 1, seed=n, reshuffle_each_iteration=False
  ),
  'prefetch': lambda d, n: d.prefetch(n),
  'cache': lambda d, n: d.cache(),
  'negate': lambda d, n: d.map(_negated),
  'scale': lambda d, n: d.map(_scaled),
  'parallel': lambda d, n: d.map(_negated, num_parallel_calls=2),
  'filter': lambda d, n: d.filter(lambda x: tf.reduce_sum(x) % 3 != 0),
  'seeded_map': lambda d, n: d.map(
    lambda x: x + tf.random.uniform([], 0, 99, tf.int64, seed=n)
  ),
  'range': lambda d, n: d.concatenate(d),
}


def _chain(rng):
  """Returns names and numbers of a random chain of transformations."""
  names = sorted(_STEPS)
  before = [(rng.choice(names), int(n)) for n in rng.integers(0, 12, 3)]
  after = [(rng.choice(names), int(n)) for n in rng.integers(0, 12, 3)]
  return (
    int(rng.integers(0, 15)),
    before[: rng.integers(0, 4)],
    int(rng.integers(1, 6)),
    bool(rng.integers(2)),
    after[: rng.integers(0, 4)],
  )


def _build(chain):
  examples, before, batch_size, drop_remainder, after = chain
  dataset = tf.data.Dataset.from_tensor_slices(
    np.arange(examples, dtype=np.int64)
  )
  for name, number in before:
    dataset = _STEPS[name](dataset, number)
  dataset = dataset.batch(batch_size, drop_remainder)
  for name, number in after:
    dataset = _STEPS[name](dataset, number)
  return dataset


class ChainTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_elements_and_order_are_those_of_tf_data(self, loop):
    rng = np.random.default_rng(0)
    chains = [_chain(rng) for _ in range(_CASES)]
    ours = [_build(chain) for chain in chains]
    theirs = [_build(chain) for chain in chains]
    forms = collections.Counter(
      type(pipelines.form_of(dataset)).__name__ for dataset in ours
    )
    for form in ('TensorBatches', 'RowChunks', 'NoneType'):
      self.assertGreater(forms[form], _CASES // 20, forms)
    for _ in range(2):  # A seeded shuffle goes on in the second iteration.
      read = _read(ours, loop=loop)
      for chain, (batches,), dataset in zip(chains, read, theirs):
        self.assertEqual(batches, _expected(dataset), chain)


if __name__ == '__main__':
  absltest.main()
