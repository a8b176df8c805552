"""The frame and the parts of a report: HTML with its style, which loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
import html

# The page allows its own style and images inside of it, and nothing else.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_CSS = """
:root {
  color-scheme: light dark;
  --ink: #1b1f24; --soft: #57606a; --page: #fff; --card: #f6f8fa;
  --line: #d8dee4; --accent: #0063a6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ec; --soft: #9aa4ae; --page: #14181d; --card: #1c2229;
    --line: #333c46; --accent: #6cb6ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1080px; padding: 1.5rem 1rem 4rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
header { border-bottom: 3px solid var(--accent); margin-bottom: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
header p { color: var(--soft); margin: 0 0 .8rem; }
.findings { padding-left: 1.2rem; margin: 0; }
.findings li { margin: .25rem 0; overflow-wrap: anywhere; }
.figures {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
}
figure {
  margin: 0; padding: .75rem; min-width: 0; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px;
}
figure img { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .4rem; }
.note { color: var(--soft); font-size: .85rem; margin: .4rem 0; }
.table {
  overflow-x: auto; border: 1px solid var(--line); border-radius: 8px;
  margin: .5rem 0;
}
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th:first-child { text-align: left; font-weight: 600; position: sticky; left: 0;
  background: var(--page); }
thead th { border-bottom: 1px solid var(--line); color: var(--soft);
  font-weight: 600; vertical-align: bottom; white-space: normal; }
thead th, thead th:first-child { background: var(--card); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
pre { background: var(--card); border: 1px solid var(--line); padding: .75rem;
  border-radius: 8px; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .5rem 0; }
details td { text-align: left; white-space: normal; overflow-wrap: anywhere;
  font-family: ui-monospace, Consolas, monospace; font-size: .8rem; }
summary { cursor: pointer; color: var(--accent); }
@media print {
  :root { font-size: 11px; }
  body { max-width: none; padding: 0; font-size: 1rem; }
  h2, summary { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; gap: .5rem; }
  figure, tr, .findings li { break-inside: avoid; }
  th, td { padding: .2rem .3rem; white-space: normal; }
  thead { display: table-header-group; }
  .table { overflow: visible; }
  details::details-content { content-visibility: visible; }
}
"""


def page(*, title: str, subtitle: str, body: str) -> str:
  """Returns a whole HTML page.

  Args:
    title: Title of the page and text of its first heading, not yet escaped.
    subtitle: Text beneath the heading, not yet escaped.
    body: Rest of the page, as HTML.
  """
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p></header>
{body}
</body>
</html>
"""


def section(title: str, content: str) -> str:
  """Returns a part of the page under a heading; '' if it has no content.

  Args:
    title: Heading, not yet escaped.
    content: The part, as HTML.
  """
  if not content:
    return ''
  return f'<section><h2>{html.escape(title)}</h2>\n{content}\n</section>'


def findings(lines: Sequence[str]) -> str:
  """Returns a list of sentences, escaped; '' of none."""
  items = ''.join(f'<li>{html.escape(line)}</li>' for line in lines)
  return f'<ul class="findings">{items}</ul>' if items else ''


def note(text: str) -> str:
  """Returns a paragraph in small print, escaped."""
  return f'<p class="note">{html.escape(text)}</p>'


def figures(images: Sequence[tuple[str, str]]) -> str:
  """Returns figures side by side; '' of none.

  Args:
    images: Pairs of an image, as HTML, and its caption, not yet escaped.
  """
  elements = ''.join(
    f'<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>'
    for image, caption in images
  )
  return f'<div class="figures">{elements}</div>' if elements else ''


def details(title: str, content: str) -> str:
  """Returns HTML that unfolds from its title, which is not yet escaped."""
  return f'<details><summary>{html.escape(title)}</summary>{content}</details>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns an HTML table, escaped, that scrolls within itself.

  >>> table(('a',), [['<b>']])
  '<div class="table"><table><thead><tr><th>a</th></tr></thead>\
<tbody><tr><th>&lt;b&gt;</th></tr></tbody></table></div>'
  """
  head = ''.join(f'<th>{html.escape(name)}</th>' for name in header)
  body = ''.join(
    '<tr>'
    + ''.join(
      f'<{tag}>{html.escape(cell)}</{tag}>'
      for tag, cell in zip(('th', *['td'] * len(row)), row)
    )
    + '</tr>'
    for row in rows
  )
  columns = f'<thead><tr>{head}</tr></thead>' if any(header) else ''
  return (
    f'<div class="table"><table>{columns}<tbody>{body}</tbody></table></div>'
  )
