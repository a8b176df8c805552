"""Small figures, as PNG files and as images inside of an HTML page.

`new` starts a figure in the house style, `save` writes it as NAME.png on white,
and `image` returns it as an element of an HTML page. A size of 4.8 x 3.4 inches
keeps text readable on a phone. The image in a page is an SVG with a style sheet
of its own, which gives each colour its counterpart in dark mode. Browsers keep
its ids and styles apart from those of the page. Matplotlib is used without
pyplot, hence without global state or a display.

>>> figure, axes = new('Title', x='x', y='y')
>>> _ = axes.plot([0, 1], [0, 1], color=SERIES[0])
>>> image(figure, 'A line')[:55]
'<img alt="A line" src="data:image/svg+xml;base64,PD94bW'
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
import html
import io
import math
import pathlib
from typing import Any

import matplotlib
from matplotlib import axes as axes_lib
from matplotlib import figure as figure_lib
from matplotlib import ticker
import numpy as np

# Colours on white and on a dark page, in the manner of Okabe & Ito, which
# colour-blind readers can tell apart.
SERIES = (
  '#0063a6',
  '#c44e00',
  '#00795a',
  '#a8478a',
  '#7a6200',
  '#2a7fb8',
  '#666666',
  '#8b1a1a',
)
_SERIES_DARK = (
  '#6cb6ff',
  '#ff9f5c',
  '#4fd1a5',
  '#f29ad4',
  '#e3c94f',
  '#9ad4ff',
  '#b5b5b5',
  '#ff8a8a',
)
# The colour of text and axes, and of nothing else.
_INK = '#1b1f24'
_INK_DARK = '#e6e9ec'
_SIZE_INCHES = (4.8, 3.4)
# Width of an entry of a legend.
_LEGEND_INCHES = 1.6
_STYLE = {
  'font.size': 9.5,
  'svg.fonttype': 'none',
  'axes.facecolor': 'none',
  'axes.edgecolor': _INK,
  'axes.labelcolor': _INK,
  'axes.titlecolor': _INK,
  'axes.titlesize': 10.5,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.color': _INK,
  'grid.alpha': 0.13,
  'xtick.color': _INK,
  'ytick.color': _INK,
  'text.color': _INK,
  'legend.frameon': False,
  'legend.fontsize': 8.5,
  'lines.linewidth': 1.8,
  'lines.markersize': 4.5,
}


def new(
  title: str, *, x: str, y: str
) -> tuple[figure_lib.Figure, axes_lib.Axes]:
  """Returns a figure with one set of axes, titled and labelled."""
  with matplotlib.rc_context(_STYLE):
    figure = figure_lib.Figure(figsize=_SIZE_INCHES, layout='constrained')
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
  return figure, axes


def grid(
  titles: Sequence[str], columns: int
) -> tuple[figure_lib.Figure, list[axes_lib.Axes]]:
  """Returns a figure with axes for each title, `columns` of them in a row."""
  rows = -(-len(titles) // columns)
  width, height = _SIZE_INCHES
  with matplotlib.rc_context(_STYLE):
    figure = figure_lib.Figure(
      figsize=(width * columns, height * rows), layout='constrained'
    )
    panels = [
      figure.add_subplot(rows, columns, number + 1, title=title)
      for number, title in enumerate(titles)
    ]
  return figure, panels


def image_grid(
  title: str, columns: Sequence[str], rows: Sequence[Sequence[np.ndarray]]
) -> figure_lib.Figure:
  """Returns a figure of images side by side, pixels as they are.

  Args:
    title: Title of the figure.
    columns: Heading of each column.
    rows: Float images [H, W, 1 or 3] in 0..1, one for each column.
  """
  side = _SIZE_INCHES[0] / len(columns)
  with matplotlib.rc_context(_STYLE):
    figure = figure_lib.Figure(
      figsize=(_SIZE_INCHES[0], side * (len(rows) + 0.6)), layout='constrained'
    )
    figure.suptitle(title, x=0.01, ha='left', fontsize=10.5, weight='bold')
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes in grid.flat:
      axes.set_axis_off()
    for axes, heading in zip(grid[0], columns):
      axes.set_title(heading, loc='center', fontsize=8.5, weight='normal')
    for line, images in zip(grid, rows):
      for axes, image in zip(line, images):
        axes.imshow(image.squeeze(), cmap='gray', vmin=0, vmax=1)
  return figure


def color(index: int) -> str:
  """Returns the colour of a series; colours repeat after the last one."""
  return SERIES[index % len(SERIES)]


def legend(figure: figure_lib.Figure) -> None:
  """Puts a legend beneath all axes of the figure, where it hides no data."""
  handles = {
    label: handle
    for panel in figure.axes
    for handle, label in zip(*panel.get_legend_handles_labels())
  }
  if not handles:
    return
  with matplotlib.rc_context(_STYLE):
    figure.legend(
      handles.values(),
      handles.keys(),
      loc='outside lower left',
      ncols=int(figure.get_figwidth() / _LEGEND_INCHES),
      handlelength=1.6,
    )


def level(axes: axes_lib.Axes, value: float, text: str, shade: str) -> None:
  """Draws a dashed line across the axes, with a name at the line's left end."""
  axes.axhline(value, linestyle='--', linewidth=1.2, color=shade)
  axes.margins(y=0.12)  # Keeps the name of the highest line off the title.
  axes.text(
    0.01,
    value,
    text,
    transform=axes.get_yaxis_transform(),
    verticalalignment='bottom',
    fontsize=8,
    color=shade,
  )


