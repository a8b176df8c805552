"""Exports a model that serves with TensorFlow alone, with its privacy card.

The SavedModel holds the weights, the preprocessing, the class names and the
privacy card, so that none of them can be separated from the model. Signatures:

| signature       | input                                | what it does       |
|-----------------|--------------------------------------|--------------------|
| serving_default | `images` float32 [N, H, W, C], 0..1  | predicts           |
| serve_bytes     | `encoded` string [N], PNG or JPEG    | decodes, predicts  |

Both take 0 or more images. Both refuse a request with an invalid image, and
name the number of that image and the reason. The limits on an encoded image are
in `encoded_images`.

Both return `probabilities` float32 [N, K] and `class_index` int64. The latter
is the likeliest class, [N]. For a multi-label model it is [N, K] of 0 and 1,
where 1 means a probability of at least 0.5. `assets/` holds `class_names.txt`,
one name per line in the order of K, and `privacy_card.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import threading
from typing import Any
import uuid

import tensorflow as tf

from tff_medical import _files
from tff_medical import _validate
from tff_medical import models
from tff_medical.data.decoders import decoded
from tff_medical.privacy import card_format
from tff_medical.program import checkpoints
from tff_medical.serving import image_files
from tff_medical.serving import serving_module

CLASS_NAMES_FILE = 'class_names.txt'
PRIVACY_CARD_FILE = card_format.FILE
_LEFTOVER = re.compile(r'\.[0-9a-f]{32}\.(new|old|assets)')
# The card of a run of a thousand rounds has a few kilobytes.
_MAX_ASSET_BYTES = 2**24


def save(
  path: str | os.PathLike[str],
  model: tf.keras.Model,
  *,
  class_names: Sequence[str],
  multi_label: bool,
  privacy_card: Mapping[str, Any],
  decoding_policy: decoded.DecodingPolicy | None = None,
  transfer: models.Transfer | None = None,
) -> None:
  """Writes the SavedModel atomically, replacing an earlier export.

  The model is written to a folder beside `path`, flushed and then renamed, so
  that `path` never holds half a model.

  Args:
    path: Folder to write, for example `run/saved_model`.
    model: Keras model from float32 [N, H, W, C] in 0..1, or from features, to
      logits [N, K].
    class_names: Names of the K classes in the order of the logits.
    multi_label: Whether the K outputs are independent labels.
    privacy_card: Card with all `card_format.REQUIRED_KEYS`; further keys are
      kept.
    decoding_policy: Choices by which image files were decoded for the training;
      None if it did not start from image files.
    transfer: Network of which `model` is the trained part, if any. Its frozen
      part becomes part of the exported model.

  Raises:
    InputError: The card, the class names or the path cannot be used.
    OSError: The folder could not be written, for example on a full disk.
  """
  target = pathlib.Path(path)
  check(target, class_names, model.output_shape[-1])
  names = tuple(class_names)
  models.restore_eager(model)
  frozen = transfer.frozen if transfer is not None else None
  if frozen is not None:
    models.restore_eager(frozen)
  card = card_format.checked(
    {**privacy_card, 'weights_sha256': weights_digest(model)}
  )
  text = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False)
  assets = {CLASS_NAMES_FILE: '\n'.join(names), PRIVACY_CARD_FILE: text}
  if decoding_policy is not None:
    assets[image_files.POLICY_FILE] = image_files.policy_text(decoding_policy)
  with _disk_errors(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    new = target.with_name(f'.{target.name}.{uuid.uuid4().hex}.new')
    try:
      module = serving_module.ServingModule(
        model,
        multi_label=multi_label,
        frozen=frozen,
        reduced_decoding=_is_reduced(decoding_policy),
      )
      _write(new, module, assets)
      _sync(new)
      _put_in_place(new, target)
    finally:
      shutil.rmtree(new, ignore_errors=True)
      shutil.rmtree(_assets_of(new), ignore_errors=True)


def trace_ahead(
  model: tf.keras.Model,
  *,
  decoding_policy: decoded.DecodingPolicy | None = None,
  transfer: models.Transfer | None = None,
) -> None:
  """Starts a thread that traces what `save` exports besides the model.

  This part of the graph decodes image files, and needs no weights. A training
  that runs meanwhile leaves Python idle. A process does not end before it.

  Args:
    model: Argument of `save`.
    decoding_policy: Argument of `save`.
    transfer: Argument of `save`.
  """
  frozen = transfer.frozen if transfer is not None else None
  threading.Thread(
    target=serving_module.traced_decoder,
    args=(
      serving_module.image_shape(model, frozen),
      _is_reduced(decoding_policy),
    ),
  ).start()


def copy_with_card(
  source: str | os.PathLike[str],
  path: str | os.PathLike[str],
  privacy_card: Mapping[str, Any],
) -> None:
  """Copies a SavedModel with another card, replacing an earlier export.

  Args:
    source: Folder of the SavedModel.
    path: Folder to write.
    privacy_card: Card of the copy. It must be about the same weights.

  Raises:
    InputError: The card cannot be used.
    OSError: The folder could not be written.
  """
  target = pathlib.Path(path)
  _check_replaceable(target)
  card = card_format.checked(privacy_card)
  if card.get('weights_sha256') != load_card(source).get('weights_sha256'):
    raise _validate.InputError(
      f'privacy_card is of other weights than those in {os.fspath(source)}; '
      'change the card of that model'
    )
  text = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False)
  with _disk_errors(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    new = target.with_name(f'.{target.name}.{uuid.uuid4().hex}.new')
    try:
      shutil.copytree(source, new)
      asset = new / 'assets' / PRIVACY_CARD_FILE
      asset.write_text(text + '\n', encoding='utf-8')
      _sync(new)
      _put_in_place(new, target)
    finally:
      shutil.rmtree(new, ignore_errors=True)


def _is_reduced(policy: decoded.DecodingPolicy | None) -> bool:
  return policy is not None and policy.reduced_decoding


def check(
  path: str | os.PathLike[str], class_names: Sequence[str], num_outputs: int
) -> None:
  """Raises `InputError` if `save` would refuse the path or the class names."""
  _check_names(class_names, num_outputs)
  _check_replaceable(pathlib.Path(path))


def remove_leftovers(path: str | os.PathLike[str]) -> None:
  """Removes the folders that killed exports to `path` left beside it."""
  target = pathlib.Path(path)
  for leftover in target.parent.glob(f'.{target.name}.*'):
    if _LEFTOVER.fullmatch(leftover.name[len(target.name) + 1 :]):
      shutil.rmtree(leftover, ignore_errors=True)


def weights_digest(model: tf.keras.Model) -> str:
  """Returns the digest that identifies the weights of a model in its card."""
  return checkpoints.weights_digest(
    v.numpy() for v in serving_module.ordered_weights(model)
  )


def load_card(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the privacy card of the SavedModel in folder `path`."""
  text = _read_asset(path, PRIVACY_CARD_FILE)
  where = f'{PRIVACY_CARD_FILE} of {os.fspath(path)!r}'
  try:
    card = json.loads(text)
  except (ValueError, RecursionError) as error:  # Also numbers of many digits.
    raise _validate.InputError(
      f'{where} is not JSON ({error}); export the model again'
    ) from error
  if not isinstance(card, dict):
    raise _validate.InputError(
      f'{where} must be a JSON object, got {type(card).__name__}; export the '
      'model again'
    )
  return card_format.checked(card)


