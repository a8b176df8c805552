"""Images of an earlier preparation of the same files, which are copied.

A prepared folder says by keyed hashes which of its rows come from which state of
a file (path, size and time). Where files, table or labels changed in part, the
images of the others need not be decoded again.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np

from tff_medical import _files
from tff_medical.data.decoders import resizing
from tff_medical.data.preparing import pixel_file
from tff_medical.data.preparing import preparation_parts
from tff_medical.data.preparing import prepared


@dataclasses.dataclass(frozen=True, eq=False)
class Older:
  """Part of an earlier preparation.

  Attributes:
    folder: Prepared images, or None if there are none.
    rows: First row of each file, and its number in the earlier preparation, by
      its number in the new one.
    columns: Arrays of `files.npz`.
    kinds: Rules, warnings and sizes of the files of each kind.
  """

  folder: prepared.Prepared | None
  rows: dict[int, tuple[int, int]]
  columns: dict[str, np.ndarray]
  kinds: list[tuple[list[str], list[str], list[tuple[int, int, int]]]]

  def said(self, row: int) -> preparation_parts.Said:
    """Returns the statements on a file, by its number in `folder`."""
    rules, warnings, sizes = self.kinds[int(self.columns['kinds'][row])]
    return preparation_parts.Said(
      int(self.columns['counts'][row]),
      int(self.columns['channels'][row]),
      tuple(rules),
      tuple(warnings),
      tuple((h, w, n) for h, w, n in sizes),
      '',
    )

  def copy_to(
    self,
    pixels: pixel_file.PixelFile,
    start_of: dict[int, int],
    channels: int,
  ) -> None:
    """Copies the rows of its files to their places in the new preparation."""
    if self.folder is None:
      return
    stored = prepared.open_pixels(self.folder.folder, self.folder.shape)
    for number, (first, row) in self.rows.items():
      count = int(self.columns['counts'][row])
      start = start_of[number]
      images_of_file = stored.rows(np.arange(first, first + count))
      if images_of_file.shape[3] > channels:  # All channels are equal.
        images_of_file = images_of_file[..., :channels]
      pixels.put(
        np.arange(start, start + count),
        resizing.with_channels(images_of_file, channels),
      )


def read(
  folder: pathlib.Path, decoding_key: str, number: dict[tuple[int, ...], int]
) -> Older:
  """Returns the part of a prepared folder that files are in.

  Args:
    folder: Prepared folder.
    decoding_key: Key of policy, size and channels; a folder with another key
      gives nothing.
    number: Number of each file by its signature.
  """
  info = _files.read_json(folder / prepared.INFO)
  if info.get('decoding_key') != decoding_key:
    return nothing()
  columns = prepared.read_npz(folder / prepared.FILES)
  kinds = [json.loads(text) for text in json.loads(columns['texts'].tobytes())]
  rows = {}
  for row, pair in enumerate(columns['signatures'].tolist()):
    index = number.get(tuple(pair))
    if index is not None:
      rows[index] = (int(columns['starts'][row]), row)
  return Older(prepared.load(folder), rows, columns, kinds)


def nothing() -> Older:
  """Returns an `Older` without any file."""
  return Older(None, {}, {}, [])
