"""Tests of the contract of all modes, and of a new mode."""

import dataclasses
import json
import math
import pathlib
import tempfile
from typing import ClassVar
from unittest import mock

from absl import flags as absl_flags
from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from experiments import modes
from experiments.config import assembly
from experiments.config import fields
from experiments.config import flags
from experiments.config import settings as settings_lib
from experiments.modes import base
from experiments.modes import dp_sgd
from experiments.running import dry_run
from tests.experiments import npz
from tff_medical import _validate
from tff_medical import runtime
from tff_medical.learning import batched_clients
from tff_medical.program import client_groups

_CLIENTS = 12
_RECORDS = 60
_EVERY_MODE = tuple((mode,) for mode in modes.MODES.values())
_EVERY_UNIT = tuple(
  (mode, unit) for mode in modes.MODES.values() for unit in mode.units
)


@dataclasses.dataclass(frozen=True)
class _Patient(dp_sgd.DpSgd):
  """A mode that no other file knows."""

  name: ClassVar[str] = 'slow_dp_sgd'

  patience: float = fields.setting(2.5, 'how slow it is', low=0.5, high=9.0)


def dense_model(input_shape, num_outputs, seed):
  """Returns a smooth model of dense layers."""
  initializer = tf.keras.initializers.GlorotUniform(seed)
  return tf.keras.Sequential(
    [
      tf.keras.layers.Input(input_shape),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(4, 'tanh', kernel_initializer=initializer),
      tf.keras.layers.Dense(num_outputs, kernel_initializer=initializer),
    ]
  )


_DENSE = 'tests.experiments.modes_test:dense_model'


def _given(mode, unit=None, **changed):
  """Returns flags that choose a mode and add noise."""
  wanted = {
    'mechanism': mode.name,
    'privacy_unit': unit or mode.units[0],
    'noise_multiplier': 0.1,  # A small cohort allows no more.
    'num_clients': _CLIENTS,
    'output_dir': 'run',
  }
  return settings_lib.Flags.of(**{**wanted, **changed})


def _num_units(mode):
  return _CLIENTS if mode.privacy_unit == 'client' else _RECORDS


def _resolved(mode, unit=None, **changed):
  """Returns the settings, including those that depend on the data."""
  settings = _given(mode, unit, **changed).resolve()
  return settings.for_data(_CLIENTS, _num_units(settings.mode))


def _parsed(*arguments):
  """Returns the flags of a command line."""
  values = absl_flags.FlagValues()
  read = flags.define(values)
  values(['train', *flags.with_configs(arguments)])
  return read()


def _other_value(field):
  """Returns an allowed value of a setting that is not its default."""
  default = field.default
  if isinstance(default, bool):
    return not default
  if field.metadata['choices']:
    return next(c for c in field.metadata['choices'] if c != default)
  low, high = field.metadata['low'], field.metadata['high']
  if field.name == 'augment':
    return 'flip'
  if field.name == 'class_weights':
    return '1,2'
  whole = isinstance(low, int)
  value = default / 2 if default else min(2, high / 2)
  if whole:
    value = default + 1 if default is not None else 2
  assert low <= value <= high, field.name
  return value


def _needed(mode, name):
  """Returns the flags that a setting needs to have a use."""
  found = {}
  for other, allowed in fields.of(mode)[name].metadata['only_if'].items():
    if fields.of(mode)[other].default not in allowed:
      choices = fields.of(mode)[other].metadata['choices'] or allowed
      found[other] = next(a for a in allowed if a in choices)
  if found.get('server_optimizer') == 'adam_bc':
    found['clipping'] = 'fixed'  # The noise has to be constant.
  if name == 'augment' and 'augmentations' in fields.of(mode):
    found['augmentations'] = 2
  return found


