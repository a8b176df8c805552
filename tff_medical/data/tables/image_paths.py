r"""The image files below a folder, and which of them a table means.

A table names a file as somebody's computer knew it: with a drive, backslashes,
another case, or no suffix. `ImageFiles.find` takes the longest tail of such a
path that fits, if it fits exactly one file. What operating systems leave behind
(`._x.png`, Thumbs.db, __MACOSX, DICOMDIR ...) is ignored and counted. Nothing
outside the folder is ever returned, by `..` or by a link.

>>> files = ImageFiles(pathlib.Path('/data'), ('a/one.png', 'b/one.png'))
>>> files.find('D:\\scans\\a\\ONE.png')
'a/one.png'
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import dataclasses
import functools
import os
import pathlib
import unicodedata

from tff_medical import _validate

_JUNK_NAMES = ('thumbs.db', 'desktop.ini', 'dicomdir', 'ehthumbs.db')
_JUNK_FOLDERS = ('__macosx', '@eadir', '$recycle.bin')
_ARCHIVES = (
  '.zip', '.tar', '.tgz', '.gz', '.bz2', '.xz', '.7z', '.rar',
)  # fmt: skip
# Suffixes that a table may leave out; longer ones first.
_SUFFIXES = (
  '.nii.gz', '.nii', '.dicom', '.dcm', '.ima', '.png', '.jpeg', '.jpg',
  '.tiff', '.tif', '.bmp', '.gif', '.webp', '.jp2',
)  # fmt: skip


class NoFile(_validate.InputError):
  """A path that fits no file, or several; the text follows the path."""


class Outside(NoFile):
  """A path that leads out of the folder."""


@dataclasses.dataclass(frozen=True)
class ImageFiles:
  """The files below a folder.

  Attributes:
    root: Folder that holds the files.
    paths: Paths relative to it, with `/`, sorted, as the disk spells them.
    ignored: Number of files that operating systems left behind.
    empty_folders: Folders below it that hold no file but ignored ones.
    linked_folders: Links to folders, which are not followed.
    links: Those of `paths` that are links.
  """

  root: pathlib.Path
  paths: tuple[str, ...]
  ignored: int = 0
  empty_folders: tuple[str, ...] = ()
  linked_folders: tuple[str, ...] = ()
  links: frozenset[str] = frozenset()

  def find(self, text: str, table_folder: pathlib.Path | None = None) -> str:
    """Returns the file that a path of a table means.

    Args:
      text: Path in the table.
      table_folder: Folder of the table, which `..` starts from.

    Raises:
      Outside: The path leads out of the folder.
      NoFile: The path fits no file, or several equally well.
    """
    parts = _parts(text)
    if '..' in parts:
      parts = self._without_dots(text, table_folder or self.root)
    if not parts:
      raise NoFile('names no file')
    for fold in (_same, _folded, _stem):
      # A suffix may be left out, but is not exchanged for another one.
      key = _folded(parts[-1]) if fold is _stem else fold(parts[-1])
      best = self._by_name(fold).get(key, [])
      if len(best) > 1:
        best = _longest(parts, best)
      if len(best) > 1:
        raise NoFile(
          f'fits {len(best)} files equally well; write more of its path'
        )
      if best:
        self.check_inside(best[0])
        return best[0]
    if pathlib.PurePosixPath(text).is_absolute() and os.path.lexists(text):
      raise Outside(f'lies outside {self.root}')
    raise NoFile(f'is no file below {self.root}')

  def check_inside(self, path: str) -> None:
    """Raises `Outside` for a link that leads out of the folder."""
    if path not in self.links:
      return
    real = os.path.realpath(self.root / path)
    if os.path.commonpath([real, self._real_root]) != self._real_root:
      raise Outside(f'is a link that leads outside {self.root}')

  @functools.cached_property
  def _real_root(self) -> str:
    return os.path.realpath(self.root)

  def _by_name(self, fold: Callable[[str], str]) -> dict[str, list[str]]:
    """Returns the paths by their names, as a function spells those."""
    if fold not in self._indices:
      index: dict[str, list[str]] = collections.defaultdict(list)
      for path in self.paths:
        index[fold(path.rpartition('/')[2])].append(path)
      self._indices[fold] = index
    return self._indices[fold]

  @functools.cached_property
  def _indices(self) -> dict[Callable[[str], str], dict[str, list[str]]]:
    return {}

  def _without_dots(self, text: str, start: pathlib.Path) -> list[str]:
    path = os.path.normpath(os.path.join(start, text.replace('\\', '/')))
    inside = os.path.relpath(path, self.root)
    if inside.split(os.sep)[0] == '..':
      raise Outside(f'lies outside {self.root}')
    return _parts(inside)


def scan(root: pathlib.Path) -> ImageFiles:
  """Returns the files below a folder.

  Links to folders are not followed.

  Raises:
    InputError: The path is no folder or an archive, or cannot be read.
  """
  if is_archive(root):
    raise _validate.InputError(
      f'{str(root)!r} is an archive of a kind that is not unpacked here; unpack '
      'it first, and give the folder that was in it, or pack it as .zip, .tar '
      'or .tar.gz'
    )
  if not root.is_dir():
    raise _validate.InputError(
      f'data_dir must be a folder with images, got {str(root)!r}, which is none'
    )
  paths: list[str] = []
  empty: list[str] = []
  linked: list[str] = []
  links: list[str] = []
  ignored = _walk(root, '', (paths, empty, linked, links))
  return ImageFiles(
    root,
    tuple(sorted(paths)),
    ignored,
    tuple(sorted(empty)),
    tuple(linked),
    frozenset(links),
  )


def is_archive(path: pathlib.Path) -> bool:
  """Returns whether a path is a file with the name of an archive."""
  return path.name.lower().endswith(_ARCHIVES) and path.is_file()


def normal(text: str) -> str:
  """Returns a name in Unicode's form NFC, without blanks around it."""
  return _same(text).strip()


