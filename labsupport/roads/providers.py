"""Which execution providers of ONNX Runtime really compute, asked of the session and of its profile, not of a list.

ONNX Runtime goes on with the CPU where a provider cannot be loaded. `get_available_providers()` lists what the package
was built with, `session.get_providers()` what could be loaded; only a profile says what ran.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from pathlib import Path

import numpy as np

from labsupport import export
from labsupport.errors import BadInput, NotAvailable
from labsupport.quiet import quietly

ENDING = "ExecutionProvider"
GET = "install the build of ONNX Runtime that has it; python3 -m labsupport doctor says which releases fit together"


def _checked_name(provider: str) -> str:
    """The name, where ONNX Runtime knows it. Raises BadInput with the nearest spelling."""
    import onnxruntime as ort

    names = ort.get_all_providers()
    if not isinstance(provider, str) or provider not in names:
        short = {known_name.removesuffix(ENDING).lower(): known_name for known_name in names}
        near = difflib.get_close_matches(str(provider).lower().removesuffix(ENDING.lower()), short, n=1, cutoff=0.5)
        hint = f"did you mean {short[near[0]]!r}?" if near else f"choose one of {names}"
        raise BadInput(f"{provider!r} is no execution provider of ONNX Runtime {ort.__version__}; {hint}")
    return provider


def session(graph, provider: str, *, options: dict | None = None, every_node: bool = True):
    """An ``onnxruntime.InferenceSession`` that computes on ``provider``, or an error: it never falls back in silence.

    ``graph`` is an OnnxGraph or a path; ``options`` are the provider's own. With ``every_node`` no node may go to the
    CPU instead. Raises BadInput for an unknown name, NotAvailable where the provider is not built in, does not load, or
    leaves nodes to the CPU. Source: https://onnxruntime.ai/docs/execution-providers/
    """
    import onnxruntime as ort

    _checked_name(provider)
    built_in = ort.get_available_providers()
    if provider not in built_in:
        raise NotAvailable(
            f"{provider} is not in this build of ONNX Runtime {ort.__version__}, which has {built_in}; {GET}"
        )
    path = str(graph.path if isinstance(graph, export.OnnxGraph) else graph)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    if every_node and provider != "CPUExecutionProvider":
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with quietly():
        try:
            run = ort.InferenceSession(path, settings, providers=[(provider, options or {})])
        except Exception as error:
            if "fallback to CPU" not in str(error):
                raise
            raise NotAvailable(
                f"{provider} does not compute {Path(path).name}: nodes of it would run on the CPU instead. "
                f"Pass every_node=False to let them, or {GET}"
            ) from error
    if provider not in run.get_providers():
        raise NotAvailable(
            f"{provider} is built in and could not be loaded; ONNX Runtime went on with {run.get_providers()}; {GET}"
        )
    return run


def nodes_by_provider(graph, providers: list, feed: dict[str, np.ndarray]) -> Counter:
    """How many nodes each provider ran in one call, from ONNX Runtime's own profile."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level, settings.enable_profiling = 4, True
    settings.profile_file_prefix = str(export.fresh_folder() / "profile")
    with quietly():
        run = ort.InferenceSession(
            str(graph.path if isinstance(graph, export.OnnxGraph) else graph), settings, providers=providers
        )
    run.run(None, feed)
    events = json.loads(Path(run.end_profiling()).read_text(encoding="utf-8"))
    return Counter(
        event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    )
