"""Image files to what an exported model takes, decoded as in its training.

A model of own images was trained on what `data.decoders.decoding` makes of PNG, JPEG,
TIFF, DICOM and NIfTI files, by choices that no file can make (which frames, which
window). These choices travel with the model as the asset `decoding_policy.json`,
and `read` follows them. It needs TensorFlow for nothing, and this package only on
the side of whoever reads the files: the model itself takes plain arrays.

>>> policy = decoded.DecodingPolicy(frames='first')
>>> parse_policy(policy_text(policy)) == policy
True
"""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np

from tff_medical import _validate
from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import decoding
from tff_medical.data.decoders import resizing

POLICY_FILE = 'decoding_policy.json'


def read(
  path: str | os.PathLike[str],
  policy: decoded.DecodingPolicy,
  shape: tuple[int, int, int],
) -> np.ndarray:
  """Returns the images of a file, as the model's training saw them.

  Args:
    path: Image file of any kind that `data.decoders.decoding` knows.
    policy: Choices that were made for the training images.
    shape: Height, width and channels of the model's images; height and width
      are equal.

  Returns:
    float32 [N, H, W, C] in 0..1. N is 1 unless the policy takes several frames,
    pages or slices of a file.

  Raises:
    InputError: The file cannot be used, or asks for a choice that the policy
      does not make.
  """
  height, width, channels = shape
  if height != width:
    raise _validate.InputError(
      f'the model takes images of {height} x {width} pixels; image files are '
      'brought to squares only'
    )
  try:
    images = decoding.decode(path, policy, height).images
  except (decoded.BadFile, decoded.PolicyNeeded) as error:
    raise _validate.InputError(f'image {os.fspath(path)!r} {error}') from None
  stored = [resizing.to_uint8(image, height, channels) for image in images]
  return np.stack(stored).astype(np.float32) / np.float32(255)


def policy_text(policy: decoded.DecodingPolicy) -> str:
  """Returns the content of `POLICY_FILE`."""
  return json.dumps(dataclasses.asdict(policy), indent=2)


def parse_policy(text: str) -> decoded.DecodingPolicy:
  """Returns the policy that a text of `policy_text` states.

  Raises:
    InputError: The text is no such policy.
  """
  try:
    values = json.loads(text)
    if values['value_range'] is not None:
      values['value_range'] = tuple(values['value_range'])
    return decoded.DecodingPolicy(**values)
  except (LookupError, RecursionError, TypeError, ValueError) as error:
    raise _validate.InputError(
      f'{POLICY_FILE} of the model is damaged ({error}); export the model again'
    ) from None
