"""Data before training: one HTML page, tables and pictures, without noise.

`write` shows whoever holds the data what it is made of: counts, contact sheets,
grey levels, decoding rules, clients and copies. Nothing of it is noised or
covered by any ε, so that every file is private, says so in its name, and has to
stay where the images are. Patients are counted, and neither their numbers nor
names of files are shown. A contact sheet shows images, and what is burnt into
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import csv
import io
import math
import pathlib

import numpy as np

from tff_medical import _files
from tff_medical.data import images
from tff_medical.data import overview as overview_lib
from tff_medical.data import partition as partition_lib
from tff_medical.data import preparation_counts
from tff_medical.reporting import data_plots
from tff_medical.reporting import plots
from tff_medical.reporting import report_style

MARK = 'unnoised'
PAGE = f'data_report.{MARK}.html'
_WARNING = (
  'UN-NOISED, covered by no ε: for whoever holds the data; do not publish or '
  'send it'
)
_COPIES_NOTE = (
  'An image is a near copy if it is almost equal to another one when both are '
  'shrunk to 16 x 16: also mirrored, turned, darker, brighter or recompressed. '
  'Crops are not found. Uniform images may be near copies by chance: look at the '
  'examples. Copies of an image, and copies of these, form a group.'
)
# Sizes with a row of their own.
_NUM_SIZES = 20
_TRAIN = images.SPLIT_NAMES[0]


def write(
  data: images.ImageData,
  overview: overview_lib.Overview,
  partition: partition_lib.Partition,
  folder: pathlib.Path,
) -> list[str]:
  """Writes the page, its tables and its figures.

  Args:
    data: The images.
    overview: `overview.of` the images.
    partition: Indices of the training images of each client.
    folder: Made if it is not there, for its owner alone.

  Returns:
    The findings, in sentences.
  """
  clients = client_counts(data, partition)
  findings = list(_findings(data, overview, clients))
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  figures = data_plots.all_plots(data, overview, clients)
  for plot in figures:
    plots.save(plot.figure, folder, f'{plot.name}.{MARK}').chmod(0o600)
  _write_csv(folder, 'counts', _count_rows(overview))
  _write_csv(folder, 'clients', _client_rows(overview, clients))
  _write_csv(folder, 'copies', _copy_rows(overview))
  if data.preparation is not None:
    _write_csv(folder, 'sizes', _size_rows(data.preparation))
  page = report_style.page(
    title=f'UN-NOISED: the images of {data.name}',
    subtitle=_WARNING,
    body=_body(data, overview, findings, figures),
  )
  _files.write_bytes(folder / PAGE, page.encode(), private=True)
  return findings


def client_counts(
  data: images.ImageData, partition: partition_lib.Partition
) -> np.ndarray:
  """Returns the images of each class that clients have, int64 [K, C]."""
  member = overview_lib.by_class(data.train.labels, data.num_classes)
  clients = partition_lib.ClientRows.of(partition)
  starts = clients.ends - clients.sizes
  return np.add.reduceat(member[clients.rows], starts, dtype=np.int64)


def count_table(overview: overview_lib.Overview) -> str:
  """Returns the number of images by site, class and split, as aligned text."""
  cells: list[tuple[str, ...]] = [('site', 'class', *images.SPLIT_NAMES)]
  for i, site in enumerate(overview.sites):
    for j, name in enumerate(overview.classes):
      cells.append((site, name, *(f'{n:,}' for n in overview.counts[:, i, j])))
  widths = [max(map(len, column)) for column in zip(*cells)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) if column < 2 else cell.rjust(width)
      for column, (cell, width) in enumerate(zip(line, widths))
    )
    for line in cells
  )


def _write_csv(
  folder: pathlib.Path, name: str, rows: Iterable[Sequence[object]]
) -> None:
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(rows)
  path = folder / f'{name}.{MARK}.csv'
  _files.write_bytes(path, text.getvalue().encode(), private=True)


def _count_rows(
  overview: overview_lib.Overview,
) -> Iterator[Sequence[object]]:
  yield 'split', 'site', 'class', 'images'
  for i, split in enumerate(images.SPLIT_NAMES):
    for j, site in enumerate(overview.sites):
      for k, name in enumerate(overview.classes):
        yield split, site, name, overview.counts[i, j, k]


def _client_rows(
  overview: overview_lib.Overview, clients: np.ndarray
) -> Iterator[Sequence[object]]:
  yield 'client', 'class', 'images'
  for client, counts in enumerate(clients):
    for name, count in zip(overview.classes, counts):
      yield client, name, count


def _copy_rows(overview: overview_lib.Overview) -> Iterator[Sequence[object]]:
  """Yields each image of a group of several; images are rows of their split."""
  copies = overview.copies
  yield 'split', 'row', 'group', 'split_that_keeps_the_group_whole'
  starts = np.searchsorted(copies.splits, np.arange(len(copies.names)))
  size = np.bincount(copies.groups, minlength=len(copies.groups))
  mended = copies.mended_splits()
  for image in np.flatnonzero(size[copies.groups] > 1).tolist():
    split = copies.splits[image]
    yield (
      copies.names[split],
      image - starts[split],
      copies.groups[image],
      copies.names[mended[image]],
    )


def _size_rows(
  preparation: preparation_counts.Preparation,
) -> Iterator[Sequence[object]]:
  yield 'site', 'height x width', 'images'
  for site, counts in preparation.sizes.items():
    for text in _most_frequent(preparation):
      if text in counts:
        yield site, text, counts[text]


def _most_frequent(preparation: preparation_counts.Preparation) -> list[str]:
  """Returns the sizes of images, those of most images first."""
  total: dict[str, int] = {}
  for counts in preparation.sizes.values():
    for text, count in counts.items():
      total[text] = total.get(text, 0) + count
  return sorted(total, key=lambda text: (-total[text], text))


def _findings(
  data: images.ImageData, overview: overview_lib.Overview, clients: np.ndarray
) -> Iterator[str]:
  """Yields what to know before a training, in sentences."""
  per_split = ', '.join(
    f'{count:,} {name}'
    for name, count in zip(images.SPLIT_NAMES, overview.images.sum(axis=1))
  )
  yield f'Images: {per_split}; sites: {len(overview.sites)}.'
  yield f'Splits: {data.split_rule}.'
  train = overview.counts[0].sum(axis=0)
  rare = int(train.argmin())
  yield (
    f'The rarest class of train is {overview.classes[rare]!r} with '
    f'{train[rare]:,} of {overview.images[0].sum():,} images.'
  )
  yield from _site_findings(overview)
  sizes = clients.sum(axis=1)
  missing = int((clients == 0).any(axis=1).sum())
  yield (
    f'Clients: {len(clients):,}, of {sizes.min():,} to {sizes.max():,} labels; '
    f'{missing:,} of them lack a class.'
  )
  yield from _patient_findings(overview)
  yield from _copy_findings(overview)


def _site_findings(overview: overview_lib.Overview) -> Iterator[str]:
  means = {
    site: grey.mean
    for site, grey in zip(overview.sites, overview.grey)
    if grey is not None
  }
  if len(means) > 1:
    dark, bright = (
      min(means, key=means.__getitem__),
      max(means, key=means.__getitem__),
    )
    yield (
      f'The mean grey level goes from {means[dark]:.0f} at {dark} to '
      f'{means[bright]:.0f} at {bright}, of 255.'
    )
  blank = sum(grey.blank for grey in overview.grey if grey is not None)
  if blank:
    yield f'Images of one grey level alone: {blank:,}.'


def _patient_findings(overview: overview_lib.Overview) -> Iterator[str]:
  counts = overview.images_of_patients
  if counts is None:
    yield (
      'Patients are not known: images of one patient may be in several splits.'
    )
  elif counts.max() > 1:
    yield (
      f'A patient has up to {counts.max():,} images in train, '
      f'{np.median(counts):g} in the median: ε at privacy_unit=record is that of '
      'one of them, and privacy_unit=patient protects all.'
    )


def _copy_findings(overview: overview_lib.Overview) -> Iterator[str]:
  copies = overview.copies
  for i, later in enumerate(images.SPLIT_NAMES):
    for earlier in images.SPLIT_NAMES[:i]:
      equal = copies.num_equal(earlier, later)
      near = copies.num_near(earlier, later)
      if equal or near:
        yield (
          f'{later} has {equal:,} images that are equal to one of {earlier}, and '
          f'{near:,} near copies: metrics on {later} are too good.'
        )
  moved = int((copies.mended_splits() != copies.splits).sum())
  if moved:
    yield (
      f'No group of copies is divided once {moved:,} images change their split; '
      f'copies.{MARK}.csv names them.'
    )
  largest = int(copies.group_sizes(_TRAIN).max())
  if largest > 1:
    yield (
      f'A group of copies holds up to {largest:,} images of train: what they '
      f'share has up to {largest:,} times the ε of privacy_unit=record, at a '
      'larger δ.'
    )
  if not copies.is_complete:
    yield (
      f'Near copies were looked for among {copies.compared:,} of '
      f'{len(copies.splits):,} images: there are more than are counted here.'
    )


def _body(
  data: images.ImageData,
  overview: overview_lib.Overview,
  findings: Sequence[str],
  figures: Sequence[data_plots.Plot],
) -> str:
  """Returns the parts of the page, as HTML."""

  def shown(*kinds: str) -> str:
    return report_style.figures(
      [
        (plots.image(plot.figure, plot.name), plot.caption)
        for plot in figures
        if plot.name.startswith(kinds)
      ]
    )

  return '\n'.join(
    (
      report_style.section('Findings', report_style.findings(findings)),
      report_style.section('Images by class and site', _counts(overview)),
      report_style.section('Contact sheets', shown(data_plots.SHEET)),
      report_style.section(
        'Quality',
        _quality(data, overview) + shown(data_plots.HISTOGRAM),
      ),
      report_style.section(
        'How files were decoded', _decoding(data.preparation)
      ),
      report_style.section('Sizes before resizing', _sizes(data.preparation)),
      report_style.section('Clients', shown(data_plots.CLIENTS)),
      report_style.section(
        'Copies', _copies(overview) + shown(data_plots.COPIES)
      ),
    )
  )


def _counts(overview: overview_lib.Overview) -> str:
  """Returns a table by class and one by site, a column a split."""
  header = images.SPLIT_NAMES
  of_class, of_site = overview.counts.sum(axis=1), overview.images
  tables = [
    report_style.table((what, *header), _lines(names, counts))
    for what, names, counts in (
      ('class', overview.classes, of_class),
      ('site', overview.sites, of_site),
    )
  ]
  if overview.patients is not None:
    tables.append(
      report_style.table(
        ('', *header), _lines(('patients',), overview.patients[:, np.newaxis])
      )
    )
  return '\n'.join(tables)


def _lines(names: Sequence[str], counts: np.ndarray) -> list[list[str]]:
  """Returns the lines of a table of counts [splits, names]."""
  return [
    [name, *(f'{count:,}' for count in line)]
    for name, line in zip(names, counts.T)
  ]


def _quality(data: images.ImageData, overview: overview_lib.Overview) -> str:
  height, width, channels = data.image_shape
  rows = [
    [
      site,
      f'{grey.mean:.1f}',
      f'{grey.deviation:.1f}',
      f'{grey.black:.1%}',
      f'{grey.white:.1%}',
      f'{grey.blank:,}',
    ]
    for site, grey in zip(overview.sites, overview.grey)
    if grey is not None
  ]
  header = ('site', 'mean', 'deviation', 'black', 'white', 'of one level')
  return report_style.table(header, rows) + report_style.note(
    f'All images are stored as {height} x {width} x {channels} of 8 bits. Mean '
    'and deviation are grey levels of 0 to 255; black and white are shares of '
    'all values. The last column counts images.'
  )


def _decoding(preparation: preparation_counts.Preparation | None) -> str:
  """Returns the rules and warnings of decoding, a column a site."""
  if preparation is None:
    return ''
  sites = tuple(preparation.bad_files)
  left_out = [f'{preparation.bad_files[site]:,}' for site in sites]
  rows = [
    ['left out, see bad_files.tsv of the prepared images', *left_out],
    *_by_site(preparation.rules, sites),
    *_by_site(preparation.warnings, sites),
  ]
  return report_style.table(('files', *sites), rows) + report_style.note(
    f'{preparation.files:,} files. Rules that differ between sites are a site '
    'shift.'
  )


def _sizes(preparation: preparation_counts.Preparation | None) -> str:
  """Returns the number of images of each size, a column a site."""
  if preparation is None:
    return ''
  sites = tuple(preparation.sizes)
  texts = _most_frequent(preparation)
  rows = [
    [text, *(f'{preparation.sizes[s].get(text, 0):,}' for s in sites)]
    for text in texts[:_NUM_SIZES]
  ]
  others = [
    sum(preparation.sizes[site].get(text, 0) for text in texts[_NUM_SIZES:])
    for site in sites
  ]
  if any(others):
    rows.append(
      [f'{len(texts) - _NUM_SIZES:,} others', *(f'{n:,}' for n in others)]
    )
  return report_style.table(
    ('height x width', *sites), rows
  ) + report_style.note(
    'Images as their files hold them, turned upright. Sites whose images differ '
    f'in size differ in sharpness after resizing. All sizes are in sizes.{MARK}.csv.'
  )


def _by_site(
  counted: Mapping[str, Mapping[str, int]], sites: Sequence[str]
) -> list[list[str]]:
  texts = sorted({text for counts in counted.values() for text in counts})
  return [
    [text, *(f'{counted[site].get(text, 0):,}' for site in sites)]
    for text in texts
  ]


def _copies(overview: overview_lib.Overview) -> str:
  """Returns who has copies where, and how large the groups of train are."""
  copies = overview.copies
  pairs = [
    [
      f'{later}, of {earlier}',
      f'{copies.num_equal(earlier, later):,}',
      f'{copies.num_near(earlier, later):,}',
    ]
    for i, later in enumerate(images.SPLIT_NAMES)
    for earlier in images.SPLIT_NAMES[: i + 1]
  ]
  sizes = copies.group_sizes(_TRAIN)
  steps = 2 ** np.arange(int(math.log2(sizes.max())) + 1)
  groups = []
  for low in steps.tolist():
    chosen = sizes[(sizes >= low) & (sizes < 2 * low)]
    text = f'{low}' if low == 1 else f'{low} to {2 * low - 1}'
    groups.append([text, f'{len(chosen):,}', f'{chosen.sum():,}'])
  return '\n'.join(
    (
      report_style.table(
        ('images that have copies', 'equal', 'near, not equal'), pairs
      ),
      report_style.table(
        ('images of a group in train', 'groups', 'images'), groups
      ),
      report_style.note(_COPIES_NOTE),
    )
  )
