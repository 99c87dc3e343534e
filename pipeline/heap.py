"""The memory that a process has freed, kept for what it allocates next."""

import ctypes

# Names and numbers of glibc's <malloc.h>. Above the first, at most 32 MiB, blocks are mapped one by one.
MMAP_THRESHOLD, MMAP_BYTES = -3, 32 << 20
TRIM_THRESHOLD, KEPT_BYTES = -1, 256 << 20


def keep_freed_memory(worker: int = 0) -> None:
    """Let this process keep what it frees; nothing happens where the C library is not glibc.

    By default glibc gives the memory of an image back and asks for it anew for the next one, and the system
    clears each page of it again: up to a tenth of a sample's time. From now on blocks of up to 32 MiB
    lie in the heap, whose free end is cut off only when it is longer than 256 MiB: the process holds about
    the most that it has needed at a time.

    Args:
        worker: number of a loader process, so that a DataLoader can call this first; not used.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
