"""What driver and workers must share: versions, and the code of the project."""

from __future__ import annotations

import hashlib
import pathlib
import sys

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.runtime.cluster import messages

_PROJECT = pathlib.Path(__file__).parents[3]
# Workers run code of both, where the second one lies beside the first.
_PACKAGES = ('tff_medical', 'experiments')


def of_this_process() -> messages.Versions:
  """Returns the versions of this process."""
  return messages.Versions(
    python='.'.join(map(str, sys.version_info[:2])),
    tensorflow=tf.__version__,
    tensorflow_federated=tff.__version__,
    tff_medical=_digest_of_code(),
  )


def _digest_of_code() -> str:
  hashed = hashlib.sha256()
  for package in _PACKAGES:
    for path in sorted((_PROJECT / package).rglob('*.py')):
      content = path.read_bytes()
      hashed.update(f'{path.relative_to(_PROJECT)} {len(content)} '.encode())
      hashed.update(content)
  return hashed.hexdigest()[:16]
