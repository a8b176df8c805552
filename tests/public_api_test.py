"""Tests of what the library shows: its names, what they say, their pages."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import types

from absl.testing import absltest
from absl.testing import parameterized

import tff_medical

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LAZY = (
  'tff_medical',
  'tff_medical.auditing',
  'tff_medical.data',
  'tff_medical.data.decoders',
  'tff_medical.data.preparing',
  'tff_medical.data.tables',
  'tff_medical.privacy',
  'tff_medical.program',
  'tff_medical.reporting',
  'tff_medical.serving',
)


def _python(program):
  """Returns what a new process prints."""
  return subprocess.run(
    [sys.executable, '-c', program],
    check=True,
    capture_output=True,
    cwd=_ROOT,
    text=True,
  ).stdout.strip()


def _submodules(package):
  """Returns every public module below a package."""
  if not hasattr(package, '__path__'):
    return
  for path in sorted(pathlib.Path(package.__path__[0]).glob('[!_]*')):
    if path.suffix not in ('.py', ''):
      continue
    name = path.stem
    if name in getattr(package, '__all__', [name]):
      module = importlib.import_module(f'{package.__name__}.{name}')
      yield module
      yield from _submodules(module)


def _public(module):
  """Returns the classes and functions of a module, by dotted name."""
  for name in getattr(module, '__all__', vars(module)):
    value = getattr(module, name)
    own = getattr(value, '__module__', None) == module.__name__
    listed = name in getattr(module, '__all__', ())
    if (
      not name.startswith('_')
      and (own or listed)
      and isinstance(value, (type, types.FunctionType))
    ):
      yield f'{module.__name__}.{name}', value


def _members(name, cls):
  """Returns the methods and properties that a class defines itself."""
  for attribute, value in vars(cls).items():
    if not attribute.startswith('_') and isinstance(
      value, (types.FunctionType, classmethod, staticmethod, property)
    ):
      yield f'{name}.{attribute}', getattr(cls, attribute)


def _chains():
  """Returns what our commands reach through `import tff_medical as tfm`."""
  texts = (p.read_text() for p in (_ROOT / 'experiments').rglob('*.py'))
  chains = {c for t in texts for c in re.findall(r'\btfm((?:\.\w+)+)', t)}
  return sorted(chains)


class PackageTest(parameterized.TestCase):
  def test_what_commands_reach_needs_no_import_by_others(self):
    chains = _chains()
    self.assertGreater(len(chains), 20)
    # A submodule is an attribute from the moment that anybody imports it, so
    # that each chain is tried in a process of its own; forks are quick.
    missing = _python(
      'import os, tff_medical\n'
      'import tensorflow, tensorflow_federated\n'
      f'for chain in {chains}:\n'
      '  if os.fork() == 0:\n'
      '    value = tff_medical\n'
      '    for name in chain[1:].split("."):\n'
      '      value = getattr(value, name, None)\n'
      '    if value is None:\n'
      '      print(chain, flush=True)\n'
      '    os._exit(0)\n'
      '  os.wait()'
    )
    self.assertEqual(missing, '')

  @parameterized.parameters(*_LAZY)
  def test_importing_is_cheap(self, package):
    loaded = _python(
      f'import {package}, sys; print({{"numpy", "tensorflow"}} & {{*sys.modules}})'
    )
    self.assertEqual(loaded, 'set()')

  def test_names_are_there_without_an_import_of_their_own(self):
    missing = _python(
      f'import tff_medical; packages = [{", ".join(_LAZY)}];'
      ' print([n for p in packages for n in dir(p) if not hasattr(p, n)])'
    )
    self.assertEqual(missing, '[]')

  @parameterized.parameters(*_LAZY)
  def test_other_names_are_not(self, package):
    module = importlib.import_module(package)
    self.assertEqual(dir(module), sorted(module.__all__))
    with self.assertRaisesRegex(
      AttributeError, f"module '{package}' has no attribute 'mechanismz'"
    ):
      module.mechanismz  # noqa: B018

  def test_input_error_is_the_one_that_the_library_raises(self):
    with self.assertRaises(tff_medical.InputError):
      tff_medical.privacy.mechanisms.FixedClipping(clip_norm=-1.0)
    self.assertTrue(issubclass(tff_medical.InputError, ValueError))

  def test_type_checkers_see_the_same_names(self):
    # They do not run __getattr__; a name that is missing there has no type.
    for package in _LAZY:
      module = importlib.import_module(package)
      tree = ast.parse(pathlib.Path(module.__file__).read_text())
      typed = [
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == package
        for alias in node.names
        if alias.asname
      ]
      own = [name for name in module.__all__ if name in vars(module)]
      lazy = [
        name
        for name in module.__all__
        if inspect.ismodule(getattr(module, name))
      ]
      self.assertEqual(typed, lazy)
      self.assertContainsSubset(set(module.__all__) - set(lazy), own)

  def test_version_is_that_of_the_citation(self):
    text = (_ROOT / 'CITATION.cff').read_text()
    self.assertIn(f'\nversion: {tff_medical.__version__}\n', text)
    text = (_ROOT / 'CHANGELOG.md').read_text()
    self.assertIn(f'\n## {tff_medical.__version__} - ', text)


class ReferenceTest(absltest.TestCase):
  def test_every_public_name_says_what_it_is(self):
    silent, seen = [], 0
    for module in (tff_medical, *_submodules(tff_medical)):
      named = [(module.__name__, module), *_public(module)]
      for name, value in list(named):
        if isinstance(value, type):
          named += _members(name, value)
      seen += len(named)
      silent += [name for name, value in named if not inspect.getdoc(value)]
    self.assertEqual(silent, [])
    self.assertGreater(seen, 200)

  def test_pages_are_built(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    (recipe,) = (
      line.split('-m ')[1].split()
      for line in (_ROOT / 'Makefile').read_text().splitlines()
      if ' -m pdoc ' in line
    )
    recipe[recipe.index('docs/api')] = str(folder)
    subprocess.run(
      [sys.executable, '-m', *recipe],
      check=True,
      capture_output=True,
      cwd=_ROOT,
    )
    for module in _submodules(tff_medical):
      page = folder / f'{module.__name__.replace(".", "/")}.html'
      self.assertTrue(page.exists(), page)
      text = page.read_text()
      for name, _ in _public(module):
        self.assertIn(f'id="{name.rsplit(".", 1)[1]}"', text)


if __name__ == '__main__':
  absltest.main()
