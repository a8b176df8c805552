"""Tests on files of the hard cases that people reported, where they are at hand.

They are looked for in ../shared/hard_files beside the repository and go into no
repository; without them every test here is skipped. Each row of expected.tsv
says what must come out, or which error; its flags are mapped to ours.
"""

import csv
import json
import logging
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.config import own_image_settings
from tff_medical import _validate
from tff_medical.data import own_images
from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import decoding
from tff_medical.data.preparing import prepared
from tff_medical.data.tables import image_table

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_FOLDER = _ROOT / '../shared/hard_files'
_FILES = _FOLDER / 'files'
_MISSING = f'The hard files are not in {_FOLDER}'
_IMAGE_FOLDERS = ('images', 'dicom', 'nifti')
_NAMES = {
  'frame': 'frames',
  'axis': 'slice_axis',
  'label_column': 'label_columns',
}
# The flags that say what a folder's levels and headers are for.
_SITES = {'folder_levels': 'site/class', 'dicom_patients': True}
_TIME = 180


def _rows():
  if not (_FOLDER / 'expected.tsv').exists():
    return []
  with open(_FOLDER / 'expected.tsv', newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE))


def _is_image(row):
  return row['path'].split('/')[0] in _IMAGE_FOLDERS


def _flags(row):
  """Returns the flags of a row under our names; values may hold blanks."""
  words = []
  for word in row['flags'].split():
    if '=' in word or word == 'one_hot':
      words.append(word)
    else:
      words[-1] += f' {word}'
  if any(word.startswith('site_from') for word in words):
    return dict(_SITES)
  given = {}
  for word in words:
    name, _, value = word.partition('=')
    given[_NAMES.get(name, name)] = value or True
  return given


def _own(**flags):
  return own_image_settings.OwnImageSettings(**flags).options()


def _named(rows):
  """Returns parameters; some, where the files are missing and all is skipped."""
  return [(row['id'], row) for row in rows] or [('missing', {})]


@absltest.skipUnless(_rows(), _MISSING)
class ImageTest(parameterized.TestCase):
  def test_every_row_is_tested(self):
    rows = _rows()
    outcomes = {row['outcome'] for row in rows}
    self.assertEqual(outcomes, {'ok', 'warn', 'skip', 'policy', 'error'})
    self.assertLen(rows, 47)

  def _check_pixels(self, row, image):
    if row['height']:
      shape = tuple(int(row[k]) for k in ('height', 'width', 'channels'))
      self.assertEqual(image.shape, shape)
    height, width, _ = image.shape
    for probe in filter(None, row['probes'].split(';')):
      place, value = probe.split('=')
      y, x, channel = place.split(',')
      y = min(height - 1, int(float(y) * height))
      x = min(width - 1, int(float(x) * width))
      self.assertAlmostEqual(
        image[y, x, int(channel)],
        float(value),
        delta=float(row['tol']),
        msg=probe,
      )
    if row['min']:
      self.assertAlmostEqual(
        image.min(), float(row['min']), delta=float(row['tol'])
      )
      self.assertAlmostEqual(
        image.max(), float(row['max']), delta=float(row['tol'])
      )

  @parameterized.named_parameters(
    _named(
      r for r in _rows() if _is_image(r) and r['outcome'] in ('ok', 'warn')
    )
  )
  def test_decodes(self, row):
    found = decoding.decode(_FILES / row['path'], decoded.DecodingPolicy())
    self.assertLen(found.images, 1)
    self._check_pixels(row, found.images[0])
    if row['outcome'] == 'warn':
      self.assertIn(row['must_name'], ' '.join(found.warnings))

  @parameterized.named_parameters(
    _named(r for r in _rows() if _is_image(r) and r['outcome'] == 'skip')
  )
  def test_cannot_be_used(self, row):
    with self.assertRaises(decoded.BadFile) as caught:
      decoding.decode(_FILES / row['path'], decoded.DecodingPolicy())
    said = f'{row["path"]} {caught.exception}'
    self.assertIn(row['must_name'], said)

  @parameterized.named_parameters(
    _named(r for r in _rows() if _is_image(r) and r['outcome'] == 'policy')
  )
  def test_asks_for_a_choice(self, row):
    paths = [_FILES / path for path in row['path'].split()]
    for path in paths:
      with self.assertRaises(decoded.PolicyNeeded) as caught:
        decoding.decode(path, decoded.DecodingPolicy())
      said = f'{path.name} {caught.exception}'
      self.assertIn(row['must_name'], said)
      self.assertLen(said.splitlines(), 1)
    if not row['flags']:
      return
    policy = _own(**_flags(row)).decoding
    files = [decoding.decode(path, policy) for path in paths]
    self._check_pixels(row, files[0].images[0])
    answer = json.loads(row['answer'] or '{}')
    if 'slices' in answer:
      self.assertLen(files[0].images, answer['slices'])
      self.assertEqual(list(files[0].images[0].shape[:2]), answer['in_plane'])
    if answer.get('equal_slices'):
      for other in files[1:]:
        np.testing.assert_array_equal(other.images, files[0].images)
    if 'real_min' in answer:
      self.assertEqual(
        files[0].value_range, (answer['real_min'], answer['real_max'])
      )


