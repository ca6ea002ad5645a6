"""Find markup that Sphinx left as text in built pages: `python docs/check_html.py BUILD` exits with an error."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

#: Roles, references, footnotes and emphasis as they are written in Markdown and reStructuredText.
LEFTOVER = re.compile(r"\{(?:doc|obj|ref|math)\}|:[a-z]+:`|``|`_|\]_|\*\*\w[^*]*\*\*|\|[a-z]+\||\{obj|^\.\. ")
SKIPPED = {"pre", "code", "script", "style", "math", "title"}


class Text(HTMLParser):
    """The text of a page outside of code and formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in SKIPPED:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.found += [line.strip() for line in data.splitlines() if LEFTOVER.search(line)]


def main() -> None:
    build = Path(sys.argv[1])
    pages = sorted(build.rglob("*.html"))
    left = 0
    for page in pages:
        text = Text()
        text.feed(page.read_text())
        for line in text.found:
            print(f"{page.relative_to(build)}: {line}")
        left += len(text.found)
    if left or not pages:
        sys.exit(f"{left} leftovers of markup in {len(pages)} pages")


if __name__ == "__main__":
    main()