class ModesTest(parameterized.TestCase):
  @parameterized.parameters(*_EVERY_MODE)
  def test_has_the_name_that_its_flag_has(self, mode):
    self.assertIs(modes.MODES[mode.name], mode)
    self.assertIs(_given(mode).mode(), mode)
    self.assertContainsSubset(mode.units, settings_lib.PRIVACY_UNITS)
    self.assertTrue(dataclasses.is_dataclass(mode))
    self.assertTrue(mode.__doc__)

  def test_a_flag_is_of_one_kind_wherever_it_is(self):
    for name, groups in settings_lib.owners().items():
      self.assertLen({fields.kind(group, name) for group in groups}, 1, name)
      is_mode = {issubclass(group, base.Mode) for group in groups}
      self.assertLen(is_mode, 1, f'{name} is of a mode and of every run')

  def test_every_unit_has_a_default_mode(self):
    for unit in settings_lib.PRIVACY_UNITS:
      mode = _parsed(f'--privacy_unit={unit}').mode()
      self.assertIn(unit, mode.units)
      first = next(m for m in modes.MODES.values() if unit in m.units)
      self.assertIs(mode, first)

  @parameterized.parameters(*_EVERY_MODE)
  def test_every_setting_is_read_from_its_flag(self, mode):
    for name, field in fields.of(mode).items():
      if name == 'privacy_unit':
        continue
      if name == 'clipping' and len(field.metadata['choices']) == 1:
        continue
      if name == 'adam_bc_floor' and mode.noise_varies:
        continue
      if name == 'class_count_noise' and mode.units == ('client',):
        continue
      value = _other_value(field)
      given = {name: value, **_needed(mode, name)}
      if name == 'target_epsilon':
        given['noise_multiplier'] = None
      if (name, value) == ('clipping', 'none'):
        given['noise_multiplier'] = None
      unit = given.pop('privacy_unit', None)
      wanted = _given(mode, unit, **given)
      read = _parsed(*wanted.arguments())
      self.assertEqual(read, wanted, name)
      self.assertEqual(getattr(read.resolve().mode, name), value, name)

  @parameterized.parameters(*_EVERY_MODE)
  def test_every_number_has_bounds_that_its_default_keeps(self, mode):
    for name, field in fields.of(mode).items():
      low, high = field.metadata['low'], field.metadata['high']
      self.assertTrue(field.metadata['help'].strip(), name)
      if fields.kind(mode, name) not in (int, float):
        continue
      self.assertIsNotNone(low, name)
      self.assertIsNotNone(high, name)
      self.assertLess(low, high, name)
      fields.check(field, field.default)
      for value in (math.nextafter(high, math.inf), -math.inf, math.nan):
        with self.assertRaisesRegex(_validate.InputError, name):
          fields.check(field, value)

  @parameterized.parameters(*_EVERY_UNIT)
  def test_its_baseline_is_the_same_training_without_privacy(self, mode, unit):
    private = _given(mode, unit, partition='dirichlet', seed=3, rounds=7)
    plain = private.changed(**mode.baseline()).without_ignored().resolve()
    self.assertFalse(plain.mode.is_private)
    self.assertEqual(plain.mode.clipping, 'none')
    self.assertEqual(plain.mode.privacy_unit, unit)
    self.assertEqual(plain.mode.rounds, 7)
    self.assertEqual(plain.data, private.resolve().data)
    self.assertEqual(plain.model, private.resolve().model)
    units = _num_units(plain.mode)
    mechanism = assembly.build_mechanism(plain.for_data(_CLIENTS, units), units)
    self.assertFalse(mechanism.is_private)

  @parameterized.parameters(*_EVERY_UNIT)
  def test_its_mechanism_protects_its_unit_under_its_name(self, mode, unit):
    settings = _resolved(mode, unit)
    units = _num_units(settings.mode)
    mechanism = assembly.build_mechanism(settings, units)
    self.assertEqual(mechanism.privacy_unit, unit)
    self.assertEqual(mechanism.sampling.population, units)
    self.assertEqual(mechanism.noise_multiplier, 0.1)
    self.assertTrue(mechanism.is_private)
    described = mechanism.describe()
    self.assertEqual(described['mechanism'], mode.name)
    self.assertEqual(described['privacy_unit'], unit)

  @parameterized.parameters(*_EVERY_UNIT)
  def test_canaries_keep_the_sampling_rate(self, mode, unit):
    settings = _resolved(mode, unit)
    units = _num_units(settings.mode)
    more = settings.mode.with_canaries(scale=3.0, present=2.0)
    before = settings.mode.mechanism(units).sampling
    after = more.mechanism(3 * units).sampling
    self.assertEqual(after.population, 3 * units)
    self.assertAlmostEqual(
      after.expected_cohort / after.population,
      before.expected_cohort / before.population,
    )
    self.assertEqual(more.noise_multiplier, settings.mode.noise_multiplier)
    self.assertEqual(more.rounds, settings.mode.rounds)
    self.assertIsInstance(mode.refuses_canaries, str)

  @parameterized.parameters(*_EVERY_UNIT)
  def test_all_units_stay_all_units_with_canaries(self, mode, unit):
    name = 'client_sampling' if unit == 'client' else 'unit_sampling'
    if name not in fields.of(mode):
      return
    settings = _resolved(mode, unit, **{name: 'all'})
    units = _num_units(settings.mode)
    more = settings.mode.with_canaries(scale=3.0, present=2.0)
    sampling = more.mechanism(3 * units).sampling
    self.assertEqual(sampling.rate, 1)
    self.assertEqual(sampling.expected_cohort, 3 * units)
    self.assertFalse(sampling.amplifies)

  @parameterized.parameters(*_EVERY_UNIT)
  def test_config_json_gives_its_settings_back(self, mode, unit):
    folder = pathlib.Path(self.create_tempdir().full_path)
    settings = _resolved(
      mode,
      unit,
      partition='dirichlet',
      clip_norm=0.3,
      target_delta=0.01,
      cohort_seed=5,
    )
    config = folder / 'config.json'
    config.write_text(json.dumps({'settings': settings.published()}))
    for given in ([f'--flagfile={config}'], ['-flagfile', str(config)]):
      back = _parsed('--seed=9', *given, '--output_dir=run').resolve()
      back = back.for_data(_CLIENTS, _num_units(settings.mode))
      self.assertIsNone(back.run.cohort_seed)  # It stays secret.
      run = dataclasses.replace(settings.run, cohort_seed=None)
      self.assertEqual(back, dataclasses.replace(settings, run=run))
    later = _parsed(*given, '--output_dir=run', '--seed=9', '--rounds=3')
    self.assertEqual(later.resolve().data.seed, 9)
    self.assertEqual(later.resolve().mode.rounds, 3)

  @parameterized.parameters(*_EVERY_MODE)
  def test_refuses_units_that_it_cannot_protect(self, mode):
    for unit in set(settings_lib.PRIVACY_UNITS) - set(mode.units):
      with self.assertRaisesRegex(_validate.InputError, 'privacy_unit must be'):
        _given(mode, unit).resolve()


