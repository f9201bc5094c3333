"""From shapes to a CT image: HU of each tissue, partial volume, artefacts, noise; and the label map.

Each slice is rendered from the anatomy's coarse fields by linear interpolation. A voxel on a surface holds a
mixture; a thick slice is the mean of two thinner ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from metricunet.phantom import skeleton
from metricunet.phantom.anatomy import Anatomy
from metricunet.phantom.appearance import Appearance, Tissues
from metricunet.phantom.metal import Layer, Metal
from metricunet.phantom.scanner import Scan
from metricunet.phantom.shapes import Field, Lattice, Point, Values
from metricunet.phantom.variety import Lobes
from metricunet.phantom.whole_body import WholeBody

AIR_HU = -1000.0
#: Two components of the noise's in-plane grain: standard deviation in millimetres and share of the variance.
#: Together they give an autocorrelation of 0.64, 0.22 and 0.08 at 1, 2 and 3 mm.
NOISE_GRAIN = ((0.68, 0.82), (1.6, 0.18))
#: The noise of neighbouring slices is alike over about this distance.
NOISE_SLICE_MM = 0.8
#: Slices thicker than this are averaged from two thinner ones.
THIN_MM = 2.2


class Upsampler:
    """Linear interpolation of coarse fields onto a slice's pixels, box by box."""

    def __init__(self, lattice: Lattice, scan: Scan) -> None:
        x0, y0, _ = scan.start_mm
        _, rows, columns = scan.shape
        self.y_mm = (y0 + scan.spacing_mm[1] * np.arange(rows)).astype(np.float32)
        self.x_mm = (x0 + scan.spacing_mm[2] * np.arange(columns)).astype(np.float32)
        self._z = lattice.z
        self._row, self._row_share = _places(lattice.y, self.y_mm)
        self._column, self._column_share = _places(lattice.x, self.x_mm)

    def slab(self, field: Field, z_mm: float) -> Field:
        """Return the coarse plane [y, x] of a field at one height."""
        place = float(np.clip((z_mm - self._z[0]) / (self._z[1] - self._z[0]), 0, len(self._z) - 1.001))
        k = int(place)
        share = np.float32(place - k)
        return np.asarray(field[k] * (1 - share) + field[k + 1] * share, dtype=np.float32)

    def reaches(self, z_mm: float) -> bool:
        """Return whether the lattice holds this height."""
        return float(self._z[0]) <= z_mm <= float(self._z[-1])

    def box(self, slab: Field, reach_mm: float) -> tuple[slice, slice] | None:
        """Return the pixels at which a shape may lie nearer than `reach_mm`, or None."""
        near = slab < reach_mm
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if len(rows) == 0:
            return None
        r0, r1 = np.searchsorted(self._row, [rows[0] - 1, rows[-1] + 1])
        c0, c1 = np.searchsorted(self._column, [columns[0] - 1, columns[-1] + 1])
        if r1 <= r0 or c1 <= c0:
            return None
        return slice(int(r0), int(r1)), slice(int(c0), int(c1))

    def fine(self, slab: Field, box: tuple[slice, slice]) -> Field:
        """Interpolate a coarse plane to the pixels of a box."""
        rows, columns = box
        i, s = self._column[columns], self._column_share[columns]
        r, t = self._row[rows], self._row_share[rows, None]
        first = int(r[0])
        part = slab[first : int(r[-1]) + 2]
        wide = part[:, i]
        wide = wide + (part[:, i + 1] - wide) * s
        low = wide[r - first]
        return np.asarray(low + (wide[r - first + 1] - low) * t, dtype=np.float32)


def _places(axis: Field, wanted: Field) -> tuple[NDArray[np.int64], Field]:
    place = np.clip((wanted - axis[0]) / (axis[1] - axis[0]), 0, len(axis) - 1.001)
    index = place.astype(np.int64)
    return index, (place - index).astype(np.float32)


