"""Tests of DP-FTRL as a learning process, in both runtimes and over a crash."""

import collections
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import learning
from tff_medical import runtime
from tff_medical.privacy import dp_ftrl_mechanism
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import mechanisms
from tff_medical.program import checkpoints as checkpoints_lib
from tff_medical.program import training

_SPEC = collections.OrderedDict(
  x=tf.TensorSpec((None, 3), tf.float32), y=tf.TensorSpec((None,), tf.int64)
)
_SAMPLING = dp_ftrl_mechanism.DpFtrlSampling(12, 3, 4)


def _model():
  keras_model = tf.keras.Sequential(
    [
      tf.keras.layers.InputLayer((3,)),
      tf.keras.layers.Dense(2, kernel_initializer='zeros'),
    ]
  )
  return tff.learning.models.functional_model_from_keras(
    keras_model,
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    _SPEC,
  )


def _datasets(indices):
  for index in indices:
    rng = np.random.default_rng(index)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    y = rng.integers(2, size=6)
    yield tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(x=x, y=y)
    ).batch(4)


def _mechanism(noise_multiplier, clip_norm=1e6):
  return dp_ftrl_mechanism.DpFtrlMechanism(
    sampling=_SAMPLING,
    clipping=mechanisms.FixedClipping(clip_norm),
    noise_multiplier=noise_multiplier,
  )


def _process(mechanism, client_learning_rate, **server):
  return learning.build_dp_fed_avg(
    _model(),
    mechanism,
    client_optimizer=tff.learning.optimizers.build_sgdm(client_learning_rate),
    server_optimizer=learning.build_server_optimizer('sgd', **server),
  )


def _flat(weights):
  return np.concatenate([np.ravel(w) for w in weights.trainable])


class DpFtrlTest(parameterized.TestCase):
  def test_zero_noise_and_a_huge_clip_are_plain_fed_avg(self):
    server = dict(learning_rate=0.7, momentum=0.9)
    ours = _process(_mechanism(0.0), 0.5, **server)
    plain = tff.learning.algorithms.build_unweighted_fed_avg(
      _model(),
      client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.5),
      server_optimizer_fn=learning.build_server_optimizer('sgd', **server),
    )
    state, expected = ours.initialize(), plain.initialize()
    for round_num in range(1, 7):
      clients = list(_datasets(_SAMPLING.draw(5, round_num, 1)))
      state = ours.next(state, clients).state
      expected = plain.next(expected, clients).state
    np.testing.assert_allclose(
      _flat(ours.get_model_weights(state)),
      _flat(plain.get_model_weights(expected)),
      rtol=1e-4,
    )

  @parameterized.parameters('local', 'tff')
  def test_model_is_off_by_the_noise_of_one_prefix(self, name):
    """Not by the sum of all rounds' noise; with clients that do not move."""
    context = (
      runtime.create_local_context()
      if name == 'local'
      else tff.backends.native.create_sync_local_cpp_execution_context()
    )
    with tff.framework.get_context_stack().install(context):
      process = _process(_mechanism(2.0, 0.3), 0.0, learning_rate=1.0)
      drawn = []
      for _ in range(40):
        state = process.initialize()
        for round_num in (1, 2, 3, 4):
          clients = list(_datasets(_SAMPLING.draw(5, round_num, 1)))
          state = process.next(state, clients).state
        drawn.append(_flat(process.get_model_weights(state)))
    self.assertLen(set(np.ravel(drawn)), 40 * 8)
    # After 4 rounds one subtree of depth 2 counts: variance 1 / (2 - 1/4).
    stated = 2.0 * 0.3 / 3 / np.sqrt(1.75)
    self.assertAlmostEqual(np.std(drawn) / stated, 1, delta=5 / np.sqrt(640))

  def test_goes_on_within_a_tree_after_a_crash(self):
    """The noise of rounds before it is taken back by rounds after it."""
    folder = pathlib.Path(self.create_tempdir().full_path)
    mechanism = _mechanism(2.0, 0.3)
    process = _process(mechanism, 0.0, learning_rate=1.0)
    calls = []

    def train(rounds, crash_at=None):
      def client_datasets(indices):
        calls.append(indices.tolist())
        if len(calls) == crash_at:
          raise RuntimeError('power cut')
        return list(_datasets(indices))

      with ledger_lib.PrivacyLedger(
        folder / 'ledger.jsonl', mechanism, delta=1e-2
      ) as ledger:
        outcome = training.train(
          process,
          client_datasets,
          ledger=ledger,
          checkpoints=checkpoints_lib.Checkpoints(folder / 'checkpoints'),
          cohort_seed=5,
          rounds=rounds,
          reporting=training.Reporting(
            lambda weights: {'x': 0.0}, rounds_per_eval=9
          ),
        )
        return outcome, ledger.charges

    with self.assertRaisesRegex(RuntimeError, 'power cut'):
      train(rounds=4, crash_at=3)
    outcome, charges = train(rounds=3)
    # One tree, and one more for round 3, which was charged twice.
    self.assertEqual(charges, 2)
    self.assertEqual(
      calls, [_SAMPLING.draw(5, n, 1).tolist() for n in (1, 2, 3, 3)]
    )
    store = checkpoints_lib.Checkpoints(folder / 'checkpoints')
    state = store.load_latest(process.initialize()).state
    pending = state.aggregator.query_state.numerator_state.pending
    pending = np.concatenate([np.reshape(p, [3, -1]) for p in pending], axis=1)
    prefix = (pending[0] + pending[1] / 1.5) / 3
    self.assertTrue(np.all(prefix != 0))
    np.testing.assert_allclose(_flat(outcome.weights), -prefix, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
