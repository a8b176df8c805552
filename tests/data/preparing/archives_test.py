"""Tests of archives: unpacked once, whole or not at all, and never outside."""

import gzip
import io
import os
import pathlib
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
from unittest import mock
import warnings
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data import own_images
from tff_medical.data.decoders import decoding_pool
from tff_medical.data.preparing import archive_members
from tff_medical.data.preparing import archives
from tff_medical.data.tables import file_tables

_FILES = {
  'ill/1.png': b'one',
  'ill/2.png': b'two' * 1000,
  'well/1.png': os.urandom(3 * 2**20),
  '__MACOSX/ill/._1.png': b'left behind',
  'well/.DS_Store': b'',
}
_SUFFIXES = archives.SUFFIXES
# Unpacks in a process of its own, which is killed on the way.
_PROGRAM = """
import os, pathlib, signal, sys
from tff_medical.data.preparing import archives
add = archives._Limit.add
def add_and_die(self, num_bytes):
  add(self, num_bytes)
  if self.written > 2**20:
    os.kill(os.getpid(), signal.SIGKILL)
archives._Limit.add = add_and_die
archives.unpacked('data_dir', *map(pathlib.Path, sys.argv[1:]))
"""


def write_archive(path, files, prefix=''):
  """Writes files, by their names, into an archive of the path's suffix."""
  if path.name.endswith('.zip'):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      for name, content in files.items():
        archive.writestr(prefix + name, content)
    return
  mode = 'w:' if path.name.endswith('.tar') else 'w:gz'
  with tarfile.open(path, mode) as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(prefix + name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))


def _png(value):
  content = io.BytesIO()
  pixels = np.full((8, 8), value, np.uint8)
  pixels[:4] = 255 - value
  Image.fromarray(pixels).save(content, 'PNG')
  return content.getvalue()


