"""Tests of the training program with a real process and injected faults."""

import collections
import json
import math
import os
import pathlib
import signal
from unittest import mock

from absl.testing import absltest
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import learning
from tff_medical.privacy import accounting
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import checkpoints as checkpoints_lib
from tff_medical.program import training

_SPEC = collections.OrderedDict(
  x=tf.TensorSpec((None, 2), tf.float32), y=tf.TensorSpec((None,), tf.int64)
)


def _process(mechanism, **changed):
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.InputLayer((2,)),
      tf.keras.layers.Dense(2, kernel_initializer='zeros'),
    ]
  )
  model = tff.learning.models.functional_model_from_keras(
    keras_model,
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    _SPEC,
  )
  return learning.build_dp_fed_avg(
    model,
    mechanism,
    client_optimizer=tff.learning.optimizers.build_sgdm(0.1),
    **changed,
  )


def _dataset(index):
  x = np.full((2, 2), index, np.float32)
  return tf.data.Dataset.from_tensor_slices(
    collections.OrderedDict(x=x, y=np.array([0, 1]))
  ).batch(2)


class _Recorder(tff.program.ReleaseManager):
  """Keeps what it is given."""

  def __init__(self):
    self.released = []

  async def release(self, value, key):
    self.released.append((key, dict(value)))


class TrainTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.PoissonSampling(20, 6),
      clipping=mechanisms.AdaptiveClipping(),
      noise_multiplier=0.4,
    )
    self.process = _process(self.mechanism)
    self.checkpoints = checkpoints_lib.Checkpoints(self.folder / 'checkpoints')
    self.cohorts = []
    self.evaluations = 0
    self.recorder = _Recorder()

  def _client_datasets(self, indices):
    self.cohorts.append(list(indices))
    return [_dataset(i) for i in indices]

  def _evaluate(self, weights):
    self.evaluations += 1
    return {'norm': float(np.linalg.norm(weights.trainable[0]))}

  def _ledger(self, budget=None):
    return ledger_lib.PrivacyLedger(
      self.folder / 'ledger.jsonl',
      self.mechanism,
      delta=1e-2,
      epsilon_budget=budget,
    )

  def _train(self, ledger, rounds, **changed):
    arguments = dict(
      sampling=self.mechanism.sampling,
      client_datasets=self._client_datasets,
      ledger=ledger,
      checkpoints=self.checkpoints,
      cohort_seed=11,
      rounds=rounds,
      evaluate=self._evaluate,
      rounds_per_eval=2,
      release_managers=[self.recorder],
    )
    return training.train(self.process, **{**arguments, **changed})

  def _charged(self):
    lines = (self.folder / 'ledger.jsonl').read_text().splitlines()
    return [json.loads(line)['round'] for line in lines[1:]]

  def _epsilon(self, rounds):
    event = self.mechanism.charge_event()
    return accounting.pld_epsilon(event, rounds=rounds, delta=1e-2)

  def test_runs_draws_charges_evaluates_and_publishes(self):
    with self._ledger() as ledger:
      outcome = self._train(ledger, rounds=5)
    self.assertEqual(outcome.rounds, 5)
    self.assertEqual(outcome.reason, training.StopReason.COMPLETED)
    self.assertEqual(self._charged(), [1, 2, 3, 4, 5])
    expected = [
      self.mechanism.sampling.draw(11, n, n).tolist() for n in range(1, 6)
    ]
    self.assertEqual(self.cohorts, expected)
    self.assertEqual(self.evaluations, 3)  # Rounds 2, 4 and the last.
    rounds = [key for key, _ in self.recorder.released]
    self.assertEqual(rounds, [1, 2, 3, 4, 5])
    epsilons = [value['epsilon'] for _, value in self.recorder.released]
    self.assertEqual(epsilons, [self._epsilon(n) for n in range(1, 6)])
    self.assertEqual(
      set(self.recorder.released[0][1]), {'epsilon', 'clip_norm'}
    )
    self.assertIn('norm', self.recorder.released[1][1])
    np.testing.assert_allclose(
      outcome.metrics['norm'], np.linalg.norm(outcome.weights.trainable[0])
    )

  def test_broken_units_are_told_only_if_asked(self):
    """Clients 0 to 9 have NaN in their data."""
    self.process = _process(self.mechanism, count_broken=True)

    def broken_datasets(indices):
      self.cohorts.append(list(indices))
      return [_dataset(np.nan if i < 10 else i) for i in indices]

    with self._ledger() as ledger:
      self._train(
        ledger,
        rounds=2,
        client_datasets=broken_datasets,
        publish_broken_units=True,
      )
      outcome = self._train(ledger, rounds=3, client_datasets=broken_datasets)
    told = {n: v.get('broken_units') for n, v in self.recorder.released}
    broken = [sum(i < 10 for i in cohort) for cohort in self.cohorts]
    self.assertEqual(told, {1: broken[0], 2: broken[1], 3: None})
    self.assertGreater(sum(broken[:2]), 0)
    self.assertTrue(np.isfinite(outcome.metrics['norm']))

  def test_resumes_after_the_last_saved_round(self):
    with self._ledger() as ledger:
      first = self._train(ledger, rounds=3)
    with self._ledger() as ledger:
      outcome = self._train(ledger, rounds=5)
    self.assertEqual(self._charged(), [1, 2, 3, 4, 5])
    self.assertEqual(outcome.rounds, 5)
    self.assertFalse(
      np.array_equal(first.weights.trainable[0], outcome.weights.trainable[0])
    )

  def test_started_again_when_done_it_only_evaluates(self):
    with self._ledger() as ledger:
      first = self._train(ledger, rounds=3)
    with self._ledger() as ledger:
      again = self._train(ledger, rounds=3)
    self.assertEqual(self._charged(), [1, 2, 3])
    self.assertEqual(again.metrics, first.metrics)

  def test_refused_round_ends_training_cleanly(self):
    with self._ledger(budget=self._epsilon(3)) as ledger:
      outcome = self._train(ledger, rounds=9)
    self.assertEqual(outcome.rounds, 3)
    self.assertEqual(outcome.reason, training.StopReason.BUDGET_SPENT)
    self.assertRegex(outcome.message, 'round 4 .* budget')
    self.assertEqual(self._charged(), [1, 2, 3])
    self.assertLen(self.cohorts, 3)
    self.assertNotEmpty(outcome.metrics)

  def test_crashed_round_is_charged_again(self):
    def fail_in_round_3(indices):
      if len(self.cohorts) == 2:
        self.cohorts.append('crash')
        raise RuntimeError('power cut')
      return self._client_datasets(indices)

    with self._ledger() as ledger:
      with self.assertRaisesRegex(RuntimeError, 'power cut'):
        self._train(ledger, rounds=4, client_datasets=fail_in_round_3)
    self.assertEqual(self._charged(), [1, 2, 3])
    with self._ledger() as ledger:
      self._train(ledger, rounds=4)
      self.assertEqual(ledger.epsilon, self._epsilon(5))
    self.assertEqual(self._charged(), [1, 2, 3, 3, 4])

  def test_failed_charge_runs_nothing(self):
    with self._ledger() as ledger:
      ledger.charge = mock.Mock(side_effect=OSError(28, 'full'))
      with self.assertRaisesRegex(OSError, 'full'):
        self._train(ledger, rounds=2)
    self.assertEmpty(self.cohorts)

  def test_failed_save_stops_and_publishes_nothing(self):
    save = self.checkpoints.save

    def fail_in_round_2(state, record):
      if record.round_num == 2:
        raise OSError(28, 'No space left on device')
      return save(state, record)

    self.checkpoints.save = fail_in_round_2
    with self._ledger() as ledger:
      with self.assertRaisesRegex(OSError, 'No space'):
        self._train(ledger, rounds=4)
    self.assertEqual([key for key, _ in self.recorder.released], [1])
    self.assertEqual(self.checkpoints.rounds(), [0, 1])

  def test_ctrl_c_finishes_the_round_and_saves_it(self):
    def interrupt_in_round_2(indices):
      if len(self.cohorts) == 1:
        os.kill(os.getpid(), signal.SIGINT)
      return self._client_datasets(indices)

    before = signal.getsignal(signal.SIGINT)
    with self._ledger() as ledger:
      outcome = self._train(
        ledger, rounds=9, client_datasets=interrupt_in_round_2
      )
    self.assertEqual(outcome.reason, training.StopReason.INTERRUPTED)
    self.assertEqual(outcome.rounds, 2)
    self.assertEqual(self.checkpoints.rounds(), [1, 2])
    self.assertEqual(signal.getsignal(signal.SIGINT), before)

  def test_second_ctrl_c_interrupts_at_once(self):
    def interrupt_twice(indices):
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGINT)
      return self._client_datasets(indices)

    with self._ledger() as ledger:
      with self.assertRaises(KeyboardInterrupt):
        self._train(ledger, rounds=9, client_datasets=interrupt_twice)

  def test_without_noise_epsilon_is_inf_and_nothing_is_clipped(self):
    self.mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.FullParticipation(3), clipping=None
    )
    self.process = _process(self.mechanism)
    with self._ledger() as ledger:
      self._train(ledger, rounds=1)
    _, released = self.recorder.released[0]
    self.assertEqual(released['epsilon'], math.inf)
    self.assertNotIn('clip_norm', released)


if __name__ == '__main__':
  absltest.main()
