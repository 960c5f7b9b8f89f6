"""The heat map of a region as a picture, by matplotlib, which comes with the extra hmmfs[plot]."""

from __future__ import annotations

import errno
import warnings
from typing import TYPE_CHECKING

from hmmfs.common.names import printable
from hmmfs.common.units import PAGE, format_size
from hmmfs.errors import HmmfsError
from hmmfs.inspect.heat.heat import (
    NOTHING,
    OWNER,
    SEVERAL,
    UNITS,
    Detail,
    Heat,
    by_node,
    heat,
    node_of,
    per_row,
)
from hmmfs.inspect.mount.words import grouped, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELLS = 4096
COLUMNS = 64
TICKS = 8
EMPTY, MIXED = "#eeeeee", "#222222"


def write(detail: Detail, by: str, path: str, ending: str) -> None:
    """PNG or SVG, the same bytes for the same detail. HmmfsError: there is no matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise HmmfsError(
            errno.ENOPKG,
            "Pictures need matplotlib. Install it with pip install 'hmmfs[plot]', or leave -o out "
            "to see the map in the terminal.",
        ) from None
    figure = Figure(figsize=(9, 6), layout="constrained")
    _draw(figure, detail, by)
    # What would differ from run to run, or from version to version of matplotlib, is left out.
    metadata = {"Date": None, "Creator": None} if ending == ".svg" else {"Software": None}
    with (
        matplotlib.rc_context({"svg.hashsalt": "hmmfs", "svg.fonttype": "none"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name in any script
        figure.savefig(path, format=ending.removeprefix("."), dpi=120, metadata=metadata)


def _draw(figure: Figure, detail: Detail, by: str) -> None:
    found = heat(detail, by, CELLS)
    columns = min(COLUMNS, max(8, per_row(len(found.cells) // 8)))
    axes = figure.add_subplot()
    if by == OWNER:
        _draw_owners(axes, found, detail, columns)
    else:
        _draw_counts(figure, axes, found, by, columns)
    rows = -(-len(found.cells) // columns)
    step = -(-rows // TICKS)
    ticks = range(0, rows, max(1, step))
    axes.set_yticks(ticks, [f"{row * columns * found.pages * PAGE:012x}" for row in ticks])
    axes.tick_params(axis="y", labelfontfamily="monospace")
    axes.set_xticks([])
    axes.set_xlabel(f"a square is {format_size(found.pages * PAGE)}")
    axes.set_ylabel("offset in the region")
    title = f"{printable(detail['name'])}, {size(detail['size'])}, by {by}"
    axes.set_title(title, parse_math=False)


def _draw_owners(axes: Axes, found: Heat, detail: Detail, columns: int) -> None:
    import matplotlib
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    palette = matplotlib.colormaps["tab20"]
    nodes, colours = by_node(detail), []
    kinds = sorted(set(found.cells))
    entries = []
    for kind in kinds:
        node = node_of(kind)
        number = 0 if node == "host" else int(kind, 16) + 1 if node else 0
        colour = palette(number) if node else EMPTY if kind == NOTHING else MIXED
        colours.append(colour)
        label = f"{node}: {grouped(nodes.get(node, 0))} pages" if node else ""
        label = label or {NOTHING: "nothing", SEVERAL: "several nodes"}[kind]
        entries.append(Patch(color=colour, label=label))
    numbers = [float(kinds.index(cell)) for cell in found.cells]
    axes.imshow(
        _grid(numbers, columns),
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(kinds) - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _draw_counts(figure: Figure, axes: Axes, found: Heat, by: str, columns: int) -> None:
    image = axes.imshow(
        _grid([float(value) for value in found.values], columns),
        cmap="inferno",
        vmin=0,
        vmax=max(1, found.most),
        aspect="auto",
        interpolation="nearest",
    )
    figure.colorbar(image, label=f"{UNITS[by]} in {format_size(found.pages * PAGE)}")


def _grid(numbers: list[float], columns: int) -> list[list[float]]:
    """Rows of equal length; what is past the region's end is not drawn."""
    numbers = numbers + [float("nan")] * (-len(numbers) % columns) or [float("nan")] * columns
    return [numbers[start : start + columns] for start in range(0, len(numbers), columns)]
