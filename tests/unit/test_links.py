"""What copies cost on the emulated links, and which nodes have which."""

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmmfs.device.links import PRESETS, Topology, link, topology
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.memory import Core


@pytest.mark.parametrize(
    ("kib", "us"),
    [(4, 1.759), (60, 5.564), (124, 10.598), (252, 20.745), (508, 41.078), (1020, 81.762)],
)
def test_pcie3_costs_what_the_published_model_does(kib: int, us: float) -> None:
    """The transfers logged by UVMSmart."""
    assert link("pcie3").run_ns[kib // 4] / 1000 == pytest.approx(us, abs=0.001)


def test_faster_links_cost_less() -> None:
    costs = [link(name).run_ns[512] for name in ("pcie3", "pcie4", "pcie5")]
    assert costs[0] == pytest.approx(2 * costs[1], abs=2)
    assert costs[1] == pytest.approx(2 * costs[2], abs=2)
    for names in (("nvlink1", "nvlink2", "nvlink3", "nvlink4"), ("cxl2", "cxl3")):
        whole = [link(name).run_ns[512] for name in names]
        assert whole == sorted(whole, reverse=True)
        assert len(set(whole)) == len(whole)


@pytest.mark.parametrize(
    ("name", "page", "block"),
    [
        ("nvlink1", 856, 29_528),
        ("nvlink2", 828, 15_364),
        ("nvlink3", 816, 8_897),
        ("nvlink4", 811, 6_378),
        ("nvlink-c2c", 811, 6_392),
        ("cxl2", 315, 33_538),
        ("cxl3", 282, 16_634),
    ],
)
def test_presets(name: str, page: int, block: int) -> None:
    """ns of 4 KiB and of 2 MiB, by hand: 800 or 250 ns and bytes at the GB/s of the preset."""
    found = link(name)
    assert (found.name, found.run_ns[0], found.run_ns[1]) == (name, 0, page)
    assert found.run_ns[512] == block


@given(st.sampled_from(PRESETS))
def test_larger_copies_take_longer_and_less_a_page(name: str) -> None:
    costs = link(name).run_ns
    assert len(costs) == 513
    assert all(one < two for one, two in itertools.pairwise(costs))
    assert all(costs[n] <= n * costs[1] for n in range(513))


def test_a_link_of_ones_own() -> None:
    found = link("600ns:64G")
    assert found.run_ns[0] == 0
    assert found.run_ns[1] == 600 + round(4096 / (64 << 30) * 1e9)
    assert found.name == "600ns:64G"


@pytest.mark.parametrize("name", ["pcie9", "", "600:64G", "600ns:0", "600ns:", "1.5us:4G", "1s:1G"])
def test_no_links(name: str) -> None:
    with pytest.raises(UsageError, match=r"is not a link\. Use pcie3, pcie4, pcie5, nvlink1"):
        link(name)


# ---- which nodes have which


def test_the_matrix_of_a_topology() -> None:
    through, direct = topology("pcie3", "none", 2), topology("pcie4", "1us:100G", 2)
    assert (
        through.matrix()
        == "- host dev0 dev1\nhost X pcie3 pcie3\ndev0 pcie3 X host\ndev1 pcie3 host X\n"
    )
    assert direct.matrix().splitlines()[2] == "dev0 pcie4 X 1us:100G"
    with pytest.raises(UsageError, match="'nvlunk' is not a link"):
        topology("pcie3", "nvlunk", 1)
    assert topology("pcie3", "nvlink3", 0).matrix() == "- host\nhost X\n"


MATRIX = """\
- host dev0 dev1 dev2
host X pcie4 pcie3 cxl2
dev0 pcie4 X nvlink3 host
dev1 pcie3 nvlink3 X 600ns:64G
dev2 cxl2 host 600ns:64G X
"""


def test_links_of_single_pairs() -> None:
    """Those named, in either order; `link` and `peer` for the others."""
    pairs = "host-dev0:pcie4+dev2-host:cxl2+dev1-dev0:nvlink3+dev1-dev2:600ns:64G"
    assert topology("pcie3", "none", 3, pairs).matrix() == MATRIX
    assert topology("pcie3", "nvlink3", 3, f"dev0-dev2:none+{pairs}").matrix() == MATRIX


def test_the_same_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "links.toml"
    file.write_text(
        '[links]\nhost-dev0 = "pcie4"\n"dev2-host" = "cxl2"\ndev1-dev0 = "nvlink3"\n'
        'dev1-dev2 = {latency = "600ns", bandwidth = "64G"}\n'
    )
    assert topology("pcie3", "none", 3, str(file)).matrix() == MATRIX
    file.write_text('[links]\ndev0-dev1 = {bandwidth = 68719476736, latency = "600ns"}\n')
    assert topology("pcie3", "none", 2, str(file)).between(2, 1) == link("600ns:68719476736")
    file.write_text("[links]\n")
    assert topology("pcie3", "none", 2, str(file)) == topology("pcie3", "none", 2)


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ("nonsense", "has 'nonsense'. Name a FILE.toml, or links of pairs as in host-dev0:pcie4+"),
        ("host-dev0:pcie4+", "has ''. Name a FILE.toml, or links of pairs"),
        ("host-dev0:pcie4;host-dev1:pcie3", "'pcie4;host-dev1:pcie3' is not a link. Use pcie3, "),
        ("host:pcie4", "has 'host', no pair of nodes. Write host-dev0."),
        ("dev0-dev1-dev0:pcie4", "no pair of nodes. Write host-dev0."),
        ("dev0-dev3:pcie4", "'dev3' is not a node: this mount has host and dev0 to dev1."),
        ("dev0-dev01:pcie4", "'dev01' is not a node"),
        ("gpu0-host:pcie4", "'gpu0' is not a node"),
        ("-:pcie4", "'' is not a node"),
        ("dev1-dev1:pcie4", "has 'dev1-dev1', a node with itself. Name two."),
        ("host-host:pcie4", "has 'host-host', a node with itself. Name two."),
        ("dev0-dev1:pcie4+dev1-dev0:pcie3", "has the pair 'dev1-dev0' twice. Give it one link."),
        ("host-dev0:pcie9", "wrong about 'host-dev0': 'pcie9' is not a link. Use pcie3"),
        ("dev0-dev1:", "wrong about 'dev0-dev1': '' is not a link"),
        ("host-dev1:none", "no link for 'host-dev1': a device needs one to the host."),
    ],
)
def test_refusals(pairs: str, sentence: str) -> None:
    refused(pairs, sentence)


