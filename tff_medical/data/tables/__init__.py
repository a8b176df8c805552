"""Tables of own images: which files, whose labels, checked before any pixel."""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'file_tables',
  'folder_tables',
  'image_paths',
  'image_table',
  'label_cells',
  'splitting',
]

if typing.TYPE_CHECKING:
  from tff_medical.data.tables import file_tables as file_tables
  from tff_medical.data.tables import folder_tables as folder_tables
  from tff_medical.data.tables import image_paths as image_paths
  from tff_medical.data.tables import image_table as image_table
  from tff_medical.data.tables import label_cells as label_cells
  from tff_medical.data.tables import splitting as splitting
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
