"""Tests of averaged models against the rounds' own models."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tests.learning import unit_models
from tff_medical import _validate
from tff_medical import learning
from tff_medical import runtime
from tff_medical.learning import weight_averaging
from tff_medical.privacy import dp_ftrl_mechanism
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_DECAY = 0.6
_CLIPPING = mechanisms.FixedClipping(0.5)


def _fed_avg(mechanism, server_optimizer):
  return learning.build_dp_fed_avg(
    unit_models.model(),
    mechanism,
    client_optimizer=tff.learning.optimizers.build_sgdm(0.5),
    server_optimizer=server_optimizer,
  )


def _client_level(server_optimizer):
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.FullParticipation(2), clipping=_CLIPPING
  )
  return _fed_avg(mechanism, server_optimizer), _clients()


def _tree(server_optimizer):
  mechanism = dp_ftrl_mechanism.DpFtrlMechanism(
    sampling=dp_ftrl_mechanism.DpFtrlSampling(8, 2, 4), clipping=_CLIPPING
  )
  return _fed_avg(mechanism, server_optimizer), _clients()


def _clients():
  data = unit_models.units(1, 8)
  return [
    tf.data.Dataset.from_tensors({'x': data['x'][i], 'y': data['y'][i]})
    for i in range(2)
  ]


def _record_level(server_optimizer):
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(100, 8),
    clipping=_CLIPPING,
    privacy_unit='record',
  )
  process = learning.build_dp_sgd(
    unit_models.model(), mechanism, server_optimizer=server_optimizer
  )
  sites = [runtime.tensor_dataset(unit_models.units(1, 8), batch_size=8)]
  return process, sites


def _local(server_optimizer):
  mechanism = local_dp_sgd_mechanism.LocalDpSgdMechanism(
    sampling=local_dp_sgd_mechanism.LocalDpSgdSampling(100, rate=0.1, steps=1),
    clipping=_CLIPPING,
  )
  process = learning.build_local_dp_sgd(
    unit_models.model(),
    mechanism,
    client_optimizer=tff.learning.optimizers.build_sgdm(0.5),
    server_optimizer=server_optimizer,
  )
  step = learning.step_arrays([unit_models.units(1, 8)], expected_units=8.0)
  return process, [runtime.tensor_dataset(step, batch_size=8)]


class WithAveragedModelTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    context = runtime.create_local_context(client_threads=1)
    self.enter_context(tff.framework.get_context_stack().install(context))

  @parameterized.parameters(_client_level, _record_level, _local, _tree)
  def test_is_the_average_of_the_models_of_the_rounds(self, build):
    optimizer = learning.build_server_optimizer(
      'sgd', learning_rate=1.0, momentum=0.5
    )
    plain, data = build(optimizer)
    inner, _ = build(weight_averaging.Averaging(optimizer, _DECAY))
    process = weight_averaging.with_averaged_model(inner)
    state, expected = process.initialize(), plain.initialize()
    np.testing.assert_array_equal(
      _flat(process, state), _flat(plain, expected), 'before the first round'
    )
    models = []
    for _ in range(4):
      state = process.next(state, data).state
      expected = plain.next(expected, data).state
      models.append(_flat(plain, expected))
      np.testing.assert_allclose(_flat(inner, state), models[-1], atol=1e-6)
      weights = _DECAY ** np.arange(len(models))[::-1]
      np.testing.assert_allclose(
        _flat(process, state),
        np.average(models, axis=0, weights=weights),
        atol=1e-6,
      )
    self.assertGreater(np.abs(models[0] - models[-1]).max(), 1e-3)

  def test_setting_weights_starts_anew(self):
    process, data = _client_level(
      weight_averaging.Averaging(
        learning.build_server_optimizer('sgd', learning_rate=1.0), _DECAY
      )
    )
    process = weight_averaging.with_averaged_model(process)
    first = process.initialize()
    state = process.next(first, data).state
    again = process.set_model_weights(state, process.get_model_weights(first))
    np.testing.assert_array_equal(_flat(process, again), _flat(process, first))
    after = process.next(again, data).state
    np.testing.assert_allclose(
      _flat(process, after), _flat(process, state), atol=1e-6
    )

  @parameterized.parameters(0.0, 1.0, -0.5)
  def test_refuses(self, decay):
    with self.assertRaisesRegex(_validate.InputError, 'ema_decay'):
      weight_averaging.Averaging(
        learning.build_server_optimizer('sgd', learning_rate=1.0), decay
      )


def _flat(process, state):
  return unit_models.flat(process.get_model_weights(state).trainable)


if __name__ == '__main__':
  absltest.main()
