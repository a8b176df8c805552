"""Tests of settings: defaults that fit together, and refusals."""

import os
from unittest import mock

from absl import flags as absl_flags
from absl.testing import absltest
from absl.testing import parameterized

from experiments.config import fields
from experiments.config import flags
from experiments.config import settings as settings_lib
from experiments.modes import base
from tests.faults import flag_faults
from tff_medical import _validate
from tff_medical.learning import augmentation
from tff_medical.learning import schedules


def _read(*arguments):
  values = absl_flags.FlagValues()
  read = flags.define(values)
  values(['train', '--output_dir=runs/x', *arguments])
  return read().resolve()


class SettingsTest(parameterized.TestCase):
  def test_every_setting_is_a_flag_with_the_same_default(self):
    values = absl_flags.FlagValues()
    read = flags.define(values)
    values(['train'])
    self.assertEqual(read(), settings_lib.Flags.of())
    for name in settings_lib.names():
      self.assertNotEmpty(values[name].help)

  def test_the_flags_that_users_were_promised(self):
    names = set(settings_lib.names())
    promised = """dataset data_dir image_size model partition dirichlet_alpha
        num_clients clients_per_round client_sampling rounds rounds_per_eval
        client_epochs client_batch_size client_learning_rate server_optimizer
        server_learning_rate server_momentum clipping clip_norm
        target_unclipped_quantile noise_multiplier target_epsilon target_delta
        epsilon_budget privacy_unit seed output_dir"""
    self.assertContainsSubset(promised.split(), names)

  def test_defaults_of_private_training(self):
    settings = _read('--target_epsilon=8').for_data(300, 300)
    self.assertEqual(settings.used().get('num_clients'), 300)
    self.assertEqual(settings.used().get('clients_per_round'), 30)
    self.assertEqual(settings.used().get('clip_norm'), 0.1)
    self.assertEqual(settings.used().get('target_unclipped_quantile'), 0.5)
    self.assertEqual(settings.used().get('server_momentum'), 0.9)
    self.assertEqual(settings.used().get('epsilon_budget'), 8)
    self.assertAlmostEqual(settings.used().get('target_delta'), 300**-1.1)

  def test_the_folder_of_a_file_is_no_part_of_its_name(self):
    for arguments, data_dir in (
      (['--dataset=npz:/data/mine.npz'], '/data'),
      (['--dataset=npz:mine.npz', '--data_dir=/data'], '/data'),
      (['--dataset=npz:sub/mine.npz', '--data_dir=/data'], '/data/sub'),
      (['--dataset=npz:~/mine.npz'], os.path.expanduser('~')),
      (['--dataset=npz:mine.npz'], None),
    ):
      settings = _read(*arguments, '--class_names=a,"b, c"', '--clipping=none')
      self.assertEqual(settings.data.dataset, 'npz:mine.npz')
      self.assertEqual(settings.data.data_dir, data_dir)
      self.assertEqual(settings.open_set.names(), ('a', 'b, c'))
      self.assertEqual(settings.used()['class_names'], 'a,"b, c"')

  def test_keys_are_for_the_catalogue_alone(self):
    settings = _read(
      '--dataset=tfds:malaria', '--label_key=grade', '--clipping=none'
    )
    self.assertEqual(settings.open_set.keys().label, 'grade')
    self.assertNotIn('class_names', settings.used())
    for dataset in ('synthetic', 'npz:mine.npz', 'folder'):
      with self.assertRaisesRegex(
        _validate.InputError, 'label_key=x would be ignored with dataset'
      ):
        _read(f'--dataset={dataset}', '--data_dir=y', '--label_key=x')
    for dataset in ('tfds:', 'tfds:a b', 'npz:', 'tfsd:malaria'):
      with self.assertRaisesRegex(_validate.InputError, 'dataset must be'):
        _read(f'--dataset={dataset}')

  def test_defaults_without_privacy(self):
    settings = _read('--clipping=none').for_data(50, 50)
    self.assertIsNone(settings.used().get('clip_norm'))
    self.assertIsNone(settings.used().get('target_delta'))
    self.assertIsNone(settings.used().get('epsilon_budget'))
    self.assertFalse(settings.mode.is_private)

  @parameterized.parameters(
    (['--partition=dirichlet'], 'dirichlet_alpha', 0.5),
    (['--partition=natural_site'], 'num_clients', None),
    (['--server_optimizer=adam'], 'server_momentum', None),
    (['--clipping=fixed'], 'clip_norm', 1.0),
    (['--epsilon_budget=3'], 'epsilon_budget', 3.0),
  )
  def test_defaults_of_modes(self, arguments, name, value):
    settings = _read('--noise_multiplier=1', *arguments)
    self.assertEqual(settings.used().get(name), value)

  @parameterized.parameters(
    ([], 'exactly one of target_epsilon and noise_multiplier'),
    (
      ['--target_epsilon=1', '--noise_multiplier=1'],
      'exactly one of target_epsilon and noise_multiplier',
    ),
    (['--clipping=none', '--target_epsilon=1'], 'target_epsilon.*ignored'),
    (['--clipping=none', '--clip_norm=1'], 'clip_norm.*ignored'),
    (['--clipping=none', '--target_delta=.1'], 'target_delta.*ignored'),
    (['--clipping=none', '--epsilon_budget=1'], 'epsilon_budget.*ignored'),
    (
      ['--clipping=fixed', '--target_unclipped_quantile=.5'],
      'target_unclipped_quantile.*ignored.*clipping=fixed',
    ),
    (['--dirichlet_alpha=1'], 'dirichlet_alpha.*ignored.*partition=iid'),
    (
      ['--partition=natural_site', '--num_clients=3'],
      'num_clients.*ignored.*natural_site',
    ),
    (
      ['--client_sampling=all', '--clients_per_round=3'],
      'clients_per_round.*ignored',
    ),
    (
      ['--client_sampling=all', '--max_clients_per_round=3'],
      'max_clients_per_round.*ignored',
    ),
    (
      ['--privacy_unit=record', '--client_epochs=3'],
      'client_epochs=3 would be ignored with privacy_unit=record',
    ),
    (
      ['--privacy_unit=record', '--clients_per_round=3'],
      'clients_per_round=3.0 would be ignored with privacy_unit=record',
    ),
    (['--expected_batch_size=3'], 'expected_batch_size.*ignored'),
    (['--unit_sampling=all'], 'unit_sampling=all would be ignored'),
    (
      ['--fixed_specificity=.95'],
      'fixed_specificity=0.95 would be ignored with eval_split=validation',
    ),
    (
      ['--client_sampling=all', '--cohort_seed=1'],
      'cohort_seed=1 would be ignored, as all units take part',
    ),
    (
      ['--privacy_unit=record', '--unit_sampling=all', '--cohort_seed=1'],
      'cohort_seed=1 would be ignored, as all units take part',
    ),
    (
      [
        '--privacy_unit=record',
        '--unit_sampling=all',
        '--expected_batch_size=3',
      ],
      'expected_batch_size.*ignored with unit_sampling=all',
    ),
    (
      ['--privacy_unit=record', '--max_images_per_patient=3'],
      'max_images_per_patient.*ignored',
    ),
    (['--max_clients_per_round=0'], 'max_clients_per_round'),
    (['--cohort_seed=-1'], 'cohort_seed'),
    (
      ['--server_optimizer=yogi', '--server_momentum=.9'],
      'server_momentum.*ignored.*yogi',
    ),
    (
      ['--clipping=none', '--server_optimizer=adam_bc'],
      'adam_bc.*there is no noise.*choose adam',
    ),
    (
      [
        '--noise_multiplier=0',
        '--clipping=fixed',
        '--server_optimizer=adam_bc',
      ],
      'adam_bc.*there is no noise',
    ),
    (['--server_optimizer=adam_bc'], 'adam_bc.*the noise follows the adaptive'),
    (
      ['--server_optimizer=adam_bc', '--mechanism=dp_ftrl'],
      'adam_bc.*the noise of a tree',
    ),
    (
      [
        '--server_optimizer=adam_bc',
        '--mechanism=local_dp_sgd',
        '--privacy_unit=record',
      ],
      'adam_bc.*each site adds noise',
    ),
    (
      ['--adam_bc_floor=.1'],
      'adam_bc_floor.*ignored with server_optimizer=sgd',
    ),
    (['--class_weights=noised'], 'class_weights.*privacy_unit=client'),
    (
      [
        '--class_weights=noised',
        '--privacy_unit=record',
        '--clipping=none',
      ],
      'class_weights must not be noised without privacy',
    ),
    (
      [
        '--class_weights=1,2',
        '--class_count_noise=3',
        '--privacy_unit=record',
      ],
      'class_count_noise.*ignored with class_weights=1,2',
    ),
    (['--label_smoothing=1'], 'label_smoothing must lie between'),
    (['--class_weights=1,x'], "class_weights must be positive.*got 'x'"),
    (['--class_weights=1,0'], "class_weights must be positive.*got '0'"),
    (['--class_weights=1,inf'], 'class_weights must be positive'),
    (['--class_weights='], 'class_weights must not be blank'),
    (['--server_learning_rate_schedule=step'], 'schedule must be one of'),
    (['--clipping=adaptve'], "clipping.*did you mean 'adaptive'"),
    (['--partition=random'], 'partition must be one of'),
    (['--privacy_unit=site'], 'privacy_unit must be one of'),
    (
      ['--mechanism=dp_ftrl', '--client_sampling=all'],
      'client_sampling.*dp_ftrl',
    ),
    (['--mechanism=dp_ftrl', '--clipping=adaptive'], 'clipping must be fixed'),
    (['--mechanism=dp_ftrl', '--clients_per_round=2.5'], 'whole number'),
    (['--mechanism=distributed_dp', '--runtime=tff'], 'runtime must be local'),
    (
      ['--mechanism=distributed_dp', '--clients_per_round=5'],
      'clients_per_round=5.0 would be ignored with mechanism=distributed_dp',
    ),
    (['--privacy_unit=record', '--mechanism=dp_ftrl'], 'must be client with'),
    (['--mechanism=local_dp_sgd'], 'privacy_unit must be record or patient'),
    (['--local_steps=2'], 'local_steps.*ignored.*privacy_unit=client'),
    (
      ['--privacy_unit=record', '--client_learning_rate=1'],
      'client_learning_rate.*ignored with mechanism=dp_sgd',
    ),
    (
      ['--mechanism=distributed_dp', '--publish_broken_units'],
      'publish_broken_units=True would be ignored with mechanism=distributed_dp',
    ),
    (['--rounds_per_tree=5'], 'rounds_per_tree.*ignored.*mechanism=dp_fed_avg'),
    (['--proximal_strength=-1'], 'proximal_strength'),
    (['--ema_decay=1'], 'ema_decay'),
    (['--ema_decay=-.1'], 'ema_decay'),
    (['--client_learning_rate_schedule=step'], 'schedule must be one of'),
    (['--runtime=tff', '--client_threads=2'], 'client_threads.*runtime=tff'),
    (['--client_threads=0'], 'client_threads'),
    (['--runtime=gpu'], 'runtime must be one of'),
    (['--precision=float16'], 'precision must be one of'),
    (
      ['--runtime=tff', '--precision=bfloat16'],
      'precision=bfloat16 would be ignored with runtime=tff',
    ),
    (['--rounds=0'], 'rounds must be positive, got 0'),
    (['--client_batch_size=-1'], 'client_batch_size'),
    (['--client_learning_rate=0'], 'client_learning_rate'),
    (['--target_delta=2', '--target_epsilon=1'], 'target_delta'),
    (['--target_epsilon=0'], 'target_epsilon'),
    (['--num_clients=0'], 'num_clients'),
  )
  def test_refuses(self, arguments, message):
    private = '--target_epsilon=8'
    chosen = any(
      a.startswith(('--target_epsilon', '--noise', '--clipping=none'))
      for a in arguments
    )
    if not chosen and arguments:
      arguments = [private, *arguments]
    with self.assertRaisesRegex(_validate.InputError, message):
      _read(*arguments)

  def test_defaults_of_record_level(self):
    settings = _read('--target_epsilon=8', '--privacy_unit=record')
    self.assertEqual(settings.used().get('num_clients'), 8)
    settings = settings.for_data(8, 4000)
    self.assertEqual(settings.used().get('expected_batch_size'), 200)
    self.assertIsNone(settings.used().get('client_sampling'))
    self.assertIsNone(settings.used().get('clients_per_round'))
    self.assertAlmostEqual(settings.used().get('target_delta'), 4000**-1.1)

  def test_all_records_by_number_are_all_records_by_name(self):
    record = ('--target_epsilon=8', '--privacy_unit=record')
    for more in ((), ('--mechanism=local_dp_sgd', '--local_steps=2')):
      by_number, by_name = (
        _read(*record, *more, flag).for_data(8, 100)
        for flag in ('--expected_batch_size=100', '--unit_sampling=all')
      )
      self.assertEqual(by_number, by_name)
      self.assertEqual(by_number.used()['unit_sampling'], 'all')
      self.assertNotIn('expected_batch_size', by_number.used())
      self.assertEqual(by_number.mode.mechanism(100).sampling.rate, 1)
      below = _read(*record, *more, '--expected_batch_size=99').for_data(8, 100)
      self.assertEqual(below.mode.mechanism(100).sampling.rate, 0.99)

  def test_all_units_of_all_local_steps_fit_into_memory(self):
    settings = _read(
      '--privacy_unit=record',
      '--mechanism=local_dp_sgd',
      '--target_epsilon=8',
      '--unit_sampling=all',
      '--local_steps=5',
    )
    settings.for_data(8, 200_000)
    with self.assertRaisesRegex(_validate.InputError, 'local_steps .*memory'):
      settings.for_data(8, 200_001)

  @parameterized.parameters(
    ([], 20, 20, '--clients_per_round=20', 'clients_per_round.*below the 20'),
    (
      ['--privacy_unit=record'],
      8,
      100,
      '--expected_batch_size=101',
      'expected_batch_size must be at most the 100 records.*unit_sampling=all',
    ),
    (
      ['--privacy_unit=patient', '--mechanism=local_dp_sgd'],
      8,
      100,
      '--expected_batch_size=101',
      'expected_batch_size must be at most the 100 patients',
    ),
  )
  def test_cohort_is_not_above_the_population(
    self, arguments, num_clients, num_units, cohort, message
  ):
    settings = _read('--target_epsilon=8', cohort, *arguments)
    with self.assertRaisesRegex(_validate.InputError, message):
      settings.for_data(num_clients, num_units)

  def test_tree_takes_the_rounds_that_the_clients_suffice_for(self):
    settings = _read('--target_epsilon=8', '--mechanism=dp_ftrl', '--rounds=50')
    self.assertEqual(settings.used().get('clipping'), 'fixed')
    settings = settings.for_data(300, 300)
    self.assertEqual(settings.used().get('clients_per_round'), 30)
    self.assertEqual(settings.used().get('rounds_per_tree'), 10)

  def test_a_schedule_fixes_the_number_of_rounds(self):
    for flag, fixed in (
      ('--server_learning_rate_schedule=constant', False),
      ('--server_learning_rate_schedule=linear', True),
      ('--client_learning_rate_schedule=cosine', True),
    ):
      names = _read('--noise_multiplier=1', flag).may_change()
      self.assertEqual('rounds' not in names, fixed, flag)

  def test_schedules_are_those_of_the_library(self):
    self.assertEqual(base.SCHEDULES, schedules.SCHEDULES)

  def test_every_number_has_bounds_that_its_default_keeps(self):
    for name, groups in settings_lib.owners().items():
      for group in groups:
        field = fields.of(group)[name]
        number = name in flag_faults.numeric_names()
        bounds = (field.metadata['low'], field.metadata['high'])
        self.assertEqual(None not in bounds, number, name)
        if number:
          fields.check(field, field.default)

  @parameterized.parameters(
    (
      ['--rounds=20000', '--local_steps=51'],
      'rounds .* x local_steps .*charges',
    ),
    (['--local_steps=999', '--expected_batch_size=2000'], 'local_steps .* x'),
  )
  def test_products_have_limits(self, arguments, message):
    local = [
      '--privacy_unit=record',
      '--mechanism=local_dp_sgd',
      '--target_epsilon=8',
    ]
    with self.assertRaisesRegex(_validate.InputError, message):
      _read(*local, *arguments)

  def test_passes_and_views_have_limits(self):
    with self.assertRaisesRegex(_validate.InputError, 'client_epochs .* x'):
      _read('--target_epsilon=8', '--client_epochs=9000', '--num_clients=900')
    with self.assertRaisesRegex(_validate.InputError, 'microbatch_size .* x'):
      _read(
        '--target_epsilon=8',
        '--privacy_unit=patient',
        '--microbatch_size=10000',
        '--augmentations=100',
      )

  def test_augmentations_are_those_of_the_library(self):
    self.assertEqual(base.AUGMENTATIONS, augmentation.NAMES)

  @parameterized.parameters(
    (['--augment=flip,turn'], "one of .*got 'turn'"),
    (['--augment=flip,flip'], 'each transformation once'),
    (['--augment='], 'augment must not be blank'),
    (
      ['--augment=flip', '--privacy_unit=record'],
      'augment=flip would be ignored with augmentations=0',
    ),
  )
  def test_refuses_augmentations(self, arguments, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      _read('--clipping=none', *arguments)

  def test_augmentations_at_both_levels(self):
    client = _read('--clipping=none', '--augment=crop, flip').mode
    self.assertEqual(client.augment_names, ('crop', 'flip'))
    record = ('--clipping=none', '--privacy_unit=record', '--augmentations=3')
    self.assertEqual(
      _read(*record).mode.augmentation(),
      augmentation.Augmentation(('shift',), views=3),
    )
    self.assertEqual(
      _read(*record, '--augment=flip,rotate').mode.augmentation(),
      augmentation.Augmentation(('flip', 'rotate'), views=3),
    )

  def test_draws_of_a_round_fit_into_memory(self):
    settings = _read(
      '--privacy_unit=record',
      '--mechanism=local_dp_sgd',
      '--target_epsilon=8',
      '--local_steps=900',
    )
    with self.assertRaisesRegex(_validate.InputError, 'local_steps .*draws'):
      settings.for_data(8, 900_000)

  def test_home_is_expanded_once(self):
    with mock.patch.dict(os.environ, HOME='/home/somebody'):
      settings = settings_lib.Flags.of(
        target_epsilon=1.0, output_dir='~/~runs', data_dir='data/~'
      ).resolve()
    self.assertEqual(settings.used().get('output_dir'), '/home/somebody/~runs')
    self.assertEqual(settings.used().get('data_dir'), 'data/~')

  @parameterized.product(
    name=('output_dir', 'data_dir', 'initial_model'), text=flag_faults.TEXTS
  )
  def test_refuses_what_is_no_local_path(self, name, text):
    given = {'output_dir': 'run', name: text}
    settings = settings_lib.Flags.of(target_epsilon=1.0, **given)
    with self.assertRaisesRegex(_validate.InputError, name):
      settings.resolve()

  def test_output_dir_at_which_tensorflow_finds_no_model(self):
    with self.assertRaisesRegex(
      _validate.InputError, r"output_dir 'runs/\[1\]' .* another name"
    ):
      settings_lib.Flags.of(target_epsilon=8.0, output_dir='runs/[1]').resolve()

  def test_output_dir_is_needed(self):
    with self.assertRaisesRegex(_validate.InputError, 'output_dir'):
      settings_lib.Flags.of(target_epsilon=1.0).resolve()


if __name__ == '__main__':
  absltest.main()
