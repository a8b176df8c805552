"""Tests of the report on data: what it says, and what it gives away."""

import csv
import pathlib
import stat

from absl.testing import absltest
import numpy as np

from tff_medical.data import images
from tff_medical.data import overview
from tff_medical.data import partition
from tff_medical.data import phantoms
from tff_medical.data import preparation_counts
from tff_medical.reporting import data_report

_SPEC = phantoms.PhantomSpec(num_train=60, num_validation=10, num_test=20)
# Would be recognized in a text, unlike a small number.
_PATIENT = 7_310_884_200_000


def _data(**changed):
  splits = phantoms.generate(_SPEC)
  for name, split in splits.items():
    splits[name] = images.Split(
      images=split.images,
      labels=split.labels,
      sites=split.sites,
      patients=split.patients + _PATIENT,
    )
  return images.ImageData(
    name='<b>mine</b>',
    **{**splits, **changed},
    class_names=('<i>a</i>', 'b', 'c', 'd'),
    site_names=phantoms.site_names(_SPEC),
  )


class DataReportTest(absltest.TestCase):
  def _write(self, data):
    self.folder = pathlib.Path(self.create_tempdir().full_path, 'look')
    clients = partition.natural(data.train, 'site')
    view = overview.of(data)
    findings = data_report.write(data, view, clients, self.folder)
    self.page = (self.folder / data_report.PAGE).read_text()
    return findings

  def _rows(self, name):
    with open(self.folder / f'{name}.unnoised.csv', encoding='utf-8') as file:
      return list(csv.DictReader(file))

  def test_files_are_private_and_say_that_they_are_unnoised(self):
    self._write(_data())
    self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o700)
    names = [path.name for path in self.folder.iterdir()]
    self.assertContainsSubset(
      ('contact_sheet_1.unnoised.png', 'clients.unnoised.png'), names
    )
    for path in self.folder.iterdir():
      self.assertIn('.unnoised.', path.name)
      self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
    body = self.page[self.page.index('<body>') :]
    self.assertStartsWith(body, '<body>\n<header><h1>UN-NOISED')
    self.assertIn('do not publish', body)

  def test_names_no_patient(self):
    findings = self._write(_data())
    patients = _data().train.patients.astype(str)
    for path in self.folder.glob('*.[ch]*'):
      text = path.read_text()
      for patient in patients:
        self.assertNotIn(patient, text)
    self.assertIn('A patient has up to', ' '.join(findings))

  def test_escapes_names_and_loads_nothing(self):
    self._write(_data())
    self.assertNotIn('<b>mine', self.page)
    self.assertNotIn('<i>a', self.page)
    self.assertNotIn('<script', self.page)
    self.assertNotRegex(self.page, 'src="(?!data:)')

  def test_tables_sum_up_to_the_images(self):
    data = _data()
    self._write(data)
    counts = self._rows('counts')
    for name, split in data.splits():
      numbers = [int(r['images']) for r in counts if r['split'] == name]
      self.assertEqual(sum(numbers), len(split))
    clients = self._rows('clients')
    self.assertLen(
      {r['client'] for r in clients}, len(np.unique(data.train.sites))
    )
    self.assertEqual(sum(int(r['images']) for r in clients), len(data.train))
    self.assertEqual(self._rows('copies'), [])

  def test_copies_are_counted_and_how_to_mend_them_is_said(self):
    train = _data().train
    stored = train.images.copy()
    stored[5:8] = stored[4][np.newaxis, :, ::-1]
    test = images.Split(
      images=np.concatenate([stored[:2], stored[4:5] // 2, train.images[5:9]]),
      labels=train.labels[:7],
      sites=train.sites[:7],
      patients=train.patients[:7] + 10**6,
    )
    changed = images.Split(stored, train.labels, train.sites, train.patients)
    findings = ' '.join(self._write(_data(train=changed, test=test)))
    # The first image that follows the three that were overwritten is equal.
    self.assertIn('test has 3 images that are equal', findings)
    self.assertIn('and 1 near copies', findings)
    self.assertIn('once 4 images change their split', findings)
    self.assertIn('up to 4 images of train', findings)
    rows = self._rows('copies')
    group = [r for r in rows if r['split'] == 'train' and r['row'] == '4'][0]
    members = [r for r in rows if r['group'] == group['group']]
    self.assertEqual(
      [(r['split'], r['row']) for r in members],
      [*(('train', str(i)) for i in range(4, 8)), ('test', '2')],
    )
    for row in rows:
      self.assertEqual(row['split_that_keeps_the_group_whole'], 'train')
    self.assertTrue((self.folder / 'copies.unnoised.png').exists())

  def test_shows_rules_and_bad_files_of_own_images(self):
    preparation = preparation_counts.Preparation(
      files=90,
      bad_files={'north': 3, 'south': 0},
      rules={'north': {'PNG 8 bits': 41}, 'south': {'window LINEAR': 46}},
      warnings={'north': {}, 'south': {'may name a patient': 5}},
      sizes={
        'north': {f'{i} x 9': 100 - i for i in range(30, 55)},
        'south': {'30 x 9': 7, '54 x 9': 2},
      },
      largest_group=None,
    )
    self.assertNotIn('How files were decoded', self._page_with(None))
    page = self._page_with(preparation)
    self.assertIn('may name a patient', page)
    self.assertIn('<th>window LINEAR</th><td>0</td><td>46</td>', page)
    self.assertIn('prepared images</th><td>3</td><td>0</td>', page)
    self.assertIn('<th>30 x 9</th><td>70</td><td>7</td>', page)
    self.assertNotIn('<th>54 x 9</th>', page)
    others = sum(100 - i for i in range(50, 55))
    self.assertIn(f'<th>5 others</th><td>{others}</td><td>2</td>', page)
    rows = {(r['site'], r['height x width']): r for r in self._rows('sizes')}
    self.assertLen(rows, 27)
    self.assertEqual(rows['south', '54 x 9']['images'], '2')

  def _page_with(self, preparation):
    data = _data()
    object.__setattr__(data, 'preparation', preparation)
    self._write(data)
    return self.page

  def test_counts_as_text_hold_every_site_and_class(self):
    lines = data_report.count_table(overview.of(_data())).splitlines()
    self.assertLen(lines, 1 + _SPEC.num_sites * 4)
    self.assertRegex(lines[0], '^site +class +train +validation +test$')
    self.assertEqual(sum(int(line.split()[-1]) for line in lines[1:]), 20)


if __name__ == '__main__':
  absltest.main()
