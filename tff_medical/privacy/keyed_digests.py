"""Digests of private data, keyed by a secret.

With a plain digest, whoever knows all images except one could find that image
by trial.
"""

from __future__ import annotations

import hashlib
import hmac


def keyed(digest: str, key: bytes) -> str:
  """Returns the HMAC-SHA-256 of a digest: `hmac-sha256:` and hexadecimal.

  >>> keyed('sha256:00', b'secret') == keyed('sha256:00', b'another')
  False

  Args:
    digest: Digest that identifies the data.
    key: Secret, which is kept apart from the keyed digest's readers.
  """
  mac = hmac.new(key, digest.encode(), hashlib.sha256)
  return f'hmac-sha256:{mac.hexdigest()}'
