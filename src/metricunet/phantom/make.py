"""One phantom: a synthetic scan with the true shapes that made it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from metricunet.errors import InputError
from metricunet.phantom import anatomy, organs, readers, whole_body
from metricunet.phantom.appearance import Appearance, draw_appearance, with_gland_texture
from metricunet.phantom.contours import contours
from metricunet.phantom.imaging import render_image, render_labels, tissue_layers
from metricunet.phantom.implants import IMPLANT_SHARE, Implant, draw_implants
from metricunet.phantom.metal import Metal, implanted
from metricunet.phantom.patient import Patient, draw_patient
from metricunet.phantom.scanner import Difficulty, Scan, draw_scan
from metricunet.phantom.shapes import Lattice, Point
from metricunet.phantom.varied import (
    draw_build,
    extend_scan,
    lose,
    part_scan,
    reach,
    reach_shown,
    vary_appearance,
    vary_patient,
    vary_scan,
    without_gland,
)
from metricunet.phantom.variety import HIPS_SHARE, PART_SHARE, Variety
from metricunet.phantom.whole_body import WholeBody
from metricunet.volume import Volume

#: Structures in a phantom's label map. Where two meet within a voxel the one named first has it.
STRUCTURES: dict[str, int] = {
    "prostate": 1,
    "bladder": 2,
    "rectum": 3,
    "seminal_vesicles": 4,
    "femur_left": 5,
    "femur_right": 6,
    "hip_left": 7,
    "hip_right": 8,
    "sacrum": 9,
    "penile_bulb": 10,
    "femoral_head_left": 11,
    "femoral_head_right": 12,
}
#: What phantoms of difficulty `varied` alone are labelled with, and the structure that each is a part of. In a
#: label map that holds both, the part has its voxels and the whole the rest of them.
PART_OF = {"femoral_head_left": "femur_left", "femoral_head_right": "femur_right"}
#: The lattice that carries the shapes is this fine; what lies outside its bounds is air and couch.
LATTICE_MM = {"easy": 4.0, "real": 3.0, "varied": 3.0}
LATTICE_LOW_MM = (-246.0, -192.0)
LATTICE_HIGH_MM = (246.0, 168.0)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic scan.

    Attributes:
        image: int16 HU.
        labels: uint8, values as in `STRUCTURES`; on the image's grid. `varied` phantoms have the values of the
            femoral heads, so those of the femurs are what is left of these.
        description: plain facts for JSON: seed, difficulty, volumes, what the scan covers.
        readings: `labels` once more for each reader 1, 2, ...: the prostate as he contours it, all else true.
    """

    image: Volume
    labels: Volume
    description: dict[str, Any]
    readings: tuple[Volume, ...] = ()


