"""Where the scan of a predicted case lies now, and whether it is the one that was predicted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from metricunet.errors import InputError, argument
from metricunet.files.dicom.stack import Allow
from metricunet.inference.inputs import Refused, ScanInput, scans_at
from metricunet.workflows.review.folder import PredictedCase

#: A scan that needed no repair is read alike with and without; one that did was predicted so.
AS_PREDICTED = Allow(gaps=True, tilt=True)


class Scans:
    """Finds scans where the predictions say that they lie, or in a folder that the user names.

    Args:
        given: a folder of scans, or one scan; None to go by what the predictions say.
        settled: whether folders stay as they are meanwhile, so that each is searched once.

    Raises:
        InputError: nothing that could be a scan is there.
    """

    def __init__(self, given: Path | None = None, *, settled: bool = False) -> None:
        self.given = given
        self._lock = threading.Lock()
        self._found: dict[str, list[ScanInput]] | None = None
        self._scans_at: Callable[[Path, Allow], tuple[list[ScanInput], list[Refused]]] = (
            cache(scans_at) if settled else scans_at
        )
        if given is not None and not given.exists():
            raise InputError(f"{given}: no such file or folder; expected the scans of the predictions")

    def of(self, case: PredictedCase) -> ScanInput:
        """Return the scan of a case.

        Raises:
            InputError: it is not there, or it is not the scan that was predicted.
        """
        source = self.find(case)
        if case.input_sha256 and source.sha256() != case.input_sha256:
            raise InputError(
                f"{source.path}: is not the scan that case {case.name} was predicted from (its SHA-256 differs); "
                f"name its folder with {argument('scans')}, or predict the case again"
            )
        return source

    def find(self, case: PredictedCase) -> ScanInput:
        """Return the scan of a case as it is now, whether or not it is the one that was predicted.

        Raises:
            InputError: it is not there.
        """
        return self._located(case) if self.given is None else self._among_given(case, self.given)

    def _among_given(self, case: PredictedCase, given: Path) -> ScanInput:
        with self._lock:
            if self._found is None:
                entries, _ = self._scans_at(given, AS_PREDICTED)
                self._found = {}
                for entry in entries:
                    self._found.setdefault(entry.case, []).append(entry)
        if case.name not in self._found:
            raise InputError(
                f"{given}: holds no scan of case {case.name}; name its folder with {argument('scans')}"
            )
        # Several files may bear the name of one case, such as CASE.nii.gz and CASE.mha; one of them was predicted.
        *others, last = self._found[case.name]
        return next((entry for entry in others if entry.sha256() == case.input_sha256), last)

    def _located(self, case: PredictedCase) -> ScanInput:
        if not case.scan.get("path"):
            raise InputError(
                f"case {case.name}: the prediction does not say where its scan lies; run the command again, and "
                f"name the folder of the scans with {argument('scans')}"
            )
        places = [Path(case.scan["path"])]
        if case.scan.get("relative"):
            places.append(case.folder / case.scan["relative"])
        there = [place for place in places if place.exists()]
        if not there:
            raise InputError(
                f"{places[0]}: the scan of case {case.name} is not there any more; run the command again, and "
                f"name the folder of the scans with {argument('scans')}"
            )
        if len(there) > 1 and not there[0].samefile(there[1]):
            # The folder was moved or copied with its scans, and what is at the old place may be others by now.
            with suppress(InputError, OSError):
                found = self._at(there[0], case)
                if not case.input_sha256 or found.sha256() == case.input_sha256:
                    return found
        return self._at(there[-1], case)

    def _at(self, there: Path, case: PredictedCase) -> ScanInput:
        """Return the scan of a case at the place where it ought to lie."""
        entries, refused = self._scans_at(there, AS_PREDICTED)
        named = [entry for entry in entries if entry.case == case.name] or entries
        if len(named) != 1:
            why = next((f": {entry.reason}" for entry in refused if entry.is_scan), "")
            raise InputError(f"{there}: holds no scan of case {case.name}{why}")
        return named[0]
