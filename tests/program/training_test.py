"""Tests of the training program with a real process and injected faults."""

import collections
import dataclasses
import errno
import functools
import json
import math
import os
import pathlib
import queue
import shutil
import signal
import time
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
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
_MECHANISM = mechanisms.GaussianMechanism(
  sampling=sampling.PoissonSampling(20, 6),
  clipping=mechanisms.AdaptiveClipping(),
  noise_multiplier=0.4,
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


def _lines(content):
  return content.splitlines(keepends=True)


def _dataset(index):
  x = np.full((2, 2), index, np.float32)
  return tf.data.Dataset.from_tensor_slices(
    collections.OrderedDict(x=x, y=np.array([0, 1]))
  ).batch(2)


@functools.lru_cache(maxsize=1)
def _shared_process():
  """Returns the process that most tests use; it is compiled once."""
  return _process(_MECHANISM)


class _Recorder(tff.program.ReleaseManager):
  """Keeps what it is given; fails in one round, if asked to."""

  def __init__(self, fail_in=None):
    self.released = []
    self._fail_in = fail_in

  async def release(self, value, key):
    if key == self._fail_in:
      raise RuntimeError('power cut')
    self.released.append((key, dict(value)))


class TrainTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.mechanism = _MECHANISM
    self.process = _shared_process()
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

  def _ledger(self, budget=None, run_id=None):
    return ledger_lib.PrivacyLedger(
      self.folder / 'ledger.jsonl',
      self.mechanism,
      delta=1e-2,
      epsilon_budget=budget,
      run_id=run_id,
    )

  def _train(self, ledger, rounds, **changed):
    reporting = training.Reporting(
      self._evaluate, rounds_per_eval=2, release_managers=[self.recorder]
    )
    names = [field.name for field in dataclasses.fields(reporting)]
    changes = {n: changed.pop(n) for n in names if n in changed}
    arguments = dict(
      client_datasets=self._client_datasets,
      ledger=ledger,
      checkpoints=self.checkpoints,
      cohort_seed=11,
      rounds=rounds,
      reporting=dataclasses.replace(reporting, **changes),
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

  @parameterized.parameters(1, 2, 3)
  def test_a_round_that_was_saved_is_published_by_the_next_start(self, cut):
    """Its metrics, too: round 2 evaluates, and so does the last one."""
    with self._ledger() as ledger:
      with self.assertRaisesRegex(RuntimeError, 'power cut'):
        self._train(ledger, 3, release_managers=[_Recorder(cut)])
    self.assertEqual(self.checkpoints.rounds()[-1], cut)
    with self._ledger() as ledger:
      self._train(ledger, 3)
    self.assertEqual(self._charged(), [1, 2, 3])
    self.assertEqual(
      [key for key, _ in self.recorder.released], list(range(cut, 4))
    )
    _, values = self.recorder.released[0]
    expected = {'epsilon', 'clip_norm'} | ({'norm'} if cut > 1 else set())
    self.assertEqual(set(values), expected)
    self.assertEqual(values['epsilon'], self._epsilon(cut))

  def test_what_is_published_again_is_the_same(self):
    with self._ledger() as ledger:
      self._train(ledger, 2)
    with self._ledger() as ledger:
      self._train(ledger, 2)
    self.assertEqual(self.recorder.released[1], self.recorder.released[2])

  def _spent(self):
    with self._ledger() as ledger:
      return ledger.charges, ledger.rounds_charged, ledger.epsilon

  def _trained(self, rounds=3):
    with self._ledger() as ledger:
      self._train(ledger, rounds)
    self.recorder.released.clear()
    self.cohorts.clear()

  def _cut_ledger(self, lines):
    path = self.folder / 'ledger.jsonl'
    there = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(there[:lines]))

  @parameterized.parameters(
    ('torn', lambda content: content[:-20]),
    ('last line without its end', lambda content: content[:-1]),
    ('last two lines lost', lambda content: _lines(content)[:-2]),
    ('all entries lost', lambda content: _lines(content)[:1]),
  )
  def test_what_the_ledger_has_lost_is_charged_again(self, what, cut):
    """The chain holds still, so only the checkpoint can tell."""
    self._trained()
    path = self.folder / 'ledger.jsonl'
    content = cut(path.read_bytes())
    path.write_bytes(
      content if isinstance(content, bytes) else b''.join(content)
    )
    with self._ledger() as ledger:
      self.assertLess(ledger.charges, 3, what)
      with self.assertLogs('absl', 'WARNING') as logs:
        self._train(ledger, 3)
      self.assertEqual((ledger.charges, ledger.rounds_charged), (3, 3))
      self.assertEqual(ledger.epsilon, self._epsilon(3))
    self.assertIn('had lost charges', logs.output[0])
    self.assertEmpty(self.cohorts)  # Nothing was run for that.
    with self._ledger() as ledger:
      self._train(ledger, 4)
    self.assertEqual(self._spent(), (4, 4, self._epsilon(4)))
    # What was drawn for lost attempts is not known: there is another seed.
    with self._ledger() as ledger:
      seed = ledger.seed_of_draws(11)
    self.assertNotEqual(seed, 11)
    self.assertEqual(
      self.cohorts, [self.mechanism.sampling.draw(seed, 4, 4).tolist()]
    )

  def test_what_repeated_rounds_cost_is_charged_again_too(self):
    with self._ledger() as ledger:
      ledger.charge(1)  # Of a start that crashed.
      ledger.charge(1)
    self._trained()
    self.assertEqual(self._spent()[0], 5)
    self._cut_ledger(lines=2)
    with self._ledger() as ledger:
      self._train(ledger, 3)
    self.assertEqual(self._spent(), (5, 5, self._epsilon(5)))

  @parameterized.parameters(None, b'')
  def test_a_ledger_that_was_lost_is_charged_anew(self, content):
    """The run's folder knows its identity, which the new file then has."""
    with self._ledger() as ledger:
      run_id = ledger.run_id
    self._trained()
    path = self.folder / 'ledger.jsonl'
    path.unlink()
    if content is not None:
      path.write_bytes(content)
    with self._ledger(run_id=run_id) as ledger:
      self._train(ledger, 3)
    self.assertEqual(self._spent(), (3, 3, self._epsilon(3)))

  def _refuses(self, message):
    before = {p: p.read_bytes() for p in self.folder.rglob('*') if p.is_file()}
    with self._ledger() as ledger:
      with self.assertRaisesRegex(_validate.InputError, message) as caught:
        self._train(ledger, 9)
    self.assertNotIn('\n', str(caught.exception))
    self.assertEmpty(self.cohorts)
    self.assertEmpty(self.recorder.released)
    after = {p: p.read_bytes() for p in self.folder.rglob('*') if p.is_file()}
    self.assertEqual(after, before)

  def _copy(self):
    """Returns another folder with all that this one has."""
    copy = pathlib.Path(self.create_tempdir().full_path, 'copy')
    return shutil.copytree(self.folder, copy)

  def _go_on_in(self, folder):
    self.folder = folder
    self.checkpoints = checkpoints_lib.Checkpoints(folder / 'checkpoints')

  def test_refuses_the_checkpoint_of_another_run(self):
    self._trained()
    first = self.folder
    self._go_on_in(pathlib.Path(self.create_tempdir().full_path))
    self._trained()
    shutil.copytree(
      first / 'checkpoints', self.folder / 'checkpoints', dirs_exist_ok=True
    )
    self._refuses('checkpoint of round 3 is of another run than the ledger')

  def test_refuses_the_ledger_of_another_run(self):
    self._trained(rounds=1)
    first = self.folder
    self._go_on_in(pathlib.Path(self.create_tempdir().full_path))
    self._trained()
    shutil.copy(first / 'ledger.jsonl', self.folder / 'ledger.jsonl')
    self._refuses('of another run than the ledger')

  @parameterized.parameters('checkpoints', 'ledger.jsonl')
  def test_refuses_half_of_a_copy_that_went_another_way(self, name):
    """Both have the same identity, and the same number of charges."""
    self._trained(rounds=1)
    first, second = self.folder, self._copy()
    for folder in (first, second):
      self._go_on_in(folder)
      self._trained()
    if name == 'checkpoints':
      shutil.rmtree(second / name)
      shutil.copytree(first / name, second / name)
    else:
      shutil.copy(first / name, second / name)
    self._refuses('went different ways')

  @parameterized.parameters((1, 1, 3), (1, 3, 1), (0, 3, 4), (0, 1, 3))
  def test_refuses_a_copy_s_checkpoint_that_has_come_further_or_less_far(
    self, shared, ours, copied
  ):
    """What both have spent is more than the one or the other says."""
    self._trained(rounds=shared)
    first, second = self.folder, self._copy()
    for folder, rounds in ((second, shared + copied), (first, shared + ours)):
      self._go_on_in(folder)
      self._trained(rounds=rounds)
    shutil.rmtree(first / 'checkpoints')
    shutil.copytree(second / 'checkpoints', first / 'checkpoints')
    self._refuses('went different ways')

  def test_what_was_put_back_is_of_the_same_history(self):
    """A start that died after it had charged again changes nothing."""
    self._trained(rounds=3)
    self._cut_ledger(lines=2)
    with self._ledger() as ledger:
      ledger.restore(round_num=2, attempt=2, charges=2, evidence='metrics.csv')
    with self._ledger() as ledger:
      ledger.restore(round_num=3, attempt=3, charges=3, evidence='checkpoint')
      ledger.charge(4)
    with self._ledger() as ledger:
      self._train(ledger, 4)
    self.assertEqual(self._spent(), (5, 5, self._epsilon(5)))
    with self._ledger() as ledger:
      self._train(ledger, 5)
    self.assertEqual(self._spent(), (6, 6, self._epsilon(6)))

  def test_refuses_a_state_that_the_next_round_did_not_start_from(self):
    """It was saved anew with other weights, under a record that fits."""
    self._trained(rounds=2)
    saved = self.checkpoints.load_latest(self.process.initialize())
    with self._ledger() as ledger:  # A round that then crashed.
      ledger.charge(3, state_digest=saved.digest)
    other = self.process.initialize()
    self.checkpoints.save(other, saved.record)
    self._refuses('has other weights than were saved')
    digest = training.weights_digest(self.process.get_model_weights(other))
    record = dataclasses.replace(saved.record, weights_digest=digest)
    self.checkpoints.save(other, record)
    self._refuses('not the state that the ledger says round 3 started from')

  def test_every_charge_names_the_state_that_it_starts_from(self):
    digests = []
    save = self.checkpoints.save

    def record(state, value):
      digests.append(save(state, value))
      return digests[-1]

    self.checkpoints.save = record
    with self._ledger() as ledger:
      self._train(ledger, 2)
      named = [entry.state_digest for entry in ledger.entries]
    self.assertLen(digests, 3)
    self.assertEqual(named, digests[:2])

  def test_falls_back_from_a_damaged_checkpoint_and_charges_go_up(self):
    self._trained(rounds=3)
    path = self.folder / 'checkpoints' / 'round_000003.npz'
    path.write_bytes(path.read_bytes()[:-100])
    with self._ledger() as ledger:
      with self.assertLogs('absl', 'WARNING') as logs:
        outcome = self._train(ledger, 3)
    self.assertIn('going on from the checkpoint of round 2', logs.output[0])
    self.assertEqual(outcome.rounds, 3)
    self.assertEqual(self._charged(), [1, 2, 3, 3])
    self.assertEqual(self._spent(), (4, 4, self._epsilon(4)))
    # It is another draw, as it is charged for one.
    draw = self.mechanism.sampling.draw
    self.assertEqual(self.cohorts, [draw(11, 3, 4).tolist()])
    # The last published round is that of the charge that it cost.
    self.assertEqual(self.recorder.released[-1][0], 3)
    self.assertEqual(self.recorder.released[-1][1]['epsilon'], self._epsilon(4))

  def test_a_damaged_checkpoint_and_a_lost_ledger_cost_both(self):
    """Rounds 1 to 3, a repeated one, and then round 3 again."""
    with self._ledger() as ledger:
      run_id = ledger.run_id
      ledger.charge(1)  # Of a start that crashed.
    self._trained(rounds=3)
    self.assertEqual(self._spent()[0], 4)
    path = self.folder / 'checkpoints' / 'round_000003.npz'
    path.write_bytes(b'')
    (self.folder / 'ledger.jsonl').unlink()
    with self._ledger(run_id=run_id) as ledger:
      self._train(ledger, 3)
    self.assertEqual(self._spent(), (5, 5, self._epsilon(5)))

  def test_an_older_checkpoint_copied_back_runs_and_charges_again(self):
    self._trained(rounds=2)
    older = self._copy() / 'checkpoints'
    self._trained(rounds=4)
    shutil.rmtree(self.folder / 'checkpoints')
    shutil.copytree(older, self.folder / 'checkpoints')
    with self._ledger() as ledger:
      outcome = self._train(ledger, 4)
    self.assertEqual(outcome.rounds, 4)
    self.assertEqual(self._charged(), [1, 2, 3, 4, 3, 4])
    self.assertEqual(self._spent(), (6, 6, self._epsilon(6)))
    draw = self.mechanism.sampling.draw
    self.assertEqual(
      self.cohorts, [draw(11, 3, 5).tolist(), draw(11, 4, 6).tolist()]
    )

  def test_lost_checkpoints_are_said_and_paid_for(self):
    self._trained(rounds=2)
    shutil.rmtree(self.folder / 'checkpoints')
    self._go_on_in(self.folder)
    with self._ledger() as ledger:
      with self.assertLogs('absl', 'WARNING') as logs:
        self._train(ledger, 2)
    self.assertIn('no checkpoint: the run starts again', logs.output[0])
    self.assertEqual(self._spent(), (4, 4, self._epsilon(4)))

  def test_a_ledger_replaced_in_mid_run_ends_it_before_the_next_round(self):
    def replace_in_round_2(indices):
      if len(self.cohorts) == 1:
        path = self.folder / 'ledger.jsonl'
        shutil.copy(path, path.with_suffix('.copy'))
        os.replace(path.with_suffix('.copy'), path)
      return self._client_datasets(indices)

    with self._ledger() as ledger:
      with self.assertRaisesRegex(
        _validate.InputError, 'replaced by another file while the run went on'
      ):
        self._train(ledger, 5, client_datasets=replace_in_round_2)
    self.assertLen(self.cohorts, 2)
    self.assertEqual(self.checkpoints.rounds(), [1, 2])
    with self._ledger() as ledger:
      self._train(ledger, 5)
    self.assertEqual(self._spent(), (5, 5, self._epsilon(5)))

  def _diverging_process(self):
    """The first step of the server makes weights infinite."""
    self.mechanism = dataclasses.replace(
      self.mechanism, clipping=mechanisms.FixedClipping(100.0)
    )
    return _process(
      self.mechanism,
      server_optimizer=learning.build_server_optimizer(
        'sgd', learning_rate=3e38
      ),
    )

  def test_stops_at_a_model_that_has_diverged(self):
    self.process = self._diverging_process()
    with self._ledger() as ledger:
      outcome = self._train(ledger, 50)
    self.assertEqual(outcome.reason, training.StopReason.DIVERGED)
    self.assertEqual(outcome.rounds, 1)
    self.assertFalse(
      all(np.all(np.isfinite(w)) for w in outcome.weights.trainable)
    )
    charged = self._charged()
    self.assertLen(charged, outcome.rounds)
    self.cohorts.clear()
    with self._ledger() as ledger:
      again = self._train(ledger, 50)
    self.assertEqual(again.reason, training.StopReason.DIVERGED)
    self.assertEqual(again.rounds, outcome.rounds)
    self.assertEqual(self._charged(), charged)
    self.assertEmpty(self.cohorts)

  def test_a_model_that_diverges_in_the_last_round_has_diverged(self):
    self.process = self._diverging_process()
    with self._ledger() as ledger:
      outcome = self._train(ledger, 1)
    self.assertEqual(outcome.rounds, 1)
    self.assertEqual(outcome.reason, training.StopReason.DIVERGED)

  @parameterized.parameters(
    ({'auc': np.nan, 'loss': np.nan}, training.StopReason.DIVERGED, 2),
    ({'auc': np.nan, 'loss': 0.5}, training.StopReason.COMPLETED, 5),
    ({}, training.StopReason.COMPLETED, 5),
  )
  def test_a_model_of_whom_all_metrics_are_nan_has_diverged(
    self, metrics, reason, rounds
  ):
    with self._ledger() as ledger:
      outcome = self._train(ledger, 5, evaluate=lambda _: metrics)
    self.assertEqual((outcome.reason, outcome.rounds), (reason, rounds))
    self.assertLen(self._charged(), rounds)
    with self._ledger() as ledger:
      outcome = self._train(ledger, 5, evaluate=lambda _: metrics)
    self.assertEqual((outcome.reason, outcome.rounds), (reason, rounds))
    self.assertLen(self._charged(), rounds)

  def test_failed_charge_runs_nothing(self):
    with self._ledger() as ledger:
      ledger.charge = mock.Mock(side_effect=OSError(28, 'full'))
      with self.assertRaisesRegex(OSError, 'full'):
        self._train(ledger, rounds=2)
    self.assertEmpty(self.cohorts)

  def _with_ledger_sync(self, sync_ledger):
    """Returns a patch: the disk takes what is charged by `sync_ledger`."""
    sync = os.fsync

    def fsync(descriptor):
      name = os.readlink(f'/proc/self/fd/{descriptor}')
      if name.endswith('ledger.jsonl'):
        sync_ledger()
      sync(descriptor)

    return mock.patch.object(os, 'fsync', fsync)

  def test_round_runs_while_its_charge_is_synced_and_is_saved_after_that(self):
    """The disk is done with a charge only when the round has been computed."""
    computed, synced, seen, saves = queue.Queue(), [], [], []
    process, save = self.process, self.checkpoints.save

    def next_round(state, datasets):
      output = process.next(state, datasets)
      computed.put(None)
      return output

    def sync_after_the_round():
      computed.get(timeout=60)  # Else the round would wait for the disk.
      for _ in range(20):  # Time enough to save and publish.
        seen.append(
          (self.checkpoints.rounds()[-1], len(self.recorder.released))
        )
        time.sleep(0.01)
      synced.append(None)

    def save_and_remember(state, record):
      saves.append((record.round_num, len(synced)))
      return save(state, record)

    self.process = types.SimpleNamespace(
      initialize=process.initialize,
      next=next_round,
      get_model_weights=process.get_model_weights,
    )
    self.checkpoints.save = save_and_remember
    with self._ledger() as ledger:
      with self._with_ledger_sync(sync_after_the_round):
        self._train(ledger, 3)
    self.assertEqual(saves, [(0, 0), (1, 1), (2, 2), (3, 3)])
    self.assertEqual(seen, [(n, n) for n in range(3) for _ in range(20)])

  @parameterized.parameters(errno.EIO, errno.ENOSPC)
  def test_round_whose_charge_is_not_synced_is_neither_saved_nor_published(
    self, number
  ):
    def fail_in_round_3():
      if len(self.checkpoints.rounds()) == 2 and self._charged()[-1] == 3:
        raise OSError(number, os.strerror(number))

    with self.assertRaisesRegex(OSError, os.strerror(number)):
      with self._ledger() as ledger:
        with self._with_ledger_sync(fail_in_round_3):
          self._train(ledger, rounds=4)
    self.assertLen(self.cohorts, 3)  # It ran, and was thrown away.
    self.assertEqual(self.checkpoints.rounds(), [1, 2])
    self.assertEqual([key for key, _ in self.recorder.released], [1, 2])
    self.assertEqual(self._charged(), [1, 2])
    with self._ledger() as ledger:
      self._train(ledger, rounds=4)
    self.assertEqual(self._charged(), [1, 2, 3, 4])
    self.assertEqual(self._spent(), (4, 4, self._epsilon(4)))

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
