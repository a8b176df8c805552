"""Recognition of common `tf.data` pipelines behind a dataset.

An iterator costs a small client more than its training. So the runtime looks at
how a dataset was made. From the outside in, it recognises these forms:

* `from_tensor_slices(...)[.take, .skip].batch(b)[.take, .skip].repeat(e)` is a
  slicing of tensors (`TensorBatches`) and needs no iterator.
* Any dataset of examples with static shapes, then `.batch(b)` and any of
  `.map`, `.take`, `.skip` and `.repeat` is read in chunks of several batches
  (`RowChunks`). The dataset of examples itself runs in `tf.data`, so shuffling,
  random maps and generators behave as always. A map of batches becomes part of
  the training loop, if it is a plain function of its batch.

`prefetch` and `cache` between these are left out where they change nothing.
Anything else, and anything with `tf.data.Options`, stays as it is.

The form is read from attributes that TensorFlow does not document. A dataset in
which they are missing counts as not recognised.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Union

import tensorflow as tf

from tff_medical.runtime import chunks
from tff_medical.runtime import tensor_data

_ATTRIBUTE = '_tff_medical_form'
_MODULES = 'tensorflow.python.data.ops.'
# Upper limits of a chunk of examples.
_CHUNK_BYTES = 8 * 2**20
_CHUNK_ROWS = 4096
# Upper limit of the rows that a slicing of tensors visits in all epochs.
_MAX_VISITS = 2**31 - 1
# Transformations of examples whose time is short and even. TensorFlow need not
# tune or rewrite a pipeline of these.
_PLAIN = ('TensorSlice', 'Take', 'Skip', 'Repeat', 'Shuffle', 'Cache', 'Map')
# Transformations of batches that are recognised.
_OF_BATCHES = (
  *('Take', 'Skip', 'Repeat', 'Prefetch', 'Cache', 'Map', 'ParallelMap'),
)


class _NotRecognisedError(Exception):
  """A dataset has none of the forms."""


@dataclasses.dataclass(frozen=True)
class MapFunction:
  """A function of one batch without state.

  Attributes:
    digest: Hash of the graph; equal hashes mean equal functions.
    function: Function of the flat components and the captured tensors.
    captured: Tensors that the function reads besides the batch.
  """

  digest: str
  function: Any
  captured: tuple[tf.Tensor, ...]


@dataclasses.dataclass(frozen=True)
class RowChunks:
  """Batches that are read from a dataset of examples, several at a time.

  Attributes:
    form: What the graph that reads them depends on.
    rows: Variant tensor of the dataset of examples.
    whole: Variant tensor of the dataset itself, perhaps without `prefetch`.
    options: The vector `[batch_size, chunk_rows, epochs, drop_remainder]` of
      int64; -1 epochs have no end.
    maps: Functions of a batch, in their order.
  """

  form: chunks.LoopForm
  rows: tf.Tensor
  whole: tf.Tensor
  options: tf.Tensor
  maps: tuple[MapFunction, ...]


Form = Union[tensor_data.TensorBatches, RowChunks]


def form_of(dataset: tf.data.Dataset) -> Form | None:
  """Returns the form of a dataset; None if it is not recognised."""
  if isinstance(dataset, tensor_data.TensorDataset):
    return dataset.batches
  if not hasattr(dataset, _ATTRIBUTE):
    try:
      form = _recognise(dataset)
    except _NotRecognisedError:
      form = None
    setattr(dataset, _ATTRIBUTE, form)
  return getattr(dataset, _ATTRIBUTE)


def _read(value: Any, *names: str) -> Any:
  """Returns an undocumented attribute of an attribute of a value."""
  for name in names:
    if not hasattr(value, name):
      raise _NotRecognisedError(name)
    value = getattr(value, name)
  return value


def _scalar(dataset: tf.data.Dataset, name: str) -> Any:
  value = _read(dataset, name)
  if not hasattr(value, 'numpy'):  # It belongs to a graph.
    raise _NotRecognisedError(name)
  return value.numpy()


def _kind(dataset: tf.data.Dataset) -> str:
  """Returns the transformation that made a dataset, as 'Batch' or 'Map'."""
  name, module = type(dataset).__name__, type(dataset).__module__
  if not module.startswith(_MODULES):
    return ''
  return name.removeprefix('_').removesuffix('Dataset')


def _input(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Returns the dataset that was transformed."""
  source = _read(dataset, '_input_dataset')
  if isinstance(source, tensor_data.TensorDataset):
    return source.built
  return source


