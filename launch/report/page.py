"""One self-contained HTML page: the style and the script of templates/page.html around sections.

Its content policy lets nothing but its own script run, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template


def fill_page(title: str, body: str) -> str:
    """The page as a string; `body` is HTML, in which whatever came from outside is escaped already."""
    template = (Path(__file__).parent / "templates" / "page.html").read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(template).substitute(title=escape(title), script_hash=f"sha256-{digest}", body=body)


def section(title: str, intro: str, parts: Sequence[str], *, layout: str = "charts") -> str:
    inner = f'<div class="{layout}">{"".join(parts)}</div>'
    return (
        f'<section id="{slug(title)}"><h2>{title}</h2><p class="intro">{escape(intro)}</p>{inner}</section>'
    )


def figure(name: str, title: str, caption: str, content: str) -> str:
    """A titled box; `caption` is HTML."""
    return f'<figure id="chart-{name}"><figcaption><b>{title}</b>{caption}</figcaption>{content}</figure>'


def slug(title: str) -> str:
    return title.lower().replace(" ", "-")
