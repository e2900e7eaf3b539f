"""Memory that is used again: seen in the pages that the kernel hands out, in a process of its own."""

import platform
import subprocess
import sys

import pytest

PASSES = """
import resource, torch
from siglip2_dense.engine.memory import keep_freed_memory

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for keep in (False, True):
    if keep:
        keep_freed_memory()
    taken = []
    for _ in range(5):  # the first takes what there is not yet
        before = pages()
        for size in (2**24, 2**23, 2**24):  # 64 and 32 MiB: of less, glibc learns to keep it
            torch.ones(size)
        taken.append(pages() - before)
    print(min(taken))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="nothing happens without glibc")
def test_pages_come_from_the_kernel_once():
    done = subprocess.run([sys.executable, "-c", PASSES], capture_output=True, text=True, check=True)
    plain, kept = map(int, done.stdout.split())
    assert plain > 1000 and kept < plain / 10
