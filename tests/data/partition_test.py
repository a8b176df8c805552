import dataclasses
import hashlib
import itertools
import tracemalloc
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import partition


def _split(n=200, classes=4, patients=False, multi_label=False, seed=0):
  rng = np.random.default_rng(seed)
  if multi_label:
    labels = (rng.random([n, classes]) < 0.2).astype(np.int64)
  else:
    labels = rng.integers(classes, size=n)
  return images.Split(
    images=np.zeros([n, 1, 1, 1], np.uint8),
    labels=labels,
    sites=rng.integers(5, size=n),
    patients=rng.integers(n // 3, size=n) + 100 if patients else None,
  )


def _make(kind, split, num_clients=10, alpha=0.3, seed=0):
  return partition.partition(
    kind,
    split,
    num_clients=num_clients if kind in partition.COUNTED_KINDS else None,
    alpha=alpha if kind in partition.ALPHA_KINDS else None,
    rng=np.random.default_rng(seed),
  )


def _mixes(clients, labels, classes):
  counts = np.array(
    [np.bincount(labels[c], minlength=classes) for c in clients]
  )
  return counts / counts.sum(axis=1, keepdims=True)


def _distance(clients, labels):
  """Returns the mean total variation distance of clients' mixes from all."""
  classes = labels.max() + 1
  prior = np.bincount(labels) / len(labels)
  return 0.5 * np.abs(_mixes(clients, labels, classes) - prior).sum(1).mean()


class AnyPartitionTest(parameterized.TestCase):
  @parameterized.parameters(
    *itertools.product(
      partition.KINDS, (False, True), (False, True), (1, 10, 57), (0.01, 100)
    )
  )
  def test_every_image_in_one_nonempty_client(
    self, kind, patients, multi_label, num_clients, alpha
  ):
    patients = patients or kind == 'natural_patient'
    split = _split(patients=patients, multi_label=multi_label)
    clients = _make(kind, split, num_clients, alpha)
    self.assertTrue(all(len(client) for client in clients))
    np.testing.assert_array_equal(
      np.sort(np.concatenate(clients)), np.arange(len(split))
    )
    for client in clients:
      self.assertTrue(np.all(np.diff(client) > 0))
      self.assertEqual(client.dtype, np.int64)
    if kind in partition.COUNTED_KINDS:
      self.assertLen(clients, num_clients)
    if patients:
      homes = [set(split.patients[client]) for client in clients]
      self.assertEqual(
        sum(map(len, homes)), len(set.union(*homes)), 'a patient is split'
      )

  @parameterized.parameters(*partition.COUNTED_KINDS)
  def test_repeats_with_the_seed_and_differs_without(self, kind):
    split = _split()
    first, again = _make(kind, split), _make(kind, split)
    for a, b in zip(first, again):
      np.testing.assert_array_equal(a, b)
    other = _make(kind, split, seed=1)
    self.assertFalse(all(np.array_equal(a, b) for a, b in zip(first, other)))

  @parameterized.parameters(*partition.COUNTED_KINDS)
  def test_one_client_an_image(self, kind):
    clients = _make(kind, _split(30), num_clients=30)
    self.assertEqual({len(client) for client in clients}, {1})

  @parameterized.parameters(*partition.COUNTED_KINDS)
  def test_more_clients_than_images(self, kind):
    with self.assertRaisesRegex(
      _validate.InputError, 'at most the 30 training images, got 31'
    ):
      _make(kind, _split(30), num_clients=31)

  def test_more_clients_than_patients(self):
    split = _split(30, patients=True)
    patients = len(np.unique(split.patients))
    with self.assertRaisesRegex(
      _validate.InputError, f'at most the {patients} training patients'
    ):
      _make('iid', split, num_clients=patients + 1)

  @parameterized.named_parameters(
    ('kind', dict(kind='dirichlett'), "did you mean 'dirichlet'"),
    ('clients', dict(kind='iid'), 'iid needs num_clients'),
    ('zero', dict(kind='iid', num_clients=0), 'num_clients must be positive'),
    ('alpha', dict(kind='dirichlet', num_clients=2), 'needs alpha'),
    (
      'negative',
      dict(kind='quantity_skew', num_clients=2, alpha=-1.0),
      'alpha must be positive',
    ),
    (
      'unused_alpha',
      dict(kind='iid', num_clients=2, alpha=1.0),
      'iid does not use alpha',
    ),
    (
      'unused_clients',
      dict(kind='natural_site', num_clients=2),
      'natural_site does not use num_clients',
    ),
    ('no_patients', dict(kind='natural_patient'), 'needs patient numbers'),
  )
  def test_rejects(self, arguments, message):
    rng = np.random.default_rng(0)
    with self.assertRaisesRegex(_validate.InputError, message):
      partition.partition(split=_split(), rng=rng, **arguments)

  def test_needs_generator(self):
    with self.assertRaisesRegex(_validate.InputError, 'needs rng'):
      partition.partition('iid', _split(), num_clients=2)

  @parameterized.parameters(
    ('iid', False, '239a244ef47a9115'),
    ('iid', True, 'f2190c4e3aa4396d'),
    ('dirichlet', False, 'f95f65d8cd325827'),
    ('dirichlet', True, '5bb27e27b124782b'),
    ('quantity_skew', False, '38035945640d9895'),
    ('quantity_skew', True, 'ec5cb5051a6d892c'),
    ('natural_site', False, '73b768cbe248754b'),
    ('natural_site', True, 'a7a95cb686f3aecc'),
    ('natural_patient', True, '2af57a1559650276'),
  )
  def test_is_that_of_earlier_versions(self, kind, patients, digest):
    """Results and data ledgers of earlier versions hold these partitions."""
    clients = _make(
      kind, _split(203, patients=patients), num_clients=23, alpha=0.3
    )
    self.assertStartsWith(clients.digest(), digest)

  @parameterized.parameters(*partition.KINDS)
  def test_of_many_clients_is_a_few_arrays(self, kind):
    """Arrays or lists for each client would take 100 bytes or more each."""
    number = 50_000
    split = _split(2 * number, classes=9, patients=kind == 'natural_patient')
    split = dataclasses.replace(split, sites=np.arange(2 * number) // 2)
    tracemalloc.start()
    try:
      clients = _make(kind, split, number)
      kept, peak = tracemalloc.get_traced_memory()
    finally:
      tracemalloc.stop()
    self.assertGreater(len(clients), number / 2)
    self.assertLess(kept, 8 * (2 * number + 2 * number) * 1.1)
    self.assertLess(peak, number * (512 if kind == 'dirichlet' else 150))


class ClientRowsTest(absltest.TestCase):
  _ARRAYS = (np.array([0, 3]), np.array([], np.int64), np.array([1, 2, 4]))

  def test_is_the_sequence_of_the_arrays(self):
    clients = partition.ClientRows.of(self._ARRAYS)
    self.assertLen(clients, 3)
    self.assertIs(partition.ClientRows.of(clients), clients)
    for rows in (
      clients,
      [clients[i] for i in range(3)],
      clients[:],
      [clients[np.int64(i)] for i in (-3, -2, -1)],
    ):
      self.assertEqual(
        [r.tolist() for r in rows], [a.tolist() for a in self._ARRAYS]
      )
    self.assertEqual(clients.sizes.tolist(), [2, 0, 3])
    for index in (3, -4):
      with self.assertRaises(IndexError):
        _ = clients[index]
    self.assertEmpty(partition.ClientRows.of([]))

  def test_digest_is_of_sizes_and_rows_in_turn(self):
    hashed = hashlib.sha256()
    for rows in self._ARRAYS:
      hashed.update(len(rows).to_bytes(8, 'big'))
      hashed.update(rows.tobytes())
    clients = partition.ClientRows.of(self._ARRAYS)
    self.assertEqual(clients.digest(), hashed.hexdigest())

  def test_refuses_ends_of_other_rows(self):
    for ends in ([1, 4], [4, 3], []):
      with self.assertRaisesRegex(_validate.InputError, 'ends'):
        partition.ClientRows(np.arange(3), np.array(ends, np.int64))


class IidTest(absltest.TestCase):
  def test_sizes_differ_by_one_at_most(self):
    sizes = [len(client) for client in _make('iid', _split(203))]
    self.assertLessEqual(max(sizes) - min(sizes), 1)

  def test_mixes_are_alike(self):
    split = _split(4000)
    self.assertLess(_distance(_make('iid', split), split.labels), 0.06)


class DirichletTest(parameterized.TestCase):
  def test_skew_falls_with_alpha(self):
    split = _split(4000)
    distances = [
      _distance(_make('dirichlet', split, 40, alpha), split.labels)
      for alpha in (0.05, 0.5, 5.0, 1000.0)
    ]
    self.assertEqual(distances, sorted(distances, reverse=True))
    self.assertGreater(distances[0], 0.5)
    self.assertLess(distances[-1], 0.03)

  @parameterized.parameters(0.1, 1.0, 10.0)
  def test_clients_have_about_the_same_size(self, alpha):
    sizes = [len(c) for c in _make('dirichlet', _split(4000), 40, alpha)]
    self.assertBetween(min(sizes), 90, 100)
    self.assertBetween(max(sizes), 100, 110)

  def test_spread_of_mixes_is_the_dirichlet_one(self):
    # A share p of Dirichlet(alpha x C x prior) has variance
    # p (1 - p) / (alpha x C + 1).
    labels = np.repeat(np.arange(4), 5000)
    split = images.Split(
      images=np.zeros([len(labels), 1, 1, 1], np.uint8), labels=labels
    )
    clients = _make('dirichlet', split, 200, alpha=2.0)
    variance = _mixes(clients, labels, 4).var(axis=0)
    np.testing.assert_allclose(variance, 0.25 * 0.75 / 9, rtol=0.25)

  def test_multi_label_goes_by_the_rarest_finding(self):
    # Finding 1 is rarer than 0; images without findings are a third label.
    labels = np.repeat([[1, 0], [1, 1], [0, 0]], [60, 20, 40], axis=0)
    split = images.Split(
      images=np.zeros([120, 1, 1, 1], np.uint8), labels=labels
    )
    clients = _make('dirichlet', split, 12, alpha=0.001)
    kinds = [len(np.unique(labels[client], axis=0)) for client in clients]
    self.assertLess(np.mean(kinds), 2.0)
    # Unknown findings count as little as absent ones.
    unknown = np.repeat([[1, -1], [1, 1], [-1, 0]], [60, 20, 40], axis=0)
    same = _make(
      'dirichlet', images.Split(split.images, unknown), 12, alpha=0.001
    )
    for rows, expected in zip(same, clients):
      np.testing.assert_array_equal(rows, expected)

  def test_ties_are_rounded_as_in_earlier_versions(self):
    """With 54 images a client and a rare label, cuts fall on halves."""

    def fit(matrix, rows, columns):
      for _ in range(100):
        matrix = matrix * (rows / matrix.sum(axis=1, keepdims=True))
        matrix = matrix * (columns / matrix.sum(axis=0))
      return matrix

    split = images.Split(
      images=np.zeros([1080, 1, 1, 1], np.uint8),
      labels=(np.arange(1080) < 9).astype(np.int64),
    )
    for seed in range(8):
      clients = _make('dirichlet', split, 20, alpha=0.001, seed=seed)
      with mock.patch.object(partition, '_fit', fit):
        earlier = _make('dirichlet', split, 20, alpha=0.001, seed=seed)
      self.assertEqual(clients.digest(), earlier.digest())

  def test_many_shares_take_no_needless_steps(self):
    split = _split(997, classes=7)
    all_steps = _make('dirichlet', split, 101, alpha=0.3)
    with mock.patch.object(partition, '_MANY_SHARES', 0):
      fewer = _make('dirichlet', split, 101, alpha=0.3)
    self.assertEqual(fewer.digest(), all_steps.digest())
    shares = partition._dirichlet(np.random.default_rng(0), np.ones(7), 101)
    columns = np.arange(1.0, 8.0)
    with mock.patch.object(partition, '_MANY_SHARES', 0):
      fitted = partition._fit(shares, columns.sum() / 101, columns)
    np.testing.assert_allclose(fitted.sum(axis=0), columns, rtol=1e-12)
    np.testing.assert_allclose(
      fitted.sum(axis=1), columns.sum() / 101, rtol=1e-12
    )


class NoneEmptyTest(absltest.TestCase):
  def test_empty_clients_get_the_last_unit_of_the_largest(self):
    rng = np.random.default_rng(0)
    for _ in range(200):
      clients = rng.choice(12, size=30, p=rng.dirichlet(np.full(12, 0.3)))
      expected = [np.flatnonzero(clients == n).tolist() for n in range(12)]
      for client in expected:
        if not client:
          client.append(max(expected, key=len).pop())
      filled = partition._none_empty(clients, 12)
      self.assertEqual(
        [np.flatnonzero(filled == n).tolist() for n in range(12)], expected
      )


class MostFrequentTest(absltest.TestCase):
  def test_is_that_of_a_table_of_counts(self):
    rng = np.random.default_rng(0)
    for _ in range(50):
      groups = rng.permutation(np.append(np.arange(7), rng.integers(7, size=9)))
      values = rng.integers(4, size=16)
      counts = np.zeros((7, 4), int)
      np.add.at(counts, (groups, values), 1)
      np.testing.assert_array_equal(
        partition._most_frequent(values, groups), counts.argmax(axis=1)
      )

  def test_needs_no_table_of_sites_and_patients(self):
    number = 200_000  # A table of them would take 320 GB.
    split = images.Split(
      images=np.zeros([number, 1, 1, 1], np.uint8),
      labels=np.zeros(number, np.int64),
      sites=np.arange(number),
      patients=np.arange(number),
    )
    self.assertLen(_make('natural_site', split), number)


class QuantitySkewTest(absltest.TestCase):
  def test_amounts_are_more_unequal_for_small_alpha(self):
    split = _split(4000)
    spread = {
      alpha: np.std([len(c) for c in _make('quantity_skew', split, 40, alpha)])
      for alpha in (0.1, 1000.0)
    }
    self.assertGreater(spread[0.1], 100)
    self.assertLess(spread[1000.0], 10)

  def test_mixes_of_large_clients_are_alike(self):
    split = _split(4000)
    clients = _make('quantity_skew', split, 5, alpha=1.0)
    large = [client for client in clients if len(client) > 300]
    self.assertLess(_distance(large, split.labels), 0.06)


class NaturalTest(absltest.TestCase):
  def test_each_site_a_client(self):
    split = _split()
    clients = _make('natural_site', split)
    self.assertLen(clients, 5)
    for site, client in enumerate(clients):
      np.testing.assert_array_equal(split.sites[client], site)

  def test_patient_goes_to_its_main_site(self):
    split = images.Split(
      images=np.zeros([5, 1, 1, 1], np.uint8),
      labels=np.zeros(5, np.int64),
      sites=np.array([0, 1, 1, 0, 3]),
      patients=np.array([7, 7, 7, 8, 9]),
    )
    clients = _make('natural_site', split)
    self.assertEqual([list(c) for c in clients], [[3], [0, 1, 2], [4]])

  def test_each_patient_a_client(self):
    split = _split(patients=True)
    clients = _make('natural_patient', split)
    self.assertLen(clients, len(np.unique(split.patients)))

  def test_unknown_field(self):
    with self.assertRaisesRegex(_validate.InputError, "got 'country'"):
      partition.natural(_split(), 'country')


if __name__ == '__main__':
  absltest.main()
