"""One self-contained page of HTML: sections of texts, tables and pictures, in a light and a dark theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}: report</title>
<style>
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #c9c9c9; --quiet: #555; --soft: #f3f3f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #161616; --line: #4a4a4a; --quiet: #b0b0b0; --soft: #222; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.25; } h2 { border-top: 1px solid var(--line); padding-top: 1rem; margin-top: 2rem; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; } figure { margin: 1rem 0; }
figcaption, .quiet { color: var(--quiet); font-size: .9rem; }
img { max-width: 100%; height: auto; background: #fff; } @media print { body { margin: 0; max-width: none; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="quiet">{{ lead }}</p>
<h2>Machine and versions</h2>
<pre>{{ machine }}</pre>
{% for section in sections %}
<h2>{{ section.heading }}</h2>
{% for part in section.parts %}
{% if part.kind == "picture" %}<figure><img alt="{{ part.words }}" src="data:image/png;base64,{{ part.data }}">
<figcaption>{{ part.words }}</figcaption></figure>
{% elif part.kind == "table" %}<div class="scroll">{{ part.data | safe }}</div>
{% elif part.kind == "list" %}<ul>
{% for line in part.data %}
<li>{{ line.text }} <span class="quiet">{{ line.quiet }}</span></li>
{% endfor %}
</ul>
{% else %}<pre>{{ part.data }}</pre>
{% endif %}
{% endfor %}
{% endfor %}
<h2>How to repeat it</h2>
<pre>{{ command }}</pre>
<p class="quiet">{{ source }}</p>
</body>
</html>
"""


def render(*, title: str, lead: str, machine: str, sections: Sequence[Mapping], command: str, source: str) -> str:
    """The page. A section has a ``heading`` and ``parts``; a part has a ``kind`` ("picture", "table", "list", "text"),
    ``data`` (base64 of a PNG, HTML of a table, lines, text) and, for a picture, its ``words``. Text is escaped.
    """
    import jinja2

    rules = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    content = {"title": title, "lead": lead, "machine": machine, "sections": sections}
    return rules.from_string(TEMPLATE).render(**content, command=command, source=source)
