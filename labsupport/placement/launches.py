"""Which kernels a GPU really ran, and what handing them over costs: one by one, or as one captured CUDA graph.

CUDA's tracer sees inside a region, of which an engine's inspector tells the borders only.
"""

from __future__ import annotations

from labsupport.errors import LabError, NotAvailable


def traced(run, feed) -> tuple[str, ...]:
    """Names of the kernels that one inference of a GPU runtime launches, in order; the driver's own copies are left
    out.

    Empty where the tracer (CUPTI) is missing or not permitted, and so says nothing. Raises NotAvailable on a processor.
    Source: https://docs.pytorch.org/docs/stable/profiler.html
    """
    _on_gpu(run)
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    run.bind(feed)
    run.enqueue()  # whatever is loaded at a first launch is not the inference
    run.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as trace:
            run.enqueue()
            run.synchronize()
    except LabError:
        raise  # the engine's own trouble
    except RuntimeError:  # PyTorch's, where it cannot start its tracer
        return ()
    ran = [event for event in trace.events() if event.device_type == DeviceType.CUDA]
    ran.sort(key=lambda event: event.time_range.start)
    return tuple(event.name for event in ran if not event.name.startswith(("Memcpy", "Memset")))


def _on_gpu(run) -> None:
    if not str(run.device).startswith("cuda"):
        raise NotAvailable(
            f"{run.name} runs on the CPU, and only a GPU's launches are traced; count its nodes with fusion.xray(run)"
        )
