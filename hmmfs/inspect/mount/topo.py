"""The links between the nodes of a mount, as a matrix and with their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hmmfs.inspect.mount.reading import PATIENCE_S, ask, text
from hmmfs.inspect.mount.snapshot import links

SCHEMA = 1
SELF, THROUGH_HOST = "X", "-"

Topology = dict[str, Any]


def read_topology(path: str, patience_s: float = PATIENCE_S) -> Topology:
    """What `hmmfs topo --json` promises: ``matrix`` and ``distances`` in the order of ``nodes``,
    and in ``links`` one entry for each pair of nodes that has one."""
    return dict(ask(path, _collect, patience_s))


def render(found: Topology) -> str:
    """The matrix, its legend, and the distances."""
    nodes = found["nodes"]
    matrix = _columns([["", *nodes], *_labelled(nodes, found["matrix"])])
    distances = _columns([["", *nodes], *_labelled(nodes, found["distances"])])
    return (
        "\n\n".join(
            [
                f"Links of {found['path']}\n{matrix}",
                "\n".join(["Legend", *_legend(found)]),
                f"NUMA distances (10 is a node's own memory)\n{distances}",
            ]
        )
        + "\n"
    )


def _legend(found: Topology) -> Iterator[str]:
    said = {SELF: "the node itself"}
    for link in found["links"]:
        said[link["type"]] = (
            f"latency {link['latency_ns']} ns, {link['bandwidth'] / 1e9:.1f} GB/s in a long copy"
        )
    if any(THROUGH_HOST in row for row in found["matrix"]):
        said[THROUGH_HOST] = "no link: copies go through the host"
    wide = max(map(len, said))
    for name, meaning in said.items():
        yield f"  {name:{wide}}  {meaning}"


def _labelled(nodes: Sequence[str], rows: Sequence[Sequence[object]]) -> list[list[str]]:
    return [[node, *map(str, row)] for node, row in zip(nodes, rows, strict=True)]


def _columns(rows: list[list[str]]) -> str:
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip()
        for row in rows
    )


def _collect(point: str) -> Topology:
    (_, *nodes), *rows = [row.split() for row in text(point, "topology").splitlines()]
    _, *distances = [row.split() for row in text(point, "distances").splitlines()]
    return {
        "schema": SCHEMA,
        "path": point,
        "nodes": nodes,
        # "host" between two devices says that copies go through it.
        "matrix": [[THROUGH_HOST if cell == "host" else cell for cell in row[1:]] for row in rows],
        "distances": [[int(cell) for cell in row[1:]] for row in distances],
        "links": list(_links(point, nodes)),
    }


def _links(point: str, nodes: list[str]) -> Iterator[Topology]:
    """Each pair once, in the order of the matrix."""
    of = links(point)
    for number, one in enumerate(nodes):
        for other in nodes[number + 1 :]:
            said = of[other].get(one, {})
            if said and said["type"] != "host":  # otherwise copies go through the host
                yield {
                    "nodes": [one, other],
                    "type": said["type"],
                    "latency_ns": said["latency_ns"],
                    "bandwidth": said["bandwidth"],
                }
