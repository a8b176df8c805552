"""Libraries that are imported when something uses them.

Keras and TensorFlow Privacy import pandas and TensorFlow Probability, though few
commands need either: the one to accept data frames, the other for discrete noise.
Both take a sixth of the time of all imports.

The module object of such a library is there from the start, so that an import
statement only binds its name. The code of the library runs at the first access to
an attribute that the object lacks, or before a submodule is imported.
`importlib.util.LazyLoader` would run it at the second import statement, which reads
`__spec__`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
import importlib.abc
import importlib.machinery
import sys
import threading
import types
from typing import Any

LIBRARIES = ('pandas', 'tensorflow_probability')

# Held while the code of a library runs, which another thread may wait for.
_running = threading.RLock()


def install(names: Collection[str] = LIBRARIES) -> None:
  """Makes the imports of libraries that are not imported yet late ones.

  Args:
    names: Names of top-level packages.
  """
  missing = frozenset(names) - sys.modules.keys()
  sys.meta_path.insert(0, _Finder(missing))


class _LateModule(types.ModuleType):
  """A library whose code has not run to its end."""

  def __getattr__(self, name: str) -> Any:
    _run(self)
    if isinstance(self, _LateModule):  # Its own code asks for it.
      raise AttributeError(
        f'module {self.__name__!r} has no attribute {name!r}'
      )
    return getattr(self, name)


class _Loader(importlib.abc.Loader):
  """Loader that leaves the work of another one for later."""

  def __init__(self, loader: importlib.abc.Loader):
    self.loader = loader

  def create_module(
    self, spec: importlib.machinery.ModuleSpec
  ) -> types.ModuleType | None:
    """Returns None: Python makes the module object."""
    return None

  def exec_module(self, module: types.ModuleType) -> None:
    """Makes the module late."""
    module.__class__ = _LateModule


class _Finder(importlib.abc.MetaPathFinder):
  """Finder of late libraries, and of their submodules."""

  def __init__(self, names: frozenset[str]):
    self._names = names

  def find_spec(
    self,
    fullname: str,
    path: Sequence[str] | None,
    target: types.ModuleType | None = None,
  ) -> importlib.machinery.ModuleSpec | None:
    """Returns the spec of a late library; None for any other module."""
    library = fullname.partition('.')[0]
    if library not in self._names:
      return None
    if library != fullname:
      _run(sys.modules[library])
      return None
    spec = importlib.machinery.PathFinder.find_spec(fullname, path)
    if spec is not None and spec.loader is not None:
      spec.loader = _Loader(spec.loader)
    return spec


def _run(module: types.ModuleType) -> None:
  """Runs the code of a library, unless it has run or is running."""
  with _running:
    spec = module.__spec__
    if spec is None or not isinstance(spec.loader, _Loader):
      return
    spec.loader = module.__loader__ = spec.loader.loader
    spec.loader.exec_module(module)
    module.__class__ = types.ModuleType
