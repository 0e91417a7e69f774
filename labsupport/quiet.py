"""Libraries that talk: run them without their log lines, prints, bars and warnings, which no stored output should
hold.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
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


@contextlib.contextmanager
def natively(*descriptors: int):
    """What native code writes inside to these descriptors of the process, past Python's streams, is dropped.

    1 is the standard output, 2 the standard error; both lead where they led before afterward.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept, nowhere = [os.dup(number) for number in descriptors], os.open(os.devnull, os.O_WRONLY)
    try:
        for number in descriptors:
            os.dup2(nowhere, number)
        yield
    finally:
        for number, copy in zip(descriptors, kept):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
