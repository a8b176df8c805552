"""What driver and workers must share: versions, and the code of tff_medical."""

from __future__ import annotations

import hashlib
import pathlib
import sys

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.runtime.cluster import messages

_PACKAGE = pathlib.Path(__file__).parents[2]


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
  for path in sorted(_PACKAGE.rglob('*.py')):
    content = path.read_bytes()
    hashed.update(f'{path.relative_to(_PACKAGE)} {len(content)} '.encode())
    hashed.update(content)
  return hashed.hexdigest()[:16]
