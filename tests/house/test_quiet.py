"""Libraries that talk are not heard, and what they raise is."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import pytest

from labsupport import quiet
from labsupport.quiet import quietly


def test_nothing_is_heard_and_everything_is_as_before(capfd):
    logger = logging.getLogger("a.library.that.talks")
    handler = logging.StreamHandler(sys.__stderr__)  # made before: it holds the real stream
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with quietly():
                logger.error("a log line")
                sys.stdout.write("a print")
                sys.stderr.write("a bar")
                warnings.warn("a warning", stacklevel=1)
            warnings.warn("a later one", stacklevel=1)
        logger.error("afterward")
    finally:
        logger.removeHandler(handler)
    heard = capfd.readouterr()
    assert heard.out == "" and heard.err == "afterward\n" and [str(each.message) for each in seen] == ["a later one"]


def test_an_error_comes_through_and_logging_is_on_again():
    with pytest.raises(ZeroDivisionError), quietly():
        1 / 0
    assert logging.root.manager.disable == logging.NOTSET


def test_native_output_is_dropped_and_comes_back(capfd):
    with pytest.raises(KeyError), quiet.natively(1, 2):
        os.write(1, b"from C")
        os.write(2, b"from C++")
        raise KeyError
    os.write(1, b"after")
    os.write(2, b"wards")
    with quiet.natively(2):
        os.write(1, b", heard")
        os.write(2, b", dropped")
    assert capfd.readouterr() == ("after, heard", "wards")
