"""What pyfuse3 asks for: names, attributes, control files. The gate answers data on regions.

No handler awaits anything while it changes the table of regions, so each change is atomic. SETATTR
of a size waits for no block and no recall: the kernel holds back the writeback of the inode
meanwhile. Where it finds no capacity, it waits until regions are destroyed, which needs neither.
"""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import os
import select
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from hmmfs.errors import HmmfsError, UsageError
from hmmfs.filesystem.open_dmirror import Ioctls, OpenDmirror
from hmmfs.filesystem.submit import MAX_READ, Submission
from hmmfs.filesystem.tracing import Pipe
from hmmfs.filesystem.tree import (
    Action,
    Directory,
    Dmirror,
    Events,
    Node,
    Regions,
    Setting,
    State,
    Stream,
    Submit,
    Text,
    Tree,
)
from hmmfs.filesystem.xattrs import ENOATTR, Xattrs
from hmmfs.memory import FIRST_REGION_INO, HOST, PAGE_SIZE, Core, Ioctl, Region, RegionTable
from hmmfs.memory.core import NAME_MAX, NONBLOCK_BIT
from hmmfs.service import Doomed

log = logging.getLogger(__name__)

T = TypeVar("T")

# Every change of a name in regions/ comes through the kernel, so it may believe them for long.
REGION_ENTRY_TIMEOUT = 3600.0
MAX_REGIONS = 8192
MAX_VALUE = 4096  # bytes written to a file that takes one value
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
UNNAMED = b"/"  # the name in the CREATE that the gate makes of an open with O_TMPFILE
SETTLING = 16  # files whose times are set at once
NONBLOCK = 1 << NONBLOCK_BIT  # in the offset of a READ: the gate's word for O_NONBLOCK
READY_ALWAYS = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM


@dataclass(frozen=True, slots=True)
class RegionHandle:
    region: Region
    writes: bool


class TextHandle:
    """An open control file: the first read takes the snapshot that all its reads are of."""

    def __init__(self, node: Text) -> None:
        self.node = node
        self._events = node.tracing.snapshot() if isinstance(node, Events) else None
        self._snapshot: bytes | None = None

    async def read(self, offset: int, size: int) -> bytes:
        if self._events:
            return await self._events.read(offset, size)
        if self._snapshot is None:
            produce = self.node.produce
            made = await trio.to_thread.run_sync(produce) if self.node.slow else produce()
            if self._snapshot is None:
                text = made if isinstance(made, bytes) else made.encode(errors="surrogateescape")
                self._snapshot = text
        return self._snapshot[offset : offset + min(size, MAX_READ)]


class SubmitHandle:
    def __init__(self, node: Submit, submission: Submission) -> None:
        self.node = node
        self.device = node.device
        self.submission = submission


Handle = OpenDmirror | RegionHandle | TextHandle | SubmitHandle | Pipe | Action | Directory


