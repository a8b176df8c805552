"""Loop over chunks of examples, with a loop over the batches of each chunk.

An iterator costs several operations and a change of threads for each element.
`Chunks` reads many batches at once (`pipelines` says where this is the same).
Memory holds a chunk in use and the next one, however long the dataset is.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

import tensorflow as tf

from tff_medical.runtime import loops

# One iteration uses a chunk and reads the next.
_ITERATIONS_AT_ONCE = 1


@dataclasses.dataclass(frozen=True)
class MapCall:
  """Call of a function of a batch inside a graph.

  Attributes:
    function: Function of the flat components and the captured tensors.
    captured: Tensors that the function reads besides the batch.
  """

  function: Any
  captured: tuple[tf.Tensor, ...]

  def __call__(self, batch: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the flat components of the function's result."""
    self.function.add_to_graph(tf.compat.v1.get_default_graph())
    outputs = tf.raw_ops.PartitionedCall(
      args=[*batch, *self.captured],
      Tout=[t.dtype for t in self.function.outputs],
      f=self.function,
    )
    return list(outputs)


@dataclasses.dataclass(frozen=True)
class LoopForm:
  """What the graph of a loop over chunks depends on, besides its maps.

  Attributes:
    types: Type of each flat component of an example.
    repeated: Whether there is more than one epoch.
    plain: Whether the examples need no tuning by `tf.data`.
  """

  types: tuple[tf.DType, ...]
  repeated: bool
  plain: bool


@dataclasses.dataclass(frozen=True)
class Chunks(loops.Batches):
  """Batches of one client inside a graph, read in chunks of examples.

  Attributes:
    form: What the graph depends on.
    rows: Variant tensor of the dataset of examples.
    whole: Variant tensor of the dataset itself.
    options: Vector of int64, as in `pipelines.RowChunks`.
    maps: Calls of functions of a batch, in their order.
  """

  form: LoopForm
  rows: tf.Tensor
  whole: tf.Tensor
  options: tf.Tensor
  maps: tuple[MapCall, ...]

  def to_variant(self) -> tf.Tensor:
    """Returns the variant tensor of the dataset itself."""
    if not self.form.plain:
      return self.whole
    return loops.tuned(self.whole, plain=True)

  def reduce(
    self, step: loops.Step, state: list, shapes: list
  ) -> list[tf.Tensor]:
    """Returns the fold of `step(state, batch)` over all batches."""
    with tf.device('/device:CPU:0'):
      batch_size, chunk_rows, epochs, drop = tf.unstack(self.options, 4)
      once, drop_remainder = tf.constant(1, tf.int64), drop > 0
      variant = self._chunks(chunk_rows, epochs)

    def mapped(state: Sequence[tf.Tensor], batch: Sequence[tf.Tensor]) -> list:
      for call in self.maps:
        batch = call(batch)
      return step(state, batch)

    def over_chunk(
      state: Sequence[tf.Tensor], chunk: Sequence[tf.Tensor]
    ) -> list:
      slices = loops.Slices(tuple(chunk), batch_size, once, drop_remainder)
      return slices.reduce(mapped, list(state), shapes)

    return loops.over_iterator(
      over_chunk,
      variant,
      list(self.form.types),
      state,
      shapes,
      _ITERATIONS_AT_ONCE,
    )

  def _chunks(self, chunk_rows: tf.Tensor, epochs: tf.Tensor) -> tf.Tensor:
    """Returns the variant of the dataset of chunks.

    Chunks end where epochs do. The chunks of an epoch hold its examples in
    order, so the batches within chunks are those of the dataset.
    """
    spec = {
      'output_types': list(self.form.types),
      'output_shapes': [None] * len(self.form.types),
    }
    variant = tf.raw_ops.BatchDatasetV2(
      input_dataset=self.rows,
      batch_size=chunk_rows,
      drop_remainder=False,
      **spec,
    )
    # A repetition makes an iterator more than it reads, so it draws a seed of a
    # shuffle more than one iteration does.
    if self.form.repeated:
      variant = tf.raw_ops.RepeatDataset(
        input_dataset=variant, count=epochs, **spec
      )
    return loops.tuned(variant, self.form.plain)