class _Archives(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.prepared = self.temp / 'prepared'

  def _unpack(self, path):
    return archives.unpacked('data_dir', path, self.prepared)

  def _content(self, folder):
    return {
      str(path.relative_to(folder)): path.read_bytes()
      for path in folder.rglob('*')
      if path.is_file()
    }

  def _assert_nothing_is_left(self):
    self.assertEmpty(list((self.prepared / 'unpacked').iterdir()))

  def _assert_refused(self, path, *texts):
    with self.assertRaises(_validate.InputError) as caught:
      self._unpack(path)
    message = str(caught.exception)
    for text in (f'data_dir {str(path)!r} cannot be unpacked: ', *texts):
      self.assertIn(text, message)
    self.assertNotIn('\n', message)
    self._assert_nothing_is_left()


class UnpackedTest(_Archives):
  @parameterized.parameters(*_SUFFIXES)
  def test_holds_what_was_packed(self, suffix):
    path = self.temp / f'scans{suffix}'
    write_archive(path, _FILES)
    folder = self._unpack(path)
    self.assertEqual(self._content(folder), _FILES)

  def test_a_foreign_program_packs(self):
    """GNU tar writes ./ before names, folders, and blocks of 10 KiB."""
    for name, content in _FILES.items():
      file = self.temp / 'in' / name
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(content)
    (self.temp / 'in' / 'empty').mkdir()
    path = self.temp / 'scans.tgz'
    subprocess.run(
      ['tar', '-czf', path, '-C', self.temp / 'in', '.'], check=True
    )
    folder = self._unpack(path)
    self.assertEqual(self._content(folder), _FILES)
    self.assertTrue((folder / 'empty').is_dir())

  def test_content_decides_and_not_the_name(self):
    for written, given in (('a.zip', 'b.tar'), ('a.tar', 'b.tgz')):
      write_archive(self.temp / written, _FILES)
      path = (self.temp / written).rename(self.temp / given)
      self.assertEqual(self._content(self._unpack(path)), _FILES)

  def test_is_private(self):
    path = self.temp / 'scans.zip'
    write_archive(path, _FILES)
    self._unpack(path)
    for place in (self.prepared, *self.prepared.rglob('*')):
      self.assertFalse(stat.S_IMODE(place.stat().st_mode) & 0o077, place)

  def test_names_of_macos_and_of_dos(self):
    for flag, encoding in ((0, 'utf-8'), (0, 'cp437'), (0x800, 'utf-8')):
      path = self.temp / f'{flag}_{encoding}.zip'
      write_archive(path, {'xx/1.png': b''})
      content = path.read_bytes()
      name = 'ä'.encode(encoding)
      content = content.replace(
        b'xx/1.png', (name + b'x')[:2] + b'/1.png'
      )  # fmt: skip
      if flag:  # Of the local and of the central header.
        content = bytearray(content)
        content[6:8] = struct.pack('<H', flag)
        place = content.index(b'PK\1\2') + 8
        content[place : place + 2] = struct.pack('<H', flag)
      path.write_bytes(content)
      (found,) = self._content(self._unpack(path))
      self.assertEqual(found[0], 'ä')

  def test_is_unpacked_once_and_digested_once(self):
    path = self.temp / 'scans.tar.gz'
    write_archive(path, _FILES)
    folder = self._unpack(path)
    with mock.patch.object(archives._Unpacking, '_digest') as digest:
      self.assertEqual(self._unpack(path), folder)
    digest.assert_not_called()
    moved = path.rename(self.temp / 'other.tgz')
    shutil.copy(moved, path)
    with mock.patch.object(archives._Unpacking, '_unpack') as unpack:
      self.assertEqual(self._unpack(path), folder)
    unpack.assert_not_called()

  def test_a_changed_archive_of_the_same_size_and_time_is_another_one(self):
    path = self.temp / 'scans.tar'
    write_archive(path, {'a/1.png': b'one'})
    status = path.stat()
    first = self._unpack(path)
    write_archive(path, {'a/1.png': b'two'})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    self.assertEqual(path.stat().st_size, status.st_size)
    second = self._unpack(path)
    self.assertNotEqual(first, second)
    self.assertEqual((second / 'a/1.png').read_bytes(), b'two')
    # Preparation knows a file by its size and time.
    self.assertNotEqual(
      (first / 'a/1.png').stat().st_mtime_ns,
      (second / 'a/1.png').stat().st_mtime_ns,
    )

  def test_is_unpacked_again_if_files_were_removed(self):
    path = self.temp / 'scans.zip'
    write_archive(path, _FILES)
    folder = self._unpack(path)
    (folder / 'ill/1.png').unlink()
    self.assertEqual(self._unpack(path), folder)
    self.assertEqual(self._content(folder), _FILES)

  @parameterized.parameters('.zip', '.tgz')
  def test_a_kill_leaves_nothing_that_looks_whole(self, suffix):
    path = self.temp / f'scans{suffix}'
    write_archive(path, _FILES)
    done = subprocess.run(
      [sys.executable, '-c', _PROGRAM, path, self.prepared],
      check=False,
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    self.assertEqual(done.returncode, -signal.SIGKILL)
    (leftover,) = (self.prepared / 'unpacked').iterdir()
    self.assertEndsWith(leftover.name, '.partial')
    # Of another archive, so that it would not be overwritten.
    leftover.rename(leftover.with_name('0.partial'))
    folder = self._unpack(path)
    self.assertEqual(self._content(folder), _FILES)
    self.assertEqual(
      list((self.prepared / 'unpacked').iterdir()), [folder.parent]
    )

  def test_an_archive_that_is_still_being_copied(self):
    path = self.temp / 'scans.tar'
    write_archive(path, _FILES)
    check = archives._Limit.check

    def appended(limit, stated):
      check(limit, stated)
      with open(path, 'ab') as file:
        file.write(bytes(512))

    with mock.patch.object(archives._Limit, 'check', appended):
      self._assert_refused(path, 'was changed while it was read')

  def test_a_full_disk(self):
    path = self.temp / 'scans.zip'
    write_archive(path, _FILES)
    usage = shutil.disk_usage(self.temp)._replace(free=2**28 + 2**20)
    with mock.patch.object(shutil, 'disk_usage', return_value=usage):
      self._assert_refused(path, 'are free; make room', '--prepared_dir')
    full = OSError(28, 'No space left on device')
    with mock.patch.object(os, 'utime', side_effect=full):
      with self.assertRaisesRegex(_validate.InputError, 'No space left'):
        self._unpack(path)
    self._assert_nothing_is_left()

  def test_a_missing_archive(self):
    with self.assertRaisesRegex(_validate.InputError, 'data_dir .*cannot be'):
      self._unpack(self.temp / 'nowhere.zip')


class RefusedTest(_Archives):
  @parameterized.product(
    suffix=('.zip', '.tar', '.tgz'),
    case=(
      ('/etc/1.png', 'absolute path'),
      ('C:/scans/1.png', 'absolute path'),
      ('a/../../1.png', 'leads out of the archive'),
      ('a\\1.png', 'backslash'),
      ('/'.join('a' * 70), '64 folders deep'),
      ('a' * 256, '255 bytes'),
      ('ill/1.png', 'is there twice'),
      ('ILL/2.png', "differs from 'ill' by case"),
      ('ill/1.PNG', "differs from 'ill/1.png' by case"),
      ('ill/1.png/2.png', 'is there twice'),
      ('ill', 'is there twice'),
    ),
  )
  def test_name(self, suffix, case):
    name, reason = case
    path = self.temp / f'scans{suffix}'
    write_archive(path, {'ill/1.png': b'one'})
    if suffix == '.zip':
      with zipfile.ZipFile(path, 'a') as archive:
        with warnings.catch_warnings():
          warnings.simplefilter('ignore')  # Of a name that is there twice.
          archive.writestr(name, b'')
    else:
      with tarfile.open(path, 'w' if suffix == '.tar' else 'w:gz') as archive:
        archive.addfile(tarfile.TarInfo('ill/1.png'))
        archive.addfile(tarfile.TarInfo(name))
    self._assert_refused(path, reason, '; pack it again: ')
    self.assertFalse((self.temp / '1.png').exists())

  def test_single_letters_twice(self):
    path = self.temp / 'scans.tar'
    with tarfile.open(path, 'w') as archive:
      for _ in range(2):
        archive.addfile(tarfile.TarInfo('a'))
    self._assert_refused(path, "its member 'a' is there twice")

  @parameterized.parameters(
    (tarfile.SYMTYPE, 'is a link'),
    (tarfile.LNKTYPE, 'is a link'),
    (tarfile.FIFOTYPE, 'is a device or a pipe'),
    (tarfile.CHRTYPE, 'is a device or a pipe'),
    (b'Z', 'is a device or a pipe'),
  )
  def test_kind_of_tar(self, kind, reason):
    path = self.temp / 'scans.tar'
    with tarfile.open(path, 'w') as archive:
      info = tarfile.TarInfo('a/1.png')
      info.type, info.linkname = kind, '/etc/passwd'
      archive.addfile(info)
    self._assert_refused(path, "its member 'a/1.png'", reason)

  def test_sparse_file(self):
    (self.temp / 'big').touch()
    os.truncate(self.temp / 'big', 2**40)
    path = self.temp / 'scans.tar'
    subprocess.run(
      ['tar', '--sparse', '-cf', path, '-C', self.temp, 'big'], check=True
    )
    self._assert_refused(path, "its member 'big' is a sparse file")

  @parameterized.parameters(
    (stat.S_IFLNK, 'is a link'), (stat.S_IFIFO, 'is a device or a pipe')
  )
  def test_kind_of_zip(self, kind, reason):
    path = self.temp / 'scans.zip'
    with zipfile.ZipFile(path, 'w') as archive:
      info = zipfile.ZipInfo('a/1.png')
      info.external_attr = (kind | 0o644) << 16
      archive.writestr(info, '/etc/passwd')
    self._assert_refused(path, "its member 'a/1.png'", reason)

  @parameterized.parameters(zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
  def test_method_that_is_not_unpacked_in_bounds(self, method):
    path = self.temp / 'scans.zip'
    with zipfile.ZipFile(path, 'w', method) as archive:
      archive.writestr('a/1.png', bytes(2**20))
    self._assert_refused(
      path, f"'a/1.png' is compressed by method {method}", 'stored or deflated'
    )

  def test_encrypted(self):
    path = self.temp / 'scans.zip'
    write_archive(path, _FILES)
    content = bytearray(path.read_bytes())
    content[content.rindex(b'PK\1\2') + 8] |= 1
    path.write_bytes(content)
    self._assert_refused(path, "'well/.DS_Store' is encrypted", 'password')

  @parameterized.product(suffix=_SUFFIXES, part=tuple(range(1, 16)))
  def test_cut_short(self, suffix, part):
    path = self.temp / f'scans{suffix}'
    write_archive(path, _FILES)
    size = path.stat().st_size
    if part == 15:  # Within the marks of the end, of which tar has 10 KiB.
      size -= 10240 if suffix == '.tar' else 1
    else:
      size = size * part // 15
    os.truncate(path, size)
    self._assert_refused(path, 'is damaged or cut short', 'again')

  def test_cut_at_the_header_of_each_member(self):
    path = self.temp / 'scans.tar'
    write_archive(path, {f'a/{i}.png': bytes(600) for i in range(3)})
    for size in range(512, 3 * 1536 + 1, 512):
      with self.subTest(size=size):
        os.truncate(path, size)
        self._assert_refused(path, 'cut short')
        write_archive(path, {f'a/{i}.png': bytes(600) for i in range(3)})

  @parameterized.parameters('.zip', '.tar.gz')
  def test_flipped_bit(self, suffix):
    path = self.temp / f'scans{suffix}'
    write_archive(path, _FILES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    self._assert_refused(path, 'is damaged or cut short')

  def test_damaged_header_of_a_tar(self):
    """`tarfile` takes it for the end."""
    path = self.temp / 'scans.tar'
    write_archive(path, {'a/1.png': b'1', 'a/2.png': b'2'})
    content = bytearray(path.read_bytes())
    content[1024] ^= 1
    path.write_bytes(content)
    self._assert_refused(path, 'is damaged')

  def test_joined_tars(self):
    path = self.temp / 'scans.tar'
    write_archive(path, {'a/1.png': b'1'})
    path.write_bytes(2 * path.read_bytes())
    self._assert_refused(path, 'more follows its end')

  @parameterized.parameters(b'', b'PK', b'no archive at all' * 100)
  def test_no_archive(self, content):
    for suffix in _SUFFIXES:
      path = self.temp / f'scans{suffix}'
      path.write_bytes(content)
      self._assert_refused(path, 'is damaged or cut short')

  def test_empty(self):
    for suffix in _SUFFIXES:
      path = self.temp / f'scans{suffix}'
      write_archive(path, {})
      self._assert_refused(path, 'holds no file')

  @parameterized.parameters('.zip', '.tar.gz')
  def test_bomb(self, suffix):
    path = self.temp / f'scans{suffix}'
    write_archive(path, {'a/1.png': bytes(2**27)})
    self._assert_refused(path, 'unpack to more than', 'unpack it yourself')

  def test_bomb_that_states_a_small_size(self):
    path = self.temp / 'scans.zip'
    write_archive(path, {'a/1.png': bytes(2**27)})
    content = bytearray(path.read_bytes())
    place = content.index(b'PK\1\2') + 24
    content[place : place + 4] = struct.pack('<I', 1000)
    path.write_bytes(content)
    self._assert_refused(path, "'a/1.png' is damaged")

  def test_member_that_is_shorter_than_stated(self):
    path = self.temp / 'scans.zip'
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('a/1.png', b'one')
    content = bytearray(path.read_bytes())
    content[content.index(b'PK\1\2') + 24] += 5
    path.write_bytes(content)
    self._assert_refused(path, "'a/1.png' has 3 bytes and not the 8 that")

  def test_many_members_over_the_same_bytes(self):
    """One packed file that many entries of the directory name."""
    path = self.temp / 'scans.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      archive.writestr('a', bytes(2**22))
      info = archive.filelist[0]
      for i in range(64):
        copy = zipfile.ZipInfo(f'{i}')
        for name in ('CRC', 'compress_size', 'file_size', 'compress_type'):
          setattr(copy, name, getattr(info, name))
        copy.header_offset = 0
        archive.filelist.append(copy)
    self._assert_refused(path, 'unpack to more than')

  def test_header_that_claims_all_memory(self):
    """A pax header of 8 GiB; `tarfile` would read it whole."""
    info = tarfile.TarInfo('a')
    info.type, info.size = tarfile.XHDTYPE, 2**33
    path = self.temp / 'scans.tar.gz'
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)))
    with mock.patch.object(
      gzip.GzipFile, 'read', side_effect=gzip.GzipFile.read, autospec=True
    ) as read:
      self._assert_refused(path, 'a header claims 8,589,934,592 bytes')
    self.assertLess(max(call.args[1] for call in read.call_args_list), 2**22)

  def test_too_many_members(self):
    files = {f'a/{i}': b'' for i in range(20)}
    for suffix in _SUFFIXES:
      path = self.temp / f'scans{suffix}'
      write_archive(path, files)
      with mock.patch.object(archive_members, 'MAX_MEMBERS', 15):
        self._assert_refused(path, 'more than 15 files')
      with mock.patch.object(archive_members, 'MAX_MEMBERS', 5):
        self._assert_refused(path, 'more than 5')

  def test_directory_that_claims_all_memory(self):
    path = self.temp / 'scans.zip'
    write_archive(path, _FILES)
    content = bytearray(path.read_bytes())
    content[-10:-6] = struct.pack('<I', 2**31)
    path.write_bytes(content)
    self._assert_refused(path, 'its directory would take 2,147,483,648 bytes')


class OwnImagesTest(_Archives):
  """Archives give what the folder in them gives."""

  def setUp(self):
    super().setUp()
    self.files = {f'{"ab"[i % 2]}/{i}.png': _png(10 * i) for i in range(12)} | {
      'a/.DS_Store': b'',
      'a/notes.txt': b'',
    }
    self.own = own_images.OwnImages(
      prepared_dir=str(self.prepared), workers=1, channels=1
    )
    folder = self.temp / 'folder'
    for name, content in self.files.items():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_bytes(content)
    self.folder = folder

  def _load(self, path, name=own_images.FOLDER, **changed):
    own = own_images.OwnImages(
      prepared_dir=str(self.prepared), workers=1, channels=1, **changed
    )
    return own_images.load(name, str(path), 8, own)

  @parameterized.product(suffix=('.zip', '.tgz'), prefix=('', 'data/', './'))
  def test_folder(self, suffix, prefix):
    path = self.temp / f'scans{suffix}'
    write_archive(path, self.files, prefix)
    data, expected = self._load(path), self._load(self.folder)
    self.assertEqual(data.class_names, ('a', 'b'))
    self.assertEqual(data.source_digest, expected.source_digest)
    self.assertEqual(data.preparation, expected.preparation)

  @parameterized.parameters(
    ('data/', 'class', 1), ('', 'class', 1), ('data/', '*/class', 1),
    ('north/', 'site/class', 1),
  )  # fmt: skip
  def test_levels(self, prefix, levels, sites):
    path = self.temp / 'scans.zip'
    write_archive(path, self.files, prefix)
    data = self._load(path, folder_levels=levels)
    self.assertEqual(data.class_names, ('a', 'b'))
    self.assertEqual(data.site_names, ('north',) if prefix == 'north/' else ())

  def test_splits_in_a_wrapping_folder(self):
    files = {
      f'data/{split}/{name}': content
      for split in ('train', 'test')
      for name, content in self.files.items()
    }
    write_archive(self.temp / 'scans.zip', files)
    table = own_images.read_table(
      own_images.FOLDER, str(self.temp / 'scans.zip'), self.own
    )
    self.assertIsNotNone(table.splits)

  def test_a_wrapping_folder_of_a_folder_is_asked_about(self):
    self.folder.rename(self.temp / 'data')
    (self.temp / 'folder').mkdir()
    (self.temp / 'data').rename(self.folder / 'data')
    with self.assertRaisesRegex(_validate.InputError, 'folder_levels'):
      self._load(self.folder)

  def test_images_of_a_table(self):
    path = self.temp / 'scans.zip'
    write_archive(path, self.files)
    table = self.temp / 'table.csv'
    lines = ['file,label', *(f'{n},{n[0]}' for n in self.files if 'png' in n)]
    table.write_text('\n'.join(lines))
    data = self._load(table, own_images.TABLE, image_dir=str(path))
    expected = self._load(table, own_images.TABLE, image_dir=str(self.folder))
    self.assertEqual(data.source_digest, expected.source_digest)
    write_archive(path, self.files, 'data/')
    data = self._load(table, own_images.TABLE, image_dir=str(path))
    self.assertEqual(data.preparation, expected.preparation)
    shutil.rmtree(self.prepared)
    with self.assertRaisesRegex(_validate.InputError, 'patient_column=who'):
      self._load(
        table,
        own_images.TABLE,
        image_dir=str(path),
        columns=file_tables.Columns(patient='who'),
      )
    self.assertFalse(self.prepared.exists())  # Nothing was unpacked.

  def test_only_what_is_new_in_a_later_archive_is_decoded(self):
    path = self.temp / 'scans.zip'
    write_archive(path, self.files)
    self._load(path)
    self.files['a/0.png'] = _png(99)
    write_archive(path, {**self.files, 'b/new.png': _png(77)}, 'data/')
    asked = []
    outcomes = decoding_pool.Pool.outcomes

    def noted(pool, files):
      files = list(files)
      asked.extend(pathlib.Path(file).name for _, file in files)
      return outcomes(pool, iter(files))

    with mock.patch.object(decoding_pool.Pool, 'outcomes', noted):
      self._load(path)
    self.assertCountEqual(asked, ['0.png', 'new.png'])

  @parameterized.parameters('.7z', '.rar', '.tar.xz')
  def test_other_kinds_are_to_be_unpacked(self, suffix):
    path = self.temp / f'scans{suffix}'
    _files.write_bytes(path, b'')
    with self.assertRaisesRegex(_validate.InputError, 'pack it as .zip'):
      self._load(path)


if __name__ == '__main__':
  absltest.main()