def _in_memory(cache: tf.data.Dataset) -> bool:
  return not _scalar(cache, '_filename')


@dataclasses.dataclass
class _Window:
  """Positions `first` to `end - 1` of a sequence; no end if it is None."""

  first: int = 0
  end: int | None = None

  def cut(self, dataset: tf.data.Dataset, unit: int) -> None:
    """Applies `take` or `skip`, which count in multiples of `unit`."""
    count = int(_scalar(dataset, '_count'))
    if _kind(dataset) == 'Take':
      if count < 0:
        return
      position = self.first + count * unit
      self.end = position if self.end is None else min(self.end, position)
    elif count < 0:
      raise _NotRecognisedError('everything is skipped')
    else:
      self.first += count * unit
      if self.end is not None:
        self.first = min(self.first, self.end)


def _recognise(dataset: tf.data.Dataset) -> Form:
  if dataset.options() != tf.data.Options():
    raise _NotRecognisedError('options')
  chain = []  # Transformations of batches, the last one first.
  batch = dataset
  while _kind(batch) != 'Batch':
    if _kind(batch) not in _OF_BATCHES:
      raise _NotRecognisedError(type(batch).__name__)
    chain.append(batch)
    batch = _input(batch)
  rows = _input(batch)
  specs = tf.nest.flatten(rows.element_spec)
  for spec in specs:
    if type(spec) is not tf.TensorSpec:
      raise _NotRecognisedError('components that are no dense tensors')
  batch_size = int(_scalar(batch, '_batch_size'))
  drop_remainder = bool(_scalar(batch, '_drop_remainder'))
  window, epochs, maps = _batches(reversed(chain), batch_size)
  tensors = None if maps or epochs < 0 else _slices(rows, window)
  if tensors is not None:
    components, first, end = tensors
    if (end - first) * epochs > _MAX_VISITS:
      raise _NotRecognisedError('too many epochs')
    return tensor_data.TensorBatches.create(
      components, (first, end), batch_size, epochs, drop_remainder
    )
  if any(_kind(transformation) == 'Cache' for transformation in chain):
    # What it keeps may be random, or take long to make.
    raise _NotRecognisedError('cache of batches')
  if window.first:
    rows = rows.skip(window.first)
  if window.end is not None:
    rows = rows.take(window.end - window.first)
  plain = _is_plain(rows)
  while plain and _kind(dataset) == 'Prefetch':
    dataset = _input(dataset)
  options = [batch_size, _chunk_rows(specs, batch_size), epochs, drop_remainder]
  with tf.device('CPU:0'):
    return RowChunks(
      chunks.LoopForm(tuple(spec.dtype for spec in specs), epochs != 1, plain),
      tf.data.experimental.to_variant(rows),
      tf.data.experimental.to_variant(dataset),
      tf.constant(options, tf.int64),
      maps,
    )


def _batches(
  chain: Any, batch_size: int
) -> tuple[_Window, int, tuple[MapFunction, ...]]:
  """Returns the examples that the batches are made of, epochs, and maps."""
  window, epochs, maps = _Window(), 1, []
  for dataset in chain:
    kind = _kind(dataset)
    if kind in ('Take', 'Skip'):
      if epochs != 1:
        raise _NotRecognisedError('a part of repeated batches')
      window.cut(dataset, batch_size)
    elif kind == 'Repeat':
      count = int(_scalar(dataset, '_count'))
      if count == 0:
        raise _NotRecognisedError('no repetition')
      epochs = -1 if count < 0 or epochs < 0 else epochs * count
    elif kind == 'Cache' and not _in_memory(dataset):
      raise _NotRecognisedError('cache in a file')
    elif kind in ('Map', 'ParallelMap'):
      maps.append(_map_function(dataset))
  return window, epochs, tuple(maps)


