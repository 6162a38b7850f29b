"""Memory of the CPU to the byte, as torch's allocator reports it to the profiler."""

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function):
    """Most bytes that `function` held at once, above what was held when it started."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events = [e for e in events if e.device_type() == torch.autograd.DeviceType.CPU]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
