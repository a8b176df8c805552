"""Scores of held-out images: metrics, intervals, calibration, their file.

`scored.ScoredImages` holds the logits and labels of a split. `metrics` computes
every metric from them, `intervals` the bootstrap intervals of metrics and of
differences, and `fitted` what is fitted on validation images. `evaluation` puts
them together. NumPy alone: nothing here imports TensorFlow.
"""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'evaluation',
  'fitted',
  'intervals',
  'metrics',
  'scored',
]

if typing.TYPE_CHECKING:
  from tff_medical.scoring import evaluation as evaluation
  from tff_medical.scoring import fitted as fitted
  from tff_medical.scoring import intervals as intervals
  from tff_medical.scoring import metrics as metrics
  from tff_medical.scoring import scored as scored
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
