"""Flags on the command line: from absl to `settings.Flags`, and the help.

Every setting is one flag of a command. A flag that is not given has no value;
defaults and bounds are those of `settings`. Nothing here imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import os
import pathlib
import re
import shlex
import textwrap
from typing import Any

from absl import flags

from experiments import modes
from experiments.config import data_settings
from experiments.config import fields
from experiments.config import model_settings
from experiments.config import open_set_settings
from experiments.config import own_image_settings
from experiments.config import run_settings
from experiments.config import settings as settings_lib
from tff_medical import _files
from tff_medical import _validate

_DEFINE: Mapping[type[Any], Callable[..., Any]] = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}
_WIDTH = 80
_COMMON = 'Privacy and training'
_OWN_IMAGES = 'Own images, with --dataset=folder or --dataset=table'
_OPEN_SETS = 'Other images, with --dataset=tfds:NAME or --dataset=npz:FILE'
_FLAGFILE = ('-flagfile', '--flagfile')
_MAX_FLAGFILE_BYTES = 1_000_000
_MECHANISM_HELP = 'way of training [the first that protects --privacy_unit]'
_FLAGFILE_HELP = """--flagfile=FILE reads flags from a file, one flag per line.
--flagfile=RUN/config.json reads the settings of an earlier run."""
# Settings in config.json that are not given back as flags.
_NOT_GIVEN_BACK = ('output_dir', 'cohort_seed')


def define(
  values: flags.FlagValues = flags.FLAGS,
) -> Callable[[], settings_lib.Flags]:
  """Defines a flag for every setting; returns a function that reads them."""
  flags.DEFINE_string('mechanism', None, _MECHANISM_HELP, flag_values=values)
  for name, groups in settings_lib.owners().items():
    make = _DEFINE[fields.kind(groups[0], name)]
    help_text = fields.of(groups[0])[name].metadata['help']
    make(name, None, help_text, flag_values=values)

  def read() -> settings_lib.Flags:
    return settings_lib.Flags.of(
      **{name: values[name].value for name in settings_lib.names()}
    )

  return read


def changed(given: settings_lib.Flags, arguments: str) -> settings_lib.Flags:
  """Returns flags that are overridden by those in a text.

  Args:
    given: Flags to override.
    arguments: Overriding flags as in a shell, e.g. `--rounds=5 --model=cnn`.
      A flag without a value, `--backbone=`, takes that flag back.

  Raises:
    InputError: The text holds anything but flags of settings.
  """
  values = flags.FlagValues()
  read = define(values)
  try:
    words = shlex.split(arguments)
    taken_back = [name for name in map(_without_value, words) if name]
    words = [word for word in words if not _without_value(word)]
    check_flagfiles(words)
    rest = values(['', *with_configs(words)])
  except _validate.InputError:
    raise
  except (flags.Error, ValueError) as error:
    raise _validate.InputError(f'{arguments!r}: {error}') from None
  if len(rest) > 1:
    raise _validate.InputError(
      f'{arguments!r} must hold flags alone (--name=value), got {rest[1]!r}'
    )
  return given.changed(**{**dict.fromkeys(taken_back), **read().given})


def _without_value(word: str) -> str | None:
  """Returns the setting that a word like `--backbone=` takes back, if any."""
  name = word[2:-1] if word.startswith('--') and word.endswith('=') else None
  return name if name in settings_lib.names() else None


def check_flagfiles(
  arguments: Sequence[str], inside: tuple[str, ...] = ()
) -> None:
  """Raises `InputError` for flagfiles that absl would hang or fail on.

  Args:
    arguments: Command line without the program, or lines of a flagfile.
    inside: Real paths of the flagfiles that include these lines.
  """
  for path in _flagfiles(arguments):
    text = _read_flagfile(path)
    real = os.path.realpath(path.expanduser())
    if real in inside:
      raise _validate.InputError(f'flagfile {path} includes itself')
    lines = [line.strip() for line in text.splitlines()]
    nested = [line for line in lines if line.startswith('-')]
    check_flagfiles(nested, (*inside, real))


def owner_of(name: str, program: str, arguments: Sequence[str]) -> str:
  """Returns words on a flagfile of another command with this flag, or ''.

  Args:
    name: Flag that the command does not have.
    program: File of the command.
    arguments: Command line without the program, as `check_flagfiles` allows.
  """
  own = f'experiments.{pathlib.Path(program).stem}'
  for path in _flagfiles(arguments):
    text = _read_flagfile(path)
    command = re.search(r'python -m (experiments\.\w+)', text)
    has_flag = re.search(rf'^\s*--?{re.escape(name)}\b', text, re.M)
    if command and has_flag and command[1] != own:
      return f'flagfile {path} is for {command[1]}; start that command'
  return ''


def _flagfiles(arguments: Sequence[str]) -> Iterator[pathlib.Path]:
  """Yields the paths of flagfiles on a command line."""
  for argument, following in zip(arguments, [*arguments[1:], '']):
    if argument == '--':
      return
    name, equals, value = argument.partition('=')
    if name in _FLAGFILE:
      yield pathlib.Path((value if equals else following).strip())


def _read_flagfile(path: pathlib.Path) -> str:
  try:
    expanded = path.expanduser()
    if not expanded.is_file():  # Reading a pipe might wait for ever.
      problem = 'is no file' if expanded.exists() else 'does not exist'
      raise _validate.InputError(f'flagfile {path} {problem}')
    if expanded.stat().st_size > _MAX_FLAGFILE_BYTES:
      raise _validate.InputError(f'flagfile {path} is too large for a flagfile')
    text = expanded.read_text(encoding='utf-8')
  except (OSError, RuntimeError) as error:  # RuntimeError: no such home folder.
    raise _validate.InputError(
      f'flagfile {path} cannot be read ({error})'
    ) from None
  except _validate.InputError:
    raise
  except ValueError:  # Not UTF-8, or a null byte in the name.
    text = '\0'
  if '\0' in text:
    raise _validate.InputError(
      f'flagfile {str(path)!r} is no text; it must hold one flag per line, '
      '--name=value'
    )
  return text


def with_configs(argv: Sequence[str]) -> list[str]:
  """Returns the arguments, with each config.json replaced by its flags.

  `--flagfile=RUN/config.json` stands for the settings of a run, which later
  flags may override. The run's output folder and cohort seed are left out.

  Raises:
    InputError: The file is damaged.
  """
  expanded: list[str] = []
  rest = list(argv)
  while rest:
    argument = rest.pop(0)
    if argument == '--':
      return [*expanded, argument, *rest]
    name, equals, value = argument.partition('=')
    if name not in _FLAGFILE:
      expanded.append(argument)
      continue
    if not equals and rest:
      value = rest.pop(0)
    path = value.strip()
    if path.endswith('.json'):
      expanded += _of_config(pathlib.Path(path).expanduser())
    else:
      expanded.append(f'{name}={value}')
  return expanded


def _of_config(path: pathlib.Path) -> list[str]:
  try:
    settings = _files.read_json(path).get('settings')
  except FileNotFoundError:
    settings = None
  if not isinstance(settings, dict):
    raise _validate.InputError(
      f'flagfile {path} is not the config.json of a run; give a file of flags, '
      'or RUN/config.json'
    )
  return given_back(settings).arguments()


def given_back(settings: Mapping[str, Any]) -> settings_lib.Flags:
  """Returns the flags of the settings that a run's config.json holds.

  Raises:
    InputError: The settings are of another version.
  """
  values = {n: v for n, v in settings.items() if n not in _NOT_GIVEN_BACK}
  try:
    return settings_lib.Flags.of(**values)
  except TypeError as error:
    raise _validate.InputError(
      f'the settings of config.json are of another version ({error}); train '
      'again'
    ) from None


def help_text(
  doc: str, command_flags: Sequence[flags.Flag], settings: Collection[str]
) -> str:
  """Returns the text of --help: the command's doc and its flags in groups.

  Args:
    doc: Docstring of the command.
    command_flags: Flags of this command alone.
    settings: Names of the settings of a run that the command uses.
  """
  parts = [doc.strip()]
  if command_flags:
    lines = [line for flag in command_flags for line in _describe_flag(flag)]
    parts.append('\n'.join(['Flags of this command:', *lines]))
  for title, flags_of in _setting_groups().items():
    lines = [x for n, lines in flags_of.items() if n in settings for x in lines]
    if lines:
      parts.append('\n'.join([f'{title}:', *lines]))
  if settings:
    parts.append(_FLAGFILE_HELP)
  return '\n\n'.join(parts) + '\n'


def _setting_groups() -> dict[str, dict[str, list[str]]]:
  """Returns the lines of each flag by its name, in groups by their title."""
  of_group: dict[str, dict[str, list[str]]] = {
    title: {} for title in ('Data', _OWN_IMAGES, _OPEN_SETS, 'Model', _COMMON)
  }
  of_group[_COMMON]['mechanism'] = list(
    _describe('mechanism', None, _MECHANISM_HELP, tuple(modes.MODES))
  )
  for name, groups in settings_lib.owners().items():
    field = fields.of(groups[0])[name]
    of_group.setdefault(_title(groups), {})[name] = list(
      _describe(
        name,
        field.default,
        field.metadata['help'] + _other_defaults(groups, name),
        _choices(groups, name),
        field.metadata['only_if'],
      )
    )
  of_group['Run'] = of_group.pop('Run')  # This group comes last.
  return of_group


def _title(groups: Sequence[type[Any]]) -> str:
  plain = {
    data_settings.DataSettings: 'Data',
    own_image_settings.OwnImageSettings: _OWN_IMAGES,
    open_set_settings.OpenSetSettings: _OPEN_SETS,
    model_settings.ModelSettings: 'Model',
    run_settings.RunSettings: 'Run',
  }
  if groups[0] in plain:
    return plain[groups[0]]
  if len(groups) == len(modes.MODES):
    return _COMMON
  return f'With --mechanism={", ".join(group.name for group in groups)}'


def _other_defaults(groups: Sequence[type[Any]], name: str) -> str:
  """Returns the other defaults that modes give a setting, in brackets."""
  first = fields.of(groups[0])[name].default
  other = (
    {g.name: fields.of(g)[name].default for g in groups if g is not groups[0]}
    if len(groups) > 1
    else {}
  )
  text = ', '.join(f'{m}: {v}' for m, v in other.items() if v != first)
  return f' [{text}]' if text else ''


def _choices(groups: Sequence[type[Any]], name: str) -> tuple[str, ...]:
  choices = (fields.of(g)[name].metadata['choices'] for g in groups)
  return tuple(dict.fromkeys(c for some in choices for c in some))


def _describe_flag(flag: flags.Flag) -> Iterator[str]:
  default = flag.default
  if isinstance(default, list):
    default = ','.join(map(str, default))
  yield from _describe(flag.name, default, flag.help or '')


def _describe(
  name: str,
  default: Any,
  help_text: str,
  choices: Sequence[str] = (),
  only_if: Mapping[str, Any] | None = None,
) -> Iterator[str]:
  """Yields the lines of a flag."""
  shown = '' if default in (None, '') else f'={default}'
  yield f'  --{name}{shown}'
  text = ' '.join(help_text.split())
  if choices:
    text += f' ({", ".join(choices)})'
  for other, values in (only_if or {}).items():
    if values is fields.GIVEN:
      text += f' [with --{other}]'
    elif values == (None,):
      text += f' [without --{other}]'
    else:
      text += f' [with --{other}={", ".join(map(str, values))}]'
  yield from textwrap.wrap(
    text,
    _WIDTH,
    initial_indent='      ',
    subsequent_indent='      ',
    break_on_hyphens=False,
  )
