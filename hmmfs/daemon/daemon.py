"""One mount, from its first request to its last: puts the parts together.

Order of ending: the mount goes (unmounted by us or by others, or aborted), the gate's threads end
and the core says CLOSED, pyfuse3's loop ends, and with it what serves metrics, the workers and the
fault service end, the gate is joined, the core closed, the watchdog dismissed. Nothing that may
wait for the mount or the kernel runs on the trio thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pyfuse3
import trio

from hmmfs.common.units import K, M
from hmmfs.daemon import limits
from hmmfs.daemon.log import start_log
from hmmfs.daemon.watchdog import Watchdog, abort
from hmmfs.device import links
from hmmfs.device.executor import Executor
from hmmfs.device.mapped_regions import MappedRegions
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.filesystem import tracing
from hmmfs.filesystem.dumps import Dumps
from hmmfs.filesystem.operations import Operations
from hmmfs.filesystem.tree import Tree
from hmmfs.memory import PAGE_SIZE, Core, Event, EventKind, Kind, RegionTable, Trace
from hmmfs.mounting import mounts as mounting
from hmmfs.mounting.config import Config
from hmmfs.mounting.daemonize import Owner
from hmmfs.mounting.mounts import Mounted
from hmmfs.policy import Policies, named_eviction, named_placement, named_prefetch, named_thrashing
from hmmfs.program.dmirror import Device
from hmmfs.program.processes import Processes
from hmmfs.program.protocol import Process
from hmmfs.service import Doomed, Events, FaultService, Jobs, Reservations, guarded
from hmmfs.service.blocks import Blocks

if TYPE_CHECKING:
    from hmmfs.daemon.endpoint import Endpoint

log = logging.getLogger(__name__)

SOCKET_BYTES = (
    4 * M
)  # what may be queued between gate and pyfuse3; users get what the system allows
READAHEAD = 128 * K  # the kernel's own; more than that has to be set through sysfs
MAX_TASKS = 4096  # pyfuse3's; every operation that a device carries out occupies one
UNMOUNT_S = 5.0  # an unmount writes back what is dirty
GRACE_S = 2.0  # for requests under way, once the mount is detached
SO_SNDBUFFORCE = 32


def serve(path: str, config: Config, ready: Callable[[], None], owner: Owner | None = None) -> int:
    """Mount on `path`, call `ready` once the mount answers, and return 0 when it has ended."""
    log_fd = start_log(config.log, debug=config.debug)
    file_size = limits.settle(config.devices)
    # Wrong names are refused before anything is there.
    named_prefetch(config.prefetch)
    named_eviction(config.eviction)
    named_placement(config.placement)
    named_thrashing(config.thrashing)
    topology = links.topology(config.link, config.peer, config.devices, config.topology)
    config = _settled(config)
    endpoint = _endpoint(config)
    watchdog = Watchdog.start()  # before there are threads
    try:
        core = _core(config)
        topology.charge(core, config.fault_us)
        try:
            mounted = mounting.mount(path, config)
        except BaseException:
            core.close()
            raise
        temporary = owner is not None and owner.temporary
        watchdog.guard(mounted.path, mounted.connection_id, temporary=temporary)

        def announce() -> None:
            ready()
            in_background = os.fstat(2).st_rdev == os.stat(os.devnull).st_rdev
            # What workers and kernels complain of. A pipe they could fill, and we would wait.
            if in_background and stat.S_ISREG(os.fstat(log_fd).st_mode):
                os.dup2(log_fd, 2)

        _Daemon(config, core, mounted, topology, endpoint, owner, file_size).run(announce)
        if temporary:
            with contextlib.suppress(OSError):  # the owner may have been faster
                os.rmdir(mounted.path)
    finally:
        if endpoint:
            endpoint.close()
        watchdog.dismiss()
    return 0


def _endpoint(config: Config) -> Endpoint | None:
    """A port for metrics, taken before there is a mount that would have to go again."""
    if config.metrics_port is None:
        return None
    from hmmfs.daemon.endpoint import Endpoint  # its libraries are for those who want it

    return Endpoint(config.metrics_host, config.metrics_port)


def _settled(config: Config) -> Config:
    """What the kinds of its devices make of a configuration here. UsageError: they can't be."""
    named = config.type.split("+")
    if len(named) > max(1, config.devices):
        raise UsageError(
            f"type={config.type} names {len(named)} devices, and there are {config.devices}. "
            "Mount with more, or name fewer."
        )
    if "dax" in named and not config.devices:
        raise UsageError(
            "type=dax needs a device whose memory it is. Mount with devices=1 or more."
        )
    if "dax" in named and set(named) != {"dax"}:
        raise UsageError(
            f"type={config.type} mixes dax with others, whose regions move. Mount them apart."
        )
    if config.visible and "coherent" not in named:
        raise UsageError(
            f"visible= is of coherent memory. Mount with type=coherent, not {named[0]}."
        )
    if not config.passes or os.geteuid() == 0:
        return config
    if named == ["dax"]:
        raise HmmfsError(
            errno.EPERM,
            "type=dax needs root (CAP_SYS_ADMIN), since the kernel passes such files through to "
            "memory. Mount as root, or use type=private.",
        )
    return replace(config, passthrough=False)