@absltest.skipUnless(_rows(), _MISSING)
class TableTest(parameterized.TestCase):
  def _read(self, row):
    path = _FILES / row['path']
    name = own_images.FOLDER if path.is_dir() else own_images.TABLE
    own = _own(prepared_dir=self.create_tempdir().full_path, **_flags(row))
    return own_images.read_table(name, str(path), own), (name, str(path), own)

  @parameterized.named_parameters(
    _named(r for r in _rows() if r['outcome'] == 'error')
  )
  def test_refuses(self, row):
    with self.assertRaises(_validate.InputError) as caught:
      self._read(row)
    said = str(caught.exception)
    self.assertIn(row['must_name'], said)
    self.assertLen(said.splitlines(), 1)
    if row['must_not_print']:
      self.assertNotIn(row['must_not_print'], said)

  @parameterized.named_parameters(
    _named(
      r for r in _rows() if not _is_image(r) and r['outcome'] in ('ok', 'warn')
    )
  )
  def test_is_read_and_prepared(self, row):
    table, arguments = self._read(row)
    answer = json.loads(row['answer'])
    facts = {
      'classes': list(table.class_names),
      'images': len(table),
      'ignored': table.ignored,
      'splits': image_table.by_split(table),
      'patients': table.num_patients,
      'multi_label': table.multi_label,
      'rows': table.num_rows,
      'sites': list(table.site_names),
      'labels': table.labels.tolist(),
    }
    if table.multi_label:
      facts['positives'] = table.labels.sum(axis=0).tolist()
      facts['none'] = int((table.labels.sum(axis=1) == 0).sum())
    wanted = {k: v for k, v in answer.items() if k in facts}
    self.assertEqual({k: facts[k] for k in wanted}, wanted)
    name, path, own = arguments
    with self.assertLogs(level=logging.WARNING) as logs:
      logging.warning('There is one at least.')
      data = own_images.load(name, path, 40, own)
    said = ' '.join(logs.output)
    if row['outcome'] == 'warn':
      self.assertIn(row['must_name'], said)
    self.assertEqual(sum(len(s) for _, s in data.splits()), len(table))
    if 'exact_across' in answer:
      self.assertEqual(
        sum(data.duplicates.across.values()), answer['exact_across']
      )
      (info,) = pathlib.Path(own.prepared_dir).glob(f'*/{prepared.INFO}')
      near = json.loads(info.read_text())['duplicates']['near_across']
      self.assertEqual(sum(near.values()), answer['near_across'])


