"""Mounting and unmounting: /dev/fuse and mount(2) as root, fusermount3 for everybody else."""

import errno
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass

from hmmfs.common import linux, mountinfo
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.mounting.config import Config

FUSE_CONF = "/etc/fuse.conf"


@dataclass(frozen=True)
class Mounted:
    """A fresh mount. Nothing answers on ``path`` until requests are read from ``fd``."""

    fd: int
    path: str
    connection_id: int


def mount(path: str, config: Config) -> Mounted:
    """Mount hmmfs on ``path``; the caller closes ``fd``, which is the connected /dev/fuse."""
    point = _mount_point(path)
    fd = _mount_as_root(point, config) if os.geteuid() == 0 else _mount_by_helper(point, config)
    entry = mountinfo.find_hmmfs(point)
    if entry is None:
        os.close(fd)
        raise HmmfsError(errno.EIO, f"The mount on {point} vanished as soon as it was made.")
    return Mounted(fd, point, entry.minor)


def is_mounted(path: str) -> bool:
    """Whether an hmmfs mount is on ``path``, answering or not."""
    return mountinfo.find_hmmfs(path) is not None


def unmount(path: str, lazy: bool = False) -> None:
    """End the hmmfs mount on ``path``; ``lazy`` detaches it now and ends it at the last close."""
    point = mountinfo.require_hmmfs(path).point
    if os.geteuid() != 0:
        options = ["-u", "-z"] if lazy else ["-u"]
        _run_helper([*options, "--", point], f"{point} cannot be unmounted")
        return
    try:
        linux.umount(point, linux.MNT_DETACH if lazy else 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise HmmfsError(
                errno.EBUSY,
                f"{point} is busy. Close what programs have open or mapped there, "
                "or detach it with -z.",
            ) from None
        raise HmmfsError(
            error.errno or errno.EIO, f"{point} cannot be unmounted: {error.strerror}."
        ) from None


def set_readahead(connection_id: int, count: int) -> str | None:
    """Set the mount's readahead window in bytes; a sentence says why where that is not permitted.

    Without it the kernel keeps to the smaller of its own default (128 KiB) and what INIT said.
    """
    path = f"/sys/class/bdi/0:{connection_id}/read_ahead_kb"
    try:
        with open(path, "w") as file:
            file.write(str(count // 1024))
    except OSError as error:
        return f"The readahead of {count} bytes cannot be set in {path}: {error.strerror}."
    return None


def _mount_point(path: str) -> str:
    point = mountinfo.resolve(path)
    if is_mounted(point):
        raise HmmfsError(
            errno.EBUSY, f"{point} is an hmmfs mount already: end it with `hmmfs umount {point}`."
        )
    if not os.path.exists(point):
        raise HmmfsError(errno.ENOENT, f"{point} does not exist: make the directory first.")
    if not os.path.isdir(point):
        raise HmmfsError(errno.ENOTDIR, f"{point} is not a directory. Mount on a directory.")
    return point


def _open_fuse() -> int:
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            sentence = (
                "There is no /dev/fuse: load the kernel's module with `modprobe fuse`, "
                "or give the container --device /dev/fuse."
            )
        else:
            sentence = f"/dev/fuse cannot be opened: {error.strerror}."
        raise HmmfsError(error.errno or errno.EIO, sentence) from None


def _mount_as_root(point: str, config: Config) -> int:
    fd = _open_fuse()
    data = (
        f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
    )
    if config.allow_other:
        data += ",allow_other"
    flags = linux.MS_NOSUID | linux.MS_NODEV
    for wanted, flag in (
        (config.ro, linux.MS_RDONLY),
        (config.noexec, linux.MS_NOEXEC),
        (config.noatime, linux.MS_NOATIME),
    ):
        flags |= flag if wanted else 0
    try:
        linux.mount(config.fsname, point, mountinfo.TYPE, flags, data)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EPERM:
            sentence = f"Mounting on {point} is not permitted: it needs CAP_SYS_ADMIN."
        elif error.errno == errno.ENODEV:
            sentence = "This kernel has no FUSE: load its module with `modprobe fuse`."
        else:
            sentence = f"Mounting on {point} failed: {error.strerror}."
        raise HmmfsError(error.errno or errno.EIO, sentence) from None
    return fd


def _mount_by_helper(point: str, config: Config) -> int:
    """Let fusermount3 mount; it sends /dev/fuse over the socket that _FUSE_COMMFD names."""
    if config.allow_other and not _others_allowed():
        raise UsageError(
            f"The option allow_other is not permitted here. Put user_allow_other into {FUSE_CONF}."
        )
    fsname = config.fsname.replace("\\", "\\\\").replace(",", "\\,")
    options = [f"fsname={fsname}", "subtype=hmmfs", "default_permissions"]
    options += [
        name for name in ("allow_other", "ro", "noexec", "noatime") if getattr(config, name)
    ]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            _run_helper(
                ["-o", ",".join(options), "--", point], f"{point} cannot be mounted on", theirs
            )
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise HmmfsError(errno.EIO, f"fusermount3 sent no descriptor for the mount on {point}.")
    os.set_inheritable(fds[0], False)  # recv_fds has no use for MSG_CMSG_CLOEXEC
    return fds[0]


def _others_allowed() -> bool:
    try:
        with open(FUSE_CONF) as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False


def find_helper() -> str | None:
    """fusermount3, also for who has no PATH, or one without the places of the system."""
    return shutil.which("fusermount3") or shutil.which("fusermount3", path=os.defpath)


def _run_helper(args: list[str], failure: str, channel: socket.socket | None = None) -> None:
    helper = find_helper()
    if helper is None:
        raise HmmfsError(
            errno.ENOENT,
            "There is no fusermount3, which mounts for users. Install it with "
            "`apt-get install fuse3`.",
        )
    done = subprocess.run(
        [helper, *args],
        env={**os.environ, "LC_ALL": "C"}
        | ({"_FUSE_COMMFD": str(channel.fileno())} if channel else {}),
        pass_fds=[channel.fileno()] if channel else [],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        reason = lines[-1].rpartition("fusermount3:")[2].strip().rstrip(".")
        number = errno.EBUSY if "busy" in reason.lower() else errno.EPERM
        raise HmmfsError(number, f"{failure}: fusermount3 says {reason}.")
