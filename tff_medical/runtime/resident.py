"""Client tensors that stay on a GPU between rounds.

TensorFlow copies a tensor of the CPU to the GPU for every function that reads
it there. `Resident` copies the tensors of a client once, in their own type:
images of bytes stay bytes. A copy goes with the tensor that it was made of.
"""

from __future__ import annotations

import threading
import weakref

import tensorflow as tf

# Size of all copies on one device: that of the clients which a feed keeps.
_LIMIT = 2 * 2**30
# TensorFlow keeps and reads tensors of these types in the memory of the CPU.
_ON_CPU = (tf.int32, tf.string, tf.variant, tf.resource)


class Resident:
  """Copies of tensors on one device, up to a size.

  Attributes:
    device: TensorFlow's name of the device.
    limit: Largest size of all copies, in bytes. Tensors beyond it are not
      copied.
    size: Size of all copies, in bytes.
  """

  def __init__(self, device: str, limit: int = _LIMIT):
    self.device = device
    self.limit = limit
    self.size = 0
    # A copy is dropped while the lock is held by the thread that drops it.
    self._lock = threading.RLock()
    # Copies by the identity of the original, which is not kept alive.
    self._copies: dict[int, tf.Tensor] = {}

  def placed(self, tensor: tf.Tensor) -> tf.Tensor:
    """Returns the tensor on the device, or itself if there is no room.

    Args:
      tensor: Eager tensor.
    """
    if tensor.dtype in _ON_CPU:
      return tensor
    size = tensor.dtype.size * int(tf.size(tensor, tf.int64))
    with self._lock:
      copy = self._copies.get(id(tensor))
      if copy is None and self.size + size <= self.limit:
        with tf.device(self.device):
          copy = tf.identity(tensor)
        self._copies[id(tensor)] = copy
        self.size += size
        gone = weakref.finalize(tensor, self._drop, id(tensor), size)
        gone.atexit = False
    return tensor if copy is None else copy

  def _drop(self, number: int, size: int) -> None:
    with self._lock:
      del self._copies[number]
      self.size -= size
