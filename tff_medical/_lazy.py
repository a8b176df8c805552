"""Lazy submodules: each is imported on first use (PEP 562).

TensorFlow Federated takes seconds to import. A package whose `__getattr__`
comes from this module imports at once. Its submodules are attributes all the
same and need no import statement of their own.

>>> import tff_medical
>>> tff_medical.privacy.mechanisms.__name__
'tff_medical.privacy.mechanisms'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import importlib
import types

_NONE: Mapping[str, str] = types.MappingProxyType({})


def attach(
  package: str, names: Sequence[str], homes: Mapping[str, str] = _NONE
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
  """Returns the `__getattr__` and the `__dir__` of a package.

  Args:
    package: Dotted name of the package.
    names: All public names of the package. Python calls `__getattr__` only for
      names that the package does not define itself: its submodules.
    homes: Submodule that defines a name, by the name, for public names that are
      no submodules.

  Returns:
    The two functions. `__getattr__` raises `AttributeError` for a name outside
    `names`. It raises `ImportError`, which names the remedy, if a library that
    the submodule needs is not installed.
  """

  def get(name: str) -> object:
    if name not in names:
      raise AttributeError(f'module {package!r} has no attribute {name!r}')
    try:
      if name in homes:
        home = importlib.import_module(f'{package}.{homes[name]}')
        return getattr(home, name)
      return importlib.import_module(f'{package}.{name}')
    except ModuleNotFoundError as e:
      if e.name is None or e.name.split('.')[0] == package.split('.')[0]:
        raise
      raise ImportError(
        f'{package}.{name} needs {e.name}, which is not installed; install the'
        ' versions of requirements.txt: pip install --no-deps'
        ' --ignore-requires-python -r requirements.txt',
        name=e.name,
      ) from e

  def public() -> list[str]:
    return sorted(names)

  return get, public
