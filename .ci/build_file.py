"""Prints the BUILD file that the sources call for.

    python .ci/build_file.py > BUILD

Every module is a py_library, every module of experiments with a main a
py_binary, every test a py_test; the dependencies are what the modules import.
"""

from __future__ import annotations

import ast
import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ('tff_medical', 'experiments', 'tests')

HEADER = '''"""Bazel targets of every module, command and test.

Written by `python .ci/build_file.py > BUILD`; a test fails when it is out of
date. Third-party packages come from the environment that requirements.txt
describes, so they are not listed as dependencies.
"""

package(default_visibility = ["//visibility:public"])

filegroup(
    name = "presets",
    srcs = glob(["experiments/presets/*.flags"]),
)
'''


def modules() -> dict[str, pathlib.Path]:
  """Returns the files by dotted module name, of every package."""
  found = {}
  for package in PACKAGES:
    for path in sorted((ROOT / package).rglob('*.py')):
      relative = path.relative_to(ROOT)
      parts = list(relative.with_suffix('').parts)
      if parts[-1] == '__init__':
        parts.pop()
      found['.'.join(parts)] = relative
  return found


def imported(path: pathlib.Path, known: dict[str, pathlib.Path]) -> list[str]:
  """Returns the modules of this project that a file imports, sorted."""
  names = set()
  for node in ast.walk(ast.parse((ROOT / path).read_text())):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        inner = f'{node.module}.{alias.name}'
        names.add(inner if inner in known else node.module)
  return sorted(names & known.keys())


def is_command(path: pathlib.Path) -> bool:
  """Returns whether the file can be run as a program."""
  return "if __name__ == '__main__':" in (ROOT / path).read_text()


def target(name: str, known: dict[str, pathlib.Path]) -> str:
  """Returns the rule of one module."""
  path = known[name]
  label = name.replace('.', '/')
  deps = [f':{d.replace(".", "/")}' for d in imported(path, known) if d != name]
  rule, extra = 'py_library', ''
  if path.name.endswith('_test.py'):
    rule = 'py_test'
  elif name.startswith('experiments.') and is_command(path):
    rule = 'py_binary'
  if rule != 'py_library':
    extra = f'    main = "{path}",\n'
  if name.startswith('experiments') or name.startswith('tests.experiments'):
    extra += '    data = [":presets"],\n'
  # TFDS looks for the checksums of a builder's downloads beside its module.
  checksums = path.with_name('checksums.tsv')
  if 'tfds.core.' in (ROOT / path).read_text() and (ROOT / checksums).exists():
    extra += f'    data = ["{checksums}"],\n'
  listed = (
    json.dumps(deps, indent=8)[:-1].rstrip() + ',\n    ]' if deps else '[]'
  )
  return (
    f'{rule}(\n    name = "{label}",\n    srcs = ["{path}"],\n{extra}'
    f'    deps = {listed},\n)\n'
  )


def build_file() -> str:
  """Returns the text of BUILD."""
  known = modules()
  return '\n'.join([HEADER, *(target(name, known) for name in known)])


if __name__ == '__main__':
  print(build_file(), end='')
