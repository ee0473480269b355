"""A hook of MkDocs: links in notebooks lead to files, which Jupyter opens; on the site they must lead to pages."""

import re
from typing import Any


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The page, with its links to Markdown files and notebooks turned into links to the site's pages."""
    if not page.file.src_uri.endswith(".ipynb"):
        return output
    output = re.sub(r'href="\.\./([\w-]+)\.md(#[^"]*)?"', r'href="../../\1/\2"', output)
    return re.sub(r'href="([\w-]+)\.ipynb"', r'href="../\1/"', output)
