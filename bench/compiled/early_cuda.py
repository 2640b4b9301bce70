"""NVIDIA's programmatic dependent launch, for Triton kernels: one starts while the one in front of it ends.

Until `after_previous`, a program may only read what no kernel in front of it writes. `Device.launches_early` says where
this works; elsewhere nothing of it is compiled. Source: CUDA C++ Programming Guide, "Programmatic Dependent Launch".
"""

from __future__ import annotations

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # a Triton without that backend
    gdc_launch_dependents = gdc_wait = None


@triton.jit
def after_previous(EARLY: tl.constexpr):
    """Wait for what the kernel in front has written, and let the next one start."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


def launch_options(early: bool) -> dict[str, bool]:
    """What the launch of such a kernel takes as well."""
    return {"launch_pdl": True} if early else {}