@absltest.skipUnless(_rows(), _MISSING)
class RunTest(absltest.TestCase):
  """All image files together, and commands."""

  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)

  def _table(self, rows):
    path = self.temp / 'list.csv'
    lines = ['file,label']
    lines += [f'{row["path"]},{"ab"[i % 2]}' for i, row in enumerate(rows)]
    path.write_text('\n'.join(lines))
    return path

  def _train(self, *arguments):
    return subprocess.run(
      [
        *(sys.executable, '-m', 'experiments.train', '--dataset=table'),
        *('--privacy_unit=record', '--clipping=none', '--rounds=1'),
        *('--num_clients=2', f'--output_dir={self.temp / "run"}'),
        *(f'--prepared_dir={self.temp / "prepared"}', *arguments),
      ],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      timeout=_TIME,
    )

  def test_bad_files_end_no_run_and_are_named(self):
    rows = [
      r
      for r in _rows()
      if _is_image(r) and r['outcome'] in ('ok', 'warn', 'skip')
    ]
    skipped = [r for r in rows if r['outcome'] == 'skip']
    path = self._table(rows)
    strict = _own(
      prepared_dir=str(self.temp / 'prepared'), image_dir=str(_FILES)
    )
    with self.assertRaisesRegex(
      _validate.InputError, f'{len(skipped)} of {len(rows)} files'
    ):
      own_images.load(own_images.TABLE, str(path), 32, strict)
    lenient = _own(
      prepared_dir=str(self.temp / 'prepared'),
      image_dir=str(_FILES),
      max_bad_fraction=0.5,
    )
    data = own_images.load(own_images.TABLE, str(path), 32, lenient)
    self.assertEqual(
      sum(len(s) for _, s in data.splits()), len(rows) - len(skipped)
    )
    (bad,) = self.temp.glob(f'prepared/*/{prepared.BAD_FILES}')
    listed = bad.read_text().splitlines()[1:]
    self.assertLen(listed, len(skipped))
    for row, line in zip(skipped, listed):
      self.assertIn(row['must_name'], line)
      self.assertStartsWith(line, row['path'])

  def test_uncertain_and_blank_findings_are_masked(self):
    (row,) = (r for r in _rows() if r['id'] == 'chex_asked')
    flags = [f'--{name}={value}' for name, value in _flags(row).items()]
    flags += ['--uncertain=mask', '--blank=mask', '--image_size=28']
    result = self._train(
      f'--data_dir={_FILES / row["path"]}',
      *(
        *flags,
        '--clipping=fixed',
        '--noise_multiplier=1',
        '--target_delta=1e-5',
      ),
      '--rounds=2',
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn('4 of 8 labels are unknown and masked', result.stderr)
    summary = json.loads((self.temp / 'run' / 'summary.json').read_text())
    self.assertEqual(summary['rounds'], 2)
    # Noise may make it 0; a mask that is missed makes it NaN.
    self.assertGreaterEqual(summary['metrics']['loss'], 0)
    (info,) = self.temp.glob(f'prepared/*/{prepared.INFO}')
    info = json.loads(info.read_text())
    self.assertEqual(info['images_by_class'], {'Edema': 1, 'Effusion': 1})
    self.assertEqual(info['unknown_by_class'], {'Edema': 2, 'Effusion': 2})

  def test_command_refuses_a_leak_in_one_line(self):
    (row,) = (r for r in _rows() if r['id'] == 'leak')
    flags = [f'--{name}={value}' for name, value in _flags(row).items()]
    result = self._train(f'--data_dir={_FILES / row["path"]}', *flags)
    self.assertEqual(result.returncode, 2, result.stderr)
    last = result.stderr.splitlines()[-1]
    self.assertStartsWith(last, 'error: ')
    self.assertIn(row['must_name'], last)
    self.assertNotIn(row['must_not_print'], result.stderr + result.stdout)
    self.assertFalse((self.temp / 'run').exists())

  def test_nothing_names_a_patient(self):
    rows = [r for r in _rows() if r['kind'] in ('identity', 'syntax', 'window')]
    canary = next(filter(None, (r['must_not_print'] for r in rows)))
    path = self._table(rows)
    # The header's patient tells patients apart, and must still not show.
    result = self._train(
      f'--data_dir={path}',
      f'--image_dir={_FILES}',
      '--missing_patients=own',
      '--image_size=28',
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn('BurnedInAnnotation', result.stderr)
    self.assertNotIn(canary, result.stderr + result.stdout)
    written = [p for p in self.temp.rglob('*') if p.is_file()]
    self.assertGreater(len(written), 10)
    for file in written:
      self.assertNotIn(canary.encode(), file.read_bytes(), file)


if __name__ == '__main__':
  absltest.main()