def load_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
  """Returns the class names, in order, of the SavedModel in folder `path`."""
  return tuple(_read_asset(path, CLASS_NAMES_FILE).splitlines())


def load_decoding_policy(
  path: str | os.PathLike[str],
) -> decoded.DecodingPolicy | None:
  """Returns the decoding policy of the SavedModel in folder `path`.

  Returns:
    The policy, or None for a model that was not trained on image files.

  Raises:
    InputError: The asset is damaged.
  """
  asset = pathlib.Path(path, 'assets', image_files.POLICY_FILE)
  if not os.path.lexists(asset):
    return None
  return image_files.parse_policy(_read_asset(path, image_files.POLICY_FILE))


def _check_names(names: Sequence[str], num_outputs: int) -> None:
  if len(names) != num_outputs:
    raise _validate.InputError(
      f'class_names must have one name for each of the {num_outputs} '
      f'outputs of the model, got {len(names)}: {", ".join(names)}'
    )
  wrong = [n for n in names if not n or n.splitlines() != [n]]
  if wrong or len(set(names)) != len(names):
    raise _validate.InputError(
      'class_names must be different, not empty and without line breaks, '
      f'got {tuple(names)}'
    )


def _check_replaceable(target: pathlib.Path) -> None:
  """Refuses to replace anything but an earlier export or an empty folder."""
  if target.is_dir():
    if (target / 'saved_model.pb').exists() or not any(target.iterdir()):
      return
  elif not target.exists():
    return
  raise _validate.InputError(
    f'{os.fspath(target)!r} exists and is not a saved model; '
    'choose another folder'
  )