class RoundTest(parameterized.TestCase):
  """Tests of whole rounds of each mode."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enter_context(tempfile.TemporaryDirectory())
    given = settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(folder),
      num_clients=_CLIENTS,
      clipping='none',
      output_dir='run',
    )
    cls.task = assembly.load_task(given.resolve())
    runtime.set_local_context(client_threads=1)

  @parameterized.parameters(*_EVERY_MODE)
  def test_a_round_without_data_runs(self, mode):
    unit = next(u for u in mode.units if u != 'patient')
    parts = assembly.assemble(_given(mode, unit).resolve(), self.task)
    self.assertEqual(parts.settings.mode.name, mode.name)
    self.assertEqual(parts.feed.num_units, _num_units(parts.settings.mode))
    self.assertEqual(parts.mechanism.sampling.population, parts.feed.num_units)
    dry_run.check_round(parts.process, parts.feed)
    state = parts.process.initialize()
    output = parts.process.next(state, parts.feed.without_data())
    weights = parts.process.get_model_weights(output.state).trainable
    self.assertNotEmpty(weights)
    for part in weights:
      self.assertTrue(np.all(np.isfinite(part)))

  @parameterized.parameters(
    ({'client_batch_size': 5}, True),
    ({'client_batch_size': 5, 'proximal_strength': 2.0}, True),
    ({'client_batch_size': 5, 'clipping': 'none'}, True),
    ({'client_batch_size': 4}, False),
    ({'client_batch_size': 5, 'client_epochs': 2}, False),
    ({'client_batch_size': 5, 'mechanism': 'dp_ftrl'}, False),
    ({'client_batch_size': 5, 'mechanism': 'distributed_dp'}, False),
    ({'model': _DENSE, 'client_batch_size': 4, 'client_epochs': 3}, True),
  )
  def test_small_work_is_done_in_one_batch(self, changed, expected):
    """Each of the 12 clients has 5 of the 60 images."""
    if changed.get('clipping') == 'none':
      changed = {**changed, 'noise_multiplier': None}
    mode = modes.MODES[changed.get('mechanism', 'dp_fed_avg')]
    mode = _given(mode, **changed).resolve().mode
    task = dataclasses.replace(
      self.task, model=changed.get('model', self.task.model)
    )
    feed = mode.feed(task)
    self.assertEqual(isinstance(feed, client_groups.ClientGroupFeed), expected)

  @parameterized.parameters(
    {'client_batch_size': 5},
    {
      'model': _DENSE,
      'client_batch_size': 2,
      'client_epochs': 3,
      'proximal_strength': 2.0,
    },
  )
  def test_one_batch_gives_the_same_rounds(self, **changed):
    task = dataclasses.replace(
      self.task, model=changed.get('model', self.task.model)
    )
    weights = []
    for is_faster in (True, False):
      with mock.patch.object(
        batched_clients, 'is_faster', return_value=is_faster
      ):
        settings = _given(
          modes.MODES['dp_fed_avg'],
          client_sampling='all',
          noise_multiplier=0.0,
          client_learning_rate_schedule='linear',
          publish_broken_units=True,
          **changed,
        ).resolve()
        parts = assembly.assemble(settings, task)
        self.assertEqual(
          isinstance(parts.feed, client_groups.ClientGroupFeed), is_faster
        )
        state = parts.process.initialize()
        for _ in range(2):
          output = parts.process.next(state, parts.feed(np.arange(_CLIENTS)))
          state = output.state
      self.assertEqual(output.metrics['aggregator']['broken_units'], 0)
      weights.append(parts.process.get_model_weights(state).trainable)
    for batched, one_by_one in zip(*weights):
      np.testing.assert_allclose(batched, one_by_one, atol=1e-6)


class NewModeTest(absltest.TestCase):
  """Tests that an entry in `modes.MODES` is all that a mode needs."""

  def setUp(self):
    super().setUp()
    self.assertIsNone(settings_lib.owners().get('patience'))
    self.enter_context(mock.patch.dict(modes.MODES, {_Patient.name: _Patient}))

  def test_its_flags_are_read(self):
    given = _parsed(
      '--mechanism=slow_dp_sgd',
      '--privacy_unit=record',
      '--noise_multiplier=1',
      '--patience=4',
      '--output_dir=run',
    )
    settings = given.resolve()
    self.assertIsInstance(settings.mode, _Patient)
    self.assertEqual(settings.mode.patience, 4.0)
    self.assertEqual(settings.used()['patience'], 4.0)
    self.assertEqual(settings.used()['mechanism'], 'slow_dp_sgd')
    self.assertIn('--patience=4.0', given.arguments())
    changed = flags.changed(given, '--patience=3')
    self.assertEqual(changed.resolve().mode.patience, 3.0)
    for text, message in (
      ('--patience=10', 'patience must lie between 0.5 and 9'),
      ('--mechanism=dp_sgd', 'patience=4.0 would be ignored'),
      ('--privacy_unit=client', 'privacy_unit must be record or patient'),
      ('--mechanism=slow_dp_sdg', "did you mean 'slow_dp_sgd'"),
    ):
      with self.assertRaisesRegex(_validate.InputError, message):
        flags.changed(given, text).resolve()
    self.assertNotIn(
      'patience',
      given.changed(mechanism='dp_sgd').without_ignored().given,
    )

  def test_its_flags_are_in_the_help(self):
    text = flags.help_text('Trains.', [], settings_lib.names())
    self.assertIn('local_dp_sgd, slow_dp_sgd)', ' '.join(text.split()))
    self.assertIn(
      'With --mechanism=slow_dp_sgd:\n  --patience=2.5\n      how slow it is\n',
      text,
    )
    for name in settings_lib.names():
      self.assertLen(
        [x for x in text.splitlines() if x.split('=')[0] == f'  --{name}'], 1
      )

  def test_it_is_assembled(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    given = settings_lib.Flags.of(
      mechanism='slow_dp_sgd',
      privacy_unit='record',
      dataset='medmnist/breastmnist',
      data_dir=npz.write(folder),
      num_clients=_CLIENTS,
      noise_multiplier=1.0,
      patience=4.0,
      output_dir='run',
    )
    parts = assembly.assemble(given.resolve())
    self.assertIsInstance(parts.settings.mode, _Patient)
    self.assertEqual(parts.mechanism.sampling.population, _RECORDS)
    dry_run.check_round(parts.process, parts.feed)

  def test_the_base_asks_for_what_a_mode_builds(self):
    class Incomplete(base.Mode):
      name = 'incomplete'

    with self.assertRaisesRegex(TypeError, 'abstract'):
      Incomplete()


if __name__ == '__main__':
  absltest.main()
