"""Tests of tables of own images: every conflict is refused by row."""

import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pandas

from tests.data import dicom_writing
from tff_medical import _validate
from tff_medical.data.tables import file_tables
from tff_medical.data.tables import folder_tables
from tff_medical.data.tables import image_paths
from tff_medical.data.tables import image_table
from tff_medical.data.tables import label_cells


class _Files(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def _touch(self, *paths):
    for path in paths:
      file = self.root / path
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(b'not looked at')


class ImagePathsTest(_Files):
  @parameterized.named_parameters(
    ('exact', 'a/one.png', 'a/one.png'),
    ('windows', 'C:\\Users\\x\\a\\one.png', 'a/one.png'),
    ('server', '\\\\pacs\\out\\b\\one.png', 'b/one.png'),
    ('case', 'B/ONE.PNG', 'b/one.png'),
    ('no_suffix', 'a/one', 'a/one.png'),
    ('dots', 'a/../b/one.png', 'b/one.png'),
    ('only_one', 'two', 'a/two.nii.gz'),
    ('uid', '1.2.840.5', '1.2.840.5.dcm'),
    ('decomposed', 'La\u0308sion.png', 'L\u00e4sion.png'),
  )
  def test_finds(self, text, path):
    self._touch(
      'a/one.png', 'b/one.png', 'a/two.nii.gz', '1.2.840.5.dcm',
      'L\u00e4sion.png',
    )  # fmt: skip
    self.assertEqual(image_paths.scan(self.root).find(text), path)

  @parameterized.named_parameters(
    ('twice', 'one.png', 'fits 2 files'),
    ('nowhere', 'three.png', 'is no file'),
    ('other_suffix', 'one.jpg', 'is no file'),
    ('blank', ' ', 'names no file'),
    ('above', '../../one.png', 'outside'),
    ('hidden_above', 'a\\..\\..\\..\\one.png', 'outside'),
  )
  def test_does_not_find(self, text, message):
    self._touch('a/one.png', 'b/one.png')
    with self.assertRaisesRegex(image_paths.NoFile, message):
      image_paths.scan(self.root).find(text)

  def test_links_that_lead_out_are_refused(self):
    self._touch('a/one.png')
    outside = pathlib.Path(self.create_tempdir().full_path, 'secret.png')
    outside.write_bytes(b'')
    os.symlink(outside, self.root / 'a' / 'link.png')
    os.symlink(self.root / 'a' / 'one.png', self.root / 'inside.png')
    os.symlink(outside.parent, self.root / 'folder')
    with self.assertRaisesRegex(_validate.InputError, "links .*'folder'"):
      folder_tables.read(self.root)
    files = image_paths.scan(self.root)
    self.assertEqual(files.find('inside.png'), 'inside.png')
    with self.assertRaisesRegex(image_paths.Outside, 'outside'):
      files.find('link.png')
    self.assertNotIn('folder/secret.png', files.paths)
    (self.root / 'folder').unlink()
    (self.root / 'inside.png').unlink()
    with self.assertRaisesRegex(_validate.InputError, 'link.png.*outside'):
      folder_tables.read(self.root)

  def test_what_computers_leave_behind_is_ignored(self):
    self._touch(
      'a/._one.png', 'a/one.png', 'Thumbs.db', '.DS_Store', 'sub/DICOMDIR',
      '__MACOSX/a/one.png', '.git/x', 'b/.keep',
    )  # fmt: skip
    files = image_paths.scan(self.root)
    self.assertEqual(files.paths, ('a/one.png',))
    self.assertEqual(files.ignored, 7)
    self.assertEqual(files.empty_folders, ('b', 'sub'))


class FolderTest(_Files):
  def _read(self, **options):
    return folder_tables.read(self.root, **options)

  def test_levels(self):
    self._touch(
      'north/ill/p1/x/1.png', 'north/well/p2/x/1.png', 'south/ill/p1/x/1.png'
    )
    table = self._read(levels='site/class/patient/*')
    self.assertEqual(table.class_names, ('ill', 'well'))
    self.assertEqual(table.site_names, ('north', 'south'))
    self.assertEqual(table.num_patients, 3)  # p1 of two sites are two people.
    self.assertEqual(table.shown(0), 'north/ill/*/x/1.png')

  def test_one_numbering_for_all_splits(self):
    self._touch('train/b 10/1.png', 'train/b 9/1.png', 'val/b 10/2.png')
    table = self._read()
    self.assertEqual(table.class_names, ('b 9', 'b 10'))
    self.assertEqual(table.labels.tolist(), [1, 0, 1])
    self.assertEqual(image_table.by_split(table), {'train': 2, 'validation': 1})

  @parameterized.named_parameters(
    ('deep', ['n/a/1.png', 'n/b/1.png'], None, 'folder_levels'),
    ('loose', ['1.png', 'a/1.png', 'b/2.png'], None, 'no class folder'),
    ('uneven', ['a/1.png', 'b/c/2.png'], 'class', '1 of 2 files'),
    ('one', ['a/1.png'], None, 'at least 2 classes'),
    ('case', ['Ill/1.png', 'ill/2.png'], None, "'Ill' and 'ill'"),
    ('blanks', ['ill/1.png', 'ill /2.png'], None, "'ill' and 'ill '"),
    ('sites', ['N/a/1.png', 'n/b/2.png'], 'site/class', "site .*'N' and 'n'"),
    ('level', ['a/1.png'], 'kind', "got 'kind'"),
    ('no_class', ['a/1.png'], 'site', 'which folder is the class'),
    ('twice', ['a/1.png'], 'class/class', 'once'),
    ('split', ['x/a/1.png', 'train/b/1.png'], 'split/class', "got 'x'"),
    ('none', ['notes.txt'], None, 'holds no image'),
  )
  def test_refuses(self, paths, levels, message):
    self._touch(*paths)
    with self.assertRaisesRegex(_validate.InputError, message):
      self._read(levels=levels)

  def test_a_patient_in_two_splits_is_not_named(self):
    self._touch('train/a/P77/1.png', 'test/b/P77/2.png', 'test/a/P78/1.png')
    with self.assertRaisesRegex(_validate.InputError, '1 patient') as caught:
      self._read(levels='split/class/patient')
    self.assertNotIn('P77', str(caught.exception))

  def test_a_misplaced_file_of_a_patient_is_not_named(self):
    self._touch('a/P77/1.png', 'b/P77/x/2.png')
    with self.assertRaisesRegex(_validate.InputError, '1 of 2') as caught:
      self._read(levels='class/patient')
    self.assertNotIn('P77', str(caught.exception))

  def test_patients_of_dicom_headers(self):
    values = np.zeros((4, 4), np.uint8)
    for i, patient in enumerate(('P1', 'P1', 'P2', '')):
      path = self.root / 'ab'[i % 2] / f'{i}.dcm'
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(dicom_writing.content(values, PatientID=patient))
    with self.assertRaisesRegex(_validate.InputError, '1 of 4 images have no'):
      self._read(dicom_patients=True)
    table = self._read(dicom_patients=True, missing_patients='own')
    self.assertEqual(table.num_patients, 3)
    table = self._read(dicom_patients=True, missing_patients='leave_out')
    self.assertEqual((len(table), table.num_patients), (3, 2))

  def test_other_archives_are_to_be_unpacked(self):
    archive = self.root / 'scans.7z'
    archive.write_bytes(b'')
    with self.assertRaisesRegex(_validate.InputError, 'unpack it first'):
      folder_tables.read(archive)


class FileTableTest(_Files):
  def setUp(self):
    super().setUp()
    self._touch(*(f'{i}.png' for i in range(6)))

  def _read(self, text, columns=None, form=None, **options):
    path = self.root / 'list.csv'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file_tables.read(
      path,
      columns or file_tables.Columns(),
      form or label_cells.LabelForm(),
      **options,
    )

  @parameterized.product(
    encoding=('utf-8', 'utf-8-sig', 'utf-16', 'utf-16-be', 'cp1252'),
    delimiter=(',', ';', '\t', '|'),
    newline=('\n', '\r\n'),
  )
  def test_encodings_and_separators(self, encoding, delimiter, newline):
    rows = ['File', 'Läsion'], ['0.png', '"ja, klein"'], ['1.png', 'nein']
    text = newline.join(delimiter.join(cells) for cells in rows)
    table = self._read(
      text.encode(encoding),
      file_tables.Columns(file='file'),
      label_cells.LabelForm(columns=('Läsion',)),
    )
    self.assertEqual(table.class_names, ('ja, klein', 'nein'))

  def test_separator_line_of_excel(self):
    table = self._read('sep=;\nfile;label;\n0.png;a;\n\n1.png;b;\n')
    self.assertEqual(table.paths, ('0.png', '1.png'))

  @parameterized.named_parameters(
    ('column', 'file,class\n0.png,a', "label_columns=label.*'class'"),
    ('twice', 'file,label,label\n0.png,a,b', '2 columns'),
    ('cells', 'file,label\n0.png,a,b', 'row 2 has 3 cells'),
    ('empty', '', 'is empty|label_columns|file_column'),
    ('no_rows', 'file,label\n', 'no row'),
    ('blank', 'file,label\n0.png,a\n1.png,', r'1 labels are blank \(row 3'),
    ('uncertain', 'file,label\n0.png,1\n1.png,-1.0', 'uncertain .*row 3'),
    ('one_class', 'file,label\n0.png,a\n1.png,a', 'at least 2 classes'),
    ('case', 'file,label\n0.png,Yes\n1.png,yes', "'Yes' and 'yes'"),
    ('conflict', 'file,label\n0.png,a\n0.png,b', 'row 2 and row 3'),
    (
      'two_texts',
      'file,label\nx/0.png,a\ny/0.png,a\n1.png,b',
      'row 2 and row 3: .*different paths',
    ),
    ('bytes', b'file,label\n\0\0\0', 'no text'),
  )
  def test_refuses(self, text, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      self._read(text)

  def test_split_words_and_conflicts(self):
    columns = file_tables.Columns(split='split')
    table = self._read(
      'file,label,split\n0.png,a,Training\n1.png,b,VALID\n2.png,a,test',
      columns,
    )
    self.assertEqual(table.splits.tolist(), [0, 1, 2])
    for word in ('', 'fold1'):
      with self.assertRaisesRegex(_validate.InputError, 'row 3: split'):
        self._read(f'file,label,split\n0.png,a,train\n1.png,b,{word}', columns)
    with self.assertRaisesRegex(_validate.InputError, 'different split'):
      self._read(
        'file,label,split\n0.png,a,train\n0.png,a,test\n1.png,b,test', columns
      )

  def test_patients_in_several_splits_by_number_and_row(self):
    columns = file_tables.Columns(patient='who', split='split', site='site')
    text = (
      'file,label,who,split,site\n0.png,a,ZED1,train,x\n1.png,b,ZED1,test,y\n'
      '2.png,a,ZED2,train,x\n3.png,b, ZED2 ,test,x\n4.png,a,ZED3,train,x\n'
      '5.png,b,ZED3,validation,x\n'
    )
    with self.assertRaisesRegex(
      _validate.InputError, '2 patients .*row 4 and row 5, row 6 and row 7'
    ) as caught:
      self._read(text, columns)
    self.assertNotIn('ZED', str(caught.exception))

  def test_a_conflict_of_patients_is_not_named(self):
    columns = file_tables.Columns(patient='who')
    with self.assertRaisesRegex(
      _validate.InputError, 'row 2 and row 3 .*patient;'
    ) as caught:
      self._read('file,label,who\n0.png,a,ZED1\n0.png,a,ZED2', columns)
    self.assertNotIn('ZED', str(caught.exception))
    self.assertNotIn('ZED', repr(self._read(
      'file,label,who\n0.png,a,ZED1\n1.png,b,ZED2', columns
    )))  # fmt: skip

  def test_missing_files(self):
    text = 'file,label\n0.png,a\nlost.png,b\n1.png,b\n'
    with self.assertRaisesRegex(
      _validate.InputError, "1 of 3 rows .*row 3: file 'lost.png'"
    ):
      self._read(text)
    table = self._read(text, missing_files='leave_out')
    self.assertLen(table, 2)
    self.assertIn('1 rows without their file', table.notes[0])

  def test_sites_are_needed_in_every_row(self):
    with self.assertRaisesRegex(_validate.InputError, '1 of 2 .*site .*row 3'):
      self._read(
        'file,label,site\n0.png,a,x\n1.png,b,', file_tables.Columns(site='site')
      )

  def test_masked_findings(self):
    form = label_cells.LabelForm(('A', 'B'), uncertain='mask', blank='mask')
    columns = file_tables.Columns()
    text = 'file,A,B\n0.png,1,\n1.png,-1,0\n2.png,,-1.0\n'
    table = self._read(text, columns, form)
    self.assertEqual(table.labels.tolist(), [[1, -1], [-1, 0], [-1, -1]])
    self.assertLen(table, 3)
    self.assertEqual(
      table.notes,
      ('4 of 6 labels are unknown and masked; 1 images have no known label.',),
    )
    with self.assertRaisesRegex(
      _validate.InputError,
      r"row 3 and .*row 5 .* different unknown labels \(\['A'\] and \[\]\)",
    ):
      self._read(text + '1.png,0,0\n', columns, form)

  def test_parquet(self):
    frame = pandas.DataFrame(
      {
        'file': pandas.Categorical(['0.png', '1.png', '2.png']),
        'label': [1.0, 0.0, 10.0],
        'who': [7, 7, 70],
      }
    )
    path = self.root / 'table.whatever'
    frame.to_parquet(path)
    table = file_tables.read(
      path, file_tables.Columns(patient='who'), label_cells.LabelForm()
    )
    self.assertEqual(table.class_names, ('0', '1', '10'))
    self.assertEqual(table.num_patients, 2)

  @parameterized.parameters(
    ('list.xlsx', 'save its sheet as CSV'),
    ('list.zip', 'unpack the table first'),
    ('nowhere.csv', 'is not there'),
  )
  def test_files_that_are_no_tables(self, name, message):
    if name != 'nowhere.csv':
      (self.root / name).write_bytes(b'PK')
    with self.assertRaisesRegex(_validate.InputError, message):
      file_tables.read(
        self.root / name, file_tables.Columns(), label_cells.LabelForm()
      )


class LabelTest(parameterized.TestCase):
  def _read(self, form, *cells):
    rows = [
      (f'row {i + 2}', dict(zip(form.columns, c))) for i, c in enumerate(cells)
    ]
    return label_cells.read(form, rows)

  @parameterized.product(
    uncertain=label_cells.CHOICES, blank=label_cells.CHOICES
  )
  def test_choices_of_findings(self, uncertain, blank):
    form = label_cells.LabelForm(('A', 'B'), uncertain=uncertain, blank=blank)
    found = self._read(form, ('1.0', '0'), ('-1', '1'), ('', '0'))
    self.assertEqual(found[0], (('A',), ()))
    of = {
      '0': ((), ()),
      '1': (('A',), ()),
      'leave_out': None,
      'mask': ((), ('A',)),
    }
    expected = of[uncertain]
    if expected is not None:
      expected = ((*expected[0], 'B'), expected[1])
    self.assertEqual(found[1], expected)
    self.assertEqual(found[2], of[blank])

  def test_both_choices_are_asked_for_at_once(self):
    form = label_cells.LabelForm(('A', 'B'))
    with self.assertRaisesRegex(
      _validate.InputError, r'2 .*\(-1\).*row 2.*row 3.*1 .*blank.*row 4'
    ):
      self._read(form, ('-1', '0'), ('-1.0', '1'), ('', '1'))

  @parameterized.parameters(
    (dict(columns=('A', 'B')), '-1', '0, 1, leave_out, mask$'),
    (dict(columns=('A', 'B')), '', '0, 1, leave_out, mask$'),
    (dict(columns=('A', 'B'), one_hot=True), '', '=0, 1, leave_out$'),
    (dict(columns=('A',)), '-1', '=0, 1, leave_out$'),
    (dict(columns=('A',)), '', '=leave_out$'),
  )
  def test_what_may_be_chosen_is_said(self, form, cell, message):
    form = label_cells.LabelForm(**form)
    with self.assertRaisesRegex(_validate.InputError, message):
      self._read(form, [cell] * len(form.columns))

  def test_findings_in_a_cell(self):
    form = label_cells.LabelForm(('L',), separator='|', no_finding='None')
    found = self._read(form, ('A|B',), ('none',), (' B | B ',))
    self.assertEqual([row.present for row in found], [('A', 'B'), (), ('B',)])
    with self.assertRaisesRegex(_validate.InputError, "row 2.*'A|None'"):
      self._read(form, ('A|None',))

  @parameterized.parameters(('0', '0'), ('1', '1'))
  def test_one_hot_is_exactly_one(self, *cells):
    form = label_cells.LabelForm(('A', 'B'), one_hot=True)
    self.assertEqual(self._read(form, ('0.0', '1.0'))[0].present, ('B',))
    with self.assertRaisesRegex(_validate.InputError, 'row 3: [02] of the'):
      self._read(form, ('1', '0'), cells)

  def test_other_cells_are_refused(self):
    with self.assertRaisesRegex(
      _validate.InputError, "row 2: column 'B' must hold 0 or 1, got 'maybe'"
    ):
      self._read(label_cells.LabelForm(('A', 'B')), ('1', 'maybe'))

  @parameterized.parameters(
    (dict(uncertain='ignore'), 'mask leaves the single finding out'),
    (dict(uncertain='mask'), 'mask needs several label_columns .* got label;'),
    (dict(blank='mask', separator='|'), 'blank=mask needs several'),
    (
      dict(columns=('A', 'B'), one_hot=True, blank='mask'),
      'got A, B with one_hot; choose leave_out',
    ),
    (dict(blank='2'), 'blank must be one of'),
    (dict(columns=()), 'label_columns'),
    (dict(columns=('A', 'A')), 'once'),
    (dict(one_hot=True), 'several columns'),
    (dict(columns=('A', 'B'), separator='|'), 'label_separator'),
    (dict(no_finding='x'), 'no_finding'),
  )
  def test_forms_that_make_no_sense(self, values, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      label_cells.LabelForm(**values)


if __name__ == '__main__':
  absltest.main()