@dataclass(frozen=True, eq=False)
class Drawn:
    """Everything that decides how a phantom's scan looks, before any voxel is rendered.

    Attributes:
        seed: of the phantom.
        patient: the man's numbers.
        scan: the acquisition that was drawn for him.
        appearance: how his tissues look.
        implants: the hips of metal that he has.
        build: the body above and below the pelvis; None where the scan shows the pelvis alone.
        gland_mm: lowest and highest corner of the gland's box in the body frame, in the scan or not.
        description: plain facts for JSON, as in `Phantom`.
    """

    seed: int
    difficulty: Difficulty
    patient: Patient
    scan: Scan
    appearance: Appearance
    implants: tuple[Implant, ...]
    build: whole_body.Build | None
    gland_mm: tuple[Point, Point]
    description: dict[str, Any]

    @cached_property
    def shapes(self) -> anatomy.Anatomy:
        """His tissues' signed distances, on a lattice that covers what `scan` sees of him."""
        return self.built(self.scan)[0]

    @cached_property
    def metal(self) -> Metal | None:
        """Implants and their artefact; None where the scan holds none."""
        if not self.implants:
            return None
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(5,)))
        draw_implants(rng, self.difficulty, share=1.0)  # his again; the artefact's chance comes after theirs
        return implanted(self.implants, self.patient, self.shapes, rng)

    @cached_property
    def _built(self) -> dict[Scan, tuple[anatomy.Anatomy, WholeBody | None]]:
        return {}

    def built(self, scan: Scan) -> tuple[anatomy.Anatomy, WholeBody | None]:
        """Return the pelvis and the rest of the body on lattices that cover what a scan sees of them.

        Shapes depend on position alone, so a part of a scan takes a part of the lattice; metal lies on the whole.
        """
        if self.implants:
            scan = self.scan
        if scan not in self._built:
            if len(self._built) > 1:  # image and labels of a scan are asked for one after the other
                self._built.clear()
            within = None if self.build is None else whole_body.pelvis_range_mm(self.patient)
            bent = self.patient if self.difficulty == "varied" else None
            lattice = _lattice(scan, self.difficulty, bent, within)
            shapes = anatomy.build(self.patient, lattice)
            if self.difficulty == "varied":
                shapes = replace(shapes, contours=contours(self.patient, lattice, shapes.fields))
            body = None
            if self.build is not None:
                half = scan.spacing_mm[0] / 2  # the end slices are that much thicker than their middles lie apart
                (left, front, low), (right, back, high) = scan.start_mm, scan.end_mm
                ends = (left, front, low - half), (right, back, high + half)
                body = whole_body.build(self.patient, self.build, self.appearance, *ends)
            self._built[scan] = shapes, body
        return self._built[scan]

    def image(self, scan: Scan | None = None) -> Volume:
        """Render the image.

        Args:
            scan: another grid or another noise, such as the drawn scan with other `start_mm`, `shape` and
                `spacing_mm`; it lies within what the drawn scan covers. None for the drawn scan itself.

        Returns:
            int16 HU. The same scan gives the same bytes every time.
        """
        scan = scan or self.scan
        noise = _generators(self.seed)[3]
        shapes, body = self.built(scan)
        layers = tissue_layers(shapes, self.appearance)
        return Volume(render_image(shapes, scan, self.appearance, layers, noise, self.metal, body), scan.geometry)

    def labels(self, structures: Mapping[str, int] | None = None, scan: Scan | None = None) -> Volume:
        """Render a label map.

        Args:
            structures: names out of `STRUCTURES`, with the value that each gets; None for all that phantoms of
                this difficulty have, with the values there. Where two meet within a voxel the one named first has
                it, but a part (`PART_OF`) has its voxels before the whole.
            scan: as for `image`.

        Returns:
            uint8, 0 where there is none of the structures.

        Raises:
            InputError: a structure is unknown, or not labelled in this difficulty.
        """
        if structures is None:
            structures = {name: STRUCTURES[name] for name in labelled_structures(self.difficulty)}
        check_structures(tuple(structures), self.difficulty)
        ordered = sorted(structures.items(), key=lambda item: item[0] not in PART_OF)
        scan = scan or self.scan
        shapes, body = self.built(scan)
        return Volume(render_labels(shapes, scan, dict(ordered), body), scan.geometry)


def make_phantom(
    seed: int,
    difficulty: Difficulty = "real",
    reaches_prostate: bool = True,
    n_readers: int = 0,
    variety: Variety | None = None,
    gland_texture_hu: float = 0.0,
) -> Phantom:
    """Make the scan of a random man's pelvis.

    `easy` and `real` men lie supine. Of `varied` scans some show a man who lies prone, some go on beyond the
    pelvis, and some of those without a prostate show a woman or another part of the body. Axes always run to the
    head, the patient's back and the left.

    A seed gives the same bytes every time, and the same man in `easy` and `real`; `varied` changes him.

    Args:
        seed: 0 or more.
        difficulty: `real` has a clinical scan's contrast, noise and sampling; `easy` is coarser and quieter, and
            the gland stands out by some 27 HU; `varied` goes beyond `real` in all that `Variety` names.
        reaches_prostate: whether the scan covers the whole prostate; otherwise it holds no part of it. Of `varied`
            scans that reach it a few begin or end within the gland.
        n_readers: how many readers contour the prostate. Image and true shape do not depend on it.
        variety: which groups a `varied` phantom draws; None for all.
        gland_texture_hu: standard deviation of a texture that the gland of a `real` phantom alone has, around the
            same mean HU; 0 for none. Rendering leaves about 0.6 of it. No patient's gland stands out so: it is to
            see whether a method can use what there is to be seen.

    Raises:
        InputError: if the seed or the number of readers is negative, the difficulty unknown, a variety given for
            another difficulty than `varied`, or a texture for another than `real`.
    """
    if n_readers < 0:
        raise InputError(f"n_readers must be 0 or more; got {n_readers}")
    drawn = draw_phantom(seed, difficulty, reaches_prostate, variety, gland_texture_hu)
    truth = drawn.labels()
    readings = tuple(
        truth.with_array(_reread(truth.array, drawn, readers.draw_reading(seed, number)))
        for number in range(1, n_readers + 1)
    )
    return Phantom(drawn.image(), truth, drawn.description, readings)


