"""What `varied` draws and `real` does not: groups, each with a switch, ranges and its own chance.

The ranges are our choice, set to what the comments beside them name. Lengths are millimetres in the body frame of
`shapes`. A group draws from a generator of its own, so that leaving one out changes nothing that another draws.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

#: Raised whenever the same seed begins to give other varied phantoms.
VARIED_VERSION = 4

# Floor. Where 40 pelves of `real` have the apex below the top of the femurs; `pelvis` puts it higher.
APEX_BELOW_FEMURS_MM = (71.0, 7.0)
APEX_RANGE_MM = (57.0, 85.0)
FLOOR_BULK = (0.8, 1.25)
FLOOR_SHIFT_MM = (4.0, 5.0)
LEVATOR_MM, OBTURATOR_MM, BULB_SIZE = (3.0, 8.0), (0.0, 7.0), (0.6, 1.1)
# Base. Power of the superellipsoid's upper half, 2.25 being round; size of the bladder's neck.
BASE_POWER = (2.3, 5.0)
NECK_RADIUS_MM = (4.0, 9.0)
NECK_DEPTH_MM = (0.0, 6.0)
MEDIAN_LOBE_SHARE, MEDIAN_LOBE_MM = 0.25, (6.0, 14.0)
WALL_MM = (1.8, 5.5)
BLADDER_SEAT = (0.5, 0.85)
CATHETER_SHARE, CATHETER_BALLOON_MM, CATHETER_AIR_MM = 0.06, (8.0, 14.0), (0.0, 14.0)
# The gland's upper face rises to the back by 0.14 to 0.63 in four men, and its back is broad and full.
BASE_SLOPE, BACK_POWER = (0.32, 0.17, 0.0, 0.7), (2.25, 3.75)
VESICLE_THICKNESS, VESICLE_LENGTH = (0.6, 1.45), (0.6, 1.25)
# Rectum. Outer radius where it is widest; what gas takes off the gland's depth. In one real scan with much gas the
# gland's front-back extent is half of its width.
RECTUM_RADIUS_MM = {"empty": (8.0, 12.0), "usual": (12.0, 24.0), "wide": (24.0, 36.0), "great": (36.0, 46.0)}
RECTUM_SHARE = {"empty": 0.25, "usual": 0.40, "wide": 0.23, "great": 0.12}
LEAST_DEPTH = 0.5
# Rectums without gas whose content looks as their wall does, and how much it differs.
ALIKE_SHARE, ALIKE_SD_HU = 0.5, 5.0
# An endorectal balloon, three in five of them full of air, the rest of water; gel that parts gland and rectum.
BALLOON_SHARE, BALLOON_RADIUS_MM, BALLOON_HALF_MM, BALLOON_AIR_SHARE = 0.04, (19.0, 28.0), (28.0, 38.0), 0.6
SPACER_SHARE, SPACER_MM, SPACER_HU = 0.06, (7.0, 15.0), (0.0, 40.0)
#: Some gels are made to be seen.
SPACER_DENSE_SHARE, SPACER_DENSE_HU = 0.3, (120.0, 300.0)
GROOVE, WEDGE = (0.02, 0.14), (0.2, 1.0)
# Gland. Height over width 0.5 to 0.74 on CT, 0.79 on average in `real`, 1.0 on MRI; four glands of 18 to 27 mL on
# CT are 28 to 32 mm high. Small ones are lower, large ones taller.
VOLUME_MEDIAN_ML, VOLUME_LOG_SD, VOLUME_RANGE_ML = 38.0, 0.5, (15.0, 130.0)
HEIGHT_MM, HEIGHT_RANGE_MM, LEAST_HEIGHT_MM = (34.0, 3.5), (28.0, 40.0), 25.0
SMALL_ML, TALL_ML = 38.0, 50.0
HEIGHT_OVER_WIDTH = (0.5, 0.85)
DEPTH_OVER_WIDTH = (0.6, 0.97)
SKEW = 0.12
VEINS_MM, COVER_MM = (3.0, 11.0), (0.5, 4.0)
# Half of the men have no fat to speak of next to the gland, and what covers it is as dense as the gland itself. In
# one man with clinicians' contours the tissue 1 to 4 mm outside it is 5 HU darker than the gland, fat included.
CLOSE_SHARE, CLOSE_COVER_MM, CLOSE_SD_HU, CLOSE_FAT = 0.5, (3.0, 7.0), 3.0, (0.0, 0.3)
#: Radioactive sources left in the gland by brachytherapy.
SOURCES_SHARE, SOURCES = 0.04, (35, 110)
# Image.
NOISE_HU = (5.0, 40.0)
#: Standard deviation of the noise's grain and width of the edge's blur against a usual kernel, sharp to soft.
KERNEL = (0.6, 1.8)
SLICE_MM = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.27, 4.0, 5.0)
SLICE_SHARE = (0.05, 0.05, 0.06, 0.06, 0.08, 0.15, 0.15, 0.15, 0.10, 0.05, 0.10)
PIXEL_MM = (0.65, 1.37)
CUT_SIDE_SHARE, CUT_SIDE_MM = 0.12, (70.0, 140.0)
CUT_GLAND_SHARE, CUT_GLAND_AT = 0.08, (0.2, 0.8)
MEDIUM_SHARE, MEDIUM_HU = 0.12, (120.0, 1200.0)
ENHANCED_SHARE, ENHANCED_HU = 0.35, (20.0, 160.0)
STONES_SHARE, MOST_STONES = 0.45, 14
MARKERS_SHARE, MOST_MARKERS = 0.15, 5
LEG_TURN_DEG = (-12.0, 20.0)
#: Voltage of the tube in kV: its share, and what it makes of bone and iodine against 120 kV, and of fat in HU.
VOLTAGE_SHARE = {80: 0.06, 100: 0.22, 120: 0.57, 140: 0.15}
VOLTAGE_BONE = {80: 1.45, 100: 1.18, 120: 1.0, 140: 0.9}
VOLTAGE_IODINE = {80: 1.7, 100: 1.3, 120: 1.0, 140: 0.85}
VOLTAGE_FAT_HU = {80: -9.0, 100: -4.0, 120: 0.0, 140: 3.0}
#: Contrast medium in the gut, by mouth, and in the rectum.
BOWEL_MEDIUM_SHARE, BOWEL_MEDIUM_HU = 0.15, (150.0, 900.0)
RECTAL_MEDIUM_SHARE, RECTAL_MEDIUM_HU = 0.05, (150.0, 700.0)
#: Means that `real` has from one man, and others lower; muscle of buttocks and thighs, which holds fat between
#: its fibres, against that of the pelvis.
LOWER_HU, FAR_MUSCLE_HU = {"fat": 8.0, "rectal_wall": 6.0}, (-25.0, 0.0)
#: Thin and obese: share, and the fat under the skin against the usual; the most at side, front and back.
THIN_SHARE, THIN = 0.2, (0.25, 0.6)
OBESE_SHARE, OBESE, MOST_FAT_MM = 0.2, (1.3, 2.0), (70.0, 105.0, 58.0)
PRONE_SHARE = 0.04
#: Artificial hips, twice as frequent as in `real`.
HIPS_SHARE = 0.12
# Beyond the pelvis. Share of the scans that go on upward, and to which heights in the template; whole bodies also
# go on downward, half of them to the feet. So many slices at most, or as many more of the thickest as it takes to
# cover a tall man.
BEYOND_SHARE = {"abdomen": 0.18, "chest": 0.07, "body": 0.05}
BEYOND_TOP_MM = {"abdomen": (300.0, 480.0), "chest": (560.0, 660.0), "body": (715.0, 905.0)}
BEYOND_BOTTOM_MM = {"thighs": (-330.0, -200.0), "feet": (-870.0, -845.0)}
BEYOND_SLICES = {"abdomen": 240, "chest": 240, "body": 360}
WIDE_FIELD_MM = 500.0
ARMS_BESIDE_SHARE = {"abdomen": 0.15, "chest": 0.25, "body": 0.5}

# Joints. The joint's space, cartilage included; the socket's thickness; the rim of the femoral head and how dense
# the spongy bone in it is, against `real`, whose rim is thick and bright; the cortex of the hip bone; how much of
# neck and trochanters is fatty marrow: in men they are a quarter to three quarters as dense as the head. Heads of
# four men have radii of 23 to 27 mm, where those of `real` measure 22.
JOINT_SPACE_MM, SOCKET_MM = (1.5, 5.0), (4.0, 10.0)
HEAD_SIZE = (1.06, 0.05, 0.93, 1.18)
RIM, SPONGY = (0.1, 0.8), (0.2, 1.7)
HIP_CORTEX_MM, NECK_MARROW = (1.5, 3.2), (0.2, 0.9)

# Pelvis. Its height against `real`. There the ischium's lower end lies 112 mm below the top of the femurs, that of
# the sacrum 54, and the hip bone is 246 mm high; in men on two label maps and one CT it is 94 and 96, 48 and 52,
# and 224 mm. The apex lies 7 to 12 mm above the lower edge of the symphysis: 52 to 62 mm below the femurs.
PELVIS_HEIGHT = (0.88, 0.05, 0.76, 1.0)
APEX_ABOVE_SYMPHYSIS_MM = (9.0, 5.0, -3.0, 21.0)
# Hips against `real`, front-back and head-foot: there they lie too high, and too far behind the symphysis.
HIP_SHIFT_MM = ((-2.0, 2.5, -8.0, 4.0), (-4.0, 2.5, -10.0, 2.0))

# Absent. What scans without a prostate show; the rest are men's, ending before it. Which part of the body scans of
# others show, and its lowest and highest height in the template.
ABSENT_SHARE = {"woman": 0.28, "prostatectomy": 0.17, "part": 0.25}
PART_SHARE = {"head": 0.2, "shoulder": 0.1, "chest": 0.25, "abdomen": 0.3, "legs": 0.15}
PART_MM = {
    "head": ((640.0, 705.0), (880.0, 905.0)),
    "shoulder": ((480.0, 540.0), (640.0, 680.0)),
    "chest": ((330.0, 410.0), (590.0, 650.0)),
    "abdomen": ((150.0, 240.0), (390.0, 500.0)),
    "legs": ((-840.0, -420.0), (-350.0, -130.0)),
}
#: The place of the gland is kept in those who have none, at this volume; nothing of it is painted.
BED_ML = 3.0
NO_UTERUS_SHARE, RETROVERTED_SHARE, CYST_SHARE = 0.2, 0.2, 0.25
UTERUS_SIZE = (0.6, 1.3)
VESICLES_LEFT_SHARE = 0.1
CLIPS = (4, 24)

# Tissues. The share of the scans whose tissues look as none do; the shift of each soft tissue's mean, and the
# factor of bone's. But for fat soft tissues lie 10 to 50 HU apart, so that any two may change places.
ANEW_SHARE, ANEW_SD_HU, ANEW_BONE = 0.5, 30.0, (0.7, 1.3)


@dataclass(frozen=True)
class Variety:
    """Which groups a varied phantom draws; what is left out stays as in `real`.

    Attributes:
        floor: one homogeneous pelvic floor hung on the bones, and the height of the gland's apex against them.
        base: the bladder's neck, the gland's flat base and median lobe, bladder wall, seminal vesicles; a urinary
            catheter.
        rectum: from empty to greatly distended, and how gas flattens the gland; an endorectal balloon, and gel
            that keeps the rectum off.
        gland: volume, extents and asymmetry, and the veins in front of it; sources of brachytherapy.
        image: noise, kernel, slices, voltage, contrast medium, stones, markers, cut fields; turned legs,
            artificial hips, thin and obese men, men who lie prone.
        beyond: scans that go on to abdomen, chest and head, or over the legs, with all that lies there.
        absent: women, men after prostatectomy and other parts of the body among the scans without a prostate.
        joints: the hips' joints: their space, the socket, size, rim and inside of the femoral heads.
        pelvis: how high the bony pelvis is, and with `floor` where the gland's apex lies against the symphysis.
        tissues: means of tissues drawn anew in half of the scans, each for itself and without regard to what is
            real, so that a network which learns from them has to go by shapes. Off unless asked for.
    """

    floor: bool = True
    base: bool = True
    rectum: bool = True
    gland: bool = True
    image: bool = True
    beyond: bool = True
    absent: bool = True
    joints: bool = True
    pelvis: bool = True
    tissues: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that are drawn."""
        return tuple(name for name in GROUPS if getattr(self, name))


