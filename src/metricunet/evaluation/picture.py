"""A picture of a case for a notebook or a page: three planes with contours, as one SVG that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from metricunet.errors import InputError
from metricunet.evaluation.figures import VIEW_MM, WINDOW_HU, Overlay, Plane
from metricunet.files.atomic import write_text

#: Lengths of the drawing, in its own units: millimetres of the patient.
GAP, HEAD, FOOT, ROW = 6.0, 29.0, 16.0, 9.0
WIDTH = 3 * VIEW_MM + 4 * GAP
#: What a letter of the legend takes, on average.
LETTER = 3.7
#: How wide the picture is drawn where nobody says otherwise, in pixels.
SHOWN_PIXELS = 960
FONT = "font-family='Helvetica, Arial, sans-serif'"


@dataclass(frozen=True)
class Drawn:
    """One structure in a picture: its value in the label map, and its colour."""

    value: int
    colour: str


@dataclass(frozen=True, repr=False)
class Picture:
    """A picture that shows itself in a notebook, and can be saved.

    Attributes:
        title: what it shows, in a line.
        svg: the drawing.
        notes: sentences that a saved page has below it.
    """

    title: str
    svg: str
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Picture({self.title})"

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the picture, and return where it is.

        Args:
            path: ends in .svg for the drawing alone, or in .html for a page with the notes below it.
            overwrite: whether a file that is there is replaced.

        Raises:
            InputError: another ending, or a file that is there already.
        """
        path = Path(path)
        kind = path.suffix.lower()
        if kind not in (".svg", ".html"):
            raise InputError(f"{path}: a picture is saved as .svg or .html; name one of them")
        if os.path.lexists(path) and not overwrite:
            raise InputError(f"{path}: is there already; choose another name, or replace it with overwrite=True")
        write_text(path, self.svg if kind == ".svg" else self._page())
        return path

    def _page(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>\n" for note in self.notes)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f"<title>{escape(self.title)}</title>\n"
            "<style>body { font-family: Helvetica, Arial, sans-serif; margin: 2em auto; max-width: 1100px; "
            "color: #1d2733 } svg { width: 100%; height: auto }</style>\n</head>\n<body>\n"
            f"{self.svg}\n<ul>\n{notes}</ul>\n</body>\n</html>\n"
        )


def draw_picture(
    overlay: Overlay, title: str, structures: Mapping[str, Drawn], notes: Sequence[str] = (), remark: str = ""
) -> Picture:
    """Put the three planes of a case side by side, with a heading and a legend.

    Args:
        overlay: what to draw; a reference in it is left out.
        title: the heading.
        structures: by their names, those to be named in the legend.
        notes: sentences for a saved page.
        remark: a line in place of the legend, where there is nothing to outline.
    """
    colours = {drawn.value: drawn.colour for drawn in structures.values()}
    panels = "".join(_panel(plane, k, overlay.case, colours) for k, plane in enumerate(overlay.planes))
    seen = {value for plane in overlay.planes for value in plane.outlines}
    named = {name: drawn for name, drawn in structures.items() if drawn.value in seen}
    foot, rows = _foot(named, remark)
    height = HEAD + VIEW_MM + FOOT + ROW * (rows - 1)
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH:g} {height:g}' width='{SHOWN_PIXELS}' "
        f"height='{round(SHOWN_PIXELS * height / WIDTH)}' role='img' aria-label='{escape(title, quote=True)}'>"
        f"<rect width='100%' height='100%' fill='#fff'/>"
        f"<text x='{GAP:g}' y='14' {FONT} font-size='8' font-weight='600' fill='#1d2733'>{escape(title)}</text>"
        f"{panels}{foot}</svg>"
    )
    return Picture(title, svg, tuple(notes))


def _panel(plane: Plane, number: int, case: str, colours: Mapping[int, str]) -> str:
    """Draw one plane into its square; what reaches beyond the square is cut off."""
    half = VIEW_MM / 2
    left, top, width, height = plane.box_mm
    image = (
        ""
        if plane.image is None
        else (
            f"<image href='{plane.image}' x='{left:.3f}' y='{top:.3f}' width='{width:.3f}' height='{height:.3f}' "
            "preserveAspectRatio='none'/>"
        )
    )
    outlines = "".join(
        f"<path d='{path}' fill='none' stroke='{colours[value]}' stroke-width='1.1' stroke-linejoin='round'/>"
        for value, path in plane.outlines.items()
        if value in colours
    )
    sides = (
        (plane.left, 5 - half, 2.5),
        (plane.right, half - 5, 2.5),
        (plane.top, 0, 9 - half),
        (plane.bottom, 0, half - 4),
    )
    marks = "".join(f"<text x='{x:g}' y='{y:g}'>{letter}</text>" for letter, x, y in sides)
    scale = ""
    if number == 0:
        scale = (
            f"<path d='M{half - 27:g} {half - 6:g}h20' stroke='#fff' stroke-width='1.2'/>"
            f"<text x='{half - 17:g}' y='{half - 9:g}' font-size='5.5'>20 mm</text>"
        )
    x = GAP + number * (VIEW_MM + GAP)
    return (
        f"<svg x='{x:g}' y='{HEAD:g}' width='{VIEW_MM:g}' height='{VIEW_MM:g}' "
        f"viewBox='{-half:g} {-half:g} {VIEW_MM:g} {VIEW_MM:g}' aria-label='{plane.title} plane of "
        f"{escape(case, quote=True)}'><rect x='{-half:g}' y='{-half:g}' width='100%' height='100%' fill='#000'/>"
        f"{image}{outlines}<g {FONT} font-size='7' fill='#fff' text-anchor='middle' stroke='#000' "
        f"stroke-width='1.4' paint-order='stroke'>{marks}{scale}</g></svg>"
        f"<text x='{x:g}' y='{HEAD - 3:g}' {FONT} font-size='6.5' fill='#5c6b7a'>"
        f"{plane.title}</text>"
    )


def _foot(structures: Mapping[str, Drawn], remark: str) -> tuple[str, int]:
    """Return what stands below the planes, and in how many rows, each of as many names as there is room for."""
    y, x, rows = HEAD + VIEW_MM + 10.5, GAP, 1
    parts: list[str] = []
    for name, drawn in structures.items():
        width = 22 + LETTER * len(name)
        if x + width > WIDTH:
            y, x, rows = y + ROW, GAP, rows + 1
        parts.append(
            f"<path d='M{x:g} {y - 2.3:g}h9' stroke='{drawn.colour}' stroke-width='2'/>"
            f"<text x='{x + 12:g}' y='{y:g}' fill='#1d2733'>{escape(name.replace('_', ' '))}</text>"
        )
        x += width
    if remark:
        parts.append(f"<text x='{x:g}' y='{y:g}' fill='#a8320a'>{escape(remark)}</text>")
        x += LETTER * len(remark)
    low, high = WINDOW_HU
    legend = f"R right, L left, A front, P back, S head, I feet; window {low:g} to {high:g} HU".replace("-", "−")
    if x + LETTER * len(legend) > WIDTH - GAP:
        y, rows = y + ROW, rows + 1
    parts.append(f"<text x='{WIDTH - GAP:g}' y='{y:g}' text-anchor='end' fill='#5c6b7a'>{legend}</text>")
    return f"<g {FONT} font-size='6.5'>{''.join(parts)}</g>", rows