def draw_phantom(
    seed: int,
    difficulty: Difficulty = "real",
    reaches_prostate: bool = True,
    variety: Variety | None = None,
    gland_texture_hu: float = 0.0,
) -> Drawn:
    """Draw a phantom without rendering its scan. Arguments and errors as `make_phantom`."""
    if difficulty not in get_args(Difficulty):
        raise InputError(f"difficulty must be one of {', '.join(get_args(Difficulty))}; got {difficulty!r}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more; got {seed}")
    check_variety(variety, difficulty)
    check_texture(gland_texture_hu, difficulty)
    groups = (variety or Variety()) if difficulty == "varied" else None
    for_patient, for_scan, for_appearance, _ = _generators(seed)
    patient = draw_patient(for_patient)
    if groups is not None:
        patient = vary_patient(patient, groups, seed)
    lost = lose(seed) if groups is not None and groups.absent and not reaches_prostate else "missed"
    if lost in ("woman", "prostatectomy"):
        patient = without_gland(patient, seed, woman=lost == "woman")
    gland = organs.gland(patient)
    low, high, volume = anatomy.gland_extent(patient)
    covers = reaches_prostate or patient.lost is not None
    scan = draw_scan(for_scan, difficulty, (low[2], high[2]), covers)
    if groups is not None and groups.image:
        scan = vary_scan(scan, seed, (low[2], high[2]), covers)
    reached = reach(seed) if groups is not None and groups.beyond else "pelvis"
    shown = reached
    if lost in PART_SHARE:
        reached = shown = lost
        scan = part_scan(scan, seed, lost, patient)
    elif reached != "pelvis":
        of_pelvis = scan
        scan = extend_scan(of_pelvis, seed, reached, patient.scale[2], (low[2], high[2]))
        shown = reach_shown(of_pelvis, scan, reached)
    appearance = draw_appearance(for_appearance, difficulty, gland.centre, min(gland.half))
    if groups is not None:
        appearance = vary_appearance(appearance, patient, groups, seed, min(gland.half))
    if gland_texture_hu:
        appearance = with_gland_texture(appearance, seed, gland_texture_hu)
    build = None
    if reached != "pelvis":
        build = draw_build(seed, reached, groups or Variety(), woman=lost == "woman")
    hips = HIPS_SHARE if groups is not None and groups.image else IMPLANT_SHARE
    for_metal = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(5,)))
    implants = draw_implants(for_metal, difficulty, hips)
    description = {
        "seed": seed,
        "difficulty": difficulty,
        "reaches_prostate": reaches_prostate,
        "gland_volume_ml": 0.0 if patient.lost else round(volume, 2),
        "bladder_volume_ml": round(patient.bladder_volume_ml),
        "rectum_filling": patient.rectum_filling,
        "markers": len(appearance.seeds_mm),
        "calcifications": 0 if patient.lost else len(appearance.stones_mm),  # without a gland they are clips
        "hip_implants": ["left" if implant.left else "right" for implant in implants],
        "spacing_mm": [round(s, 4) for s in scan.spacing_mm],
        "shape": list(scan.shape),
        "noise_hu": round(scan.noise_hu, 1),
        "couch": "flat" if scan.couch.flat else "curved",
    }
    if groups is not None:
        holds = scan.start_mm[2] <= low[2] and high[2] <= scan.end_mm[2]
        description |= {
            "variety": list(groups.groups),
            "reach": shown,
            "voltage_kv": appearance.voltage_kv,
            "position": "prone" if patient.prone else "supine",
            "devices": [
                name
                for name, there in (
                    ("catheter", patient.catheter),
                    ("balloon", patient.balloon),
                    ("spacer", patient.spacer),
                    ("sources", patient.sources),
                )
                if there
            ],
            "gland": "absent" if not reaches_prostate else "whole" if holds else "cut",
        }
        if not reaches_prostate:
            description["absent"] = lost
        if patient.lost is not None and not patient.lost.woman:
            description["clips"] = len(patient.lost.clips_mm)
    if gland_texture_hu:
        description["gland_texture_hu"] = gland_texture_hu
    return Drawn(seed, difficulty, patient, scan, appearance, implants, build, (low, high), description)


