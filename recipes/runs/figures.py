"""Matplotlib figures in one common style: no window, no frame, a faint grid."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

from data_prep.common.files import write_text

# On a page that is 320 px wide, text in a figure of this width is 10 px high.
WIDTH_INCHES, TEXT_POINTS = 5.0, 11.5
LABEL_CHARACTERS, SHORT_LABEL_CHARACTERS = 44, 18  # in a line of a legend with one column, or two


def new_figure(width: float = WIDTH_INCHES, height: float = 3.4) -> tuple[Any, Any]:
    """Make a figure of the given size in inches, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": TEXT_POINTS, "axes.titlesize": TEXT_POINTS + 1})
    for of in ("xtick.labelsize", "ytick.labelsize", "axes.labelsize", "legend.fontsize"):
        matplotlib.rcParams[of] = TEXT_POINTS
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def add_legend(figure: Any) -> None:
    """Add a legend below the axes, and make the figure taller by it. Does nothing if no curve has a label."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if not labels:
        return
    columns = 2 if max(map(len, labels)) <= SHORT_LABEL_CHARACTERS else 1
    lines = [textwrap.fill(label, LABEL_CHARACTERS) for label in labels]
    rows = sum(line.count("\n") + 1 for line in lines)
    figure.set_figheight(figure.get_figheight() + 0.24 * -(-rows // columns))
    figure.legend(handles, lines, loc="outside lower center", frameon=False, ncols=columns)


# A separate SVG file follows the reader's light or dark theme, like the figures in report.html.jinja.
DARK = "<style>@media (prefers-color-scheme: dark) { svg { filter: invert(.9) hue-rotate(180deg) } }</style>"


def save(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a figure to a file, completely or not at all. The file's ending gives the format."""
    from matplotlib import pyplot as plt

    if path.suffix == ".svg":
        head, tag, rest = svg(figure).partition(">")
        write_text(path, f"{head}{tag}{DARK}{rest}")
        return
    partial = path.with_name(f"partial-{path.name}")
    figure.savefig(partial, dpi=dpi)
    plt.close(figure)
    partial.replace(path)


def svg(figure: Any) -> str:
    """Return a figure as inline SVG; equal figures give equal bytes."""
    import matplotlib
    from matplotlib import pyplot as plt

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report", "svg.fonttype": "none"}):  # text is not drawn as paths
        # A transparent background shows that of the page, light or dark.
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
