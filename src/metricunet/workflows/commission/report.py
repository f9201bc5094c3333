"""The report: one page, to read on a screen, to print and to sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from metricunet import __version__
from metricunet.evaluation.report import report_template
from metricunet.workflows.commission.subjects import ISLAND

if TYPE_CHECKING:
    from metricunet.workflows.commission.run import Commissioning

#: The checks whose measurements carry the shapes' volumes: sub-voxel contours, and voxels' edges for the island.
VOLUMES, ISLAND_VOLUMES = (
    ("RTSTRUCT, sub-voxel", "Contours' volume"),
    ("RTSTRUCT, voxel edges", "Contours' volume"),
)
REASON_CHARACTERS = 110


@dataclass(frozen=True)
class VolumeCell:
    """Volume of one shape in one geometry; errors in percent."""

    volume_ml: float
    against_sections: float
    against_solid: float


def render_report(result: Commissioning) -> str:
    """Return the report's HTML, which needs no other file."""
    template = report_template("metricunet.workflows.commission", percent=_percent, short=_short)
    return template.render(
        result=result,
        version=__version__,
        shapes=[shape.name for shape in result.plans[0].shapes],
        island=ISLAND,
        volumes=volume_table(result),
    )


def volume_table(result: Commissioning) -> dict[tuple[str, str], VolumeCell]:
    """Return the volumes that were written, by geometry and shape."""
    cells = {}
    for check in result.checks:
        if (check.group, check.name) not in (VOLUMES, ISLAND_VOLUMES):
            continue
        for finding in check.findings:
            plan, shape = finding.where.split(", ", 1)
            if (shape == ISLAND) == ((check.group, check.name) == ISLAND_VOLUMES) and finding.details is not None:
                details = finding.details
                cells[plan, shape] = VolumeCell(details["volume_ml"], finding.value, details["against_solid"])
    return cells


def _percent(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")


def _short(text: str) -> str:
    """Cut a reason to what leaves the report on one page; the results in JSON have it whole."""
    return text if len(text) <= REASON_CHARACTERS else f"{text[: REASON_CHARACTERS - 1]}…"