#: What a group draws depends on its place here: a new one comes last.
GROUPS = tuple(field.name for field in fields(Variety))
#: Groups that move neither the gland nor what lies beside it, and no end of the scan.
STILL_GROUPS = ("joints",)


@dataclass(frozen=True)
class Floor:
    """The pelvic floor of one man.

    Attributes:
        apex_mm: the gland's apex, below the top of the femoral heads.
        bulk: thickness against the template.
        shift_mm: of the floor against the bones, front-back and head-foot.
        levator_mm: thickness of the sheet that hugs the gland.
        obturator_mm: how much nearer to the gland's lower half the muscles on the pelvic wall come than usual.
        bulb: size of the penile bulb against the usual.
    """

    apex_mm: float
    bulk: float
    shift_mm: tuple[float, float]
    levator_mm: float
    obturator_mm: float
    bulb: float = 1.0


@dataclass(frozen=True)
class Joints:
    """The hips' joints of one man, by default as `real` has them.

    Attributes:
        space_mm: between the femoral head and its socket.
        socket_mm: thickness of the socket.
        head: radius of the femoral heads against the template.
        rim: thickness of the bright rim of the femoral heads against `real`.
        spongy: how much denser the heads are inside than other spongy bone, against `real`.
        cortex_mm: thickness of the hip bone's cortex.
        neck_marrow: share of fatty marrow in neck and trochanters.
    """

    space_mm: float = 3.0
    socket_mm: float = 9.0
    head: float = 1.0
    rim: float = 1.0
    spongy: float = 1.0
    cortex_mm: float = 1.5
    neck_marrow: float = 0.0


