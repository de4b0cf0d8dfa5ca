"""Memory that one batch frees stays with the process for the next one."""

from functools import cache

import torch

LARGEST_BLOCK_BYTES = 31 * 2**20


@cache
def keep_freed_memory() -> None:
    """
    The GNU C library returns freed memory to the system, which zeroes it before it is handed out again: a tenth to a
    fifth of a tower's time on a CPU. It leaves that be below twice the largest block that was freed, as long as this
    is less than 32 MB; so one such block is freed here, once for the process, and up to 64 MB stay with it. Nothing
    happens where another C library has other rules.
    """
    torch.empty(LARGEST_BLOCK_BYTES, dtype=torch.uint8, device="cpu")
