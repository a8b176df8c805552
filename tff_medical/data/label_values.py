"""Values that labels may have, and checks of them.

Labels are int64 [N] class indices or, for multi-label data, int64 [N, L] of 0, 1
and `UNKNOWN`, a column for each finding.
"""

from __future__ import annotations

import numpy as np

from tff_medical import _validate

# Label of a finding of which nothing is known. The loss and the metrics leave it
# out; `models` has the same number.
UNKNOWN = -1


def check_labels(
  where: str,
  labels: np.ndarray,
  num_classes: int,
  multi_label: bool,
  *,
  may_be_unknown: bool = False,
) -> None:
  """Raises `InputError` unless labels fit the classes.

  Args:
    where: Name of the array in the message, e.g. a file and a key.
    labels: Integers [N], or [N, L] for multi-label data.
    num_classes: Number of classes, or of findings L.
    multi_label: Whether labels are the 0 and 1 of several findings.
    may_be_unknown: Whether findings may be `UNKNOWN`.
  """
  if labels.ndim != (2 if multi_label else 1):
    expected = f'[N, {num_classes}]' if multi_label else '[N]'
    raise _validate.InputError(
      f'{where} labels must have shape {expected}, got {list(labels.shape)}'
    )
  if multi_label and labels.shape[1] != num_classes:
    raise _validate.InputError(
      f'{where} labels must have {num_classes} columns, one per finding, '
      f'got {labels.shape[1]}'
    )
  lowest = UNKNOWN if multi_label and may_be_unknown else 0
  highest = 1 if multi_label else num_classes - 1
  is_wrong = (labels < lowest) | (labels > highest)
  wrong = np.flatnonzero(is_wrong.reshape(len(labels), -1).any(axis=1))
  if wrong.size:
    row = int(wrong[0])
    raise _validate.InputError(
      f'{where} labels must lie in {lowest}..{highest}, got '
      f'{labels[row].tolist()} in row {row} (and {wrong.size - 1} more '
      'rows); the file is not of this data set or is damaged'
    )


def has_label(labels: np.ndarray) -> np.ndarray:
  """Returns which images have a known label, bool [N].

  >>> has_label(np.array([[UNKNOWN, 0], [UNKNOWN, UNKNOWN]])).tolist()
  [True, False]

  Args:
    labels: int64 [N], or int64 [N, L] with `UNKNOWN` findings.
  """
  is_known = labels != UNKNOWN
  return is_known if labels.ndim == 1 else is_known.any(axis=1)


def check_has_label(where: str, labels: np.ndarray) -> None:
  """Raises `InputError` if all findings of all images are unknown.

  Args:
    where: What to call the images in the message.
    labels: int64 [N], or int64 [N, L], N at least 1.
  """
  if not has_label(labels).any():
    raise _validate.InputError(
      f'{where} has {len(labels)} images but no known label; give the labels of '
      'some of them'
    )
