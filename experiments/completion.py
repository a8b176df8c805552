r"""Prints a script that completes the commands, their flags and values in bash.

    eval "$(.venv/bin/python -m experiments.completion)"
    .venv/bin/python -m experiments.train --data<TAB>

In zsh run `autoload -Uz bashcompinit && bashcompinit` first. The script holds
all names, so completion starts no Python. The completion of files for `python`
and `python3` stays.
"""

from __future__ import annotations

from collections.abc import Iterator
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

from experiments.config import fields
from experiments.config import settings as settings_lib
from experiments.running import command
from tff_medical.data import loading

if __name__ == '__main__':
  command.parse()

_FOLDER = pathlib.Path(__file__).parent
_SHOWN_FLAG = re.compile(r'^  --(\w+)', re.M)
_SCRIPT = r"""# Completion of the commands of tff_medical, for bash.
_tff_medical() {
  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
  local module= flag= word previous=
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    if [[ $previous == -m ]]; then module=$word; fi
    previous=$word
  done
  COMPREPLY=()
  if [[ $before == -m ]]; then
    COMPREPLY=($(compgen -W '@modules@' -- "$current"))
    return
  fi
  # Bash takes the equals sign of --flag=value for a word.
  if [[ $current == = ]]; then flag=$before current=
  elif [[ $before == = ]]; then flag=${COMP_WORDS[COMP_CWORD-2]}; fi
  if [[ -n $flag ]]; then
    case $flag in
@values@
    esac
    return
  fi
  if [[ $current != -* ]]; then return; fi
  case $module in
@flags@
  esac
  if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o bashdefault -o default -F _tff_medical python python3 \
  .venv/bin/python .venv/bin/python3
"""


def commands() -> list[str]:
  """Returns the names of the commands, sorted."""
  return sorted(
    path.stem
    for path in _FOLDER.glob('*.py')
    if "if __name__ == '__main__':" in path.read_text(encoding='utf-8')
  )


def flags_of(name: str) -> list[str]:
  """Returns the flags that a command shows with --help."""
  if name == pathlib.Path(__file__).stem:
    return []
  shown = subprocess.run(
    [sys.executable, '-m', f'experiments.{name}', '--help'],
    cwd=_FOLDER.parent,
    env={**os.environ, 'COLUMNS': '80'},
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  return _SHOWN_FLAG.findall(shown)


def script() -> str:
  """Returns the script for bash."""
  names = commands()
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    flags = dict(zip(names, pool.map(flags_of, names)))
  modules = ' '.join(f'experiments.{name}' for name in names)
  return (
    _SCRIPT.replace('@modules@', modules)
    .replace('@values@', '\n'.join(_value_cases()))
    .replace('@flags@', '\n'.join(map(_flag_case, flags, flags.values())))
  )


def _flag_case(name: str, flags: list[str]) -> str:
  words = ' '.join(f'--{flag}=' for flag in ['flagfile', *flags])
  return (
    f"    experiments.{name}) COMPREPLY=($(compgen -W '{words}' -- "
    '"$current")) ;;'
  )


def _value_cases() -> Iterator[str]:
  """Yields the lines of the script for flags with a list of values."""
  for name, values in _values().items():
    words = ' '.join(values)
    yield (
      f'      --{name}) COMPREPLY=($(compgen -W \'{words}\' -- "$current")) ;;'
    )


def _values() -> dict[str, list[str]]:
  """Returns the values of each setting whose values can be listed."""
  listed = {'dataset': list(loading.DATASETS)}
  for name, groups in settings_lib.owners().items():
    choices = [
      c for g in groups for c in fields.of(g)[name].metadata['choices']
    ]
    if choices:
      listed[name] = list(dict.fromkeys(choices))
    elif fields.kind(groups[0], name) is bool:
      listed[name] = ['true', 'false']
  return listed


def main() -> None:
  """Runs the command."""
  print(script(), end='')


if __name__ == '__main__':
  command.run(main)