def _write(
  folder: pathlib.Path,
  module: serving_module.ServingModule,
  texts: Mapping[str, str],
) -> None:
  """Writes the SavedModel with its assets into the new `folder`."""
  # TensorFlow copies assets from other files. They lie beside the new folder,
  # as nothing would remove a temporary folder elsewhere after a kill.
  assets = _assets_of(folder)
  assets.mkdir()
  for name, content in texts.items():
    asset = assets / name
    asset.write_text(content + '\n', encoding='utf-8')
    module.assets.append(tf.saved_model.Asset(os.fspath(asset)))
  tf.saved_model.save(module, os.fspath(folder), signatures=module.signatures())


def _assets_of(folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder of the assets until TensorFlow copies them."""
  return folder.with_suffix('.assets')


def _sync(folder: pathlib.Path) -> None:
  """Flushes every file and folder of `folder` to the disk."""
  for where, _, names in os.walk(folder):
    for name in (*names, '.'):
      descriptor = os.open(os.path.join(where, name), os.O_RDONLY)
      try:
        os.fsync(descriptor)
      finally:
        os.close(descriptor)


def _put_in_place(new: pathlib.Path, target: pathlib.Path) -> None:
  """Renames `new` to `target`, then deletes the earlier folder."""
  if not target.exists():
    os.rename(new, target)
    return
  old = new.with_suffix('.old')
  os.rename(target, old)
  try:
    os.rename(new, target)
  except BaseException:  # A signal may also arrive between the two renames.
    os.rename(old, target)
    raise
  shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(target: pathlib.Path) -> Iterator[None]:
  """Turns TensorFlow's errors about files into an `OSError`."""
  try:
    yield
  except tf.errors.ResourceExhaustedError as error:
    raise OSError(
      errno.ENOSPC, 'No space left to save the model', os.fspath(target)
    ) from error
  except tf.errors.OpError as error:
    # TensorFlow's codes differ for a quota, a full disk and a lost folder.
    raise OSError(
      errno.EIO, f'The model could not be saved ({error})', os.fspath(target)
    ) from error


def _read_asset(path: str | os.PathLike[str], name: str) -> str:
  asset = pathlib.Path(path, 'assets', name)
  if not os.path.lexists(asset):
    raise _validate.InputError(
      f'{os.fspath(path)!r} is not a model exported by tff_medical '
      f'(it has no assets/{name}); give the saved_model folder of a run'
    )
  content = _files.read('asset', asset, max_bytes=_MAX_ASSET_BYTES)
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    raise _validate.InputError(
      f'asset {os.fspath(asset)!r} is not UTF-8 text ({error.reason} at byte '
      f'{error.start}); export the model again'
    ) from error