USUAL_JOINTS = Joints()


@dataclass(frozen=True)
class Lost:
    """What is there in place of the prostate.

    Attributes:
        woman: whether it is a woman, otherwise a man after prostatectomy.
        vesicles: whether seminal vesicles are there.
        uterus: its size; 0 for none.
        uterus_back: whether it leans back over the rectum rather than forward over the bladder.
        uterus_aside_mm: how far its end lies from the midline.
        ovaries_mm: radii of the right and the left ovary; 0 for none.
        clips_mm: metal clips in the bed of the gland and on the pelvic wall.
    """

    woman: bool
    vesicles: bool = False
    uterus: float = 0.0
    uterus_back: bool = False
    uterus_aside_mm: float = 0.0
    ovaries_mm: tuple[float, float] = (0.0, 0.0)
    clips_mm: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Catheter:
    """A urinary catheter.

    Attributes:
        balloon_mm: radius of the balloon that holds it in the bladder.
        air_mm: depth of the air in front of the urine.
    """

    balloon_mm: float
    air_mm: float


@dataclass(frozen=True)
class Balloon:
    """A balloon in the rectum.

    Attributes:
        half_mm: half its length.
        hu: what fills it.
    """

    half_mm: float
    hu: float


@dataclass(frozen=True)
class Spacer:
    """Gel between gland and rectum: thickness, and how it looks."""

    thickness_mm: float
    hu: float


