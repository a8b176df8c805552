"""Counts, duplicates and digests of prepared images, for `prepared.json`."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from tff_medical.data import images
from tff_medical.data import label_values
from tff_medical.data import preparation_counts
from tff_medical.data.preparing import near_duplicates
from tff_medical.data.preparing import preparation_parts
from tff_medical.data.tables import image_table


def describe(
  table: image_table.ImageTable,
  said: dict[int, preparation_parts.Said],
  shape: tuple[int, ...],
  columns: dict[str, np.ndarray],
) -> dict[str, Any]:
  """Returns the counts of prepared images, by split, class, site and rule.

  Args:
    table: Table of the prepared images.
    said: Statements on each file, by its number.
    shape: Shape (N, H, W, C) of the stored images.
    columns: Labels, splits, sites and patients of the stored images.
  """
  names = table.site_names or ('all',)
  sites = np.zeros(len(table), int) if table.sites is None else table.sites
  rules: dict[str, dict[str, int]] = {name: {} for name in names}
  warnings: dict[str, dict[str, int]] = {name: {} for name in names}
  sizes: dict[str, dict[str, int]] = {name: {} for name in names}
  bad = dict.fromkeys(names, 0)
  for number, entry in said.items():
    site = names[sites[number]]
    bad[site] += bool(entry.reason)
    for texts, counted in (
      (entry.rules, rules[site]),
      (entry.warnings, warnings[site]),
    ):
      for text in texts:
        counted[text] = counted.get(text, 0) + 1
    for height, width, count in entry.sizes:
      text = preparation_counts.size_text(height, width)
      sizes[site][text] = sizes[site].get(text, 0) + count
  return {
    'shape': list(shape),
    'class_names': list(table.class_names),
    'multi_label': table.multi_label,
    'site_names': list(table.site_names),
    'files': len(said),
    'rows': table.num_rows,
    'ignored_files': table.ignored,
    'bad_files': sum(bad.values()),
    'bad_files_by_site': bad,
    'images_by_split': _counts(columns['splits'], images.SPLIT_NAMES),
    'images_by_class': _class_counts(columns['labels'], table.class_names),
    'unknown_by_class': _unknown_counts(columns['labels'], table.class_names),
    'images_by_site': _counts(columns['sites'], table.site_names)
    if 'sites' in columns
    else {},
    'patients': len(np.unique(columns['patients']))
    if table.patients is not None
    else None,
    'rules_by_site': rules,
    'warnings_by_site': warnings,
    'sizes_by_site': sizes,
    'notes': list(table.notes),
  }


def _counts(values: np.ndarray, names: tuple[str, ...]) -> dict[str, int]:
  counts = np.bincount(values, minlength=len(names)).tolist()
  return dict(zip(names, counts))


def _class_counts(labels: np.ndarray, names: tuple[str, ...]) -> dict[str, int]:
  if labels.ndim == 2:
    return dict(zip(names, (labels == 1).sum(axis=0).tolist()))
  return _counts(labels, names)


def _unknown_counts(
  labels: np.ndarray, names: tuple[str, ...]
) -> dict[str, int]:
  """Returns the number of unknown labels of each finding that has some."""
  if labels.ndim == 1:
    return {}
  counts = (labels == label_values.UNKNOWN).sum(axis=0).tolist()
  return {name: count for name, count in zip(names, counts) if count}


def duplicates(
  comparison: near_duplicates.Comparison, splits: np.ndarray
) -> dict[str, Any]:
  """Returns the counts of equal and of nearly equal images.

  Args:
    comparison: Comparison of all stored images.
    splits: int64 [N], indices of `images.SPLIT_NAMES`.
  """
  exact = comparison.duplicates(images.SPLIT_NAMES, splits)
  copies = comparison.in_splits(images.SPLIT_NAMES, splits)
  near: dict[str, int | None] = {}
  for i, name in enumerate(images.SPLIT_NAMES):
    if (splits < i).any() and (splits == i).any():
      count = copies.num_near_before(name)
      near[name] = count if copies.is_complete else None
  return {
    'within': dict(exact.within),
    'across': [[a, b, n] for (a, b), n in exact.across.items()],
    'near_across': near,
    'largest_group': int(np.bincount(copies.groups).max())
    if copies.is_complete
    else None,
  }


def digest(info: dict[str, Any], columns: dict[str, np.ndarray]) -> str:
  """Returns the digest of the data: content, table and policy."""
  content = hashlib.sha256()
  known = ('shape', 'class_names', 'multi_label', 'site_names', 'policy')
  plain = {name: info[name] for name in (*known, 'pixels_sha256')}
  content.update(json.dumps(plain, sort_keys=True).encode())
  for name, values in sorted(columns.items()):
    if name == 'patients':  # Who is who counts, not the salted numbers.
      _, first, group = np.unique(
        values, return_index=True, return_inverse=True
      )
      values = first[group]
    content.update(f'{name} {values.shape} '.encode())
    content.update(np.ascontiguousarray(values, '<i8').tobytes())
  return f'sha256:{content.hexdigest()}'