def plain_ticks(axis: Any, values: Sequence[float] = ()) -> None:
  """Writes the ticks of a logarithmic axis without powers, such as 0.05.

  Args:
    axis: `axes.xaxis` or `axes.yaxis`.
    values: Positions of the ticks; by default 1, 2 and 5 times powers of ten.
  """
  if values:
    axis.set_major_locator(ticker.FixedLocator(list(values)))
  else:
    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
  axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:g}'))
  axis.set_minor_locator(ticker.NullLocator())


def whole_numbers(axis: Any) -> None:
  """Puts an axis's ticks at whole numbers."""
  axis.set_major_locator(ticker.MaxNLocator(integer=True))


def epsilon_axis(
  axes: axes_lib.Axes, epsilons: Sequence[float]
) -> dict[float, float]:
  """Labels the x axis with budgets.

  Args:
    axes: Axes to label.
    epsilons: Budgets; inf is no privacy.

  Returns:
    The position of each budget. Finite ones are spaced by their logarithm, and
    infinity is a step to their right.
  """
  position = {e: math.log2(e) for e in epsilons if math.isfinite(e)}
  if any(map(math.isinf, epsilons)):
    position[math.inf] = max(position.values(), default=0.0) + 1.0
  labels = ['∞' if math.isinf(e) else f'{e:g}' for e in position]
  axes.set_xticks(list(position.values()), labels)
  axes.set_xlabel('ε (∞: no privacy)')
  return position


def from_zero(axes: axes_lib.Axes) -> None:
  """Lets the y axis reach from 0 to the data, with room for whole dots."""
  top = axes.dataLim.y1
  if top > 0:
    axes.set_ylim(-0.05 * top, 1.05 * top)


def save(
  figure: figure_lib.Figure, folder: pathlib.Path, name: str
) -> pathlib.Path:
  """Writes NAME.png, about 1000 pixels wide, on white; returns the file."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'{name}.png'
  with matplotlib.rc_context(_STYLE):
    figure.savefig(path, dpi=220, facecolor='white')
  return path


def image(figure: figure_lib.Figure, alt: str) -> str:
  """Returns an <img> element that holds the figure, for light and dark pages.

  Args:
    figure: Figure drawn in the colours of `SERIES` and of the style.
    alt: Text for those who cannot see the figure.
  """
  svg = _svg(figure)
  head = svg.index('>', svg.index('<svg')) + 1
  svg = f'{svg[:head]}<style>{_css()}</style>{svg[head:]}'
  data = base64.b64encode(svg.encode()).decode()
  return (
    f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'
  )


def _svg(figure: figure_lib.Figure) -> str:
  """Returns a figure as SVG, the same for the same figure."""
  buffer = io.StringIO()
  with matplotlib.rc_context({**_STYLE, 'svg.hashsalt': 'tff_medical'}):
    figure.savefig(
      buffer,
      format='svg',
      facecolor='none',
      metadata={'Date': None, 'Creator': None},
    )
  return buffer.getvalue()


def _css() -> str:
  """Returns the style sheet of an SVG: fonts, and colours in dark mode.

  Matplotlib writes colours into `style` attributes, where rules that match the
  attribute's text can overrule them.
  """
  dark = ''.join(
    f'[style*="{use}: {light}"] {{ {use}: {shade} !important }}\n'
    for light, shade in zip((*SERIES, _INK), (*_SERIES_DARK, _INK_DARK))
    for use in ('fill', 'stroke')
  )
  return (
    'text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, '
    'sans-serif !important }\n'
    f'@media (prefers-color-scheme: dark) {{\n{dark}}}'
  )