def _slices(
  rows: tf.data.Dataset, window: _Window
) -> tuple[tuple[tf.Tensor, ...], int, int] | None:
  """Returns the tensors that `rows` slices, and the positions in `window`."""
  chain = []
  while _kind(rows) in ('Take', 'Skip', 'Prefetch', 'Cache'):
    chain.append(rows)
    rows = _input(rows)
  if _kind(rows) != 'TensorSlice':
    return None
  components = tuple(_read(rows, '_tensors'))
  if not all(hasattr(c, 'numpy') for c in components):
    return None
  size = int(components[0].shape[0])
  inner = _Window(0, size)
  for dataset in reversed(chain):
    if _kind(dataset) in ('Take', 'Skip'):
      inner.cut(dataset, 1)
    elif _kind(dataset) == 'Cache' and not _in_memory(dataset):
      return None
  last = size if inner.end is None else inner.end
  end = last if window.end is None else min(inner.first + window.end, last)
  first = min(inner.first + window.first, last)
  return components, first, max(first, end)


def _is_plain(rows: tf.data.Dataset) -> bool:
  """Returns whether TensorFlow's rewriting of a pipeline can be left out."""
  repeated = False
  while _kind(rows) in _PLAIN:
    kind = _kind(rows)
    if kind == 'TensorSlice':
      return True
    # Rewritten, a repeated shuffle draws fewer seeds for later iterations.
    if kind == 'Shuffle' and repeated:
      return False
    # The state of a random operation ends with the rewritten function.
    if kind == 'Map' and _content(rows) is None:
      return False
    repeated |= kind == 'Repeat'
    rows = _input(rows)
  return False


def _chunk_rows(specs: list[tf.TensorSpec], batch_size: int) -> int:
  """Returns the number of examples in a chunk, a multiple of the batch."""
  row_bytes = 0
  for spec in specs:
    if not spec.shape.is_fully_defined() or not spec.dtype.size:
      raise _NotRecognisedError('examples of unknown size')
    row_bytes += spec.shape.num_elements() * spec.dtype.size
  limit = min(_CHUNK_BYTES // max(1, row_bytes), _CHUNK_ROWS)
  return max(1, limit // batch_size) * batch_size


def _content(dataset: tf.data.Dataset) -> str | None:
  """Returns a hash of the function of a map; None if it has state."""
  function = _read(dataset, '_map_func', 'function')
  operations = _read(function, 'graph').get_operations()
  # Names differ between equal functions: a captured tensor's is a number that
  # TensorFlow has given it.
  names = {operation.name: f'{i}' for i, operation in enumerate(operations)}

  def renamed(tensor: tf.Tensor) -> str:
    return f'{names[tensor.op.name]}:{tensor.value_index}'

  content = hashlib.sha256()
  for operation in operations:
    node = operation.node_def
    nested = any(a.HasField('func') or a.list.func for a in node.attr.values())
    # An argument is a placeholder, which counts as having state.
    is_argument = operation.type == 'Placeholder'
    if nested or (operation.op_def.is_stateful and not is_argument):
      return None
    node.name = names[operation.name]
    node.attr.pop('_user_specified_name', None)
    node.input[:] = [
      *map(renamed, operation.inputs),
      *(f'^{names[o.name]}' for o in operation.control_inputs),
    ]
    content.update(node.SerializeToString(deterministic=True))
  ends = map(renamed, (*function.inputs, *function.outputs))
  content.update('\n'.join(ends).encode())
  return content.hexdigest()


def _map_function(dataset: tf.data.Dataset) -> MapFunction:
  """Returns the function of a map of batches, if it has no state."""
  if getattr(dataset, '_deterministic', 'default') not in ('default', 'true'):
    raise _NotRecognisedError('a map without order')
  specs = tf.nest.flatten([dataset.element_spec, _input(dataset).element_spec])
  if any(type(spec) is not tf.TensorSpec for spec in specs):
    raise _NotRecognisedError('components that are no dense tensors')
  digest = _content(dataset)
  if digest is None:
    raise _NotRecognisedError('a map with state')
  function = _read(dataset, '_map_func', 'function')
  return MapFunction(digest, function, tuple(function.captured_inputs))
