"""Reviewed predictions as a source of cases: what was accepted or corrected becomes a cohort to train on.

The last review of a case counts. A structure with voxels in the reviewed mask counts as contoured, also where the
reviewer left it as it was predicted: whoever accepts or saves a case answers for all that it shows. A structure
without voxels shows nothing that could be looked at, so it counts as not contoured, unless the reviewer erased it:
then it is absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from metricunet.cohort.importing.dicom_tree import patient_hashes, person_of
from metricunet.cohort.importing.label_maps import on_grid
from metricunet.cohort.importing.privacy import Privacy, hashed, shown
from metricunet.cohort.importing.source import Found, LeftOut, Named, Region, SourceCase
from metricunet.cohort.splits import patients_of
from metricunet.errors import InputError, told
from metricunet.evaluation.cases import said_synthetic
from metricunet.files.dicom.series import CtSeries
from metricunet.files.nifti import read_labels
from metricunet.files.reviews import NAME, QUALITY_SUFFIX, RECORD_SUFFIX, Review, reviews_in
from metricunet.inference.inputs import ScanInput
from metricunet.progress import Bars
from metricunet.volume import Volume
from metricunet.workflows.review.folder import PredictedCase, read_cases
from metricunet.workflows.review.scans import Scans

LAYOUT = "reviewed"


class ReviewedCase(SourceCase):
    """A scan with the mask that a reviewer accepted or corrected.

    Args:
        review: what was decided; it has a mask.
        source: the scan that was reviewed.
        root: the folder of the predictions.

    Raises:
        InputError: a file of the scan is missing; or the mask, or a dataset.json or patients.json of the scan's
            cohort, cannot be read.
    """

    def __init__(self, review: Review, source: ScanInput, root: Path) -> None:
        assert review.mask is not None
        self.review, self.source, self.mask = review, source, review.mask
        self.identity = review.case
        self.location = shown(review.mask, root)
        self.synthetic = said_synthetic(source.files[:1]) is not None
        by_value = sorted(review.labels.items(), key=lambda entry: entry[1])
        array = read_labels(review.mask).array
        self.structures = tuple(
            Named(
                name,
                f"{review.mask}: label {value}",
                bool(review.changed_voxels.get(name)) or bool((array == value).any()),
                value,
            )
            for name, value in by_value
        )
        self.files = (*source.files, review.mask, review.path)
        self.notes = tuple(f"{self.location}: {note}" for note in source.notes)
        self.patient = "" if source.series is not None else _patient_of_file(source, review.input_sha256)

    @property
    def name(self) -> str:
        """The case's name in the cohort: 12 hex digits of the scan's hash, wherever the scan lies."""
        return case_name_of(self.review)

    def read_image(self) -> Volume:
        """Read the scan as it was read for the prediction."""
        return self.source.read()

    def read_regions(self, wanted: Sequence[Named], image: Volume) -> Iterator[Region]:
        """Take structures out of the reviewed mask."""
        array = on_grid(self.mask, image.geometry, self.source.path.name)
        for named in wanted:
            mask = array == named.key
            if mask.any():
                yield Region(named, "contoured", mask)
            else:
                yield Region(named, "absent", None, f"{named.location}: the reviewer erased it")


class ReviewedCases:
    """Finds the reviewed cases of prediction folders, for `import_cohort`.

    Args:
        scans: folder of the scans; None where the predictions say where they lie.

    Raises:
        InputError: no such folder.

    Example:
        import_cohort([Path("out")], Path("cohort"), layout=ReviewedCases())
    """

    def __init__(self, scans: Path | None = None) -> None:
        self._scans = Scans(scans, settled=True)
        # Of all folders: a patient may be in several of them.
        self._of_dicom: list[tuple[ReviewedCase, CtSeries]] = []

    def __call__(self, root: Path, privacy: Privacy, bars: Bars) -> Found:
        """Find the reviewed cases of a folder.

        What was rejected or is undecided is left out. A case is refused where its scan is not there or is another
        one by now, and where its record or mask was changed.

        Raises:
            InputError: no folder, or no prediction in it.
        """
        found = Found(LAYOUT)
        predicted, unreadable = read_cases(root)
        reviews = reviews_in(root)
        unknown = _unknown_records(root, reviews)
        for lost in unreadable:
            privacy.learn_identifier(lost.name)
            found.left_out.append(LeftOut(lost.name, lost.reason))
        there = {case.name for case in predicted} | {lost.name for lost in unreadable}
        for name in sorted(reviews.keys() - there):
            privacy.learn_identifier(name)
            reason = f"{reviews[name][-1].path}: reviews a prediction that is gone; predict the case again"
            found.left_out.append(LeftOut(name, reason))
        taken: list[ReviewedCase] = []
        withdrawn: set[str] = set()
        progress = bars("reading")
        for done, case in enumerate(sorted(predicted, key=lambda case: case.name), start=1):
            privacy.learn_identifier(case.name)
            try:
                decided = self._decided(case, reviews.get(case.name, ()), unknown.get(case.name), root, privacy)
            except Exception as error:  # whatever it is, it costs this case alone
                unforeseen = None if isinstance(error, InputError) else error
                reason = f"{root / case.name}{QUALITY_SUFFIX}: {told(error)}"
                decided = LeftOut(case.name, reason, error=unforeseen)
            if isinstance(decided, ReviewedCase):
                taken.append(decided)
                found.notes += decided.notes
            else:
                found.left_out.append(decided)
                if not decided.refused and case.name in reviews:
                    withdrawn.add(case_name_of(reviews[case.name][-1]))
            progress(done, len(predicted))
        found.cases += taken
        found.withdrawn = frozenset(withdrawn)
        found.structures = _structures(taken)
        phantoms = sum(case.synthetic for case in taken)
        if phantoms:
            found.trained_on = "synthetic"
        if 0 < phantoms < len(taken):
            found.notes.append(
                f"{phantoms} of {len(taken)} scans of {root} are synthetic; the cohort counts as synthetic"
            )
        self._tell_patients_apart(taken)
        return found

    def _decided(
        self,
        case: PredictedCase,
        reviews: Sequence[Review],
        unknown: Path | None,
        root: Path,
        privacy: Privacy,
    ) -> ReviewedCase | LeftOut:
        if unknown is not None:
            reason = (
                f"{unknown}: is no record of a review, was changed since, or is of a later version; review the "
                "case again, or move the file elsewhere"
            )
            return LeftOut(case.name, reason)
        if not reviews:
            return LeftOut(
                case.name, f"{root / case.name}{QUALITY_SUFFIX}: nobody has decided on it", refused=False
            )
        review = reviews[-1]
        try:
            source = self._scans.find(case)
            privacy.learn_root(source.path)
            if source.series is not None:
                privacy.learn(source.series.header)
        except InputError as error:
            if review.mask is None:
                # Whom the reason may name is not known.
                return LeftOut(case.name, f"{review.path}: was rejected", refused=False, words="see there for why")
            # The words name a folder of which nothing is known.
            return LeftOut(case.name, f"{review.path}: its scan is not found", words=told(error))
        if review.mask is None:
            return LeftOut(case.name, f"{review.path}: was rejected", refused=False, words=review.reason)
        if not review.is_whole():
            reason = f"{review.path}: the files of this review were changed since; review the case again"
            return LeftOut(case.name, reason)
        if not review.input_sha256:
            reason = f"{review.path}: does not say which scan it is of; predict and review the case again"
            return LeftOut(case.name, reason)
        if source.sha256() != review.input_sha256:
            reason = (
                f"{source.path}: is not the scan that was reviewed as case {case.name} (its SHA-256 differs); put "
                "that scan back, or predict and review the case again"
            )
            return LeftOut(case.name, reason, files=len(source.files))
        return ReviewedCase(review, source, root)

    def _tell_patients_apart(self, taken: Sequence[ReviewedCase]) -> None:
        self._of_dicom += [(case, case.source.series) for case in taken if case.source.series is not None]
        series = [one for _, one in self._of_dicom]
        hashes = patient_hashes(series, {one.series_uid: person_of(one) for one in series})
        for case, one in self._of_dicom:
            case.patient = hashes[one.series_uid]


def case_name_of(review: Review) -> str:
    """Return the name that a reviewed case has in a cohort.

    Args:
        review: a review of the case.
    """
    return hashed(review.input_sha256)


def _unknown_records(root: Path, reviews: Mapping[str, Sequence[Review]]) -> dict[str, Path]:
    """Return for each case the file that has the name of its last review, and is none."""
    known = {review.path for entries in reviews.values() for review in entries}
    found: dict[str, tuple[int, Path]] = {}
    for path in root.glob(f"*{RECORD_SUFFIX}"):
        named = NAME.fullmatch(path.name)
        if named is None or path in known:
            continue
        case, number = named[1], int(named[2] or 1)
        later = [found[case][0]] if case in found else [review.number for review in reviews.get(case, ())]
        if number > max(later, default=0):
            found[case] = number, path
    return {case: path for case, (_, path) in found.items()}


def _structures(cases: Sequence[ReviewedCase]) -> tuple[str, ...]:
    """Return the structures of the models in the order of their values.

    Predictions of earlier versions may leave a value without a name; that is no structure.
    """
    values: dict[str, int] = {}
    for case in cases:
        for named in case.structures:
            if named.spelling != f"label {named.key}":
                values[named.spelling] = min(values.get(named.spelling, named.key), named.key)
    return tuple(sorted(values, key=lambda name: (values[name], name)))


def _patient_of_file(source: ScanInput, input_sha256: str) -> str:
    """Return a hash of whose scan a file is: by the patients.json of its cohort, else by itself."""
    cohort = source.path.resolve().parent.parent
    stated = patients_of(cohort).get(source.case) if (cohort / "dataset.json").is_file() else None
    return hashed("patient", input_sha256) if stated is None else hashed("patient", cohort.name, stated)
