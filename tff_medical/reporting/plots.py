"""Small figures, as PNG, as SVG, and as SVG that follows a page's colours.

What: `new` starts a figure in the house style, `save` writes it beside a report
as NAME.png and NAME.svg on white, `inline_svg` returns it for an HTML page.
Why small: 4.8 x 3.4 inches still have readable text on a phone. In the inline
form text is text, ink is `currentColor` and each series colour is a CSS
variable, so that one figure serves light and dark pages; `css` defines them.
Matplotlib is used without pyplot, hence without global state or a display.

>>> figure, axes = new('Title', x='x', y='y')
>>> _ = axes.plot([0, 1], [0, 1], color=SERIES[0])
>>> svg = inline_svg(figure, 'example')
>>> 'currentColor' in svg, 'var(--series-0' in svg, SERIES[0] in svg
(True, True, False)
"""

from __future__ import annotations

from collections.abc import Sequence
import io
import pathlib
import re
from typing import Any

import matplotlib
from matplotlib import axes as axes_lib
from matplotlib import figure as figure_lib
from matplotlib import ticker
import numpy as np

# On white, and on the dark page. Okabe & Ito's, told apart by the colour-blind.
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
# Stands for the page's text colour; nothing else is drawn in it.
_INK = '#1b1f24'
_SIZE_INCHES = (4.8, 3.4)
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
  count: int, columns: int
) -> tuple[figure_lib.Figure, list[axes_lib.Axes]]:
  """Returns a figure with `count` sets of axes, in rows of so many."""
  rows = -(-count // columns)
  width, height = _SIZE_INCHES
  with matplotlib.rc_context(_STYLE):
    figure = figure_lib.Figure(
      figsize=(width * columns, height * rows), layout='constrained'
    )
    return figure, [
      figure.add_subplot(rows, columns, number + 1) for number in range(count)
    ]


def image_grid(
  title: str, columns: Sequence[str], rows: Sequence[Sequence[np.ndarray]]
) -> figure_lib.Figure:
  """Returns a figure of images side by side, pixels as they are.

  Args:
    title: Of the figure.
    columns: A heading for each column.
    rows: Float images [H, W, 1 or 3] in 0..1, one a column.
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
  """Returns the colour of a series; they repeat after the last one."""
  return SERIES[index % len(SERIES)]


def legend(axes: axes_lib.Axes) -> None:
  """Puts a legend beneath the axes, where it hides no data."""
  handles, labels = axes.get_legend_handles_labels()
  if not labels:
    return
  figure = axes.get_figure()
  assert figure is not None  # Axes of `new` have one.
  with matplotlib.rc_context(_STYLE):
    figure.legend(
      handles, labels, loc='outside lower left', ncols=3, handlelength=1.6
    )


def level(axes: axes_lib.Axes, value: float, text: str, shade: str) -> None:
  """Draws a dashed line across the axes, named at its left end."""
  axes.axhline(value, linestyle='--', linewidth=1.2, color=shade)
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
  """Writes the ticks of a logarithmic axis as people do.

  Args:
    axis: `axes.xaxis` or `axes.yaxis`.
    values: Where the ticks are; by default at 1, 2 and 5 times powers of ten.
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


def save(
  figure: figure_lib.Figure, folder: pathlib.Path, name: str
) -> list[pathlib.Path]:
  """Writes NAME.png, 1000 pixels wide or so, and NAME.svg; returns them."""
  folder.mkdir(parents=True, exist_ok=True)
  png, svg = folder / f'{name}.png', folder / f'{name}.svg'
  with matplotlib.rc_context(_STYLE):
    figure.savefig(png, dpi=220, facecolor='white')
  svg.write_text(_svg(figure, name, 'white'), encoding='utf-8')
  return [png, svg]


def inline_svg(figure: figure_lib.Figure, name: str) -> str:
  """Returns an <svg> element whose colours are those of the page.

  Args:
    figure: Drawn in `SERIES` and the style's own ink.
    name: Becomes part of each id in it, as ids are shared by a whole page.
  """
  svg = _svg(figure, name, 'none')
  svg = svg[svg.index('<svg') :]
  for index, series in enumerate(SERIES):
    svg = svg.replace(series, f'var(--series-{index})')
  svg = svg.replace(_INK, 'currentColor')
  svg = re.sub(r'id="', f'id="{name}-', svg)
  svg = svg.replace('url(#', f'url(#{name}-').replace('"#', f'"#{name}-')
  svg = re.sub(r'font: ([\d.]+px) [^;"]*', r'font-size: \1', svg)
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  return re.sub(
    r'<svg [^>]*viewBox="([^"]*)"[^>]*>',
    r'<svg viewBox="\1" role="img" xmlns="http://www.w3.org/2000/svg" '
    r'xmlns:xlink="http://www.w3.org/1999/xlink">',
    svg,
    count=1,
  )


def css() -> str:
  """Returns the CSS variables of the series, for light and for dark pages."""

  def variables(colors: Sequence[str]) -> str:
    return ' '.join(f'--series-{i}: {c};' for i, c in enumerate(colors))

  return (
    f':root {{ {variables(SERIES)} }}\n'
    '@media (prefers-color-scheme: dark) '
    f'{{ :root {{ {variables(_SERIES_DARK)} }} }}'
  )


def _svg(figure: figure_lib.Figure, name: str, background: str) -> str:
  buffer = io.StringIO()
  with matplotlib.rc_context({**_STYLE, 'svg.hashsalt': name}):
    figure.savefig(
      buffer,
      format='svg',
      facecolor=background,
      metadata={'Date': None, 'Creator': None},
    )
  return buffer.getvalue()
