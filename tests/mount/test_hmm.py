"""The rows of the kernel's HMM tests (tools/testing/selftests/mm), each tried by a program of ours
on devices of both kinds: what programs/hmm.c does, in the memory of a program under hmmfs run."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HMMFS, Mount, mounted, moves_programs, wait_until

PROGRAM = Path(__file__).parent / "programs" / "hmm.c"
SECONDS = 30

ROWS = (
    "open_close",
    "anon_read",
    "anon_read_prot",
    "anon_write",
    "anon_write_prot",
    "anon_write_child",
    "anon_write_child_shared",
    "anon_write_huge",
    "anon_write_hugetlbfs",
    "file_read",
    "file_write",
    "migrate",
    # Linux migrates these. No userfaultfd can be had on them, so here they stay: ENOENT.
    "migrate_file_private",
    "migrate_fault",
    "migrate_release",
    "migrate_shared",
    "migrate_mixed",
    "migrate_multiple",
    "anon_read_multiple",
    "anon_teardown",
    "mixedmap",
    "snapshot",
    "compound",
    "compound_transparent",
    "double_map",
    "exclusive",
    "exclusive_mprotect",
    "exclusive_cow",
    # In place of debugfs's gup_test: direct I/O, process_vm_readv, and a buffer of an io_uring.
    "hmm_gup_test",
    "hmm_cow_in_device",
    "migrate_anon_huge_empty",
    "migrate_anon_huge_zero",
    "migrate_anon_huge_free",
    "migrate_anon_huge_fault",
    "migrate_anon_huge_counts",
    "migrate_partial_unmap_fault",
    "migrate_remap_fault",
    "migrate_anon_huge_err",
    "migrate_anon_huge_zero_err",
    "fail_small",
    "benchmark_thp_migration",
    "userfaultfd_read",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hmm") / "hmm"
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", path, PROGRAM], check=True)
    return path


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Devices 0 and 1 are private, 2 and 3 coherent, as test_hmm has them."""
    kinds = "private+private+coherent+coherent"
    directory = tmp_path_factory.mktemp("hmm")
    with huge_pages(8), mounted(directory, 600, vram="512M", devices=4, type=kinds) as mount:
        yield mount


@contextlib.contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """As many set aside, where that may be done and the kernel finds them."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    if not os.access(setting, os.W_OK) or int(before) >= count:
        yield
        return
    setting.write_text(f"{count}\n")
    try:
        yield
    finally:
        setting.write_text(before)


def test_every_row_is_named(program: Path) -> None:
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.stdout.split() == list(ROWS)


@moves_programs
@pytest.mark.parametrize("devices", [(0, 1), (2, 3)], ids=["private", "coherent"])
@pytest.mark.parametrize("row", ROWS)
def test_hmm(row: str, devices: tuple[int, int], program: Path, machine: Mount) -> None:
    command = [*HMMFS, "run", str(machine.path), "--", program, row, *map(str, devices)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    last = done.stdout.splitlines()[-1:]
    if last and last[0].startswith("skip: "):
        pytest.skip(last[0].removeprefix("skip: "))
    assert (last, done.stderr, done.returncode) == (["ok"], "", 0)
    assert wait_until(lambda: machine.audit() == "ok"), machine.audit()
