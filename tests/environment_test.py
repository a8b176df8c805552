"""Tests of the locked environment: it is closed, and its programs start."""

import ast
import importlib.metadata
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request

from absl.testing import absltest
from packaging import requirements

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_RUN = 'requirements.txt'
_DEV = 'requirements-dev.txt'
_BACKBONE = 'requirements-backbone.txt'
_CLUSTER = 'requirements-cluster.txt'
_GPU = 'requirements-gpu.txt'
# What is asked for, but not needed: see the comments of requirements.txt.
_LEFT_OUT = {'tf-models-official'}


def _normal(name):
  return re.sub('[-_.]+', '-', name).lower()


def _pins(*files):
  """Returns the packages that the locks name for this Python."""
  found = set()
  for name in files:
    for line in (_ROOT / name).read_text().splitlines():
      pin = requirements.Requirement(line) if line[:1] not in '#' else None
      if pin and (pin.marker is None or pin.marker.evaluate()):
        found.add(_normal(pin.name))
  return found


def _needs(name):
  """Returns the packages that an installed one asks for."""
  for line in importlib.metadata.requires(name) or ():
    need = requirements.Requirement(line)
    if need.marker is None or need.marker.evaluate({'extra': ''}):
      yield _normal(need.name)


class LockTest(absltest.TestCase):
  def test_what_runs_needs_nothing_of_what_only_develops(self):
    run = _pins(_RUN)
    needs = {need for name in run for need in _needs(name)}
    self.assertEqual(needs - run - _LEFT_OUT, set())
    self.assertEqual(run & _pins(_DEV), set())

  def test_both_locks_together_are_closed(self):
    both = _pins(_RUN, _DEV)
    needs = {need for name in both for need in _needs(name)}
    self.assertEqual(needs - both - _LEFT_OUT, set())

  def test_weights_of_backbones_need_nothing(self):
    names = _pins(_BACKBONE)
    self.assertNotEmpty(names)
    self.assertEqual({n for name in names for n in _needs(name)}, set())
    self.assertEqual(names & _pins(_RUN, _DEV), set())

  def test_what_a_cluster_needs_stands_beside_what_runs(self):
    run, cluster = _pins(_RUN), _pins(_CLUSTER)
    self.assertIn('ray', cluster)
    needs = {need for name in cluster for need in _needs(name)}
    self.assertEqual(needs - run - cluster, set())
    self.assertEqual(run & cluster, set())

  def test_locks_that_share_a_package_pin_it_alike(self):
    pins = {}
    for name in (_RUN, _DEV, _CLUSTER, _BACKBONE):
      for line in (_ROOT / name).read_text().splitlines():
        if line[:1] not in '#':
          package, *marker = re.split('==| ; ', line)
          pins.setdefault((package, *marker[1:]), set()).add(marker[0])
    self.assertEqual({p: v for p, v in pins.items() if len(v) > 1}, {})

  def test_what_is_installed_is_what_the_cluster_lock_pins(self):
    for line in (_ROOT / _CLUSTER).read_text().splitlines():
      pin = requirements.Requirement(line) if line[:1] not in '#' else None
      if pin and (pin.marker is None or pin.marker.evaluate()):
        self.assertEqual(
          f'=={importlib.metadata.version(pin.name)}', str(pin.specifier)
        )

  def test_libraries_for_gpus_are_those_that_tensorflow_names(self):
    named = set()
    for line in importlib.metadata.requires('tensorflow'):
      need = requirements.Requirement(line)
      if need.marker and need.marker.evaluate({'extra': 'and-cuda'}):
        if not need.marker.evaluate({'extra': ''}):
          named.add(f'{_normal(need.name)}{need.specifier}')
    lines = (_ROOT / _GPU).read_text().splitlines()
    pins = {line for line in lines if not line.startswith('#')}
    self.assertEqual(pins, named - {'tensorrt==8.5.3.1'})

  def test_sources_import_nothing_of_what_only_develops(self):
    imported = set()
    for package in ('tff_medical', 'experiments'):
      for path in (_ROOT / package).rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
          if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
          elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    top = {_normal(name.split('.')[0]) for name in imported}
    self.assertIn('tensorflow-federated', top)
    self.assertEqual(top & _pins(_DEV), set())


class TensorBoardTest(absltest.TestCase):
  def test_starts_and_answers(self):
    # On a port that the system chooses; its address is the last it prints.
    with tempfile.TemporaryFile('w+') as printed:
      process = subprocess.Popen(
        [
          *(sys.executable, '-m', 'tensorboard.main', '--port=0'),
          *('--host=127.0.0.1', f'--logdir={self.create_tempdir().full_path}'),
        ],
        stdin=subprocess.DEVNULL,
        stdout=printed,
        stderr=subprocess.PIPE,
        text=True,
      )
      watchdog = threading.Timer(120, process.kill)
      watchdog.start()
      said, address = '', None
      try:
        for line in process.stderr:
          said += line
          address = re.search(r' at (http://127\.0\.0\.1:\d+/)', line)
          if address:
            break
        self.assertIsNotNone(address, said)
        url = f'{address[1]}data/environment'
        with urllib.request.urlopen(url, timeout=60) as answer:
          self.assertEqual(answer.status, 200)
          self.assertIn(b'data_location', answer.read())
      finally:
        watchdog.cancel()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


if __name__ == '__main__':
  absltest.main()