def _generators(seed: int) -> list[np.random.Generator]:
    """Sources of chance of the man, the scan, the appearance and the noise."""
    return [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]


def labelled_structures(difficulty: Difficulty) -> tuple[str, ...]:
    """Return the names of what phantoms of a difficulty are labelled with."""
    return tuple(name for name in STRUCTURES if difficulty == "varied" or name not in PART_OF)


def check_structures(names: Sequence[str], difficulty: Difficulty) -> None:
    """Refuse names of structures that are unknown, that come twice, or that a difficulty does not label.

    Raises:
        InputError: in that case.
    """
    if not names or len(set(names)) < len(names) or not set(names) <= STRUCTURES.keys():
        raise InputError(f"structures must be different names out of {', '.join(STRUCTURES)}; got {list(names)}")
    for name in names:
        if name not in labelled_structures(difficulty):
            raise InputError(
                f"{name} is labelled in phantoms of difficulty varied alone, not in {difficulty} ones; "
                f"choose varied, or {PART_OF[name]}"
            )


def check_variety(variety: Variety | None, difficulty: Difficulty) -> None:
    """Refuse a variety for a difficulty that has none."""
    if variety is not None and difficulty != "varied":
        raise InputError(f"variety is for the difficulty varied alone; got it for {difficulty}")


def check_texture(texture_hu: float, difficulty: Difficulty) -> None:
    """Refuse a texture of the gland that is no standard deviation, or that a difficulty does not have."""
    if not (math.isfinite(texture_hu) and texture_hu >= 0):
        raise InputError(f"gland_texture_hu must be a number from 0 up; got {texture_hu}")
    if texture_hu and difficulty != "real":
        raise InputError(f"gland_texture_hu is for the difficulty real alone; got {texture_hu:g} for {difficulty}")


def _reread(labels: NDArray[np.uint8], drawn: Drawn, reading: readers.Reading) -> NDArray[np.uint8]:
    """Return the label map with the prostate as a reader contours it; without one where the scan has none."""
    value = STRUCTURES["prostate"]
    if not (labels == value).any():
        return labels.copy()
    shapes, body = drawn.built(drawn.scan)
    seen = replace(shapes, fields={"prostate": readers.contour(shapes, drawn.patient, reading)})
    contour = render_labels(seen, drawn.scan, {"prostate": value}, body)
    result = np.where(labels == value, 0, labels)
    result[contour == value] = value
    return np.asarray(result, dtype=np.uint8)


def _lattice(
    scan: Scan, difficulty: Difficulty, varied: Patient | None, within_mm: tuple[float, float] | None
) -> Lattice:
    """The lattice that covers what the scan sees of the patient.

    Args:
        scan: what it sees.
        difficulty: decides on the spacing.
        varied: a man of difficulty `varied`, who may be too large for the usual bounds.
        within_mm: lowest and highest z, where the scan goes on beyond the pelvis.
    """
    spacing = LATTICE_MM[difficulty]
    half = scan.spacing_mm[0] / 2
    start, end = scan.start_mm, scan.end_mm
    low, high = start[2] - half, end[2] + half
    if within_mm is not None:
        bottom, top = within_mm[0] - whole_body.BLEND_MM, within_mm[1] + whole_body.BLEND_MM
        # Far from the pelvis a few planes remain of it, which nobody sees.
        low = float(np.clip(low, bottom, top - 3 * spacing))
        high = float(np.clip(high, low + 3 * spacing, top))
    (left, front), (right, back) = LATTICE_LOW_MM, LATTICE_HIGH_MM
    if varied is not None:
        half, fore, aft = anatomy.reach_mm(varied)
        left, right, front, back = min(left, -half), max(right, half), min(front, fore), max(back, aft)
    return Lattice.spanning(
        (max(start[0], left), max(start[1], front), low),
        (min(end[0], right), min(end[1], back), high),
        spacing,
    )
