"""The exported SavedModel with its privacy card.

`export` writes the SavedModel and reads its assets. `serving_module` is its
graph, `encoded_images` its image decoder. `pretrained` loads its weights for a
new training.
"""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'encoded_images',
  'export',
  'image_files',
  'pretrained',
  'serving_module',
]

if typing.TYPE_CHECKING:
  from tff_medical.serving import encoded_images as encoded_images
  from tff_medical.serving import export as export
  from tff_medical.serving import image_files as image_files
  from tff_medical.serving import pretrained as pretrained
  from tff_medical.serving import serving_module as serving_module
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
