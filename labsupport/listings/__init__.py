"""Programs that nobody has to trust: the article's listings, and the names that each TensorRT release has.

The parts: ``rows`` (the article's listings: claim, verdict, run), ``sandbox`` (a child process with limits that leaves
nothing behind) and ``releases`` (which names each TensorRT release has).
"""

from __future__ import annotations

from labsupport.listings.rows import FOLDER, Listing, every, named, recorded, unlisted

__all__ = ["FOLDER", "Listing", "every", "named", "recorded", "unlisted"]
