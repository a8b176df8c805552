"""Counts of what was done when own images were decoded."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses


def size_text(height: int, width: int) -> str:
  """Returns the size of an image as counts of sizes name it."""
  return f'{height} x {width}'


@dataclasses.dataclass(frozen=True)
class Preparation:
  """What was counted when own images were decoded; for the data's holder.

  Attributes:
    files: Number of image files.
    bad_files: Number of files that were left out, by site.
    rules: Number of files that each rule was applied to, by site and rule.
    warnings: Number of files that each warning is about, by site and warning.
    sizes: Number of images of each size before resizing, by site and
      `size_text`.
    largest_group: Number of images in the largest group of copies, as
      `near_duplicates` finds them; None if not all images were compared.
  """

  files: int
  bad_files: Mapping[str, int]
  rules: Mapping[str, Mapping[str, int]]
  warnings: Mapping[str, Mapping[str, int]]
  sizes: Mapping[str, Mapping[str, int]]
  largest_group: int | None
