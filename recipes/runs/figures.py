"""Figures of matplotlib, all set up in one way: no window, no box, a faint grid."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


def new_figure(width: float = 7.2, height: float = 3.6) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a figure to a file, whole or not at all; its ending says the format."""
    from matplotlib import pyplot as plt

    partial = path.with_name(f"partial-{path.name}")
    figure.savefig(partial, dpi=dpi)
    plt.close(figure)
    partial.replace(path)


def svg(figure: Any) -> str:
    """A figure as inline SVG, the same bytes for the same figure."""
    import matplotlib
    from matplotlib import pyplot as plt

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
