"""The rooms of docs/DESIGN.md: what each package may import."""

import ast
import pathlib
import re

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGES = ('tff_medical', 'experiments', 'tools')
# From the lowest up; the rooms of one floor do not import each other.
_FLOORS = (
  ('tff_medical._files', 'tff_medical._validate', 'tff_medical._lazy'),
  ('tff_medical.data.decoders', 'tff_medical.data.pixels'),
  (
    'tff_medical.data.equal_images',
    'tff_medical.data.label_values',
    'tff_medical.data.preparation_counts',
  ),
  ('tff_medical.data.images',),
  ('tff_medical.data.tables',),
  ('tff_medical.data.preparing',),
  (
    'tff_medical.data',
    'tff_medical.models',
    'tff_medical.privacy',
    'tff_medical.runtime',
    'tff_medical.scoring',
  ),
  ('tff_medical.models.backbones', 'tff_medical.runtime.cluster'),
  ('tff_medical.learning',),
  ('tff_medical.program',),
  ('tff_medical.serving', 'tff_medical.reporting'),
  ('tff_medical.auditing',),
  ('tff_medical',),
  ('experiments.config.fields',),
  ('experiments.modes',),
  ('experiments.config',),
  ('experiments.running', 'experiments.measuring'),
  ('experiments.auditing', 'experiments.tuning'),
  ('experiments',),
  ('tools',),
)
_FLOOR = {room: i for i, floor in enumerate(_FLOORS) for room in floor}


def _modules():
  """Yields the dotted name and the path of each of our modules."""
  for package in _PACKAGES:
    for path in sorted((_ROOT / package).rglob('*.py')):
      parts = path.relative_to(_ROOT).with_suffix('').parts
      yield '.'.join(p for p in parts if p != '__init__'), path


def _room(module):
  """Returns the innermost room that a module is in."""
  while module not in _FLOOR:
    module = module.rpartition('.')[0]
  return module


def _imports(path, names):
  """Yields our modules that a file imports, within functions as well."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (a.name for a in node.names if _is_ours(a.name))
    elif isinstance(node, ast.ImportFrom) and _is_ours(node.module):
      for alias in node.names:
        submodule = f'{node.module}.{alias.name}'
        yield submodule if submodule in names else node.module


def _is_ours(module):
  return module.split('.')[0] in _PACKAGES


class RoomsTest(absltest.TestCase):
  def test_imports_point_downwards(self):
    modules = dict(_modules())
    wrong = []
    for name, path in modules.items():
      if path.name == '__init__.py':
        continue  # A package's face names what is inside.
      for target in _imports(path, modules):
        here, there = _room(name), _room(target)
        # The checks of values are named in one place, the package itself.
        if here == there or target == 'tff_medical._validate':
          continue
        if _FLOOR[there] >= _FLOOR[here]:
          wrong.append(f'{name} imports {target}')
    self.assertGreater(len(modules), 100)
    self.assertEqual(wrong, [])

  def test_no_module_imports_itself_by_way_of_others(self):
    modules = dict(_modules())
    graph = {
      name: {t for t in _imports(path, modules) if t != name}
      for name, path in modules.items()
      if path.name != '__init__.py'
    }
    done = set()

    def visit(name, way):
      self.assertNotIn(name, way)
      if name not in done:
        for target in graph.get(name, ()):
          visit(target, (*way, name))
        done.add(name)

    for name in graph:
      visit(name, ())

  def test_the_design_names_every_room(self):
    text = (_ROOT / 'docs' / 'DESIGN.md').read_text()
    named = set(re.findall(r'^\| `([\w./]+?)/?` \|', text, re.M))
    rooms = {
      path.parent.relative_to(_ROOT).as_posix()
      for package in _PACKAGES
      for path in (_ROOT / package).rglob('__init__.py')
    }
    self.assertEqual(named & rooms, rooms)


if __name__ == '__main__':
  absltest.main()