def refused(pairs: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        topology("pcie3", "none", 2, pairs)
    assert sentence in str(caught.value)
    assert re.fullmatch(r"The topology .*\.", str(caught.value))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[links", "is not TOML: "),
        ("\x00", "is not TOML: "),
        ('[links]\nhost-dev0 = "pcie3"\nhost-dev0 = "pcie4"', "is not TOML: "),
        ('[links]\nhost-dev0 = "pcie3"\ndev0-host = "pcie4"', "the pair 'dev0-host' twice"),
        ('[mount]\nvram = "8M"', "has 'mount', where only [links] is known."),
        ('[links]\n[link]\nhost-dev0 = "pcie4"', "has 'link', where only [links] is known."),
        ("", "has no table of links. Write [links]."),
        ('links = "pcie4"', "has no table of links. Write [links]."),
        ("[links]\nhost-dev0 = 4", "'host-dev0'. Give it a link's name, or {latency = "),
        ('[links]\nhost-dev0 = {latency = "1us"}', "'host-dev0'. Give it a link's name"),
        ('[links.host-dev0]\nlatency = "1s"\nbandwidth = "1G"', "'1s:1G' is not a link. Use"),
        ('[links]\nhost-dev0 = {latency = "1us", bandwidth = true}', "'1us:True' is not a link"),
        ('[links]\n"a\\nb" = "pcie4"', "has 'a\\nb', no pair of nodes"),
        ('[links]\n"dev0-dev3" = "pcie4"', "'dev3' is not a node: this mount has host and dev0 to"),
    ],
)
def test_refusals_of_files(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "links.toml"
    file.write_text(text)
    refused(str(file), sentence)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    refused(str(tmp_path / "none.toml"), "cannot be read: No such file or directory.")
    (tmp_path / "latin.toml").write_bytes(b"\xff")
    refused(str(tmp_path / "latin.toml"), "is not TOML: ")


@pytest.mark.parametrize(
    ("devices", "known"),
    [(0, "host."), (1, "host and dev0."), (15, "host and dev0 to dev14.")],
)
def test_the_nodes_there_are(devices: int, known: str) -> None:
    with pytest.raises(UsageError, match=f"this mount has {known}"):
        topology("pcie3", "none", devices, "host-dev15:pcie4")


# ---- distances


def test_distances() -> None:
    """10, and 1 for every 100 ns begun of a page: 1759, 880, 315, 816, 660 ns."""
    found = topology(
        "pcie3", "none", 3, "host-dev0:pcie4+host-dev2:cxl2+dev0-dev1:nvlink3+dev1-dev2:600ns:64G"
    )
    assert found.distances() == (
        "node   0   1   2   3\n"
        "  0:  10  19  28  14\n"
        "  1:  19  10  19  22\n"
        "  2:  28  19  10  17\n"
        "  3:  14  22  17  10\n"
    )
    assert topology("pcie3", "none", 0).distances() == "node   0\n  0:  10\n"


@pytest.mark.parametrize(
    ("name", "distance"),
    [
        ("0ns:1000000T", 11),
        ("99ns:1000T", 11),
        ("100ns:1000T", 11),
        ("101ns:1000T", 12),
        ("24300ns:1000T", 253),
        ("24400ns:1000T", 254),
        ("9ms:1M", 254),
    ],
)
def test_the_ends_of_the_range(name: str, distance: int) -> None:
    assert topology(name, "none", 1).distance(0, 1) == distance


LINKS = st.sampled_from([*PRESETS, "600ns:64G", "0ns:1T", "3us:1000M"])


@st.composite
def machines(draw: st.DrawFn) -> tuple[str, str, int, dict[tuple[int, int], str]]:
    """link=, peer=, devices, and what some pairs have."""
    devices = draw(st.integers(0, 6))
    pairs = [(one, two) for two in range(devices + 1) for one in range(two)]
    named = {}
    for one, two in draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else ():
        named[one, two] = draw(LINKS | st.just("none") if one else LINKS)
    return draw(LINKS), draw(LINKS | st.just("none")), devices, named


def name_of(node: int) -> str:
    return f"dev{node - 1}" if node else "host"


def made(machine: tuple[str, str, int, dict[tuple[int, int], str]]) -> Topology:
    """Every second pair with its nodes the other way round."""
    host, peer, devices, named = machine
    parts = []
    for number, (pair, name) in enumerate(named.items()):
        one, two = reversed(pair) if number % 2 else pair
        parts.append(f"{name_of(one)}-{name_of(two)}:{name}")
    return topology(host, peer, devices, "+".join(parts))


@given(machines())
def test_each_pair_has_the_link_that_was_said(
    machine: tuple[str, str, int, dict[tuple[int, int], str]],
) -> None:
    host, peer, devices, named = machine
    found = made(machine)
    rows = [line.split(" ") for line in found.matrix().splitlines()]
    assert rows[0] == ["-", *(name_of(node) for node in range(devices + 1))]
    for one in range(devices + 1):
        for two in range(devices + 1):
            lower, upper = sorted((one, two))
            said = named.get((lower, upper), peer if lower else host)
            shown = "X" if one == two else "host" if said == "none" else said
            assert rows[1 + one][1 + two] == shown


@given(machines())
def test_distances_are_symmetric_and_grow_with_the_time(
    machine: tuple[str, str, int, dict[tuple[int, int], str]],
) -> None:
    found, count = made(machine), machine[2] + 1
    rows = [[int(n) for n in line[4:].split()] for line in found.distances().splitlines()[1:]]
    times = []
    for one in range(count):
        assert rows[one][one] == 10
        for two in range(count):
            assert rows[one][two] == rows[two][one] == found.distance(one, two)
            if one != two:
                assert 11 <= rows[one][two] <= 254
                times.append((found.run_ns(one, two, 1), rows[one][two]))
    times.sort()
    assert [distance for _, distance in times] == sorted(distance for _, distance in times)


# ---- on a native core


def test_what_no_core_takes() -> None:
    costs = link("pcie3").run_ns
    with Core([1024, 1024]) as core:
        core.set_link(0, 1, costs)
        core.set_link(1, 0, costs)  # replaces it
        for one, two in ((0, 2), (2, 0), (0, 16)):
            with pytest.raises(HmmfsError, match="No such device"):
                core.set_link(one, two, costs)
        with pytest.raises(HmmfsError, match="Invalid argument"):
            core.set_link(1, 1, costs)
        with pytest.raises(ValueError, match="513 costs, not 512"):
            core.set_link(0, 1, costs[1:])
        with pytest.raises(HmmfsError, match="No such device"):
            core.set_fault_cost(2, 1)
