"""Medical images: TFDS builders, sites and patients, and client datasets.

A builder (`synthetic`, `medmnist`) prepares TFDS records, and `loading.load`
reads them into an `images.ImageData`. Its pixels may also be stored in a raw
file (`pixels`). `partition.partition` spreads the training split over clients.
`clients.ImageClientData` makes them a `tff.simulation.datasets.ClientData`.
Importing this package imports neither TensorFlow nor TFF; the modules that need
them do.
"""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'clients',
  'decoders',
  'equal_images',
  'examples',
  'images',
  'label_values',
  'loading',
  'medmnist',
  'own_images',
  'partition',
  'phantoms',
  'pixels',
  'preparation_counts',
  'preparing',
  'synthetic',
  'tables',
  'units',
]

if typing.TYPE_CHECKING:
  from tff_medical.data import clients as clients
  from tff_medical.data import decoders as decoders
  from tff_medical.data import equal_images as equal_images
  from tff_medical.data import examples as examples
  from tff_medical.data import images as images
  from tff_medical.data import label_values as label_values
  from tff_medical.data import loading as loading
  from tff_medical.data import medmnist as medmnist
  from tff_medical.data import own_images as own_images
  from tff_medical.data import partition as partition
  from tff_medical.data import phantoms as phantoms
  from tff_medical.data import pixels as pixels
  from tff_medical.data import preparation_counts as preparation_counts
  from tff_medical.data import preparing as preparing
  from tff_medical.data import synthetic as synthetic
  from tff_medical.data import tables as tables
  from tff_medical.data import units as units
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
