"""Number format of the products in a model's forward and backward pass.

With `bfloat16` TensorFlow rewrites marked functions: convolutions, matrix
products and what lies between them have 8 significant bits instead of 24, with
the range of float32. Inputs and outputs of a marked function stay float32. All
other functions stay as they are, so that weights, norms, clipped values, sums
and noise are float32.

A function is marked by `mark`, called while the function is traced. The mark
does not reach callers. TFF's client work traces its training step as the body
of a loop, where the optimizer may set the mark. A step that also clips calls
`apart` for the part that may be rounded.

The rewriting is TensorFlow's `auto_mixed_precision_onednn_bfloat16`, which
knows CPUs alone.

>>> product = tf.function(lambda a, b: apart(tf.matmul, a, b))
>>> product(tf.ones((1, 2)), tf.ones((2, 1))).numpy().tolist()
[[2.0]]
"""

from __future__ import annotations

from collections.abc import Callable, Collection
import pathlib
from typing import Any

import tensorflow as tf

from tff_medical import _validate

FLOAT32 = 'float32'
BFLOAT16 = 'bfloat16'
PRECISIONS = (FLOAT32, BFLOAT16)

_MARK = 'may_be_rounded_to_bfloat16'
_CALLS = ('PartitionedCall', 'StatefulPartitionedCall')
_CPU_INFO = pathlib.Path('/proc/cpuinfo')
# Extensions of x86 processors that multiply bfloat16 numbers.
_EXTENSIONS = ('avx512_bf16', 'amx_bf16')
_REWRITING = 'auto_mixed_precision'


def mark() -> None:
  """Allows `bfloat16` in the function that is traced."""
  tf.no_op(name=_MARK)


def apart(function: Callable[..., Any], *args: Any) -> Any:
  """Returns `function(*args)`, computed by a marked function of its own.

  Args:
    function: Function from structures of tensors to a structure of tensors.
    *args: Arguments of the function. Other tensors are captured.
  """

  @tf.function(autograph=False)
  def marked(*args: Any) -> Any:
    mark()
    return function(*args)

  return marked(*args)


def check(precision: str, devices: Collection[str]) -> None:
  """Raises `InputError` unless the devices compute in `precision`.

  Args:
    precision: One of `PRECISIONS`.
    devices: Names of the TensorFlow devices that run clients.
  """
  _validate.one_of(PRECISIONS, precision=precision)
  if precision == FLOAT32:
    return
  others = [name for name in devices if not name.startswith('CPU:')]
  if others:
    raise _validate.InputError(
      f'precision must be {FLOAT32} on {others[0]}, got {precision}, which '
      'TensorFlow has for the CPU alone; leave it out, or give client_devices '
      'CPU:0'
    )
  if not _has_extension():
    raise _validate.InputError(
      f'precision must be {FLOAT32} on this processor, got {precision}; '
      f'/proc/cpuinfo lists none of {", ".join(_EXTENSIONS)}; leave it out'
    )


def refuse_rewriting_of_everything() -> None:
  """Raises `InputError` if TensorFlow is set to rewrite every function.

  Clipped values and their sums would then have fewer bits than the norms.
  """
  for name, is_on in tf.config.optimizer.get_experimental_options().items():
    if name.startswith(_REWRITING) and is_on:
      raise _validate.InputError(
        f'{name} of tf.config.optimizer must be False, got True, which rounds '
        'clipped values too; set it to False and give precision=bfloat16'
      )


def _has_extension() -> bool:
  """Returns whether the processor multiplies bfloat16 numbers."""
  try:
    lines = _CPU_INFO.read_text(encoding='utf-8').splitlines()
  except OSError:
    return False
  flags = [line.split() for line in lines if line.startswith('flags')]
  return any(name in flags[0] for name in _EXTENSIONS) if flags else False


def let_tensorflow_rewrite(graph_def: tf.compat.v1.GraphDef) -> None:
  """Has TensorFlow rewrite the marked functions of a graph, in place.

  A function keeps the options of its call only if it is not inlined. A
  reduction of a dataset gets the options as an attribute, from which
  `loops.reduce_sequence` takes them.
  """
  functions = graph_def.library.function
  marked = {f.signature.name for f in functions if _is_marked(f)}
  for function in functions:
    if function.signature.name in marked:
      function.attr['_noinline'].b = True
  options = _call_options()
  for nodes in (graph_def.node, *(f.node_def for f in functions)):
    for node in nodes:
      is_call = node.op in _CALLS or node.op == 'ReduceDataset'
      if is_call and node.attr['f'].func.name in marked:
        node.attr['config_proto'].s = options


def _is_marked(function: Any) -> bool:
  # TensorFlow appends a number to a name that is taken.
  return any(
    node.op == 'NoOp' and node.name.rpartition('/')[2].startswith(_MARK)
    for node in function.node_def
  )


def _call_options() -> bytes:
  """Returns the options of a call of a marked function, serialized."""
  config = tf.compat.v1.ConfigProto()
  rewriting = config.graph_options.rewrite_options
  rewriting.auto_mixed_precision_onednn_bfloat16 = type(rewriting).ON
  return config.SerializeToString()
