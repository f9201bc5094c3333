"""A page to look at: one predicted case in one HTML file, with its scan, that opens in any browser by itself.

`shown` cuts and turns scans and masks as browsers show them, `script` joins the scripts of `static` into one, and
`write` makes the page. `metricunet.workflows.review` serves the same scripts.
"""

from metricunet.inference.page.shown import Excerpt, excerpt_of
from metricunet.inference.page.write import write_page

__all__ = ["Excerpt", "excerpt_of", "write_page"]
