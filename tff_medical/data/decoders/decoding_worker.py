"""The process that decodes files for `decoding_pool`, and may die doing so.

`main` runs in a process of its own: decoders in C may crash, hang or take all
memory, which must cost one file and no run. It talks through a socket: a `Task`
first, then numbers and paths. It answers each of these by an `Outcome`, and ends
when the other end does.
"""

from __future__ import annotations

import collections
import dataclasses
from multiprocessing import connection
import resource
import signal

import numpy as np

from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import decoding
from tff_medical.data.decoders import resizing

# Above the largest volume that is read (MAX_VOXELS), in all its copies.
_MAX_MEMORY = 12 * 2**30


@dataclasses.dataclass(frozen=True)
class Task:
  """Description of the images to make of each file.

  Attributes:
    policy: Choices that files cannot make themselves.
    image_size: Height and width of the stored images.
    channels: 1 or 3, or None for those of each file.
  """

  policy: decoded.DecodingPolicy
  image_size: int
  channels: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
  """Result of decoding a file.

  Attributes:
    images: uint8 [n, S, S, C], or None of a file that cannot be used.
    rules: See `decoded.Decoded`.
    warnings: See `decoded.Decoded`.
    sizes: Height, width and count of the images before they were resized.
    reason: Reason why the file cannot be used; it follows the file's name.
    needs_policy: Whether `reason` asks for a choice.
  """

  images: np.ndarray | None = None
  rules: tuple[str, ...] = ()
  warnings: tuple[str, ...] = ()
  sizes: tuple[tuple[int, int, int], ...] = ()
  reason: str = ''
  needs_policy: bool = False


def outcome(path: str, task: Task) -> Outcome:
  """Decodes one file."""
  try:
    result = decoding.decode(path, task.policy, task.image_size)
    stored = [
      resizing.to_uint8(image, task.image_size, task.channels)
      for image in result.images
    ]
  except decoded.BadFile as error:
    return Outcome(reason=str(error))
  except decoded.PolicyNeeded as error:
    return Outcome(reason=str(error), needs_policy=True)
  except MemoryError:
    return Outcome(reason='needs too much memory to be resized')
  channels = max(image.shape[2] for image in stored)
  return Outcome(
    np.stack([resizing.with_channels(image, channels) for image in stored]),
    result.rules,
    result.warnings,
    tuple(
      (height, width, count)
      for (height, width), count in collections.Counter(
        result.original_sizes
      ).items()
    ),
  )


def main(descriptor: int) -> None:
  """Answers until the other end is closed."""
  # Ctrl-C reaches the whole group; the other end closes the socket.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
  # A decoder that crashes leaves no core file: it would hold a patient's image.
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  pipe = connection.Connection(descriptor)
  try:
    task = pipe.recv()
    while True:
      number, path = pipe.recv()
      pipe.send((number, outcome(path, task)))
  except (EOFError, OSError):
    return