def _answered(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Errors become errnos here; any other exception would end the whole mount."""

    @functools.wraps(handler)
    async def answer(*args: Any) -> Any:
        try:
            return await handler(*args)
        except FUSEError:
            raise
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from error
        except Exception:
            log.exception("%s failed.", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return answer


def answered(cls: type[Operations]) -> type[Operations]:
    for name, handler in list(vars(cls).items()):
        if not name.startswith("_") and name in vars(pyfuse3.Operations):
            setattr(cls, name, _answered(handler))
    return cls


class Operations(pyfuse3.Operations):
    """The namespace of one mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self, core: Core, table: RegionTable, tree: Tree, doomed: Doomed, uid: int, gid: int
    ) -> None:
        super().__init__()
        self._core = core
        self._table = table
        self._tree = tree
        self._doomed = doomed
        self._uid = uid
        self._gid = gid
        self._born = time.time_ns()
        self._handles: dict[int, Handle] = {}
        self._fhs = itertools.count(1)
        self._ioctls = Ioctls(core)
        self._xattrs = Xattrs(tree, self._set)
        # Threads of their own: they may wait for what needs the others.
        self._settling = trio.CapacityLimiter(SETTLING)

    # ---- for the daemon

    def interrupted(self, fh: int, unique: int = 0) -> None:
        """The program that waits for a read or a write on this open file, or for an ioctl, got a
        signal."""
        if not fh:
            self._ioctls.interrupt(unique)
        handle = self._handles.get(fh)
        if isinstance(handle, SubmitHandle):
            handle.submission.interrupt(waits=self._core.waits(fh))
        elif isinstance(handle, Pipe):
            handle.interrupt(waits=self._core.waits(fh))

    def drop_region(self, ino: int) -> None:
        """A region is gone for good."""
        self._xattrs.drop(ino)

    async def ioctl(self, request: Ioctl) -> None:
        """Carry out an ioctl on an open control file, and answer it."""
        handle = self._handles.get(request.fh)
        await self._ioctls.run(request, handle if isinstance(handle, OpenDmirror) else None)

    def interrupt_all(self) -> None:
        """The mount is gone: nobody waits any more."""
        for fh in self._handles:
            self.interrupted(fh)

    # ---- attributes

    def _attributes(self, what: Node | Region) -> EntryAttributes:
        attributes = EntryAttributes()
        attributes.st_ino = what.ino
        attributes.st_mode = what.mode
        attributes.st_nlink = what.nlink
        # cp takes 128 KiB at a time at least, whatever this says. stdio and Python's open take
        # this for their buffers, and a larger one would have a seek and a read of 8 bytes
        # bring home pages that nobody asked for.
        attributes.st_blksize = PAGE_SIZE
        if isinstance(what, Region):
            attributes.entry_timeout = REGION_ENTRY_TIMEOUT
            # Stores through mappings and devices change blocks and times without a request.
            attributes.attr_timeout = 0
            attributes.st_uid, attributes.st_gid = what.uid, what.gid
            attributes.st_size = what.size
            attributes.st_blocks = what.present * (PAGE_SIZE // 512)
            atime, mtime, ctime = what.times  # after the size: see there
            attributes.st_atime_ns, attributes.st_mtime_ns = atime, mtime
            attributes.st_ctime_ns = ctime
            return attributes
        attributes.entry_timeout = what.entry_timeout
        # Of directories the kernel asks for each path that leads through them. It knows of every
        # change but that regions come and go in state/.
        attributes.attr_timeout = 0 if isinstance(what, State) else what.entry_timeout
        attributes.st_uid, attributes.st_gid = self._uid, self._gid
        if what.uid is not None:
            attributes.st_uid = what.uid
        if what.gid is not None:
            attributes.st_gid = what.gid
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = self._born
        if isinstance(what, Regions):
            attributes.st_atime_ns = what.atime
            attributes.st_mtime_ns, attributes.st_ctime_ns = what.mtime, what.ctime
        return attributes

    def _find(self, ino: int) -> Node | Region:
        found = self._table.by_ino(ino) if ino >= FIRST_REGION_INO else self._tree.get(ino)
        if found is None:  # gone since it was looked up: the kernel looks its name up once more
            raise FUSEError(errno.ESTALE)
        return found

    def _child(self, parent: int, name: bytes) -> Node | Region:
        directory = self._tree.get(parent)
        if directory is None:  # of a region that has just gone
            raise FUSEError(errno.ENOENT)
        if not isinstance(directory, Directory):
            raise FUSEError(errno.ENOTDIR)
        if len(name) > NAME_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        regions = directory is self._tree.regions
        found = self._table.file(name) if regions else directory.get(name)
        if found is None:
            raise FUSEError(errno.ENOENT)
        return found

    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        found = self._child(parent, name)
        if isinstance(found, Region):
            self._table.looked_up(found)
        return self._attributes(found)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            region = self._table.by_ino(ino)
            if region is not None:
                self._table.forget(region, count)

    async def getattr(self, ino: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self._find(ino))

    async def setattr(
        self,
        ino: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        found = self._find(ino)
        if not isinstance(found, Region):
            self._set_on_control(found, attr, fields)
            return self._attributes(found)
        if fields.update_size:
            await self._truncate(found, attr.st_size)
        if fields.update_uid or fields.update_gid or (fields.update_size and ctx.uid):
            # The gate told the kernel that this is ours to do (HANDLE_KILLPRIV_V2).
            found.mode &= ~(stat.S_ISUID | (stat.S_ISGID if found.mode & stat.S_IXGRP else 0))
        if fields.update_mode:
            found.mode = stat.S_IFREG | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            found.uid = attr.st_uid
        if fields.update_gid:
            found.gid = attr.st_gid
        if fields.update_atime or fields.update_mtime:
            await self._set_times(found, attr, fields)
        elif not fields.update_size:
            found.modified()
        return self._attributes(found)

    async def _set_times(
        self, region: Region, attr: EntryAttributes, fields: pyfuse3.SetattrFields
    ) -> None:
        atime = attr.st_atime_ns if fields.update_atime else None
        mtime = attr.st_mtime_ns if fields.update_mtime else None
        if fields.update_size or mtime is None:
            region.set_times(atime, mtime, settle=False)
            return
        set_times = functools.partial(region.set_times, atime, mtime, settle=True)
        with self._table.using(region):
            await trio.to_thread.run_sync(set_times, limiter=self._settling)

    def _set_on_directory(
        self, regions: Regions, attr: EntryAttributes, fields: pyfuse3.SetattrFields
    ) -> None:
        if fields.update_mode:
            regions.mode = stat.S_IFDIR | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            regions.uid = attr.st_uid
        if fields.update_gid:
            regions.gid = attr.st_gid
        if fields.update_atime:
            regions.atime = attr.st_atime_ns
        if fields.update_mtime:
            regions.mtime = attr.st_mtime_ns
        regions.ctime = time.time_ns()

    def _set_on_control(
        self, node: Node, attr: EntryAttributes, fields: pyfuse3.SetattrFields
    ) -> None:
        """A shell's `>` truncates, and touch sets times: on a file that is written to, neither
        means anything. The rest is fixed, but for regions/."""
        if isinstance(node, Regions):
            self._set_on_directory(node, attr, fields)
            return
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise FUSEError(errno.EPERM)
        if not isinstance(node, Submit | Action | Setting | Dmirror):
            raise FUSEError(errno.EACCES if fields.update_size else errno.EPERM)

    async def _truncate(self, region: Region, size: int) -> None:
        with self._table.using(region):
            await self._with_capacity(functools.partial(region.truncate, size))

    async def _with_capacity(self, work: Callable[[], T]) -> T:
        """The same as Doomed's. Says what is wrong where people look for it."""
        try:
            return await self._doomed.with_capacity(work)
        except HmmfsError as error:
            self._tree.errors.say(error.sentence)
            raise

    # ---- names

    def _in_regions(self, parent: int) -> None:
        if parent != self._tree.regions.ino:
            raise FUSEError(errno.EPERM)

    def _touch_directory(self) -> None:
        regions = self._tree.regions
        regions.mtime = regions.ctime = time.time_ns()

    async def _make(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> Region:
        self._in_regions(parent)
        permissions = stat.S_IFREG | (stat.S_IMODE(mode) & ~ctx.umask)
        region = await self._with_capacity(
            lambda: self._table.create(name, permissions, ctx.uid, ctx.gid)
        )
        self._table.looked_up(region)
        self._touch_directory()
        return region

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        if name == UNNAMED:
            return await self._create_unnamed(parent, mode, flags, ctx)
        region = await self._make(parent, name, mode, ctx)
        return await self._open_region(region, flags), self._attributes(region)

    async def _create_unnamed(
        self, parent: int, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        if parent != self._tree.regions.ino:
            raise FUSEError(errno.EOPNOTSUPP)
        permissions = stat.S_IFREG | (stat.S_IMODE(mode) & ~ctx.umask)
        region = await self._with_capacity(
            lambda: self._table.create_unnamed(permissions, ctx.uid, ctx.gid)
        )
        self._table.looked_up(region)
        return await self._open_region(region, flags), self._attributes(region)

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        if not stat.S_ISREG(mode):
            raise FUSEError(errno.EPERM)
        return self._attributes(await self._make(parent, name, mode, ctx))

    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    async def link(
        self, ino: int, parent: int, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._in_regions(parent)
        found = self._find(ino)
        if not isinstance(found, Region):
            raise FUSEError(errno.EPERM)
        self._table.link(found, name)
        self._table.looked_up(found)
        self._touch_directory()
        return self._attributes(found)

    async def readlink(self, ino: int, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.EINVAL)

    async def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        raise FUSEError(errno.EPERM)

    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self._in_regions(parent)
        self._table.unlink(name)
        self._touch_directory()

    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self._in_regions(parent)
        self._in_regions(new_parent)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise FUSEError(errno.EINVAL)
        if flags & RENAME_EXCHANGE:
            self._table.exchange(name, new_name)
        else:
            self._table.rename(name, new_name, replace=not flags & RENAME_NOREPLACE)
        self._touch_directory()

    # ---- directories

    async def opendir(self, ino: int, ctx: RequestContext) -> int:
        found = self._find(ino)
        if not isinstance(found, Directory):
            raise FUSEError(errno.ENOTDIR)
        return self._handle(found)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._handles[fh]
        assert isinstance(directory, Directory)
        reply = pyfuse3.readdir_reply
        for offset, name in ((1, b"."), (2, b"..")):
            # The parent of every directory is reported as the root: the kernel knows better.
            node = directory if offset == 1 else self._tree.root
            if offset > start_id and not reply(token, name, self._attributes(node), offset):
                return
        for offset, name, found in directory.entries(start_id):
            if not reply(token, name, self._attributes(found), offset):
                return
            if isinstance(found, Region):
                self._table.looked_up(found)

    async def releasedir(self, fh: int) -> None:
        del self._handles[fh]

    # ---- files

    def _handle(self, handle: Handle) -> int:
        fh = next(self._fhs)
        self._handles[fh] = handle
        return fh

    async def _open_region(self, region: Region, flags: int) -> FileInfo:
        handle = RegionHandle(region, flags & os.O_ACCMODE != os.O_RDONLY)
        self._table.acquire(region)
        if handle.writes and region.mostly:
            # Copies of read-mostly pages end before anybody can store to them unannounced.
            await trio.to_thread.run_sync(region.opened_for_writing)
        elif handle.writes:
            region.opened_for_writing()
        return FileInfo(fh=self._handle(handle), keep_cache=True)

    async def open(self, ino: int, flags: int, ctx: RequestContext) -> FileInfo:
        found = self._find(ino)
        if isinstance(found, Region):
            return await self._open_region(found, flags)
        if isinstance(found, Submit):
            handle = SubmitHandle(found, self._tree.open_submit(found))
            return FileInfo(fh=self._handle(handle), direct_io=True, keep_cache=False)
        if isinstance(found, Stream):
            return self._open_stream(found, flags)
        if isinstance(found, Action):
            return FileInfo(fh=self._handle(found), direct_io=True, keep_cache=False)
        if isinstance(found, Dmirror):
            return await self._open_dmirror(found, ctx.pid)
        if not isinstance(found, Text):
            raise FUSEError(errno.EISDIR)
        if isinstance(found, Setting):
            return FileInfo(fh=self._handle(TextHandle(found)), direct_io=True, keep_cache=False)
        if flags & os.O_ACCMODE != os.O_RDONLY:  # root passes the check of the mode bits
            raise FUSEError(errno.EACCES)
        return FileInfo(fh=self._handle(TextHandle(found)), direct_io=True, keep_cache=False)

    async def _open_dmirror(self, found: Dmirror, thread: int) -> FileInfo:
        say = functools.partial(self._tree.errors.say, device=found.device)
        opened = await OpenDmirror.open(found.interface, thread, say)
        return FileInfo(fh=self._handle(opened), direct_io=True, keep_cache=False)

    def _open_stream(self, found: Stream, flags: int) -> FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise FUSEError(errno.EACCES)
        fh = self._handle(found.tracing.open())
        return FileInfo(fh=fh, direct_io=True, keep_cache=False, nonseekable=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self._handles[fh]
        nonblocking = bool(off & NONBLOCK)
        off &= ~NONBLOCK
        if isinstance(handle, Pipe):
            return await handle.read(size, nonblocking=nonblocking)
        if isinstance(handle, TextHandle):
            return await handle.read(off, size)
        if isinstance(handle, SubmitHandle):
            return handle.submission.read(off, size)
        if isinstance(handle, OpenDmirror):
            raise handle.no_bytes()
        raise FUSEError(errno.EIO)  # the gate answers these

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._handles[fh]
        if isinstance(handle, Action):
            await handle.act()
            return len(buf)
        if isinstance(handle, TextHandle) and isinstance(handle.node, Setting):
            return await self._set(handle.node, buf, MAX_VALUE)
        if isinstance(handle, OpenDmirror):
            raise handle.no_bytes()
        if not isinstance(handle, SubmitHandle):
            raise FUSEError(errno.EACCES)
        try:
            return await handle.submission.write(off, buf)
        except HmmfsError as error:
            self._tree.errors.say(error.sentence, handle.device)
            log.info("dev%d: %s", handle.device, error.sentence)
            raise

    async def _set(self, node: Setting, text: bytes, most: int) -> int:
        """One write is one value."""
        try:
            if len(text) > most:
                raise UsageError(f"A value has at most {most} bytes.")
            done = node.store(os.fsdecode(text).strip())
            if done is not None:
                await done
        except HmmfsError as error:
            self._tree.errors.say(error.sentence, node.device)
            raise
        return len(text)

    async def poll(
        self, inode: int, fh: int, poll_handle: pyfuse3.PollHandle | None, ctx: RequestContext
    ) -> int:
        """Only trace_pipe is ever not ready."""
        handle = self._handles[fh]
        return handle.poll(poll_handle) if isinstance(handle, Pipe) else READY_ALWAYS

    async def release(self, fh: int) -> None:
        handle = self._handles.pop(fh)
        if isinstance(handle, RegionHandle):
            if handle.writes:
                handle.region.closed_for_writing()
            self._table.release(handle.region)
        elif isinstance(handle, Pipe):
            handle.close()
        elif isinstance(handle, SubmitHandle):
            handle.submission.interrupt()
            self._tree.close_submit(handle.node)
        elif isinstance(handle, OpenDmirror):
            await handle.close()

    async def flush(self, fh: int) -> None:
        raise FUSEError(errno.ENOSYS)  # the kernel asks once and then no more

    async def fsync(self, fh: int, datasync: bool) -> None:
        raise FUSEError(errno.ENOSYS)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        raise FUSEError(errno.ENOSYS)

    # ---- extended attributes

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return self._xattrs.get(self._find(inode), name)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self._xattrs.names(self._find(inode))

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._change_xattr(inode, functools.partial(self._xattrs.set, value=value), name)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._change_xattr(inode, self._xattrs.remove, name)

    async def _change_xattr(
        self, ino: int, change: Callable[..., Awaitable[None]], name: bytes
    ) -> None:
        found = self._find(ino)
        try:
            await change(found, name)
        except HmmfsError as error:
            if error.errno not in (errno.EOPNOTSUPP, ENOATTR):  # what tools just try
                self._tree.errors.say(error.sentence)
            raise
        if isinstance(found, Region):
            found.modified()
        elif isinstance(found, Regions):
            found.ctime = time.time_ns()

    # ---- the whole

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Copies kept of pages that live on a device are free: they go when memory is full."""
        data = pyfuse3.StatvfsData()
        free = [self._core.free(node) for node in range(self._core.nodes)]
        free[HOST] += int(self._core.candidates(HOST)["kept"].sum())
        data.f_bsize = data.f_frsize = PAGE_SIZE
        data.f_blocks = sum(self._core.capacity)
        # The host is beyond its capacity while the staging reserve is in use.
        sizes = zip(free, self._core.capacity, strict=True)
        data.f_bfree = sum(min(max(0, pages), capacity) for pages, capacity in sizes)
        data.f_bavail = data.f_bfree
        data.f_files = MAX_REGIONS
        data.f_ffree = data.f_favail = MAX_REGIONS - self._table.regions
        data.f_namemax = NAME_MAX
        return data


answered(Operations)