def _core(config: Config) -> Core:
    capacity = [config.host, *[config.vram] * config.devices]
    return Core(
        [size // PAGE_SIZE for size in capacity],
        threads=config.threads,
        poll_us=config.poll_us,
        readahead=config.readahead,
        express=config.express,
        realtime=config.realtime,
        kind=Kind(config.type) if config.passes else Kind.PRIVATE,
        device_kinds=[Kind(one) for one in config.types],
        visible=[min(config.visible or config.vram, config.vram) // PAGE_SIZE] * config.devices,
        keep_clean=config.keep_clean,
    )


def _relay() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    for end in pair:
        try:
            end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BYTES)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    return pair


class _Daemon:
    """The parts of one mount."""

    def __init__(
        self,
        config: Config,
        core: Core,
        mounted: Mounted,
        topology: links.Topology,
        endpoint: Endpoint | None,
        owner: Owner | None,
        file_size: int,
    ) -> None:
        self._config = config
        self._owner = owner
        self._endpoint = endpoint
        self._core = core
        self._mounted = mounted
        self._table = RegionTable(core)
        self._events = Events(core)
        self._doomed = Doomed(core, self._events, self._table)
        jobs = Jobs(core, self._events)
        policies = Policies(
            core,
            prefetch=config.prefetch,
            eviction=config.eviction,
            placement=config.placement,
            thrashing=config.thrashing,
            limit_s=config.policy_limit,
        )
        trace = Trace(core, tracing.EVENTS)
        reservations = Reservations(core, jobs, self._table, policies, trace, self._doomed)
        blocks = Blocks(jobs, reservations, self._table)
        self._dumps = Dumps()
        self._processes = Processes(
            core, self._table, blocks, shared=config.allow_other, watch=self._dumps.open
        )
        path = os.path.join(mounted.path, "regions")
        executors = [
            Executor(core, blocks, self._table, self._processes, node, path)
            for node in range(1, core.nodes)
        ]
        self._workers = [executor.worker for executor in executors]
        for worker in self._workers:
            worker.file_size = file_size
        self._tree = Tree(
            core,
            self._table,
            executors,
            self._interfaces(executors),
            policies,
            os.getpid(),
            topology=topology,
            trace=trace,
            shared=config.allow_other,
            processes=self._processes,
        )
        policies.on_failure = lambda node, sentence: self._tree.errors.say(
            sentence, node - 1 if node else None
        )
        self._operations = Operations(
            core, self._table, self._tree, self._doomed, os.geteuid(), os.getegid()
        )
        FaultService(
            core,
            self._events,
            jobs,
            reservations,
            self._table,
            policies,
            on_lost=lambda node, number, error: executors[node - 1].worker.fail(error, number),
        )
        self._subscribe(reservations)
        self._closed = trio.Event()
        self._table.on_doom(self._on_doom)

    def _subscribe(self, reservations: Reservations) -> None:
        """Who hears of what the native core tells, but of faults and of jobs that end."""

        def interrupted(event: Event) -> None:
            self._operations.interrupted(event.cookie, event.block)

        async def answer(event: Event) -> None:
            assert event.ioctl is not None
            await self._operations.ioctl(event.ioctl)

        def refuse(event: Event) -> None:
            if event.ioctl is not None:
                self._core.reply_ioctl(event.ioctl.unique, errno.EIO)

        def of_trace(_: Event) -> Awaitable[None]:
            return self._tree.tracing.on_trace()

        def of_end(event: Event) -> Awaitable[None]:
            return self._processes.on_gone(event.ino)

        def of_low(event: Event) -> Awaitable[None]:
            return reservations.ahead(event.node)

        events = self._events
        events.subscribe(EventKind.INTERRUPT, interrupted)
        events.subscribe(EventKind.CLOSED, lambda _: self._on_closed())
        events.subscribe_task(EventKind.LOW, "Evicting ahead", of_low)
        events.subscribe_task(EventKind.TRACE, "Telling of events", of_trace)
        events.subscribe_task(EventKind.GONE, "Forgetting a program", of_end)
        events.subscribe_task(EventKind.IOCTL, "An ioctl", answer, refuse)

    def _interfaces(self, executors: list[Executor]) -> list[Device]:
        """What each device is to programs that open its dmirror."""
        kinds = enumerate(self._core.device_kinds, 1)
        coherent = frozenset(node for node, kind in kinds if kind is not Kind.PRIVATE)
        number = f"00:{self._mounted.connection_id:02x}"

        def device(node: int, executor: Executor) -> Device:
            def regions(process: Process) -> Process:
                return MappedRegions(process, self._table, executor, number)

            return Device(self._processes, node, coherent, regions)

        return [device(node, executor) for node, executor in enumerate(executors, 1)]

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until the mount is gone."""
        try:
            self._start()
            trio.run(self._main, ready)
        finally:
            self._end()

    def _start(self) -> None:
        ours, theirs = _relay()
        fd = theirs.detach()  # closed by libfuse in pyfuse3.close
        try:
            self._core.start_gate(self._mounted.fd, ours.detach())
            pyfuse3.init(self._operations, f"/dev/fd/{fd}", set())
        except BaseException:
            os.close(fd)
            raise

    def _end(self) -> None:
        """The loop has ended. Unless the mount is gone already, something went wrong: end it, for
        the gate's threads would wait for it for ever."""
        if not self._closed.is_set():
            with contextlib.suppress(HmmfsError):
                mounting.unmount(self._mounted.path, lazy=True)
            if not self._abort():
                return  # the end of the process will
        with contextlib.suppress(Exception):
            pyfuse3.close(unmount=False)
        self._core.join_gate()
        self._core.close()

    # ---- on the trio thread

    async def _main(self, ready: Callable[[], None]) -> None:
        async with trio.open_nursery() as service:
            await service.start(self._events.run)
            service.start_soon(self._doomed.destroy_all)
            await service.start(self._dumps.serve)
            await service.start(self._processes.serve)
            async with trio.open_nursery() as mount:
                mount.start_soon(self._await_signals)
                mount.start_soon(self._announce, ready, mount)
                await pyfuse3.main(min_tasks=1, max_tasks=MAX_TASKS)
                mount.cancel_scope.cancel()
            for worker in self._workers:
                await worker.end()
            await self._processes.end()
            service.cancel_scope.cancel()

    def _on_closed(self) -> None:
        self._closed.set()
        try:
            self._operations.interrupt_all()
        finally:
            pyfuse3.terminate()

    def _on_doom(self, ino: int) -> None:
        self._tree.drop_region(ino)
        self._operations.drop_region(ino)
        for worker in self._workers:
            worker.forget(ino)
        self._doomed.add(ino)

    async def _announce(self, ready: Callable[[], None], mount: trio.Nursery) -> None:
        """Ready is when a program's question has been answered."""

        def ask() -> None:
            found = os.stat(self._mounted.path)
            if not stat.S_ISDIR(found.st_mode):
                raise HmmfsError(errno.EIO, f"{self._mounted.path} does not answer as it should.")
            if self._core.kind is not Kind.PRIVATE and not self._core.passes_through():
                raise HmmfsError(
                    errno.EOPNOTSUPP,
                    f"type={self._core.kind.value} needs FUSE passthrough, which this kernel has "
                    "not. Use Linux 6.9 or later with FUSE_PASSTHROUGH, or (coherent) "
                    "passthrough=off, or type=private.",
                )

        def widen() -> str | None:
            return mounting.set_readahead(self._mounted.connection_id, self._config.readahead)

        await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
        if self._endpoint:
            log.info("Metrics are on %s.", self._endpoint.url)
            serve = partial(self._endpoint.serve, self._tree)
            mount.start_soon(guarded, "Serving metrics", serve)
        if self._config.readahead > READAHEAD:
            complaint = await trio.to_thread.run_sync(widen, abandon_on_cancel=True)
            if complaint:
                log.warning("%s", complaint)
        log.info("%s is mounted.", self._mounted.path)
        ready()

    async def _await_signals(self) -> None:
        """The first signal, or the end of the owner, unmounts. Where programs keep the mount busy
        it is detached, what is under way gets a moment, then the connection is aborted."""
        ends = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup(1) has it
            ends.append(signal.SIGHUP)
        with trio.open_signal_receiver(*ends) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._await_owner)
                async for number in signals:
                    log.info("%s: unmounting %s.", signal.Signals(number).name, self._mounted.path)
                    break
                nursery.cancel_scope.cancel()
            if not await self._unmount(lazy=False):
                await self._unmount(lazy=True)
            with trio.move_on_after(GRACE_S):
                await self._closed.wait()
                return
            log.warning("Programs still use %s: aborting what they wait for.", self._mounted.path)
            await trio.to_thread.run_sync(self._abort)
            await self._closed.wait()

    def _abort(self) -> bool:
        """In a container of an ordinary user there may be no way but to close /dev/fuse."""
        if abort(self._mounted.connection_id):
            return True
        try:
            self._core.leave_gate()
        except HmmfsError as error:
            log.error("The connection can't be aborted: %s", error.sentence)
            return False
        return True

    async def _await_owner(self) -> None:
        """The end of the program that the mount is for is as a signal from it."""
        if self._owner is not None:
            await trio.lowlevel.wait_readable(self._owner.pidfd)
            log.info("The program that mounted %s has ended.", self._mounted.path)
            os.kill(os.getpid(), signal.SIGTERM)

    async def _unmount(self, *, lazy: bool) -> bool:
        """Whether nothing more is to be done about the mount's place in the tree."""
        with trio.move_on_after(UNMOUNT_S):
            try:
                await trio.to_thread.run_sync(
                    mounting.unmount, self._mounted.path, lazy, abandon_on_cancel=True
                )
            except HmmfsError as error:
                if error.errno == errno.EINVAL:
                    return True  # somebody else was faster
                log.info("%s", error.sentence)
                return False
            return True
        return False
