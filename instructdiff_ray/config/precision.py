"""What `cluster.precision=auto` stands for.

Precision changes results and is in their keys. So it is decided once, where a command begins, by
what the command asks for, and never by the machine that happens to do the work.
"""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

from instructdiff_ray.config.cluster import ClusterConfig

# By which x86 processors multiply bf16 faster than fp32, as Linux names them.
BF16_INSTRUCTIONS = frozenset({"amx_bf16", "avx512_bf16"})


def choose_precision(cluster: ClusterConfig, instructions: Set[str]) -> tuple[str, str]:
    """bf16 where all of the work is multiplied faster in it, else fp32; and why, for people.

    instructions: of this machine's processor. GPUs are taken to have bf16, as those from Ampere on
    have: a worker that is given an older one refuses it (`engine/device.py`). What processors the
    machines of a cluster have, nobody knows before they are there.
    """
    if cluster.train.gpus_per_worker and cluster.score.least_gpus:
        return "bf16", "the work is on GPUs"
    if cluster.joined:
        return "fp32", "processors of a cluster are not looked at"
    if found := sorted(BF16_INSTRUCTIONS & instructions):
        return "bf16", f"this machine's processor has {' and '.join(found)}"
    return "fp32", "this machine's processor is not known to multiply bf16 faster"


def processor_instructions() -> set[str]:
    """The instruction sets of this machine's processor as Linux lists them; elsewhere none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        return set()
    listed = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(listed.group(1).split()) if listed else set()
