"""Own images, decoded once into a folder of stored pixels and numbers."""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'archive_members',
  'archives',
  'locking',
  'near_duplicates',
  'preparation',
  'preparation_parts',
  'preparation_report',
  'preparation_reuse',
  'prepared',
]

if typing.TYPE_CHECKING:
  from tff_medical.data.preparing import archive_members as archive_members
  from tff_medical.data.preparing import archives as archives
  from tff_medical.data.preparing import locking as locking
  from tff_medical.data.preparing import near_duplicates as near_duplicates
  from tff_medical.data.preparing import preparation as preparation
  from tff_medical.data.preparing import preparation_parts as preparation_parts
  from tff_medical.data.preparing import (
    preparation_report as preparation_report,
  )
  from tff_medical.data.preparing import preparation_reuse as preparation_reuse
  from tff_medical.data.preparing import prepared as prepared
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
