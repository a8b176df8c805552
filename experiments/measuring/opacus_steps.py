"""Steps of DP-SGD by Opacus, in a process of a Python that has PyTorch.

PyTorch and TensorFlow need different packages, so that Opacus runs in a Python
of its own, with one thread. This file is the program of that process and what
starts it. The program imports neither TensorFlow nor this project:

    PYTHON experiments/measuring/opacus_steps.py cnn_small 256 opacus_hooks

It prints a line when it is ready. For each line on stdin it runs one step and
prints its seconds. A step is what `gradient_benchmark` measures: the sum of the
clipped gradients of a batch's records, without noise (Yousefpour et al. 2021,
arXiv 2109.12298; ghost clipping: Li et al. 2022, arXiv 2110.05679). That of
`torch_plain` is PyTorch's gradient of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
import os
import subprocess
import sys
import time
from typing import Any

CONTENDERS = ('torch_plain', 'opacus_hooks', 'opacus_ghost')
_CLIP_NORM = 1.0
_VARIABLES = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')


class OpacusProcess:
  """Process that runs a step of Opacus whenever it is called."""

  def __init__(self, python: str, model: str, batch_size: int, contender: str):
    """Starts the process and waits until it is ready.

    Args:
      python: Path of a Python that has PyTorch and Opacus.
      model: Name of a model, as in `gradient_benchmark.WORKLOADS`.
      batch_size: Number of records in a step.
      contender: One of `CONTENDERS`.

    Raises:
      InputError: There is no such Python, or it cannot run Opacus.
    """
    try:
      self._process = subprocess.Popen(
        [python, __file__, model, str(batch_size), contender],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **{name: '1' for name in _VARIABLES}},
      )
    except OSError as error:
      raise _error(python, str(error)) from error
    self._answers = iter(self._process.stdout or ())
    if not self._read_line():
      _, printed = self._process.communicate()
      raise _error(python, (printed.strip().splitlines() or ['no error'])[-1])

  def __call__(self) -> None:
    """Runs one step."""
    print('step', file=self._process.stdin, flush=True)
    if not self._read_line():
      raise RuntimeError('the process of Opacus ended in a step')

  def close(self) -> None:
    """Ends the process."""
    self._process.communicate()

  def _read_line(self) -> str:
    return next(self._answers, '')


def _error(python: str, problem: str) -> Exception:
  from tff_medical import _validate  # The program of the process lacks it.

  return _validate.InputError(
    f'opacus_python must be a Python with PyTorch and Opacus, got {python!r}: '
    f'{problem}; install opacus there, or leave its contenders out'
  )


def _cnn_small(torch: Any) -> Any:
  """Returns the network of `models.cnn.small` for grey images of two classes."""
  layers: list[Any] = []
  channels = 1
  for filters, strides in ((16, 2), (32, 2), (32, 1)):
    layers += [
      torch.nn.Conv2d(channels, filters, 3, strides, padding=1, bias=False),
      torch.nn.GroupNorm(4, filters),
      torch.nn.ReLU(),
    ]
    channels = filters
  head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
  return torch.nn.Sequential(*layers, *head, torch.nn.Linear(channels, 2))


def _cnn_dense(torch: Any) -> Any:
  """Returns the network of `networks.cnn`."""
  nn = torch.nn
  return nn.Sequential(
    nn.Conv2d(3, 32, 3),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(1600, 128),
    nn.ReLU(),
    nn.Linear(128, 8),
  )


_MODELS = {'cnn_small': (_cnn_small, 1), 'cnn_dense': (_cnn_dense, 3)}


def _step(
  model_name: str, batch_size: int, contender: str
) -> Callable[[], object]:
  """Returns a function that runs a step of one contender."""
  import torch

  torch.set_num_threads(1)
  build, channels = _MODELS[model_name]
  model = build(torch)
  x = torch.rand(batch_size, channels, 28, 28)
  y = torch.randint(2, (batch_size,))
  criterion = torch.nn.CrossEntropyLoss(
    reduction='sum' if contender == 'torch_plain' else 'mean'
  )
  optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
  if contender == 'torch_plain':

    def plain() -> None:
      optimizer.zero_grad()
      criterion(model(x), y).backward()

    return plain

  import opacus

  made = opacus.PrivacyEngine().make_private(
    module=model,
    optimizer=optimizer,
    criterion=criterion,
    data_loader=torch.utils.data.DataLoader(
      torch.utils.data.TensorDataset(x, y), batch_size=batch_size
    ),
    noise_multiplier=0.0,
    max_grad_norm=_CLIP_NORM,
    poisson_sampling=False,
    grad_sample_mode=contender[len('opacus_') :],
  )
  if contender == 'opacus_ghost':
    private, private_optimizer, private_criterion, _ = made
  else:
    private, private_optimizer, _ = made
    private_criterion = criterion

  def step() -> None:
    private_optimizer.zero_grad()
    private_criterion(private(x), y).backward()
    if (
      contender == 'opacus_hooks'
    ):  # Ghost clipping has clipped and summed already.
      private_optimizer.clip_and_accumulate()

  return step


def main(model: str, batch_size: int, contender: str) -> None:
  """Runs steps until stdin ends."""
  step = _step(model, batch_size, contender)
  step()
  print('ready', flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    step()
    print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
