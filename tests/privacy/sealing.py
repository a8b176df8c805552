"""Ledgers whose chain of digests is made anew, as a forger would."""

import hashlib
import json


def resealed(records):
  """Returns the lines of a ledger with a chain of digests that holds."""
  lines, digest = [], ''
  for record in records:
    record = {k: v for k, v in record.items() if k != 'digest'}
    body = json.dumps(record, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256((digest + body).encode()).hexdigest()
    sealed = {**record, 'digest': digest}
    lines.append(json.dumps(sealed, sort_keys=True, ensure_ascii=False))
  return ''.join(f'{line}\n' for line in lines)
