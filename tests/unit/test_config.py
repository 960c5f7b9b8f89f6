"""Options: every one, from both places, right and wrong."""

import dataclasses
import errno
import os
from pathlib import Path

import pytest

from hmmfs.errors import UsageError
from hmmfs.mounting.config import OPTIONS, Config

M = 1 << 20


def test_defaults() -> None:
    config = Config.from_options()
    assert config == Config()
    assert (config.vram, config.devices, config.host) == (64 * M, 1, 1024 * M)
    assert (config.readahead, config.poll_us, config.threads) == (128 << 10, 0, 2)
    assert config.keep_clean
    assert config.express
    assert (config.prefetch, config.eviction) == ("grow", "lru")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.vram = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("vram=2M", "vram", 2 * M),
        ("vram=2100K", "vram", 2100 << 10),
        ("devices=0", "devices", 0),
        ("devices=15", "devices", 15),
        ("host=4GiB", "host", 4096 * M),
        ("readahead=0", "readahead", 0),
        ("poll_us=50", "poll_us", 50),
        ("policy_limit=3", "policy_limit", 3.0),
        ("policy_limit=0.25s", "policy_limit", 0.25),
        ("policy_limit=250ms", "policy_limit", 0.25),
        ("keep_clean=off", "keep_clean", False),
        ("express=off,express", "express", True),
        ("prefetch=none", "prefetch", "none"),
        ("eviction=lru", "eviction", "lru"),
        ("threads=64", "threads", 64),
        ("allow_other", "allow_other", True),
        ("debug", "debug", True),
        ("ro", "ro", True),
        ("ro,rw", "ro", False),
        ("noexec", "noexec", True),
        ("noexec,exec", "noexec", False),
        ("noatime", "noatime", True),
        ("noatime,atime", "noatime", False),
        (r"fsname=a\,b=c", "fsname", "a,b=c"),
        ("log=/tmp/x", "log", "/tmp/x"),
        ("log=x", "log", os.path.abspath("x")),
        ("topology=x.toml", "topology", os.path.abspath("x.toml")),
        ("topology=/x.toml", "topology", "/x.toml"),
        ("topology=dev0-dev1:600ns:64G", "topology", "dev0-dev1:600ns:64G"),
        ("vram=4M,vram=8M", "vram", 8 * M),
    ],
)
def test_each_option(option: str, name: str, value: object) -> None:
    config = Config.from_options(option)
    assert getattr(config, name) == value
    assert dataclasses.replace(config, **{name: getattr(Config(), name)}) == Config()


def test_what_mount8_passes() -> None:
    generic = (
        "rw,dev,nodev,suid,nosuid,exec,atime,relatime,user,user=me,nouser,users,auto,noauto,"
        "_netdev,nofail,defaults,user_id=0,group_id=0,x-systemd.automount,x-gvfs-show,,"
    )
    assert Config.from_options(generic) == Config()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("vrma=64M", 'There is no option "vrma" (did you mean "vram"?); the options are vram,'),
        ("qqq", 'There is no option "qqq"; the options are '),
        ("=64M", 'There is no option ""; '),
        ("remount", 'There is no option "remount"'),
        ("uid=0", 'There is no option "uid"'),
        ("vram", 'The option "vram" is wrong: vram takes a size from 2M to 16T in multiples of 4K'),
        ("vram=", 'The option "vram=" is wrong: '),
        ("vram=64Q", 'The option "vram=64Q" is wrong: '),
        ("vram=1M", 'The option "vram=1M" is wrong: '),
        ("vram=17T", 'The option "vram=17T" is wrong: '),
        ("vram=2097153", 'The option "vram=2097153" is wrong: '),
        ("host=4K", "host takes a size from 2M to 16T in multiples of 4K, such as 1G."),
        ("readahead=1000", "readahead takes a size from 0 to 16M in multiples of 4K"),
        ("devices=16", "devices takes a whole number from 0 to 15."),
        ("devices=-1", "devices takes a whole number from 0 to 15."),
        ("devices=1.0", "devices takes a whole number from 0 to 15."),
        ("poll_us=10001", "poll_us takes a whole number from 0 to 10000."),
        ("policy_limit=0", "policy_limit takes a time from 1ms to 3600s, such as 1s."),
        ("policy_limit=0.5ms", "policy_limit takes a time"),
        ("policy_limit=3601", "policy_limit takes a time"),
        ("policy_limit=-1", "policy_limit takes a time"),
        ("policy_limit=1e3", "policy_limit takes a time"),
        ("policy_limit=1m", "policy_limit takes a time"),
        ("policy_limit", "policy_limit takes a time"),
        ("threads=0", "threads takes a whole number from 1 to 64."),
        ("keep_clean=yes", "keep_clean takes on or off."),
        ("allow_other=1", "allow_other takes on or off."),
        ("prefetch=", "prefetch takes a prefetch policy, such as grow"),
        ("eviction= ", "eviction takes an eviction policy, such as lru"),
        ("fsname=", "fsname takes a name"),
        ("log", "log takes the path of a file."),
        ("topology", "topology takes FILE.toml, or the links of pairs as in host-dev0:pcie4+"),
        ("topology= ", "topology takes FILE.toml"),
    ],
)
def test_refusals(option: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Config.from_options(option)
    assert sentence in str(caught.value)
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_toml(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(
        '[mount]\nvram = "8M"\nhost = 4194304\ndevices = 3\nallow_other = true\nexpress = false\n'
    )
    config = Config.from_options("devices=2", str(file))
    assert config == Config(vram=8 * M, host=4 * M, devices=2, allow_other=True, express=False)
    assert Config.from_options("", str(file), fsname="a").fsname == "a"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[mount]\nvarm = 1", 'There is no option "varm" (did you mean "vram"?)'),
        ("[mount]\nvram = 1", 'The option "vram=1" is wrong'),
        ("[mount]\nvram = 1.5", 'The option "vram" is wrong: give it a string, a whole number'),
        ("[mount]\nvram = []", 'The option "vram" is wrong: give it a string, a whole number'),
        ("[mount]\nexpress = 1", 'The option "express=1" is wrong: express takes on or off.'),
        ("mount = 1", "mount must be a table. Write [mount]."),
        ("vram = 1", 'has "vram", where only a [mount] table'),
        ("[mount", "is not TOML"),
        ("\x00", "is not TOML"),
    ],
)
def test_toml_refusals(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "f.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        Config.from_options("", str(file))
    assert sentence in str(caught.value)


def test_toml_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file or directory"):
        Config.from_options("", str(tmp_path / "none"))
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not TOML"):
        Config.from_options("", str(tmp_path / "latin"))


def test_every_option_refuses_nonsense() -> None:
    policies = {"prefetch", "eviction", "placement", "thrashing"}
    others = policies | {"fsname", "log", "link", "peer", "topology", "metrics_host"}
    for name in set(OPTIONS) - others:
        with pytest.raises(UsageError, match=f'"{name}=nonsense" is wrong: {name} takes '):
            Config.from_options(f"{name}=nonsense")
