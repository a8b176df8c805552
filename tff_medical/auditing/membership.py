"""Membership inference: does the exported model reveal its training images?

The attacks come from tensorflow-empirical-privacy:

- a threshold on the loss (Yeom et al. 2018, arXiv 1709.01604),
- a threshold on the modified entropy (Song & Mittal 2021, arXiv 2003.10595),
- a cross-validated logistic regression on the logits.

They train no shadow models, so they are weaker than attacks that do
(Carlini et al. 2022, arXiv 2112.03570). Their result is a lower bound on the
leakage.

An AUC of 0.5 is a random guess. The AUC compares images that trained the model
with images that did not, so both must come from the same source. Some public
test sets come from another source. A model that has seen neither set can then
tell the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import os

import numpy as np
import tensorflow as tf
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import (
  data_structures,
)
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import (
  membership_inference_attack as library,
)

from tff_medical import _files
from tff_medical import _validate
from tff_medical.auditing import bounds
from tff_medical.data import examples
from tff_medical.data import images as images_lib
from tff_medical.data import label_values
from tff_medical.data import pixels

_MIN_PROBABILITY = 1e-7  # Smallest that float32 softmax distinguishes from 0.
_Type = data_structures.AttackType


@dataclasses.dataclass(frozen=True, eq=False)
class MembershipResult:
  """Result of one membership inference attack.

  Attributes:
    name: Name of the attack in the library.
    auc: Probability that a member scores higher than a non-member.
    tpr_at_1_fpr: Share of members that are found while at most 1 % of the
      others are taken for members.
    false_positive_rates: False positive rates of the ROC curve, float [n].
    true_positive_rates: True positive rates of the ROC curve, float [n].
    members: Number of members.
    others: Number of non-members.
  """

  name: str
  auc: float
  tpr_at_1_fpr: float
  false_positive_rates: np.ndarray
  true_positive_rates: np.ndarray
  members: int
  others: int


def predict(
  saved_model: str | os.PathLike[str],
  images: pixels.ArrayOrPixels,
  *,
  batch_size: int = 256,
) -> np.ndarray:
  """Returns the probabilities [N, K] of an exported model.

  Args:
    saved_model: Folder that `export.save` wrote.
    images: Images, uint8 [N, H, W, C], in memory or stored.
    batch_size: Number of images per prediction.

  Raises:
    InputError: The folder holds no model, or a damaged one.
  """
  _files.check_folder('model', saved_model)
  try:
    loaded = tf.saved_model.load(os.fspath(saved_model))
    serve = loaded.signatures['serving_default']
  except (OSError, LookupError, ValueError, tf.errors.OpError) as error:
    raise _validate.InputError(
      f'{os.fspath(saved_model)!r} has no model that can be read; give the '
      'folder of a run that has ended'
    ) from error
  parts = []
  for batch in pixels.batches(images, batch_size):
    x = tf.constant(examples.scaled(batch))
    parts.append(serve(images=x)['probabilities'].numpy())
  return np.concatenate(parts)


def attack_model(
  saved_model: str | os.PathLike[str],
  members: images_lib.Split,
  others: images_lib.Split,
) -> list[MembershipResult]:
  """Returns the result of each attack on an exported model, best AUC first.

  Args:
    saved_model: Folder that `export.save` wrote.
    members: Images that trained the model.
    others: Images from the same source that did not train the model.
  """
  return attack(
    predict(saved_model, members.images),
    members.labels,
    predict(saved_model, others.images),
    others.labels,
  )


def attack(
  member_probabilities: np.ndarray,
  member_labels: np.ndarray,
  other_probabilities: np.ndarray,
  other_labels: np.ndarray,
) -> list[MembershipResult]:
  """Returns the result of each attack, best AUC first.

  Args:
    member_probabilities: Probabilities [N, K] for images that trained the
      model.
    member_labels: Integer classes [N] or, multi-label, 0, 1 and -1 (unknown)
      [N, K]. An image without a known label takes no part.
    other_probabilities: Probabilities [M, K] for other images.
    other_labels: Labels of the other images, [M] or [M, K].
  """
  data = data_structures.AttackInputData(
    loss_train=_losses(member_probabilities, member_labels),
    loss_test=_losses(other_probabilities, other_labels),
  )
  types = [_Type.THRESHOLD_ATTACK]
  if member_labels.ndim == 1:
    types += [_Type.THRESHOLD_ENTROPY_ATTACK, _Type.LOGISTIC_REGRESSION]
    data.logits_train = _log(member_probabilities)
    data.logits_test = _log(other_probabilities)
    data.labels_train, data.labels_test = member_labels, other_labels
  with _repeatable():
    results = library.run_attacks(data, attack_types=types)
  attacks = [_converted(r) for r in results.single_attack_results]
  return sorted(attacks, key=lambda a: a.auc, reverse=True)


def _converted(result: data_structures.SingleAttackResult) -> MembershipResult:
  scores = np.concatenate(
    [result.membership_scores_train, result.membership_scores_test]
  )
  is_member = np.arange(len(scores)) < len(result.membership_scores_train)
  return MembershipResult(
    name=str(result.attack_type).lower(),
    auc=float(result.get_auc()),
    tpr_at_1_fpr=bounds.tpr_at_fpr(scores, is_member, 0.01),
    false_positive_rates=result.roc_curve.fpr,
    true_positive_rates=result.roc_curve.tpr,
    members=int(is_member.sum()),
    others=int((~is_member).sum()),
  )


def _log(probabilities: np.ndarray) -> np.ndarray:
  clipped = np.clip(probabilities.astype(np.float64), _MIN_PROBABILITY, None)
  return np.log(clipped)


def _losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the cross-entropy of each image, a mean over its known labels.

  A sum would tell the number of known labels rather than who is a member.
  """
  if labels.ndim == 1:
    return -_log(probabilities)[np.arange(len(labels)), labels]
  is_used = label_values.has_label(labels)
  labels, probabilities = labels[is_used], probabilities[is_used]
  right = np.where(labels == 1, probabilities, 1 - probabilities)
  is_known = labels != label_values.UNKNOWN
  return -_log(right).mean(axis=1, where=is_known)


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
  """Fixes the seed of NumPy's global generator, which the library uses.

  Divisions by zero are ignored as well. They occur in bounds that the library
  adds to each attack and that are not used here.
  """
  state = np.random.get_state()
  np.random.seed(0)
  try:
    with np.errstate(divide='ignore', invalid='ignore'):
      yield
  finally:
    np.random.set_state(state)