def render_labels(
    anatomy: Anatomy, scan: Scan, structures: Mapping[str, int], body: WholeBody | None = None
) -> NDArray[np.uint8]:
    """Return the label map: each voxel's centre lies in the structure, the first named winning an overlap.

    Args:
        anatomy: the pelvis.
        scan: the grid.
        structures: names and values.
        body: what lies above and below the pelvis, where the scan goes on beyond it.
    """
    up = Upsampler(anatomy.lattice, scan)
    contours = {} if body is None else body.contours
    outside = {name: Upsampler(contour.lattice, scan) for name, contour in contours.items()}
    labels = np.zeros(scan.shape, dtype=np.uint8)
    for k in range(scan.shape[0]):
        z = scan.start_mm[2] + k * scan.spacing_mm[0]
        within = body is None or body.pelvis_share(z) >= 0.5
        for name, value in reversed(list(structures.items())):
            if within:
                seen, slab = up, up.slab(anatomy.labelled(name), z)
            elif name in outside and outside[name].reaches(z):
                seen, slab = outside[name], outside[name].slab(contours[name].shape, z)
            else:
                continue
            box = seen.box(slab, 0.0)
            if box is not None:
                labels[k][box][seen.fine(slab, box) < 0] = value
    return labels


def render_image(
    anatomy: Anatomy,
    scan: Scan,
    appearance: Appearance,
    layers: Sequence[Layer],
    rng: np.random.Generator,
    metal: Metal | None = None,
    body: WholeBody | None = None,
) -> NDArray[np.int16]:
    """Return the scan in HU, int16.

    Args:
        anatomy: the pelvis.
        scan: grid, kernel and noise.
        appearance: markers, stones, hardening and streaks.
        layers: the pelvis' tissues, as `tissue_layers` returns them.
        rng: source of the noise.
        metal: implants and what they do to the image, where there are any.
        body: what lies above and below the pelvis, where the scan goes on beyond it.
    """
    painter = _Painter(anatomy, scan, appearance, (*layers, *(() if metal is None else metal.layers)), body)
    streaks = None if metal is None else Upsampler(metal.lattice, scan)
    noise = _Noise(scan, rng)
    thickness = scan.spacing_mm[0]
    count = 1 if thickness <= THIN_MM else 2
    offsets = ((np.arange(count) + 0.5) / count - 0.5) * thickness
    image = np.empty(scan.shape, dtype=np.int16)
    for k in range(scan.shape[0]):
        z = scan.start_mm[2] + k * thickness
        plane = painter.paint(z + float(offsets[0]))
        for offset in offsets[1:]:
            plane += painter.paint(z + float(offset))
        plane /= np.float32(count)
        plane += noise.slice(plane, painter.hip_share(z), appearance.streak_hu)
        if metal is not None and streaks is not None:
            plane += streaks.fine(streaks.slab(metal.artefact, z), (slice(None), slice(None)))
        np.rint(plane, out=plane)
        image[k] = np.clip(plane, -1024, 3071)
    return image


