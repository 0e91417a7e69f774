"""Libraries that talk: run them without their log lines, prints, bars and warnings, which no stored output should
hold.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings


@contextlib.contextmanager
def quietly():
    """Nothing that is logged, printed or warned inside is seen; exceptions come through, and logging is as before
    afterward.

    Handlers that were made earlier hold the real stderr, so catching the stream alone does not silence a logger.
    """
    was, heard = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(was)