def _walk(
  folder: pathlib.Path,
  prefix: str,
  lists: tuple[list[str], list[str], list[str], list[str]],
) -> int:
  """Collects the files below a folder; returns the number of ignored ones."""
  paths, empty, linked, links = lists
  ignored, before, folders = 0, len(paths), 0
  try:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
  except OSError as error:
    raise _validate.InputError(
      f'data_dir holds the folder {str(folder)!r}, which cannot be read: '
      f'{error.strerror}; change its permissions'
    ) from None
  for entry in entries:
    name = entry.name
    if entry.is_dir(follow_symlinks=False):
      if name.startswith('.') or name.lower() in _JUNK_FOLDERS:
        ignored += sum(len(files) for _, _, files in os.walk(entry.path))
        continue
      folders += 1
      ignored += _walk(folder / name, f'{prefix}{name}/', lists)
    elif name.startswith('.') or name.lower() in _JUNK_NAMES:
      ignored += 1
    elif entry.is_dir():
      linked.append(prefix + name)
    else:
      paths.append(prefix + name)
      if entry.is_symlink():
        links.append(prefix + name)
  if prefix and len(paths) == before and not folders:
    empty.append(prefix[:-1])
  return ignored


def _parts(text: str) -> list[str]:
  """Returns the folders and the name of a path of any operating system."""
  text = normal(text).replace('\\', '/')
  return [part for part in text.split('/') if part not in ('', '.')]


def _longest(parts: list[str], candidates: Sequence[str]) -> list[str]:
  """Returns the candidates that agree with most folders of a path."""
  best: list[str] = []
  most = -1
  folded = [_folded(part) for part in parts[:-1]]
  for path in candidates:
    folders = [_folded(part) for part in path.split('/')[:-1]]
    agreed = 0
    while (
      agreed < min(len(folders), len(folded))
      and folders[-1 - agreed] == folded[-1 - agreed]
    ):
      agreed += 1
    if agreed > most:
      best, most = [], agreed
    if agreed == most:
      best.append(path)
  # The file right below the root is meant by a name without any folder.
  if len(best) > 1 and len(parts) == 1:
    at_root = [path for path in best if '/' not in path]
    best = at_root if len(at_root) == 1 else best
  return best


def _same(name: str) -> str:
  return name if name.isascii() else unicodedata.normalize('NFC', name)


def _folded(name: str) -> str:
  return _same(name).casefold()


def _stem(name: str) -> str:
  folded = _folded(name)
  for suffix in _SUFFIXES:
    if folded.endswith(suffix) and folded != suffix:
      return folded[: -len(suffix)]
  return folded
