"""What copies cost on the emulated links."""

import pytest

from hmmfs.device.links import link, topology
from hmmfs.errors import UsageError


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


def test_a_link_of_ones_own() -> None:
    found = link("600ns:64G")
    assert found.run_ns[0] == 0
    assert found.run_ns[1] == 600 + round(4096 / (64 << 30) * 1e9)
    assert found.name == "600ns:64G"


@pytest.mark.parametrize("name", ["pcie9", "", "600:64G", "600ns:0", "600ns:", "1.5us:4G", "1s:1G"])
def test_no_links(name: str) -> None:
    with pytest.raises(UsageError, match="is no link: use pcie3"):
        link(name)


def test_the_matrix_of_a_topology() -> None:
    through, direct = topology("pcie3", "none", 2), topology("pcie4", "1us:100G", 2)
    assert (
        through.matrix()
        == "- host dev0 dev1\nhost X pcie3 pcie3\ndev0 pcie3 X host\ndev1 pcie3 host X\n"
    )
    assert direct.matrix().splitlines()[2] == "dev0 pcie4 X 1us:100G"
    with pytest.raises(UsageError, match="'nvlunk' is no link"):
        topology("pcie3", "nvlunk", 1)
