"""What must not leave the source: patients' names and birth dates never do, identifiers by choice.

The sources teach a `Privacy` whose data they read. Every text on its way out, to the terminal as to a file, goes
through it: file names and structure names may hold a patient's name as well as a header does.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from metricunet.errors import InputError

Uids = Literal["keep", "hash"]

REDACTED = "REDACTED"
#: What stands in PatientName and means nobody. Without these, a set of patients called Prostate^001 could not be
#: imported, for its structures would all lose their name.
NOT_A_NAME = frozenset(
    {
        *("anon", "anonym", "anonymous", "anonymized", "anonymised", "case", "ct", "dicom", "export"),
        *("patient", "phantom", "pseudonym", "study", "subject", "test", "abdomen", "bladder", "body", "bone"),
        *("bowel", "brain", "colon", "femur", "gland", "head", "heart", "hip", "kidney", "large", "left"),
        *("liver", "lung", "neck", "pelvis", "prostate", "rectum", "right", "sacrum", "seminal", "small"),
        *("spine", "spleen", "thorax"),
    }
)
#: Words of our own messages that are names, too. They stay where they stand alone, in small letters.
COMMON = frozenset(
    {
        *("an", "and", "are", "as", "at", "be", "by", "do", "for", "from", "has", "if", "in", "is", "it"),
        *("its", "may", "no", "not", "of", "on", "one", "or", "so", "the", "to", "two", "was", "will", "with"),
    }
)
SHORTEST_NAME = 2
#: Of identifiers shorter than this only words are taken for them, and what a file's name begins with before one of
#: these signs, as in 07_seg.nii.gz.
SHORTEST_IDENTIFIER, AFTER_NAME = 4, "._-"
#: Names of so few letters are parts of other words; and the first of the signs of Chinese and Japanese names.
LONGEST_CHANCE, FIRST_SIGN = 3, "\u2e80"
#: A UID of DICOM in a text. Those that are made of a random number have few dots and many digits: 2.25.NUMBER.
UID = re.compile(r"(?<!\d)(?<!\d\.)[0-2](?:(?:\.\d+){4,}|(?:\.\d+)+\.\d{9,})")
#: What may be an identifier, or hold one, in a path or a sentence.
_WORD = re.compile(r"[^\s/:,;'\"]+")
_TRANSCRIBED = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "ø": "oe", "å": "aa", "æ": "ae"})


def hashed(*parts: str) -> str:
    """Return 12 hex digits that tell nothing of the parts but whether they are the same."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


