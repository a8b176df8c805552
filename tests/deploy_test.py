"""Tests of what starts clusters: compose file, image and page, without Docker."""

import pathlib
import re
import shlex

from absl.testing import absltest

from tests import ray_clusters

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_DEPLOY = _ROOT / 'deploy'
_PAGE = _ROOT / 'docs' / 'cluster.md'


def _flags_of_ray_start(text):
  """Yields the flags of each call of `ray start` in a text."""
  for call in re.findall(r'\bray start((?: +-[^ `\n]+)+)', text):
    yield re.findall(r'--[\w-]+', call)


@absltest.skipUnless(ray_clusters.is_installed(), 'Ray is not installed')
class DeployTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    import yaml

    self.compose = yaml.safe_load((_DEPLOY / 'compose.yaml').read_text())
    self.services = self.compose['services']
    # Lines that go on are one.
    self.image = re.sub(
      r'\\\n\s*', '', (_DEPLOY / 'Dockerfile').read_text()
    ).splitlines()

  def _command(self, service):
    shell, option, line = self.services[service]['command']
    self.assertEqual((shell, option), ('sh', '-c'))
    return ' '.join(line.split())

  def test_flags_of_ray_are_its_own(self):
    from ray.scripts import scripts

    known = {o for p in scripts.start.params for o in p.opts}
    texts = [self._command('head'), self._command('worker'), _PAGE.read_text()]
    texts += re.findall("'(ray start[^']*)'", _connection())
    calls = [flags for text in texts for flags in _flags_of_ray_start(text)]
    self.assertGreater(len(calls), 5)
    for flags in calls:
      self.assertContainsSubset(flags, known)

  def test_nodes_ask_for_a_token_and_are_reached_by_nobody(self):
    variables = ' '.join(line for line in self.image if line.startswith('ENV'))
    (secret,) = self.compose['secrets']
    self.assertIn('RAY_AUTH_MODE=token', variables)
    self.assertIn(f'RAY_AUTH_TOKEN_PATH=/run/secrets/{secret}', variables)
    (network,) = self.compose['networks']
    self.assertTrue(self.compose['networks'][network]['internal'])
    for name, service in self.services.items():
      with self.subTest(name):
        self.assertNotIn('ports', service)
        self.assertNotIn('network_mode', service)
        self.assertEqual(service['networks'], [network])
        self.assertEqual(service['secrets'], [secret])
        self.assertEqual(service['cap_drop'], ['ALL'])
        data = [v for v in service['volumes'] if v['target'] == '/data']
        self.assertTrue(data[0]['read_only'])
    self.assertIn('--include-dashboard=false', self._command('head'))
    token = self.compose['secrets'][secret]['file']
    ignored = (_ROOT / '.gitignore').read_text().splitlines()
    self.assertIn(f'/deploy/{token}', ignored)

  def test_there_are_a_head_and_two_workers_that_find_it(self):
    head, worker = self._command('head'), self._command('worker')
    host = self.services['head']['hostname']
    (port,) = re.findall(r'--port=(\d+)', head)
    self.assertIn(f'--address={host}:{port}', worker)
    (port,) = re.findall(r'--ray-client-server-port=(\d+)', head)
    self.assertEqual(
      self.services['driver']['environment']['RAY_ADDRESS'],
      f'ray://{host}:{port}',
    )
    self.assertEqual(self.services['worker']['deploy']['replicas'], 2)

  def test_folders_of_ray_lie_in_a_private_one(self):
    (private,) = re.findall(
      r'RUN install --directory --owner=ray --mode=0700 (\S+)',
      '\n'.join(self.image),
    )
    for service in ('head', 'worker'):
      command = self._command(service)
      self.assertIn(f'--temp-dir={private}/', command)
      self.assertStartsWith(command, 'umask 077 && ')

  def test_the_image_has_what_it_copies_and_no_more(self):
    steps = [line.split() for line in self.image if line.startswith('COPY')]
    copied = {source for step in steps for source in step[1:-1]}
    for source in copied:
      self.assertTrue((_ROOT / source).exists(), source)
    lines = (_DEPLOY / 'Dockerfile.dockerignore').read_text().splitlines()
    self.assertIn('*', lines)
    allowed = {line[1:] for line in lines if line.startswith('!')}
    self.assertEqual(allowed, copied)
    locks = {source for source in copied if source.startswith('requirements')}
    (install,) = (line for line in self.image if 'pip install' in line)
    words = shlex.split(install)
    self.assertIn('--no-deps', words)
    self.assertEqual(set(words) & locks, locks)
    users = [line for line in self.image if line.startswith('USER')]
    self.assertEqual(users, ['USER ray'])

  def test_the_compose_file_builds_this_image(self):
    build = self.services['head']['build']
    folder = _DEPLOY / build['context']
    self.assertTrue(
      (folder / build['dockerfile']).samefile(_DEPLOY / 'Dockerfile')
    )

  def test_others_start_when_the_head_answers(self):
    self.assertIn('healthcheck', self.services['head'])
    for name in ('worker', 'driver'):
      self.assertEqual(
        self.services[name]['depends_on'],
        {'head': {'condition': 'service_healthy'}},
      )

  def test_objects_of_ray_fit_into_shared_memory(self):
    # Ray would keep them in files.
    for name in ('head', 'worker'):
      (store,) = re.findall(r'--object-store-memory=(\d+)', self._command(name))
      (shared,) = re.findall(r'^(\d+)gb$', self.services[name]['shm_size'])
      self.assertLess(int(store), int(shared) * 1024**3)


def _connection():
  path = _ROOT / 'tff_medical' / 'runtime' / 'cluster' / 'connection.py'
  return path.read_text()


class PageTest(absltest.TestCase):
  def test_variables_are_those_that_ray_reads(self):
    named = {*re.findall(r'\bRAY_[A-Z_]+\b', _PAGE.read_text())}
    self.assertGreater(len(named), 5)
    if not ray_clusters.is_installed():
      self.skipTest('Ray is not installed')
    import ray

    folder = pathlib.Path(ray.__file__).parent
    sources = [*folder.rglob('*.py'), folder / '_raylet.so']
    for path in sources:
      content = path.read_bytes()
      named = {name for name in named if name.encode() not in content}
      if not named:
        break
    self.assertEmpty(named)

  def test_names_each_path_that_nodes_must_have(self):
    from experiments.running import cells

    text = _PAGE.read_text()
    for name in cells.INPUTS:
      self.assertIn(f'`{name}`', text)


if __name__ == '__main__':
  absltest.main()
