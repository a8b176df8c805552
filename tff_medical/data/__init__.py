"""Medical images: TFDS builders, sites and patients, and client datasets.

The way of the data: a builder (`synthetic`, `medmnist`) prepares TFDS records,
`loading.load` reads them into an `images.ImageData`, `partition.partition`
spreads the training split over clients, and `clients.ImageClientData` makes
them a `tff.simulation.datasets.ClientData`. Importing this package imports
neither TensorFlow nor TFF; the modules that need them do.
"""
