"""What repeated rounds cost: epsilon of what was really drawn and released."""

import collections
import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
from dp_accounting.pld import pld_privacy_accountant
import numpy as np
import tensorflow_federated as tff

from tests.auditing import canary_runs
from tff_medical import learning
from tff_medical.data import units as units_lib
from tff_medical.learning import dp_sgd
from tff_medical.privacy import accounting
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import checkpoints as checkpoints_lib
from tff_medical.program import feeds
from tff_medical.program import training

_RECORDS = 300
_RATE = 0.2
_NOISE = 1.0
_DELTA = 1e-3
_ROUNDS = 4
_STEPS = 2
_CLIPPING = mechanisms.FixedClipping(1.0)


class _Recorder:
  """A feed that remembers what was drawn."""

  def __init__(self, feed):
    self._feed = feed
    self.drawn = []

  def __call__(self, indices):
    self.drawn.append(np.array(indices))
    return self._feed(indices)


def _gaussian(sampling_):
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling_,
    clipping=_CLIPPING,
    noise_multiplier=_NOISE,
    privacy_unit='record',
  )
  process = dp_sgd.build_dp_sgd(canary_runs.linear_model(), mechanism)
  return mechanism, process, canary_runs.unit_feed(_RECORDS)


def _poisson():
  return _gaussian(sampling.PoissonSampling(_RECORDS, _RATE * _RECORDS))


def _truncated():
  return _gaussian(
    sampling.TruncatedPoissonSampling(
      _RECORDS, _RATE * _RECORDS, max_cohort=int(1.2 * _RATE * _RECORDS)
    )
  )


def _local():
  mechanism = local_dp_sgd_mechanism.LocalDpSgdMechanism(
    sampling=local_dp_sgd_mechanism.LocalDpSgdSampling(
      _RECORDS, rate=_RATE, steps=_STEPS
    ),
    clipping=_CLIPPING,
    noise_multiplier=_NOISE,
  )
  process = learning.build_local_dp_sgd(
    canary_runs.linear_model(),
    mechanism,
    client_optimizer=tff.learning.optimizers.build_sgdm(0.1),
  )
  parts = tuple(np.array_split(np.arange(_RECORDS), 3))
  feed = feeds.LocalStepsFeed(
    canary_runs.split(_RECORDS),
    units_lib.record_units(parts),
    num_clients=3,
    sampling=mechanism.sampling,
  )
  return mechanism, process, feed


def _with_noise(event, noise_multiplier):
  """Returns the same draw with other noise."""
  if isinstance(event, dp_accounting.TruncatedSubsampledGaussianDpEvent):
    return dp_accounting.TruncatedSubsampledGaussianDpEvent(
      dataset_size=event.dataset_size,
      sampling_probability=event.sampling_probability,
      truncated_batch_size=event.truncated_batch_size,
      noise_multiplier=noise_multiplier,
    )
  return dp_accounting.PoissonSampledDpEvent(
    event.sampling_probability, dp_accounting.GaussianDpEvent(noise_multiplier)
  )


def _spent(mechanism, draws):
  """Returns epsilon of draws, of which equal ones were one draw.

  A cohort whose sum was released k times, each time with noise of z, has been
  released once with noise of z / sqrt(k).

  Args:
    mechanism: What ran.
    draws: Units, as a hashable, of every draw that was released.
  """
  event = mechanism.charge_event()
  accountant = pld_privacy_accountant.PLDAccountant(
    value_discretization_interval=1e-3
  )
  for count in collections.Counter(draws).values():
    accountant.compose(_with_noise(event, _NOISE / math.sqrt(count)))
  return accountant.get_epsilon(_DELTA)


class RepeatedRoundsTest(parameterized.TestCase):
  def _train(self, folder, mechanism, process, feed, rounds=_ROUNDS):
    """Trains as far as it goes; returns epsilon and the charges."""
    path = folder / 'ledger.jsonl'
    with ledger_lib.PrivacyLedger(path, mechanism, delta=_DELTA) as ledger:
      checkpoints = checkpoints_lib.Checkpoints(folder / 'checkpoints')
      training.train(
        process,
        feed,
        ledger=ledger,
        checkpoints=checkpoints,
        cohort_seed=checkpoints.cohort_seed(),
        rounds=rounds,
        reporting=training.Reporting(lambda weights: {}, rounds_per_eval=100),
      )
      return ledger.epsilon, ledger.charges

  @parameterized.named_parameters(
    ('poisson', _poisson), ('truncated', _truncated), ('local', _local)
  )
  def test_epsilon_is_that_of_what_was_drawn_and_released(self, build):
    """The same command again, after its checkpoints were deleted."""
    mechanism, process, feed = build()
    recorder = _Recorder(feed)
    folder = pathlib.Path(self.create_tempdir().full_path)
    once, _ = self._train(folder, mechanism, process, recorder)
    for path in (folder / 'checkpoints').glob('round_*'):
      path.unlink()
    stated, charges = self._train(folder, mechanism, process, recorder)
    self.assertLen(recorder.drawn, 2 * _ROUNDS)
    self.assertEqual(charges, mechanism.charges_for(2 * _ROUNDS))
    self.assertEqual(
      stated,
      accounting.epsilon(
        mechanism.charge_event(), rounds=charges, delta=_DELTA
      ),
    )
    draws = self._draws(mechanism, recorder.drawn)
    self._assert_no_more_alike_than_by_chance(draws)
    spent = _spent(mechanism, draws)
    self.assertLessEqual(spent, stated + 1e-3)
    self.assertGreater(spent, once)
    # So this test would have seen the cohorts of the rounds drawn again.
    same = _spent(mechanism, draws[: len(draws) // 2] * 2)
    self.assertGreater(same, stated * 1.1)

  def _draws(self, mechanism, drawn):
    """Returns each step's units as a tuple."""
    if hasattr(mechanism.sampling, 'by_step'):
      drawn = [u for one in drawn for u in mechanism.sampling.by_step(one)]
    return [tuple(units.tolist()) for units in drawn]

  def _assert_no_more_alike_than_by_chance(self, draws):
    """Two draws have a unit in common with the square of the rate."""
    expected = _RECORDS * _RATE**2
    margin = 6 * math.sqrt(expected)
    for number, first in enumerate(draws):
      for second in draws[:number]:
        common = len(set(first) & set(second))
        self.assertLess(common, expected + margin)

  def test_of_a_ledger_that_was_lost_too(self):
    """The seed is there still, and what was drawn with it is not drawn again."""
    mechanism, process, feed = _poisson()
    recorder = _Recorder(feed)
    folder = pathlib.Path(self.create_tempdir().full_path)
    self._train(folder, mechanism, process, recorder)
    # Of 4 lines one is left; the checkpoint of round 4 shows the others.
    path = folder / 'ledger.jsonl'
    path.write_bytes(b''.join(path.read_bytes().splitlines(True)[:2]))
    stated, charges = self._train(folder, mechanism, process, recorder, 8)
    self.assertEqual(charges, 8)
    draws = self._draws(mechanism, recorder.drawn)
    self.assertLen(draws, 8)
    self._assert_no_more_alike_than_by_chance(draws)
    self.assertLessEqual(_spent(mechanism, draws), stated + 1e-3)


if __name__ == '__main__':
  absltest.main()
