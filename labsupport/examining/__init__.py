"""A stranger's network through the labs: one stage a file, each made of the rooms below, and a decision by code.

The parts: ``sources`` (files that become ONNX), ``inputs`` (given or made), ``working_copy``, ``cases`` (what stages
share), ``rows`` (what a stage hands back), ``journal`` (finished stages on disk), the stages ``identity``,
``baseline``, ``kernels``, ``sixteen_bits``, ``eight_bits``, ``memory_peak``, ``smaller``, then ``decision``, ``page``
and ``examination``, which runs them in order.
"""

from __future__ import annotations

from labsupport.examining.cases import Case, Limits, case_of
from labsupport.examining.decision import Verdict, decide, table
from labsupport.examining.examination import STAGES, Examination, examine
from labsupport.examining.rows import Candidate, Finding, Row

__all__ = [
    "STAGES", "Candidate", "Case", "Examination", "Finding", "Limits", "Row", "Verdict", "case_of", "decide", "examine",
    "table",
]  # fmt: skip