class _Painter:
    """Paints one thin slice, tissue over tissue, from the outside in."""

    def __init__(
        self,
        anatomy: Anatomy,
        scan: Scan,
        appearance: Appearance,
        layers: Sequence[Layer],
        body: WholeBody | None,
    ) -> None:
        self.up = Upsampler(anatomy.lattice, scan)
        self.appearance = appearance
        self.width_mm = float(np.hypot(scan.spacing_mm[1], scan.blur_mm))
        self.background = _couch(scan, self.up, anatomy.table_mm, self.width_mm, anatomy.prone)
        self.layers = tuple((self.up, *layer) for layer in layers)
        self.body = body
        self.outside, self.arms = (
            tuple((Upsampler(tissue.lattice, scan), tissue.shape, tissue.hu) for tissue in tissues)
            for tissues in (((), ()) if body is None else (body.tissues, body.arms))
        )
        self._heads = anatomy.heads_mm

    def paint(self, z_mm: float) -> Field:
        """Return one plane [row, column] in HU, without noise."""
        pelvis = 1.0 if self.body is None else self.body.pelvis_share(z_mm)
        plane = self.background.copy()
        if pelvis > 0:
            self._paint(plane, self.layers, z_mm)
            self._paint(plane, self.arms, z_mm)
        if pelvis < 1:
            other = self.background.copy()
            self._paint(other, self.outside, z_mm)
            plane = other if pelvis == 0 else np.float32(pelvis) * plane + np.float32(1 - pelvis) * other
        self._spots(plane, z_mm)
        plane -= self._band(z_mm)
        return plane

    def _paint(self, plane: Field, layers: Sequence[tuple[Upsampler, Field, Field | float]], z_mm: float) -> None:
        scale = np.float32(1 / self.width_mm)
        for up, shape, value in layers:
            if self.body is not None and not up.reaches(z_mm):
                continue
            slab = up.slab(shape, z_mm)
            box = up.box(slab, self.width_mm / 2)
            if box is None:
                continue
            share = up.fine(slab, box)
            share *= -scale
            share += np.float32(0.5)
            np.clip(share, 0, 1, out=share)
            hu = np.float32(value) if isinstance(value, float) else up.fine(up.slab(value, z_mm), box)
            target = plane[box]
            target += share * (hu - target)

    def hip_share(self, z_mm: float) -> float:
        """How much this slice suffers from the hips: 1 at the femoral heads."""
        height = (self._heads[0][2] + self._heads[1][2]) / 2 - 5
        return float(np.exp(-(((z_mm - height) / 28) ** 2)))

    def _band(self, z_mm: float) -> Field:
        """The dark band between the femoral heads that hardening of the beam leaves behind."""
        depth = self.appearance.hardening_hu * self.hip_share(z_mm)
        (lx, ly, _), (rx, ry, _) = self._heads
        middle, half = (lx + rx) / 2, abs(lx - rx) / 2
        along = np.clip(1.15 - np.abs((self.up.x_mm - middle) / half) ** 3, 0, 1)
        across = np.exp(-(((self.up.y_mm - (ly + ry) / 2) / 24) ** 2))
        return np.asarray(depth * across[:, None] * along, dtype=np.float32)

    def _spots(self, plane: Field, z_mm: float) -> None:
        """Gold markers and stones: small, so painted straight onto the pixels."""
        for x, y, z in self.appearance.sources_mm:
            self._ball(plane, (x, y, z), 0.5, 4.5, 5000.0, z_mm)
        for x, y, z, radius, hu in self.appearance.stones_mm:
            self._ball(plane, (x, y, z), radius, 1.0, hu, z_mm)
        for x, y, z in self.appearance.seeds_mm:
            self._ball(plane, (x, y, z), 0.9, 3.0, 5000.0, z_mm)
            if abs(z_mm - z) < 3.0:
                dx, dy = self.up.x_mm - x, self.up.y_mm[:, None] - y
                fan = np.cos(6 * np.arctan2(dy, dx) + x) * np.exp(-np.hypot(dx, dy) / 9)
                plane += np.asarray(60 * fan * (np.hypot(dx, dy) > 1.5), dtype=np.float32)

    def _ball(
        self,
        plane: Field,
        centre: Point,
        radius: float,
        stretch: float,
        hu: float,
        z_mm: float,
    ) -> None:
        x, y, z = centre
        within = 1 - ((z_mm - z) / (radius * stretch)) ** 2
        if within <= 0:
            return
        r = radius * np.sqrt(within)
        reach = r + self.width_mm
        rows, columns = (
            slice(int(np.searchsorted(axis, middle - reach)), int(np.searchsorted(axis, middle + reach)))
            for axis, middle in ((self.up.y_mm, y), (self.up.x_mm, x))
        )
        distance = np.hypot(self.up.x_mm[columns] - x, self.up.y_mm[rows, None] - y) - r
        share = np.clip(0.5 - distance / self.width_mm, 0, 1) * min(1.0, 2 * r / self.width_mm)
        target = plane[rows, columns]
        target += np.asarray(share * (hu - target), dtype=np.float32)


