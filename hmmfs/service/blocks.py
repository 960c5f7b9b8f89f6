"""Carries out jobs on one block each. Waits for programs, and frees capacity, where they need it.

A job on one block migrates what it needs by itself. When the node is full it says so. Then capacity
is freed and reserved, and the job is sent again with the reservation.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import trio

from hmmfs.errors import HmmfsError
from hmmfs.memory import (
    BLOCK_BYTES,
    HOST,
    PAGE_SIZE,
    BlockKey,
    Job,
    JobKind,
    JobResult,
    RegionTable,
    page_set,
)
from hmmfs.service import Jobs, Patience, Reservations

PATIENCE_S = 0.5  # with a busy CPU; one try with a program that does not answer takes a second
# A pause doubles from 1 ms to this. A try may fail half the time: of a program that changes its
# mappings without end, with processors that others use, 12 % of the first did, more of the later.
PAUSE_S = 0.008
ATTEMPTS = 8  # of one job that finds its node full


class Span(NamedTuple):
    """Bytes of one block."""

    block: int
    offset: int
    length: int

    @property
    def start(self) -> int:
        return self.block * BLOCK_BYTES + self.offset


def spans(start: int, end: int) -> Iterator[Span]:
    """[start, end) cut at block boundaries."""
    while start < end:
        block, offset = divmod(start, BLOCK_BYTES)
        length = min(BLOCK_BYTES - offset, end - start)
        yield Span(block, offset, length)
        start += length


class Blocks:
    """For one device or program."""

    def __init__(self, jobs: Jobs, reservations: Reservations, regions: RegionTable) -> None:
        self._jobs = jobs
        self._reservations = reservations
        self._regions = regions

    async def run(self, job: Job) -> JobResult:
        """Run a job on one block until it is done, and free capacity as needed."""
        full: HmmfsError | None = None
        attempts, busy = ATTEMPTS, 0
        busy_until = trio.current_time() + PATIENCE_S
        patience: Patience | None = None
        while True:
            result = await self._jobs.run(job)
            if result.result == -errno.ENOSPC and attempts:
                if full is not None:
                    raise full
                attempts -= 1
                try:
                    result = await self._run_reserved(job, result.need)
                except HmmfsError as error:
                    # Others may have moved the block meanwhile, so that it needs less: look again.
                    full = error
                    continue
            if result.result == -errno.ENOBUFS:
                patience = patience or self._reservations.patience()
                if await patience.more():
                    continue
            if result.result == -errno.EBUSY and trio.current_time() < busy_until:
                await trio.sleep(min(0.001 * 2**busy, PAUSE_S))
                busy += 1
            elif result.result != -errno.ENOSPC or not attempts:
                break
        if result.result:
            region = self._regions.by_ino(job.ino)
            if region is not None and region.pid:
                raise _program_failure(-result.result, region.pid)
            raise _failure(-result.result)
        return result

    async def _run_reserved(self, job: Job, need: int) -> JobResult:
        frees = need if job.node == HOST else self._on_host(job)
        key = BlockKey(job.ino, job.block)
        async with self._reservations.reserve(job.node, need, key, frees) as reservation:
            job = replace(job, reserved=reservation.take(), flags=job.flags | reservation.flags)
            return await self._jobs.run(job)

    def _on_host(self, job: Job) -> int:
        """Host pages that the job will move to the device."""
        region = self._regions.by_ino(job.ino)
        if region is None:
            return 0
        record = region.blocks(job.block, 1)[0]
        there = page_set(record["present"] & ~record["device"])
        if job.kind == JobKind.MIGRATE:
            return int(there[job.first : job.first + job.count].sum())
        last = (job.offset + job.length - 1) // PAGE_SIZE
        return int(there[job.offset // PAGE_SIZE : last + 1].sum())


def _failure(number: int) -> HmmfsError:
    if number == errno.EBUSY:
        return HmmfsError(
            number, "Programs keep touching the pages faster than they can be moved. Try again."
        )
    if number == errno.ENOSPC:
        return HmmfsError(number, "Others took the capacity that was freed. Try again.")
    if number == errno.ERANGE:
        return HmmfsError(number, "The region was cut short meanwhile: grow it again.")
    if number == errno.ENOENT:
        return HmmfsError(number, "The region was removed meanwhile.")
    if number == errno.EPERM:
        return HmmfsError(
            errno.EBUSY,
            "Some of the pages are advised to stay where they are (pinned, or no_migrate): "
            "unset that first.",
        )
    if number == errno.ENOBUFS:
        return HmmfsError(
            errno.ENOSPC, "Host memory is full. The device would use the pages there remotely."
        )
    if number == errno.EOPNOTSUPP:
        return HmmfsError(number, "DAX memory never moves. Mount with type=coherent for that.")
    return HmmfsError(number, f"{errno.errorcode.get(number, number)} from the native core.")


def _program_failure(number: int, pid: int) -> HmmfsError:
    """The same of a program's own memory."""
    if number == errno.EPERM:
        return HmmfsError(number, f"Process {pid} may not store there itself. See its maps.")
    if number == errno.EFAULT:
        return HmmfsError(
            number,
            f"Process {pid} has no memory there that a device may have: private memory of no file, "
            "which it may read, and no guard.",
        )
    if number == errno.EOPNOTSUPP:
        return HmmfsError(
            number,
            f"Nothing of process {pid} can move, only be reached where it is: that takes root or "
            "CAP_SYS_PTRACE when it starts.",
        )
    if number == errno.EBUSY:
        return HmmfsError(
            number, f"Process {pid} does not answer, or keeps changing that memory. Try again."
        )
    if number == errno.EACCES:
        return HmmfsError(
            errno.EPERM, f"Process {pid} was detached meanwhile. Write attach devN to its devices."
        )
    if number in (errno.ESRCH, errno.ENOENT):
        return HmmfsError(errno.ESRCH, f"Process {pid} has ended, or runs another program.")
    return _failure(number)