class Privacy:
    """Names, birth dates and identifiers met so far, and texts without them.

    Args:
        uids: whether identifiers (UIDs, patient IDs, names of cases) or their hashes are written into the cohort.
    """

    def __init__(self, uids: Uids = "hash") -> None:
        self.uids = uids
        self._names: set[str] = set()
        self._dates: set[str] = set()
        self._identifiers: set[str] = set()
        self._longest_first: tuple[str, ...] | None = None
        self._above: set[str] = set()
        self._known = (0, 0)
        self._word: re.Pattern[str] | None = None
        self._date: re.Pattern[str] | None = None

    def learn(self, header: Dataset) -> None:
        """Take note of the personal data in a DICOM header."""
        identifier = str(header.get("PatientID", "") or "").strip()
        if identifier:
            self.learn_identifier(identifier)
        texts = [header.get(keyword) for keyword in ("PatientName", "OtherPatientNames", "PatientBirthName")]
        for text in texts:
            for name in text if isinstance(text, MultiValue) else [text]:
                # A name that is the patient's ID is a pseudonym.
                if name is not None and str(name).strip() != identifier:
                    self._learn_name(str(name))
        self._learn_date(str(header.get("PatientBirthDate", "") or ""))

    def learn_identifier(self, text: str) -> None:
        """Take note of what names a case or a patient without being a name."""
        if text:
            self._identifiers.add(unicodedata.normalize("NFC", text))  # as `spoken` writes it
        self._longest_first = None

    def learn_root(self, root: Path) -> None:
        """Take note of a source: where it lies on this machine is nobody's concern elsewhere."""
        if root.parent.name:
            self._above.add(f"{root.parent}/")

    def spoken(self, text: str) -> str:
        """Return a text for the terminal: without names and birth dates."""
        if (len(self._names), len(self._dates)) != self._known:
            self._compile()
        text = unicodedata.normalize("NFC", text)
        if self._date is not None:
            text = self._date.sub(REDACTED, text)
        if self._word is None:
            return text
        return re.sub(r"\S+", lambda match: self._token(match.group()), text)

    def written(self, text: str) -> str:
        """Return a text for the cohort: as `spoken`, with hashes for identifiers unless they are kept.

        Paths begin with the source's own folder.
        """
        for above in sorted(self._above, key=lambda root: (-len(root), root)):
            text = text.replace(above, "")
        text = self.spoken(text)
        if self.uids == "keep":
            return text
        if self._longest_first is None:
            self._longest_first = tuple(sorted(self._identifiers, key=lambda known: (-len(known), known)))
        return self._without_phrases(
            text, tuple(known for known in self._longest_first if not _WORD.fullmatch(known))
        )

    @contextmanager
    def guarding_errors(self) -> Iterator[None]:
        """Say what a user did wrong, within, as `spoken`; what it came from is not shown."""
        try:
            yield
        except InputError as error:
            raise InputError(self.spoken(str(error))) from None

    def _learn_name(self, name: str) -> None:
        for piece in re.split(r"[\^=\s,._]+", name):
            plain = _folded(piece)
            if len(plain) >= SHORTEST_NAME and plain not in NOT_A_NAME and not plain.isdigit():
                self._names |= {plain, _folded(piece.lower().translate(_TRANSCRIBED))}
                self._names |= {part for part in plain.split("-") if len(part) > SHORTEST_NAME} - NOT_A_NAME

    def _learn_date(self, date: str) -> None:
        if not re.fullmatch(r"\d{8}", date):
            return
        year, month, day = date[:4], date[4:6], date[6:]
        self._dates |= {year + month + day, day + month + year, month + day + year, year[2:] + month + day}
        for mark in "-./_ ":
            self._dates |= {
                mark.join(parts) for parts in ((year, month, day), (day, month, year), (month, day, year))
            }

    def _compile(self) -> None:
        self._known = len(self._names), len(self._dates)
        self._word = _any_of(self._names, r"(?<![^\W\d_])", r"(?![^\W\d_])")
        self._date = _any_of(self._dates, r"(?<!\d)", r"(?!\d)")

    def _token(self, token: str) -> str:
        assert self._word is not None
        if "/" not in token:
            if not re.search(r"\.\w", token):
                return self._without_words(token)
            return REDACTED if self._holds_name(token) else token
        return "/".join(REDACTED if self._holds_name(part) else part for part in token.split("/"))

    def _without_words(self, token: str) -> str:
        assert self._word is not None
        if token.strip(".,;:()") in COMMON:
            return token
        folded = _folded(token, keep_length=True)
        for match in reversed(list(self._word.finditer(folded))):
            token = token[: match.start()] + REDACTED + token[match.end() :]
        return token

    def _holds_name(self, part: str) -> bool:
        """Tell whether a file or folder name holds a name, if only in one piece with other letters."""
        assert self._word is not None
        folded = _folded(part, keep_length=True)
        return bool(self._word.search(folded)) or any(n in folded for n in self._names if _is_telling(n))

    def _without_phrases(self, text: str, phrases: tuple[str, ...]) -> str:
        """Replace identifiers of several words, the longest first, then UIDs and words in what is left."""
        for k, phrase in enumerate(phrases):
            if phrase == text or (len(phrase) >= SHORTEST_IDENTIFIER and phrase in text):
                shorter = phrases[k + 1 :]
                return hashed(phrase).join(self._without_phrases(part, shorter) for part in text.split(phrase))
        between = [_WORD.sub(self._without_identifiers, part) for part in UID.split(text)]
        uids = [hashed(uid) for uid in UID.findall(text)]
        return "".join(part + uid for part, uid in zip(between, [*uids, ""], strict=True))

    def _without_identifiers(self, found: re.Match[str]) -> str:
        word = found.group()
        if word in self._identifiers:
            return hashed(word)
        return self._in_pieces(word, self._longest_first or (), is_start=True)

    def _in_pieces(self, piece: str, identifiers: tuple[str, ...], is_start: bool) -> str:
        """Replace identifiers in a piece of a word, the longest first; none is looked for in a hash."""
        for k, identifier in enumerate(identifiers):
            if len(identifier) >= SHORTEST_IDENTIFIER and identifier in piece:
                first, *others = piece.split(identifier)
                shorter = identifiers[k + 1 :]
                pieces = [self._in_pieces(first, shorter, is_start)]
                pieces += [self._in_pieces(other, shorter, is_start=False) for other in others]
                return hashed(identifier).join(pieces)
            if is_start and piece.startswith(tuple(identifier + sign for sign in AFTER_NAME)):
                return hashed(identifier) + piece[len(identifier) :]
        return piece


def shown(path: Path, root: Path) -> str:
    """Return a path as messages name it: below the folder that the user named."""
    return str(path.relative_to(root.parent)) if path.is_relative_to(root.parent) else str(path)


def _folded(text: str, keep_length: bool = False) -> str:
    """Return a text in small letters without accents."""
    if keep_length:
        folded = [unicodedata.normalize("NFKD", c)[:1].lower()[:1] or c for c in text]
        return "".join(folded)
    plain = unicodedata.normalize("NFKD", text.lower())
    return "".join(c for c in plain if not unicodedata.combining(c))


def _is_telling(name: str) -> bool:
    """Tell whether letters in the midst of others are this name, not chance: some, or few of a script of signs."""
    return len(name) > LONGEST_CHANCE or min(name) >= FIRST_SIGN


def _any_of(texts: Iterable[str], before: str, after: str) -> re.Pattern[str] | None:
    longest_first = sorted(texts, key=lambda t: (-len(t), t))
    if not longest_first:
        return None
    return re.compile(before + "(?:" + "|".join(map(re.escape, longest_first)) + ")" + after)