def tissue_layers(anatomy: Anatomy, appearance: Appearance) -> tuple[Layer, ...]:
    """Return every tissue's shape and HU on the anatomy's lattice, in the order in which they are painted."""
    f = anatomy.fields
    tissue = appearance.tissues
    z, y, x = anatomy.lattice.grids
    texture, fine, grain = (w.on(anatomy.lattice) for w in (appearance.texture, appearance.fine, appearance.grain))
    # Fat carries strands, more of them deep inside than under the skin, most of them around the rectum.
    strands = np.clip(1.2 - np.abs(fine) * 2.4, 0, 1) * np.clip(0.4 + 0.5 * texture, 0, 1)
    pelvic = np.exp(-((x / 52) ** 4) - ((y - 28) / 52) ** 4 - ((z - 35) / 55) ** 4)
    deep = np.clip(-f["body"] / 60, 0.25, 0.8) + 0.7 * pelvic
    fat = tissue.fat + 5 * texture + 55 * strands * deep + 12 * pelvic * np.clip(1 + fine, 0, 2)
    # Fat between the bundles of the gluteal muscles, and in patches of any muscle.
    bundles = _bundles(anatomy.lattice, appearance) * np.clip(0.8 + 0.6 * texture, 0, 2)
    patches = np.clip(0.6 * texture + 0.8 * grain - 0.9, 0, 2)
    muscle = tissue.muscle + 3 * fine - 35 * patches - 45 * bundles
    if appearance.far_muscle_hu:
        muscle = muscle + appearance.far_muscle_hu * np.clip(np.maximum(y - 30, np.abs(x) - 70) / 15, 0, 1)
    gland = tissue.gland + 2 * texture + 2 * fine
    if appearance.gland_texture is not None:
        gland = gland + appearance.gland_texture_hu * appearance.gland_texture.on(anatomy.lattice)
    # Veins and fascia cover the gland, thickest in front of it and around its apex.
    _, gland_y, gland_z = appearance.gland_mm
    cover: Values
    sheath: Values
    if appearance.veins is None:
        cover = 4.8 + 1.2 * texture + np.clip((gland_y - 8 - y) / 2.5, 0, 6) + np.clip((gland_z - 6 - z) / 3, 0, 4)
        sheath = tissue.sheath + 3 * fine - 95 * np.clip(0.5 * texture + 0.5 * fine - 0.75, 0, 1)
    else:
        cover, sheath = _veins(anatomy.lattice, appearance.veins, appearance, texture, fine)
    urine: Values | float = tissue.urine
    if appearance.urine_layer_hu:
        level = np.clip((y - gland_y - appearance.urine_level_mm) / 8 + 0.5, 0, 1)
        if anatomy.prone:
            level = 1 - level
        urine = np.broadcast_to(tissue.urine + appearance.urine_layer_hu * level, anatomy.lattice.shape)
    stool = tissue.stool + 18 * fine - 60 * np.clip(grain - 0.9, 0, 2)
    # Denser spongy bone in the femoral heads; thick cortex and fatty marrow in the shafts.
    spongy = tissue.spongy + 70 * grain + 35 * texture
    shaft, head = np.clip((-18 - z) / 30, 0, 1), np.clip((z - 5) / 15, 0, 1)
    femur = np.minimum(f["femur_left"], f["femur_right"])
    fatty = shaft
    if appearance.joints.neck_marrow > 0:
        ball = skeleton.FEMORAL_HEAD_RADIUS_MM * appearance.joints.head
        from_centre = np.minimum(
            *(np.sqrt((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) for a, b, c in anatomy.heads_mm)
        )
        head = np.clip((ball + 4 - from_centre) / (0.15 * ball + 4), 0, 1)
        fatty = np.maximum(shaft, appearance.joints.neck_marrow * (1 - head))
    femur_inside = (0.85 * spongy + appearance.joints.spongy * 130 * head) * (1 - fatty) + tissue.marrow * fatty
    # The rim of the ball alone; that of the neck and of the shaft stays.
    rim = 2.2 * (1 + (appearance.joints.rim - 1) * head) + 4.3 * shaft
    hip = np.minimum(f["hip_left"], f["hip_right"])
    spine = np.minimum(f["sacrum"], f["lumbar"])
    layers: tuple[tuple[Values, Values | float], ...] = (
        (f["body"], tissue.skin),
        (f["body"] + 2, fat),
        (f["bowel"], tissue.bowel_wall),
        (f["bowel_lumen"], anatomy.bowel_hu),
        (f["bowel_gas"], AIR_HU + 40),
        (f["soft"], tissue.soft),
        (f["muscle"], muscle),
        (f["prostate"] - cover, sheath),
        *([(f["floor"], tissue.muscle - 4 + 2 * fine)] if "floor" in f else []),
        (f["disc"], 78.0),
        (hip, tissue.cortical * 0.88),
        (hip + (appearance.joints.cortex_mm + 0.5 * fine), spongy),
        (spine, tissue.cortical * 0.6),
        (spine + (1.2 + 0.4 * fine), spongy * 0.72),
        (f["canal"], 15.0),
        (femur, tissue.cortical),
        (femur + rim, femur_inside),
        (f["penile_bulb"], tissue.muscle - 3),
        (f["bladder"], tissue.bladder_wall),
        (f["urine"], urine),
        *([(f["bladder_air"], AIR_HU + 20)] if "bladder_air" in f else []),
        *([(f["spacer"], anatomy.spacer_hu + 3 * texture)] if "spacer" in f else []),
        (f["rectum"], tissue.rectal_wall),
        (f["rectum_lumen"], stool),
        (f["rectum_gas"], AIR_HU + 10),
        *_balloon(anatomy),
        *_female(f, appearance, texture),
        (f["seminal_vesicles"], tissue.vesicles),
        (f["prostate"], gland),
        *_catheter(f, tissue),
    )
    return tuple(
        (shape.astype(np.float32), hu if isinstance(hu, float) else hu.astype(np.float32)) for shape, hu in layers
    )


def _balloon(anatomy: Anatomy) -> tuple[tuple[Values, Values | float], ...]:
    f = anatomy.fields
    if "balloon" not in f:
        return ()
    return ((f["balloon_shaft"], 160.0), (f["balloon"], 40.0), (f["balloon"] + 1.3, anatomy.balloon_hu))


def _catheter(fields: Mapping[str, Field], tissue: Tissues) -> tuple[tuple[Values, Values | float], ...]:
    if "catheter" not in fields:
        return ()
    balloon = fields["catheter_balloon"]
    return (
        (balloon, 55.0),
        (balloon + 1.0, 3.0),
        (fields["catheter"], 140.0),
        (fields["catheter"] + 2.0, tissue.urine),
    )


def _female(
    fields: Mapping[str, Field], appearance: Appearance, texture: Field
) -> tuple[tuple[Values, Values | float], ...]:
    """A woman's organs; nothing in a man."""
    if "uterus" not in fields:
        return ()
    tissue = appearance.tissues
    much = max(0.0, tissue.soft - tissue.muscle)
    return (
        (fields["vagina"], tissue.muscle - 8 + 0.2 * much),
        (fields["vagina"] + 3.5, tissue.muscle - 24),
        (fields["ovaries"], tissue.muscle - 14 + 0.2 * much),
        (fields["uterus"], tissue.muscle + 2 + 0.5 * much + 3 * texture),
        (fields["uterus_cavity"], tissue.muscle - 25),
    )


def _veins(
    lattice: Lattice, veins: Lobes, appearance: Appearance, texture: Field, fine: Field
) -> tuple[Field, Field]:
    """How far the veins reach from the gland, thick in front of it alone, and their HU with fat between them."""
    z, y, x = lattice.grids
    gland_x, gland_y, gland_z = appearance.gland_mm
    in_front = np.clip((gland_y - 6 - y) / 4, 0, 1)
    width = 20.0 * veins.veins_reach
    middle = np.exp(-(((x - gland_x) / width) ** 4) - ((z - gland_z + 4) / 24) ** 4)
    cover = veins.cover_mm * (1 + 0.4 * texture) + veins.veins_mm * in_front * middle * (1 + 0.25 * fine)
    tissue = appearance.tissues
    if veins.cover_hu is None:
        vein = tissue.sheath + 0.3 * (tissue.soft - tissue.muscle)
    else:
        vein = tissue.gland + veins.cover_hu
    between = np.clip(0.6 * texture + 0.9 * fine - 0.6, 0, 1)
    return cover.astype(np.float32), (vein + 4 * fine - 90 * veins.fat * between).astype(np.float32)


def _bundles(lattice: Lattice, appearance: Appearance) -> Field:
    """Fat between the bundles of the gluteal muscles, 0 in front of them."""
    y = lattice.grids[1]
    field = np.zeros(lattice.shape, dtype=np.float32)
    behind = lattice.y > 30
    middle = int(np.searchsorted(lattice.x, 0.0))
    for side, waves in zip((slice(middle, None), slice(0, middle)), appearance.fibres, strict=True):
        part = Lattice(z=lattice.z, y=lattice.y[behind], x=lattice.x[side])
        if 0 not in part.shape:
            field[:, behind, side] = np.clip(waves.on(part) - 0.7, 0, 2)
    return np.asarray(field * np.clip((y - 30) / 25, 0, 1), dtype=np.float32)


def _couch(scan: Scan, up: Upsampler, table_mm: float, width_mm: float, prone: bool) -> Field:
    """Air and the couch, the same in every slice."""
    couch = scan.couch
    x, y = up.x_mm - np.float32(scan.couch_shift_mm), up.y_mm[:, None]
    half = couch.thickness_mm / 2
    if prone:
        y, table_mm = -y, -table_mm
    if couch.flat:
        edge = np.abs(x) - couch.half_width_mm
        outer = np.maximum(np.abs(y - table_mm - half) - half, edge + np.clip(y - table_mm, 0, None) * 0.9)
    else:
        sag = 45 * (1 - (x / couch.half_width_mm) ** 2)
        outer = np.maximum(np.abs(y - (table_mm + 3 + sag - 45 + half)) - half, np.abs(x) - couch.half_width_mm)
    plane = np.full((len(up.y_mm), len(up.x_mm)), AIR_HU, dtype=np.float32)
    for depth, hu in ((0.0, couch.shell_hu), (2.6, couch.core_hu)):
        share = np.clip(0.5 - (outer + depth) / width_mm, 0, 1).astype(np.float32)
        plane += share * (np.float32(hu) - plane)
    return plane


class _Noise:
    """Correlated noise, drawn slice by slice through its spectrum."""

    def __init__(self, scan: Scan, rng: np.random.Generator) -> None:
        from scipy import fft

        self._fft = fft
        self._rng = rng
        _, rows, columns = scan.shape
        _, dy, dx = scan.spacing_mm
        self._shape = (rows, columns)
        fy, fx = np.fft.fftfreq(rows, dy)[:, None], np.fft.rfftfreq(columns, dx)
        power = np.zeros((rows, len(fx)))
        for grain_mm, share in NOISE_GRAIN:
            sigma = grain_mm * scan.sharpness
            part = np.exp(-((2 * np.pi * sigma) ** 2) * (fx**2 + fy**2))
            power += share * part / _total(part, columns)
        self._amplitude = (np.sqrt(power / 2) * rows * columns).astype(np.float32)
        # Streaks run from hip to hip: long across, narrow along.
        streak = np.exp(-((2 * np.pi * 22.0 * fx) ** 2) - (2 * np.pi * 0.9 * fy) ** 2)
        self._streaks = (np.sqrt(streak / _total(streak, columns) / 2) * rows * columns).astype(np.float32)
        self._noise_hu = np.float32(scan.noise_hu)
        self._alike = float(np.exp(-scan.spacing_mm[0] / NOISE_SLICE_MM))
        self._last = self._draw(self._amplitude)

    def slice(self, plane: Field, hip_share: float, streak_hu: float) -> Field:
        """Noise for the next slice: less in the air around the patient, streaky between the hips."""
        fresh = self._draw(self._amplitude)
        self._last = np.float32(self._alike) * self._last + np.float32(np.sqrt(1 - self._alike**2)) * fresh
        noise = self._noise_hu * self._last
        if hip_share > 0.05:
            noise += np.float32(streak_hu * hip_share) * self._draw(self._streaks)
        noise[plane < -930] *= np.float32(0.45)
        return np.asarray(noise, dtype=np.float32)

    def _draw(self, amplitude: Field) -> Field:
        parts = self._rng.standard_normal((*amplitude.shape, 2), dtype=np.float32)
        spectrum = parts.view(np.complex64)[..., 0]
        spectrum *= amplitude
        return np.asarray(self._fft.irfft2(spectrum, s=self._shape, workers=1), dtype=np.float32)


def _total(power: NDArray[np.float64], columns: int) -> float:
    """Sum of a half spectrum over both of its halves."""
    weight = np.full(power.shape[1], 2.0)
    weight[0] = 1.0
    if columns % 2 == 0:
        weight[-1] = 1.0
    return float((power * weight).sum())
