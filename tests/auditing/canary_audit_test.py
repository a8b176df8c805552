"""Tests of the audit: planted faults are caught, honest runs never are."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests.auditing import canary_runs
from tff_medical import runtime
from tff_medical.auditing import bounds
from tff_medical.auditing import canaries as canaries_lib
from tff_medical.auditing import canary_audit
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_OTHERS = 20
_CANARIES = 200
_ROUNDS = 6
_HONEST_RUNS = 20


def _mechanism(unit='client', clipping=None, noise_multiplier=1.5):
  population = _OTHERS + _CANARIES
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(population, 0.3 * population),
    clipping=clipping or mechanisms.FixedClipping(1.0),
    noise_multiplier=noise_multiplier,
    privacy_unit=unit,
  )


def _without_clipping(mechanism):
  """Returns one with the same noise that lets through what is far longer."""
  return dataclasses.replace(
    mechanism,
    clipping=mechanisms.FixedClipping(1e4),
    noise_multiplier=mechanism.noise_multiplier / 1e4,
  )


def _feed(unit, canaries):
  make = {
    'client': canary_runs.client_feed,
    'record': canary_runs.unit_feed,
  }[unit]
  return canaries_lib.CanaryFeed(make(_OTHERS), canaries, canary_runs.SHAPE)


def _process(unit, actual, canaries):
  make = {
    'client': canary_runs.client_process,
    'record': canary_runs.record_process,
  }[unit]
  return make(actual, canaries)


class AuditTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    runtime.set_local_context()
    self.canaries = canaries_lib.Canaries.draw(_CANARIES)

  def _audit(self, claimed, actual):
    unit = claimed.privacy_unit
    steps = canary_runs.steps(
      _process(unit, actual, self.canaries),
      claimed,
      _feed(unit, self.canaries),
      rounds=_ROUNDS,
    )
    scores = canary_audit.scores(self.canaries, steps)
    return scores, canary_runs.findings(
      scores, self.canaries, claimed, rounds=_ROUNDS
    )

  @parameterized.product(
    unit=('client', 'record'),
    fault=(lambda m: m.with_noise(0.0), _without_clipping),
  )
  def test_planted_fault_is_caught(self, unit, fault):
    claimed = _mechanism(unit)
    scores, findings = self._audit(claimed, fault(claimed))
    self.assertTrue(any(f.is_violation for f in findings), findings)
    auc = bounds.attack_auc(scores.best_round, self.canaries.included)
    self.assertGreater(auc, 0.8)

  def test_noise_ten_times_too_low_is_caught(self):
    claimed = _mechanism(noise_multiplier=3.0)
    _, findings = self._audit(claimed, claimed.with_noise(0.3))
    self.assertTrue(any(f.is_violation for f in findings), findings)

  def test_missing_noise_is_caught_without_any_assumption(self):
    """Here the bound of Steinke et al. 2023 is enough."""
    claimed = dataclasses.replace(
      _mechanism(noise_multiplier=8.0),
      sampling=sampling.FullParticipation(_OTHERS + _CANARIES),
    )
    _, findings = self._audit(claimed, claimed.with_noise(0.0))
    one_run = [f for f in findings if f.method == 'one_run']
    self.assertTrue(any(f.is_violation for f in one_run), one_run)

  def test_a_claim_of_no_privacy_is_never_violated(self):
    claimed = _mechanism(noise_multiplier=0.0)
    _, findings = self._audit(claimed, claimed)
    self.assertEqual({f.upper for f in findings}, {float('inf')})
    self.assertFalse(any(f.is_violation for f in findings))

  @parameterized.parameters(
    mechanisms.FixedClipping(1.0),
    mechanisms.AdaptiveClipping(1.0, target_unclipped_quantile=0.1),
  )
  def test_honest_runs_are_never_flagged(self, clipping):
    """In 20 runs with fresh coins, cohorts and noise the bounds hold."""
    claimed = _mechanism(clipping=clipping)
    process = _process('client', claimed, self.canaries)
    rng = np.random.default_rng()
    lower = []
    for run in range(_HONEST_RUNS // 2):
      canaries = dataclasses.replace(
        self.canaries, included=rng.random(_CANARIES) < 0.5
      )
      steps = canary_runs.steps(
        process,
        claimed,
        _feed('client', canaries),
        rounds=_ROUNDS,
        cohort_seed=run,
      )
      findings = canary_runs.findings(
        canary_audit.scores(canaries, steps), canaries, claimed, rounds=_ROUNDS
      )
      self.assertFalse(any(f.is_violation for f in findings), findings)
      lower.append(max(f.lower for f in findings))
    self.assertGreater(max(lower), 0)  # The audit did see something.

  def test_steps_undo_the_server_s_momentum(self):
    """With momentum m, each step is the round's own plus m times the last."""
    own = [np.array([1.0, 2.0]), np.array([0.0, -1.0]), np.array([3.0, 0.0])]
    weights, step = np.zeros(2), np.zeros(2)
    steps = canary_audit.UpdateRecorder(_weights(weights), server_momentum=0.9)
    for part in own:
      step = part + 0.9 * step
      weights = weights + step
      self.assertEqual(steps(_weights(weights)), {})
    np.testing.assert_allclose(steps.rounds, own, atol=1e-12)
    np.testing.assert_allclose(steps.total, weights)

  def test_scores_are_cosines_with_what_was_published(self):
    dimensions = 50
    directions = np.concatenate(list(self.canaries.directions(dimensions)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    steps = canary_audit.UpdateRecorder(_weights(np.zeros(dimensions)))
    steps(_weights(-3 * directions[7]))
    steps(_weights(-3 * directions[7] + 10 * directions[9]))
    scores = canary_audit.scores(self.canaries, steps)
    self.assertAlmostEqual(scores.best_round[7], 1, places=5)
    self.assertLess(scores.best_round[8], 0.9)
    np.testing.assert_allclose(
      scores.every_round,
      _cosines(directions, directions[9] - directions[7]),
      atol=1e-5,
    )
    np.testing.assert_allclose(
      scores.final,
      _cosines(directions, 10 * directions[9] - 3 * directions[7]),
      atol=1e-5,
    )
    rates = scores.log_false_positive_rates()
    self.assertLess(rates['best_round'][7], -20)
    self.assertLessEqual(max(rates['best_round']), 0)

  def test_a_diverged_model_scores_nothing(self):
    steps = canary_audit.UpdateRecorder(_weights(np.zeros(5)))
    steps(_weights(np.full(5, np.nan)))
    scores = canary_audit.scores(self.canaries, steps)
    np.testing.assert_array_equal(scores.final, np.zeros(_CANARIES))
    np.testing.assert_array_equal(scores.best_round, np.zeros(_CANARIES))


@dataclasses.dataclass
class _FakeWeights:
  trainable: tuple


def _weights(values):
  return _FakeWeights((np.asarray(values, np.float64),))


def _cosines(directions, vector):
  return -directions @ vector / np.linalg.norm(vector)


if __name__ == '__main__':
  absltest.main()
