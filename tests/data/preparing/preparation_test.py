"""Tests of preparation: bad files, kills, changes, and what it gives away."""

import dataclasses
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from tff_medical import _validate
from tff_medical.data import equal_images
from tff_medical.data import images
from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import decoding_pool
from tff_medical.data.decoders import decoding_worker
from tff_medical.data.preparing import near_duplicates
from tff_medical.data.preparing import preparation
from tff_medical.data.preparing import preparation_parts
from tff_medical.data.preparing import prepared
from tff_medical.data.tables import image_table
from tff_medical.data.tables import splitting

# Prepares in a process of its own, which may be killed.
_PROGRAM = """
import os, pathlib, signal, sys
sys.path.insert(0, {root!r})
from tests.data.preparing import preparation_test as test
from tff_medical.data.preparing import preparation_parts
temp = pathlib.Path(sys.argv[1])
preparation_parts._MAX_FILES = 4
write = preparation_parts.Parts.write
def write_and_die(self):
  write(self)
  if len(self._paths) == 2:
    os.kill(os.getpid(), signal.SIGKILL)
preparation_parts.Parts.write = write_and_die
test.prepare(temp, test.rows_of(18))
"""


def write_images(folder, count=18):
  """Writes grey images whose value is 10 times their number."""
  for i in range(count):
    pixels = np.full((10, 14), 10 * i, np.uint8)
    Image.fromarray(pixels).save(folder / f'scan {i}.png')


def rows_of(count):
  """Returns the rows of the images, of 6 patients at 2 sites."""
  return [
    image_table.Row(
      where=f'row {i + 2}',
      path=f'scan {i}.png',
      labels=('ab'[i % 2],),
      site=('north', 'south')[i % 3 == 0],
      patient=f'PATIENT{i % 6}',
    )
    for i in range(count)
  ]


def options(temp, **changed):
  task = changed.pop(
    'task', decoding_worker.Task(decoded.DecodingPolicy(), 8, None)
  )
  return preparation.Options(
    **{'task': task, 'prepared_dir': temp / 'prepared', 'workers': 2, **changed}
  )


def prepare(temp, rows, **changed):
  return preparation.prepare(
    image_table.build(temp / 'images', rows), options(temp, **changed)
  )


def _pixels(found):
  """Returns all images of a prepared folder."""
  stored = prepared.open_pixels(found.folder, found.shape)
  return stored.rows(np.arange(found.shape[0]))


class PreparationTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.images = self.temp / 'images'
    self.images.mkdir()
    write_images(self.images)
    self.rows = rows_of(18)

  def _decoded(self):
    """Counts the files that workers are asked for."""
    asked = []
    outcomes = decoding_pool.Pool.outcomes

    def counting(pool, files):
      def noted():
        for number, path in files:
          asked.append(number)
          yield number, path

      return outcomes(pool, noted())

    patched = mock.patch.object(decoding_pool.Pool, 'outcomes', counting)
    return patched, asked

  def _prepare(self, **changed):
    patched, asked = self._decoded()
    with patched:
      return prepare(
        self.temp, changed.pop('rows', self.rows), **changed
      ), asked

  def _pixels_by_number(self, found):
    pixels = _pixels(found)
    return {int(image[-1, 0, 0]) // 10: image for image in pixels}

  def test_every_row_has_its_own_image(self):
    found, _ = self._prepare()
    self.assertEqual(found.shape, (18, 8, 8, 1))
    pixels = _pixels(found)
    numbers = pixels[:, -1, 0, 0] // 10
    self.assertCountEqual(numbers.tolist(), range(18))
    np.testing.assert_array_equal(found.labels, numbers % 2)
    np.testing.assert_array_equal(found.sites, (numbers % 3 == 0).astype(int))
    # Patients of a site have one number each, and one split.
    groups = {}
    for number, patient, split in zip(numbers, found.patients, found.splits):
      groups.setdefault((number % 6, number % 3 == 0), set()).add(
        (patient, split)
      )
    self.assertLen(groups, 6)
    self.assertEqual({len(g) for g in groups.values()}, {1})
    self.assertTrue((np.diff(found.splits) >= 0).all())

  def test_is_prepared_once(self):
    first, asked = self._prepare()
    self.assertLen(asked, 18)
    again, asked = self._prepare()
    self.assertEqual(asked, [])
    self.assertEqual(again.folder, first.folder)

  def test_a_changed_file_alone_is_decoded_again(self):
    first, _ = self._prepare()
    Image.fromarray(np.full((5, 5), 222, np.uint8)).save(
      self.images / 'scan 7.png'
    )
    again, asked = self._prepare()
    self.assertEqual(asked, [7])
    self.assertNotEqual(again.info['digest'], first.info['digest'])
    pixels = self._pixels_by_number(again)
    self.assertTrue((pixels[22] == 222).all())
    before = self._pixels_by_number(first)
    for number in set(range(18)) - {7}:
      np.testing.assert_array_equal(pixels[number], before[number])
    self.assertEqual(again.info['rules_by_site'], first.info['rules_by_site'])

  def test_another_policy_or_size_decodes_all(self):
    self._prepare()
    for task in (
      decoding_worker.Task(decoded.DecodingPolicy(), 9, None),
      decoding_worker.Task(decoded.DecodingPolicy(frames='first'), 8, None),
      decoding_worker.Task(decoded.DecodingPolicy(), 8, 3),
    ):
      found, asked = self._prepare(task=task)
      self.assertLen(asked, 18)
    self.assertEqual(found.shape, (18, 8, 8, 3))

  def test_a_changed_label_decodes_nothing(self):
    first, _ = self._prepare()
    rows = [
      image_table.Row(r.where, r.path, ('c',), r.site, r.patient)
      if r.where == 'row 4'
      else r
      for r in self.rows
    ]
    again, asked = self._prepare(rows=rows)
    self.assertEqual(asked, [])
    self.assertNotEqual(again.info['digest'], first.info['digest'])
    self.assertEqual(again.info['images_by_class']['c'], 1)

  def _masked_table(self, unknown):
    """Returns a table of two findings; those of row i are unknown[i % 2]."""
    rows = [
      image_table.Row(
        row.where, row.path, (), row.site, row.patient,
        split='train' if i < 12 else 'test', unknown=unknown[i % 2],
      )
      for i, row in enumerate(self.rows)
    ]  # fmt: skip
    rows = [dataclasses.replace(row, patient=row.path) for row in rows]
    return image_table.build(
      self.images, rows, multi_label=True, class_names=('a', 'b')
    )

  def test_unknown_findings_are_kept_and_counted_apart(self):
    found = preparation.prepare(
      self._masked_table((('a',), ())), options(self.temp)
    )
    self.assertEqual(found.info['images_by_class'], {'a': 0, 'b': 0})
    self.assertEqual(found.info['unknown_by_class'], {'a': 9})
    split = found.split(np.arange(18))
    self.assertEqual((split.labels == -1).sum(axis=0).tolist(), [9, 0])
    again = preparation.prepare(
      self._masked_table(((), ())), options(self.temp)
    )
    self.assertNotEqual(again.info['digest'], found.info['digest'])
    self.assertNotEqual(again.folder, found.folder)

  def test_a_split_of_which_nothing_is_known_is_refused_before_decoding(self):
    patched, asked = self._decoded()
    with (
      patched,
      self.assertRaisesRegex(
        _validate.InputError, 'train has 12 images but no known label'
      ),
    ):
      preparation.prepare(
        self._masked_table((('a', 'b'), ('a', 'b'))), options(self.temp)
      )
    self.assertEqual(asked, [])

  def test_the_digest_is_that_of_the_data(self):
    first, _ = self._prepare()
    # Another secret, other salted numbers, the same data.
    other, _ = self._prepare(prepared_dir=self.temp / 'other')
    self.assertEqual(other.info['digest'], first.info['digest'])
    self.assertFalse(np.isin(other.patients, first.patients).any())
    self.assertNotEqual(other.folder.name, first.folder.name)

  def test_goes_on_after_being_killed(self):
    root = str(pathlib.Path(__file__).resolve().parents[3])
    result = subprocess.run(
      [sys.executable, '-c', _PROGRAM.format(root=root), str(self.temp)],
      capture_output=True,
      timeout=120,
    )
    self.assertEqual(result.returncode, -signal.SIGKILL, result.stderr)
    (partial,) = (self.temp / 'prepared').glob('*.partial')
    parts = preparation_parts.Parts(partial)
    self.assertLen(parts.said, 8)
    found, asked = self._prepare()
    self.assertCountEqual(asked, set(range(18)) - set(parts.said))
    self.assertFalse(partial.exists())
    self.assertCountEqual(self._pixels_by_number(found), range(18))

  def test_bad_files_stop_it_unless_they_are_allowed(self):
    (self.images / 'scan 3.png').write_bytes(b'')
    (self.images / 'scan 5.png').write_bytes(b'PNG')
    with self.assertRaisesRegex(
      _validate.InputError,
      r'2 of 18 files cannot be used, more than max_bad_fraction=0 allows; the '
      r'first: scan 3.png is empty; all are listed in .*bad_files.tsv',
    ):
      self._prepare()
    found, asked = self._prepare(max_bad_fraction=0.2)
    self.assertEqual(asked, [])  # All were tried before.
    self.assertEqual(found.shape[0], 16)
    self.assertEqual(found.info['bad_files_by_site'], {'north': 1, 'south': 1})
    listed = (found.folder / prepared.BAD_FILES).read_text().splitlines()
    self.assertEqual(listed[1], 'scan 3.png\tis empty')
    with self.assertRaisesRegex(_validate.InputError, '2 of 18 .*scan 3.png'):
      self._prepare(max_bad_fraction=0.1)

  def test_a_killed_worker_is_a_bad_file(self):
    ask = decoding_pool._Worker.ask

    def ask_and_kill(worker, number, path, seconds):
      if number == 9:
        os.kill(worker.process.pid, signal.SIGKILL)
      ask(worker, number, path, seconds)

    with mock.patch.object(decoding_pool._Worker, 'ask', ask_and_kill):
      found, _ = self._prepare(max_bad_fraction=0.1)
    self.assertEqual(found.info['bad_files'], 1)
    listed = (found.folder / prepared.BAD_FILES).read_text()
    self.assertIn('scan 9.png\tmakes its decoder die (signal 9)', listed)
    self.assertCountEqual(self._pixels_by_number(found), set(range(18)) - {9})

  def test_a_file_that_asks_for_a_choice_stops_it(self):
    pages = [Image.new('L', (9, 9), v) for v in (20, 250)]
    pages[0].save(
      self.images / 'scan 2.png', 'TIFF', save_all=True, append_images=pages[1:]
    )
    with self.assertRaisesRegex(
      _validate.InputError, 'scan 2.png has 2 pages; choose with --frames'
    ):
      self._prepare()
    task = decoding_worker.Task(decoded.DecodingPolicy(frames='all'), 8, None)
    found, _ = self._prepare(task=task)
    self.assertEqual(found.shape[0], 19)
    pixels = _pixels(found)
    pages = np.flatnonzero(np.isin(pixels[:, 0, 0, 0], (20, 250)))
    self.assertEqual(np.diff(pages).tolist(), [1])
    self.assertEqual(np.ptp(found.patients[pages]), 0)

  def test_colour_makes_all_images_colour(self):
    red = np.zeros((6, 6, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(self.images / 'scan 4.png')
    found, _ = self._prepare()
    self.assertEqual(found.shape, (18, 8, 8, 3))
    pixels = _pixels(found)
    is_red = (pixels[..., 0] == 200) & (pixels[..., 1] == 0)
    self.assertEqual(is_red.all(axis=(1, 2)).sum(), 1)

  def test_gives_no_patient_away(self):
    with self.assertLogs('absl', level='INFO') as logs:
      found, _ = self._prepare()
    said = [' '.join(logs.output), json.dumps(found.info), repr(found)]
    for file in (self.temp / 'prepared').rglob('*'):
      self.assertNotIn('PATIENT', file.name)
      if file.is_file():
        said.append(file.read_bytes().decode('latin-1'))
    for text in said:
      self.assertNotIn('PATIENT', text)
      self.assertNotIn('scan 1', text)
    with np.load(found.folder / prepared.TABLE) as table:
      for name in table.files:
        self.assertEqual(table[name].dtype, np.int64)

  def test_bad_file_of_a_patient_is_shown_without_the_name(self):
    (self.images / 'PATIENT3').mkdir()
    (self.images / 'PATIENT3' / 'PATIENT3.png').write_bytes(b'')
    row = image_table.Row(
      'row 99', 'PATIENT3/PATIENT3.png', ('a',), 'north', 'PATIENT3'
    )
    with self.assertRaises(_validate.InputError) as caught:
      self._prepare(rows=[*self.rows, row])
    self.assertIn(r'the first: */*.png is empty', str(caught.exception))
    self.assertNotIn('PATIENT', str(caught.exception))

  def test_is_as_private_as_the_images(self):
    found, _ = self._prepare()
    folder = self.temp / 'prepared'
    for place in (folder, found.folder):
      self.assertEqual(stat.S_IMODE(place.stat().st_mode), 0o700)
    salt = folder / 'salt.secret'
    self.assertEqual(stat.S_IMODE(salt.stat().st_mode), 0o600)

  @parameterized.parameters(prepared.PIXELS, prepared.TABLE, prepared.INFO)
  def test_damage_is_found(self, name):
    found, _ = self._prepare()
    path = found.folder / name
    path.write_bytes(path.read_bytes()[:-9])
    with self.assertRaisesRegex(_validate.InputError, 'damaged'):
      self._prepare()

  def test_a_damaged_part_is_named(self):
    partial = self.temp / 'parts'
    partial.mkdir()
    (partial / 'part_000000.npz').write_bytes(b'x')
    with self.assertRaisesRegex(_validate.InputError, 'part_000000.npz'):
      preparation_parts.Parts(partial)

  def test_sizes_before_resizing_are_counted_by_site(self):
    """Also of files that are not decoded again, or have several images."""
    north, south = self.images / 'scan 1.png', self.images / 'scan 0.png'
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(north)
    pages = [Image.fromarray(np.full((5, 6), i, np.uint8)) for i in range(3)]
    pages.append(Image.fromarray(np.zeros((6, 5), np.uint8)))
    pages[0].save(south, 'TIFF', save_all=True, append_images=pages[1:])
    (self.images / 'scan 2.png').write_bytes(b'bad')
    policy = decoding_worker.Task(decoded.DecodingPolicy(frames='all'), 8, None)
    expected = {
      'north': {'7 x 9': 1, '10 x 14': 10},
      'south': {'5 x 6': 3, '6 x 5': 1, '10 x 14': 5},
    }
    for changed_label in (None, 'a'):
      rows = list(self.rows)
      if changed_label:
        rows[17] = dataclasses.replace(rows[17], labels=(changed_label,))
      found = prepare(self.temp, rows, task=policy, max_bad_fraction=0.1)
      self.assertEqual(found.info['sizes_by_site'], expected)

  def test_pixels_are_compared_once(self):
    """For the split, for equal and for nearly equal images."""
    rows = [dataclasses.replace(row, patient=None) for row in self.rows]
    compare = mock.Mock(side_effect=near_duplicates.compare)
    digest = mock.Mock(side_effect=equal_images.find_duplicates)
    with mock.patch.object(near_duplicates, 'compare', compare):
      with mock.patch.object(equal_images, 'find_duplicates', digest):
        prepare(self.temp, rows)
    compare.assert_called_once()
    digest.assert_not_called()

  def test_duplicates_are_counted(self):
    rng = np.random.default_rng(1)
    rows = []
    for i in range(12):
      pixels = np.kron(rng.random((5, 5)), np.ones((4, 4))) * 255
      Image.fromarray(pixels.astype(np.uint8)).save(self.images / f'd{i}.png')
      split = ('train', 'train', 'test')[i % 3]
      rows.append(
        image_table.Row(f'row {i}', f'd{i}.png', ('ab'[i % 2],), split=split)
      )
    Image.open(self.images / 'd0.png').save(self.images / 'd2.png')
    Image.open(self.images / 'd1.png').rotate(90).point(
      lambda v: int(v * 0.7)
    ).save(self.images / 'd5.png')
    task = decoding_worker.Task(decoded.DecodingPolicy(), 20, 1)
    found, _ = self._prepare(rows=rows, task=task)
    self.assertEqual(str(found.duplicates), '1 in both train and test')
    self.assertEqual(found.info['duplicates']['near_across'], {'test': 1})
    self.assertGreater(found.info['duplicates']['largest_group'], 1)


class SplitByCopiesTest(absltest.TestCase):
  """Images without patients, of which some are copies of others."""

  def _prepare(self, groups, copies):
    """Returns what is prepared of groups of copies, and each row's group."""
    temp = pathlib.Path(self.create_tempdir().full_path)
    (temp / 'images').mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(groups):
      original = np.kron(rng.integers(9, 240, (6, 6)), np.ones((4, 4)))
      for copy in range(copies):
        turned = np.rot90(original, copy)
        # The group is to be seen in a corner that decides nothing.
        turned[0, 0] = number
        path = f'{copy} {number}.png'
        Image.fromarray(turned.astype(np.uint8)).save(temp / 'images' / path)
        label = 'ab'[(number if groups > 1 else copy) % 2]
        rows.append(
          image_table.Row(
            where=f'row {len(rows) + 2}', path=path, labels=(label,)
          )
        )
    task = decoding_worker.Task(decoded.DecodingPolicy(), 24, None)
    found = prepare(temp, rows, task=task)
    return found, _pixels(found)[:, 0, 0, 0]

  def test_no_group_is_divided(self):
    found, group = self._prepare(groups=40, copies=3)
    self.assertEqual(found.info['split'], splitting.BY_COPIES)
    self.assertEqual(sum(found.info['duplicates']['near_across'].values()), 0)
    splits = {}
    for number, split in zip(group.tolist(), found.splits.tolist()):
      self.assertEqual(splits.setdefault(number, split), split)
    counts = np.bincount(list(splits.values()), minlength=3)
    self.assertLen(splits, 40)
    # 28, 4 and 8 are expected; the hash is fixed.
    self.assertTrue((counts >= [20, 1, 3]).all(), counts)
    for i, name in enumerate(images.SPLIT_NAMES):
      rows = np.flatnonzero(found.splits == i)
      stored = found.split(rows)
      np.testing.assert_array_equal(
        stored.rows(np.arange(len(rows)))[:, 0, 0, 0], group[rows], name
      )
      np.testing.assert_array_equal(stored.labels, group[rows] % 2)

  def test_a_group_stays_when_images_are_added(self):
    before, group = self._prepare(groups=40, copies=2)
    splits = dict(zip(group.tolist(), before.splits.tolist()))
    after, group = self._prepare(groups=50, copies=3)
    moved = {
      number
      for number, split in zip(group.tolist(), after.splits.tolist())
      if splits.get(number, split) != split
    }
    self.assertEmpty(moved)

  def test_too_few_groups_are_split_by_image(self):
    found, _ = self._prepare(groups=1, copies=18)
    self.assertEqual(found.info['split'], splitting.BY_IMAGE)
    # A quarter of the images are equal.
    self.assertGreater(
      sum(n for *_, n in found.info['duplicates']['across']), 0
    )


if __name__ == '__main__':
  absltest.main()
