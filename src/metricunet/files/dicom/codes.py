"""Codes of structures by their names: SNOMED CT, as DICOM's segmentations and structure sets state them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

#: Lengths that the value representations of a code allow: SH for value and scheme, LO for the meaning.
LONGEST_VALUE, LONGEST_MEANING = 16, 64


@dataclass(frozen=True)
class Code:
    """A coded concept: value, scheme (`SCT`, `FMA`) and meaning, and the side as a code of its own."""

    value: str
    scheme: str
    meaning: str
    side: Code | None = None

    def item(self) -> Dataset:
        """Return the code as an item of a code sequence, its side as the modifier of a property type."""
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = self.value, self.scheme, self.meaning
        if self.side is not None:
            item.SegmentedPropertyTypeModifierCodeSequence = DicomSequence([self.side.item()])
        return item


#: SNOMED CT codes of structures, by the letters of their names without the side: TG-263's, those of cohorts and
#: TotalSegmentator's.
SNOMED = {
    "prostate": ("41216001", "Prostate"),
    "bladder": ("89837001", "Bladder"),
    "urinarybladder": ("89837001", "Bladder"),
    "rectum": ("34402009", "Rectum"),
    "seminalves": ("64739004", "Seminal vesicle"),
    "seminalvesicles": ("64739004", "Seminal vesicle"),
    "femur": ("71341001", "Femur"),
    "femurhead": ("2812003", "Head of femur"),
    "femoralhead": ("2812003", "Head of femur"),
    "penilebulb": ("52737000", "Bulb of penis"),
    "canalanal": ("34381000", "Anal canal"),
    "colon": ("71854001", "Colon"),
    "colonsigmoid": ("60184004", "Sigmoid colon"),
    "bowelsmall": ("30315005", "Small intestine"),
    "smallbowel": ("30315005", "Small intestine"),
    "bowellarge": ("14742008", "Large intestine"),
    "duodenum": ("38848004", "Duodenum"),
    "urethra": ("13648007", "Urethra"),
    "sacrum": ("54735007", "Sacrum"),
    "spinalcord": ("2748008", "Spinal cord"),
    "kidney": ("64033007", "Kidney"),
    "adrenalgland": ("23451007", "Adrenal gland"),
    "glndadrenal": ("23451007", "Adrenal gland"),
    "liver": ("10200004", "Liver"),
    "gallbladder": ("28231008", "Gallbladder"),
    "spleen": ("78961009", "Spleen"),
    "pancreas": ("15776009", "Pancreas"),
    "stomach": ("69695003", "Stomach"),
    "esophagus": ("32849002", "Esophagus"),
    "trachea": ("44567001", "Trachea"),
    "lung": ("39607008", "Lung"),
    "heart": ("80891009", "Heart"),
    "aorta": ("15825003", "Aorta"),
    "brain": ("12738006", "Brain"),
}
LEFT, RIGHT = Code("7771000", "SCT", "Left"), Code("24028007", "SCT", "Right")
SIDES = {"l": LEFT, "lt": LEFT, "left": LEFT, "r": RIGHT, "rt": RIGHT, "right": RIGHT}
#: The category of all of them, and the type of a structure without a code of its own.
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical structure")


def code_of(name: str) -> Code | None:
    """Return the code of a structure, with its side if the name ends in one; None for a name without a code."""
    # What follows ^ is the author's own, as in Prostate^auto.
    words = re.split(r"[\s_-]+", name.split("^")[0].strip().casefold())
    side = SIDES.get(words[-1]) if len(words) > 1 else None
    found = SNOMED.get("".join(words[:-1] if side else words))
    return None if found is None else Code(found[0], "SCT", found[1], side)
