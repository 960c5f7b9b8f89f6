"""A peer for the bench: one file in memory on plain pyfuse3 and trio, as one would write it."""

import errno
import stat
import sys

import pyfuse3
import trio

FILE = pyfuse3.ROOT_INODE + 1


class Plain(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()

    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        top = inode == pyfuse3.ROOT_INODE
        entry.st_mode = stat.S_IFDIR | 0o755 if top else stat.S_IFREG | 0o644
        entry.st_ino = inode
        entry.st_size = 0 if top else len(self.data)
        entry.entry_timeout = entry.attr_timeout = 1000
        return entry

    async def lookup(self, parent, name, ctx=None):
        if name != b"a":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE)

    async def setattr(self, inode, attr, fields, fh, ctx):
        if fields.update_size:
            self.data = self.data[: attr.st_size].ljust(attr.st_size, b"\0")
        return await self.getattr(inode)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh, off, size):
        return self.data[off : off + size]

    async def write(self, fh, off, buf):
        self.data[off : off + len(buf)] = buf
        return len(buf)


options = set(pyfuse3.default_options) | {"fsname=plain", "allow_other"}
pyfuse3.init(Plain(), sys.argv[1], options)
try:
    trio.run(pyfuse3.main)
finally:
    pyfuse3.close()