@dataclass(frozen=True)
class Base:
    """The gland's base and what stands on it.

    Attributes:
        power: of the superellipsoid above the gland's middle; higher is flatter.
        neck_mm, neck_depth_mm: radius of the bladder's neck at the base, and how deep it reaches into the gland.
        neck_forward: where the neck lies, as a share of the gland's half depth in front of its middle.
        wall_mm: thickness of the bladder's wall.
        neck_wall_mm: what parts urine from the gland.
        seat: height at which the bladder stands, as a share of the gland's half height.
        vesicle_thickness, vesicle_length: of the right and the left vesicle against the usual.
        vesicle_rise_mm: how much higher the vesicles' ends lie than usual.
        slope: how much higher the gland's upper face lies for each millimetre further back.
        back_power: of the superellipsoid at the gland's back; higher is broader and flatter.
    """

    power: float
    neck_mm: float
    neck_depth_mm: float
    neck_forward: float
    wall_mm: float
    neck_wall_mm: float
    seat: float
    vesicle_thickness: tuple[float, float]
    vesicle_length: tuple[float, float]
    vesicle_rise_mm: float
    slope: float = 0.0
    back_power: float = 2.25


@dataclass(frozen=True)
class Press:
    """How rectum and gland yield to each other.

    Attributes:
        flatten: depth of the gland against its own.
        groove: dent at the gland's back, as a share of its half depth.
        wedge: how far the rectum beside and below the gland is a teardrop, 0 for round.
    """

    flatten: float
    groove: float
    wedge: float


@dataclass(frozen=True)
class Lobes:
    """The gland's asymmetry and what lies in front of it.

    Attributes:
        skew: how much wider the left half is than the mean of both.
        tip: how much higher the left half lies, as a share of the half height at its side.
        veins_mm: thickness of the venous complex in front.
        veins_reach: its half width, as a share of the gland's smallest half axis.
        cover_mm: thickness of fascia and veins elsewhere.
        cover_hu: what the veins and the cover have more than the gland; None where their HU is their own.
        fat: how much fat lies between the veins, against the usual.
    """

    skew: float
    tip: float
    veins_mm: float
    veins_reach: float
    cover_mm: float
    cover_hu: float | None = None
    fat: float = 1.0


def generator(seed: int, group: str, part: int = 0) -> np.random.Generator:
    """Return the source of chance of one group of one phantom; parts of a group are drawn apart."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(10 + GROUPS.index(group), part)))


def normal(rng: np.random.Generator, mean: float, sd: float, low: float, high: float) -> float:
    """Draw from a normal distribution, held within bounds."""
    return float(np.clip(rng.normal(mean, sd), low, high))


def uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Draw evenly between two bounds."""
    return float(rng.uniform(*bounds))


def evenly_in_log(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Draw between two bounds so that each doubling is as likely as the next."""
    low, high = bounds
    return float(low * (high / low) ** rng.random())
