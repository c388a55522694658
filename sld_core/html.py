"""Self-contained HTML pages: figures with their pictures inside, tables, and the plan from above
that reports share."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sld_core.camera.encodings import encode_jpeg
from sld_core.files import write_atomically

QUIET, INK, BLUE = "#b9c0c7", "#222222", "#5b7db1"


def write_page(path: Path, title: str, sections: Sequence[str]) -> None:
    """One HTML file with a title and sections of HTML, in which text from outside must be escaped
    already."""
    page = PAGE.format(
        title=html.escape(title), body="\n".join([f"<h1>{html.escape(title)}</h1>", *sections])
    )
    # file names may hold bytes that are no text
    write_atomically(Path(path), page.encode("utf-8", "replace"))


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def folded(title: str, lines: Sequence[str], most: int = 300) -> str:
    """Lines under a title, folded away where they are many, and cut where they would fill the
    page."""
    shown = list(lines[:most])
    if len(lines) > most:
        shown.append(f"and {len(lines) - most:,} more")
    state = "" if len(lines) > 8 else " open"
    return f"<details{state}><summary>{html.escape(title)}</summary>{bullets(shown)}</details>"


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows of text; the first column is that of the names."""
    titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = ("".join(f"<td>{html.escape(cell.strip())}</td>" for cell in row) for row in rows)
    lines = [titles, *body] if head else body
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def figure(picture: Figure | np.ndarray, caption: str) -> str:
    """An HTML figure with the picture in a data: URI; drawings (Figure) as PNG, photographs (H, W,
    3) uint8 RGB as JPEG."""
    if isinstance(picture, Figure):
        stream = io.BytesIO()
        FigureCanvasAgg(picture).print_png(stream)
        kind, data = "png", stream.getvalue()
    else:
        kind, data = "jpeg", encode_jpeg(np.ascontiguousarray(picture), JPEG_QUALITY)
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure><img src="{uri}" '
        f'alt="{html.escape(caption)}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def pixels(picture: Figure) -> np.ndarray:
    """A drawing as (H, W, 3) uint8 RGB: with photographs in it, it is several times smaller as JPEG
    than as PNG."""
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def plain(text: str, most: int = 60) -> str:
    """Any text, such as a file name, as a label in a drawing: printable, on one line of at most
    `most` characters, without mathematics."""
    text = "".join(c if c.isprintable() else " " for c in str(text)).strip()
    if len(text) > most:
        text = f"{text[: most // 2 - 1]}…{text[len(text) - most // 2 :]}"
    # matplotlib reads $ as the start of a formula, and a label that starts with _ as one to hide
    return text.replace("$", r"\$").replace("_", "\u2009_", text.startswith("_"))


def headline(drawing: Figure, text: str) -> None:
    """A sentence above the picture, at the left, that says what it shows."""
    drawing.suptitle(text, x=0.012, ha="left", fontsize=12)


def legend(axes: Axes, handles: Sequence[Artist] | None = None, beside: bool = False) -> None:
    """Outside of the axes, above them or to their right, of `handles` or of all labels. (The
    `loc="outside ..."` of figures needs matplotlib 3.7; Ubuntu 24.04 has 3.6.)"""
    if beside:
        place = dict(loc="upper left", bbox_to_anchor=(1, 1))
    else:
        place = dict(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.3)
    axes.legend(handles=handles, frameon=False, **place)


def length_unit(metric: bool) -> str:
    return "metres" if metric else "units (no scale)"


def figure_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this many inches (100 pixels each) with one pair of axes."""
    drawing = Figure(figsize=(width, height), layout="constrained")
    drawing.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = drawing.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def stage_times(seconds: Mapping[str, float]) -> Figure:
    """Bars of seconds per stage, in order."""
    drawing, axes = figure_axes(8.4, 0.8 + 0.3 * len(seconds))
    bars = axes.barh([plain(stage, 40) for stage in seconds], list(seconds.values()), color=BLUE)
    axes.bar_label(bars, fmt="%.1f s", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="seconds")
    axes.margins(x=0.12)
    return drawing


def seen_from_above(up_3: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """World points (N, 3) -> x (N,), y (N,) in the plane level to `up_3`; where z is up these are
    the world's x and y."""
    normal = np.asarray(up_3, float) / np.linalg.norm(up_3)
    axis = np.eye(3)[0 if abs(normal[0]) < 0.9 else 1]  # where z is up, x is to the right
    y = np.cross(normal, axis)
    y /= np.linalg.norm(y)
    x = np.cross(y, normal)
    return lambda xyz_N3: (xyz_N3 @ x, xyz_N3 @ y)


JPEG_QUALITY = 90
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1.5rem 0 }}
td, th {{ padding: .2rem 1rem; border-bottom: 1px solid #e3e6e9; text-align: right;
         font-variant-numeric: tabular-nums }}
td:first-child {{ text-align: left }}
li, td {{ overflow-wrap: anywhere }}
figure {{ margin: 2rem 0 }}
img {{ max-width: 100% }}
summary {{ cursor: pointer }}
figcaption {{ color: #666; font-size: .9rem }}
</style></head>
<body>
{body}
</body></html>
"""
