"""The figures of `data_report`: contact sheets, histograms, clients, copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from matplotlib import figure as figure_lib
import numpy as np

from tff_medical.data import images
from tff_medical.data import overview as overview_lib
from tff_medical.data.decoders import resizing
from tff_medical.data.preparing import near_duplicates
from tff_medical.reporting import plots

# What the names of figures start with.
SHEET = 'contact_sheet'
HISTOGRAM = 'grey_levels'
CLIENTS = 'clients'
COPIES = 'copies'

_SHEET_COLUMNS = 6
_SHEET_ROWS = 5
_MAX_SHEETS = 4
_MAX_SIDE = 128
_BINS = 32
_MAX_CURVES = len(plots.SERIES)


class Plot(NamedTuple):
  """A figure, the name of its file, and its caption."""

  name: str
  figure: figure_lib.Figure
  caption: str


def all_plots(
  data: images.ImageData, overview: overview_lib.Overview, clients: np.ndarray
) -> list[Plot]:
  """Returns the figures.

  Args:
    data: The images.
    overview: Of the same images.
    clients: int64 [clients, classes], number of images.
  """
  return [
    *_sheets(data, overview),
    _histogram(overview),
    _clients(overview, clients),
    *_copies(data, overview.copies),
  ]


def _sheets(
  data: images.ImageData, overview: overview_lib.Overview
) -> Iterator[Plot]:
  """Yields sheets with one or more columns of images for each of some sites."""
  present = np.flatnonzero(overview.images[0])
  number_of_sheets = -(-len(present) // _SHEET_COLUMNS)
  sheets = np.array_split(present, number_of_sheets)[:_MAX_SHEETS]
  for number, sites in enumerate(sheets):
    width = max(1, _SHEET_COLUMNS // len(sites))
    headings: list[str] = []
    columns: list[list[np.ndarray]] = []
    for site in sites.tolist():
      headings += [overview.sites[site], *[''] * (width - 1)]
      shown = _of_site(data, site, width * _SHEET_ROWS)
      columns += (shown[i::width] for i in range(width))
    figure = plots.image_grid('Training images', headings, list(zip(*columns)))
    caption = 'Images of train by site, spread over the classes.'
    if number_of_sheets > _MAX_SHEETS:
      caption += (
        f' Sheet {number + 1} of {number_of_sheets}; others are left out.'
      )
    yield Plot(f'{SHEET}_{number + 1}', figure, caption)


def _of_site(data: images.ImageData, site: int, count: int) -> list[np.ndarray]:
  """Returns training images of a site, white ones where it has too few."""
  train = data.train
  rows = np.arange(len(train))
  if train.sites is not None:
    rows = np.flatnonzero(train.sites == site)
  keys = train.labels[rows].reshape(len(rows), -1)
  rows = rows[np.lexsort(keys.T)]
  places = np.linspace(0, len(rows) - 1, min(count, len(rows)))
  chosen = rows[places.round().astype(int)]
  blank = np.ones((2, 2, 1), np.float32)
  shown = [_small(image) for image in train.rows(chosen)]
  return shown + [blank] * (count - len(shown))


def _small(image: np.ndarray) -> np.ndarray:
  """Returns a float image in 0..1 that is small enough for a page."""
  scaled = image.astype(np.float32) / 255
  if max(image.shape) <= _MAX_SIDE:
    return scaled
  return resizing.to_uint8(scaled, _MAX_SIDE, None).astype(np.float32) / 255


def _histogram(overview: overview_lib.Overview) -> Plot:
  figure, axes = plots.new(
    'Grey levels by site', x='grey level of 0 to 255', y='share of the values'
  )
  centres = (np.arange(_BINS) + 0.5) * 256 / _BINS
  present = [(s, g) for s, g in zip(overview.sites, overview.grey) if g]
  shown = present[:_MAX_CURVES]
  for number, (site, grey) in enumerate(shown):
    shares = grey.histogram.reshape(_BINS, -1).sum(axis=1)
    axes.plot(centres, shares, color=plots.color(number), label=site)
  axes.set_yscale('symlog', linthresh=1e-3)
  plots.legend(figure)
  caption = 'Mean histogram over the images of all splits.'
  if len(present) > len(shown):
    caption += f' {len(shown)} of {len(present)} sites.'
  return Plot(HISTOGRAM, figure, caption)


def _clients(overview: overview_lib.Overview, clients: np.ndarray) -> Plot:
  figure, axes = plots.new('Images of each client', x='class', y='client')
  drawn = axes.imshow(
    clients, aspect='auto', cmap='cividis', vmin=0, interpolation='nearest'
  )
  axes.grid(False)
  axes.set_xticks(
    range(len(overview.classes)),
    [name if len(name) <= 16 else f'{name[:15]}…' for name in overview.classes],
    rotation=90 if len(overview.classes) > 3 else 0,
  )
  plots.whole_numbers(axes.yaxis)
  scale = figure.colorbar(drawn, ax=axes, label='images')
  plots.whole_numbers(scale.ax.yaxis)
  return Plot(
    CLIENTS, figure, 'Training images of each client by class: the partition.'
  )


def _copies(
  data: images.ImageData, copies: near_duplicates.Copies
) -> Iterator[Plot]:
  if not len(copies.examples):
    return
  splits = [split for _, split in data.splits()]
  starts = np.searchsorted(copies.splits, np.arange(len(splits)))

  def shown(image: int) -> np.ndarray:
    number = copies.splits[image]
    return _small(splits[number].rows(np.array(image - starts[number])))

  columns = [
    f'{copies.names[copies.splits[a]]}, {copies.names[copies.splits[b]]}'
    for a, b in copies.examples
  ]
  rows = [[shown(image) for image in line] for line in copies.examples.T]
  yield Plot(
    COPIES,
    plots.image_grid('Near copies', columns, rows),
    'Examples of pairs that count as near copies, with their splits.',
  )
