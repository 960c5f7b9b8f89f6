"""What every test shares. Each test's time limit is pytest-timeout's, set in pyproject.toml."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# What a test sends to its children. A shell's background job and nohup leave them ignored, and
# every child would inherit that.
SENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


# From the lowest: what is wrong below makes all above fail.
LEVELS = ("unit", "model", "native", "mount")
# Of each level what finds the most in the least time; of native/ without the sanitizers.
QUICK = {
    "unit": (),  # all
    "model": ("test_rules",),
    "native": (*("test_gate_parser", "test_interleavings", "test_conformance", "test_schedules"),),
    "mount": (
        *("test_first", "test_files", "test_kinds", "test_recall", "test_launch", "test_advice"),
        *("test_policies", "test_control_files", "test_metrics", "test_smi"),
        *("test_fsx_conforms", "test_times", "test_every_number"),
    ),
}


SLOW = ("test_packaging", "test_endpoint")


def level(item: pytest.Item) -> str:
    return item.path.parent.name


def is_quick(item: pytest.Item) -> bool:
    files = QUICK.get(level(item))
    slow = "mistake" in item.name or item.name == "test_worker" or item.path.stem in SLOW
    if files is None or slow:
        return False
    return not files or item.path.stem in files


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only what finds most bugs in 3 minutes")
    parser.addoption("--long", action="store_true", help="also run the tests that take an hour")
    parser.addoption("--no-browser", action="store_true", help="leave out those that open a page")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "warns(words): what a mount's daemon may warn of in its log")
    # Without it every process that a test starts compiles all that it imports.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT)
    for number in SENT:
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    out = []
    if not config.getoption("--long"):
        out += [item for item in items if item.get_closest_marker("long")]
    if config.getoption("--no-browser"):
        # The fixture by this name is a browser, wherever there is one.
        out += [item for item in items if "driver" in getattr(item, "fixturenames", ())]
    if config.getoption("--quick"):
        out += [item for item in items if not is_quick(item)]
    left = set(out)
    items[:] = [item for item in items if item not in left]
    items.sort(key=lambda item: LEVELS.index(level(item)) if level(item) in LEVELS else len(LEVELS))
    config.hook.pytest_deselected(items=list(left))


@pytest.fixture(scope="session", autouse=True)
def temporary_files() -> Iterator[Path]:
    """The directory for what code under test makes in the one for temporary files, mounts above
    all: so two runs at the same time can tell whose it is. Its name is short, as a browser makes a
    socket below it, which takes 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="hmmfs-tests-") as directory:
        os.chmod(directory, 0o755)  # some of it is for other users
        patch = pytest.MonkeyPatch()
        patch.setenv("TMPDIR", directory)
        patch.setattr(tempfile, "tempdir", None)
        yield Path(directory)
        patch.undo()
