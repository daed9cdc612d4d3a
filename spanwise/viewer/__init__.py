"""See the credit: a local page over run folders, and the same page as one file.

``serve`` answers on the loopback interface from the run folders it is given; ``export``
writes one self-contained file. The page is plain HTML, CSS and JavaScript in ``page/``.
Nothing here needs more than the standard library.
"""

from spanwise.viewer.server import Viewer, open_page, serve
from spanwise.viewer.single_file import export

__all__ = ["Viewer", "export", "open_page", "serve"]
