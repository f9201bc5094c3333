"""Objects coming in, by whatever door: each onto the disk at once, series put together, whole ones into the queue.

An object lies in the folder of its series from the moment that its sender is told so; what is known of a series in
memory can be told again from that folder. A series is whole when nothing has come for the quiet time and every
association that brought a part of it has closed, or when as many objects are there as one of them announces. What
comes later is a new input, of the slices that were there before and the new ones. A part of what was refused, sent
once more, is a new input by itself: so does a sender take out slices that were not to be in the series.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydicom.dataset import Dataset

from metricunet.cohort.importing.dicom_tree import person_in
from metricunet.errors import told
from metricunet.files.atomic import sync_folder, write_json
from metricunet.files.dicom.file import read_readable
from metricunet.files.dicom.series import FEWEST_SLICES
from metricunet.ledger import Job, Queue, StateChanged
from metricunet.workflows.serve.config import GB, MB, NodeConfig, Rule
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.state import State

#: What is read of an object to know where it belongs.
KEYWORDS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesDescription"),
    *("ProtocolName", "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate"),
    "NumberOfSeriesRelatedInstances",
)
#: Record of a series in its folder, and its fields.
ABOUT = "about.json"
FIELDS = frozenset({"sender", "rule", "series", "study", "patient", "refused"})
NO_RECORD = (
    f"its {ABOUT} is missing or damaged; the folder stays as it is until the series is sent once more, or is "
    "deleted when it is as old as keep says"
)
LONGEST_UID = 64
#: Series whose refusal was logged are remembered, up to so many, so that each is logged once.
REMEMBERED = 1000
#: Digits of the hashes in names.
SOP_DIGITS, CONTENT_DIGITS, CASE_DIGITS = 24, 16, 12


class NotTaken(Exception):  # noqa: N818
    """An object that is not kept, and why."""


class Unreadable(NotTaken):
    """It is no object of DICOM, or lacks what says where it belongs."""


class NoRoom(NotTaken):
    """The disk is nearly full, or the object or its series is larger than is allowed."""


class TooMuch(NoRoom):
    """The object, or its series with it, is larger than is allowed. No room is made for it by waiting."""


class Unwanted(NotTaken):
    """No rule takes its series. Nothing is wrong with it."""


@dataclass(frozen=True)
class Instance:
    """Which object one is, to tell its sender.

    Attributes:
        sop_class: SOPClassUID.
        sop_uid: SOPInstanceUID.
    """

    sop_class: str
    sop_uid: str


@dataclass
class Series:
    """A series that is coming in.

    Attributes:
        about: what is known of it, as its folder's record holds it.
        last: when something came last, by the monotonic clock.
        origins: associations that brought a part of it.
        names: of its files.
        not_before: when to try again to put it into the queue, by that clock; 0 where that was not tried yet.
        announced: how many objects it has, as one of them states; 0 where none does.
    """

    about: dict[str, Any]
    last: float
    origins: set[Hashable] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    not_before: float = 0.0
    announced: int = 0


class Arrivals:
    """Takes objects in, and puts whole series into the queue. Threads may share it.

    Args:
        config: of the node.
        state: its folder.
        queue: its queue.
        journal: is told.
        recipe: of a rule: its name and what the result depends on beside the scan.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        config: NodeConfig,
        state: State,
        queue: Queue,
        journal: Journal,
        recipe: Callable[[str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.state, self.queue, self.journal, self.clock = config, state, queue, journal, clock
        self.recipe = recipe
        self._lock = threading.RLock()
        self._open: set[Hashable] = set()
        self._end_themselves: set[Hashable] = set()
        self._missing: set[Hashable] = set()
        self._series: dict[str, Series] = {}
        self._said: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._recover()

    def begin(self, origin: Hashable, *, ends_itself: bool = False) -> None:
        """Note that an association is open, or a request of the web.

        Args:
            origin: of objects.
            ends_itself: whether `end` will be called for certain, so that `end_others` leaves it alone.
        """
        with self._lock:
            self._open.add(origin)
            self._missing.discard(origin)
            if ends_itself:
                self._end_themselves.add(origin)

    def end(self, origin: Hashable) -> None:
        """Note that an association has closed. The quiet time of its series begins now."""
        with self._lock:
            self._open.discard(origin)
            self._end_themselves.discard(origin)
            for one in self._series.values():
                if origin in one.origins:
                    one.origins.discard(origin)
                    one.last = self.clock()

    def hold(self, sender: str) -> None:
        """Let no series of a sender be whole until `end` is called with the sender.

        More of it is known to be there, and cannot be taken yet.

        Args:
            sender: as `take` is told it.
        """
        with self._lock:
            for one in self._series.values():
                if one.about["sender"] == sender:
                    one.origins.add(sender)

    def end_others(self, alive: set[Hashable]) -> None:
        """Note which associations are open. One that is missing twice in a row has closed.

        Once is not enough: it may have begun after these were counted.

        Args:
            alive: those that are open, but for origins that end themselves.
        """
        with self._lock:
            missing = self._open - self._end_themselves - alive
            for origin in missing & self._missing:
                self.end(origin)
            self._missing = missing & self._open

    def check_room(self, size: int = 0) -> None:
        """Refuse an object before it is read.

        Args:
            size: of the object in bytes.

        Raises:
            NoRoom: the disk is nearly full.
            TooMuch: the object is too large.
        """
        if size > self.config.limits.object_mb * MB:
            raise TooMuch(f"the object has {size / MB:.0f} MB, at most {self.config.limits.object_mb:g} are taken")
        free = self.state.free_bytes() - size
        if free < self.config.limits.free_disk_gb * GB:
            self._say_once("disk", "the disk is nearly full")
            raise NoRoom(
                f"the disk has {free / GB:.1f} GB left, {self.config.limits.free_disk_gb:g} are kept free"
            )

    def take(
        self,
        path: Path,
        sender: str,
        origin: Hashable = None,
        *,
        sop_uid: str | None = None,
        study_uid: str | None = None,
    ) -> Instance:
        """Take an object: its file is moved to those of its series, and is safe, also from a power cut.

        Args:
            path: of the file, on the disk of the state; gone afterwards.
            sender: AE title, `stow` or `folder`.
            origin: the association that brings it; None for none.
            sop_uid: SOPInstanceUID that was announced; None where none was.
            study_uid: StudyInstanceUID, likewise.

        Returns:
            Which object it is.

        Raises:
            NotTaken: see there; the file is as it was.
            InputError, OSError: the disk or the ledger; nothing is wrong with the object.
        """
        self.check_room(path.stat().st_size)
        dataset = _read(path)
        found = {name: _text(dataset, name) for name in KEYWORDS}
        for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            if not 0 < len(found[name]) <= LONGEST_UID:
                raise Unreadable(f"it has no {name}")
        if sop_uid is not None and sop_uid != found["SOPInstanceUID"]:
            raise Unreadable("its SOPInstanceUID is another one than was announced")
        if study_uid is not None and study_uid != found["StudyInstanceUID"]:
            raise Unreadable("its StudyInstanceUID is another one than was announced")
        rule, reason = self.config.rule_for(
            {
                "modality": found["Modality"],
                "description": found["SeriesDescription"],
                "protocol": found["ProtocolName"],
                "sender": sender,
            }
        )
        key = self.queue.ledger.key.hashed("arrival", found["SeriesInstanceUID"], sender)
        if rule is None:
            self._say_once(key, reason, sender=sender)
            raise Unwanted(reason)
        digest = hashlib.sha256()
        with path.open("rb+") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
            os.fsync(handle.fileno())
        sop = self.queue.ledger.key.hashed("object", found["SOPInstanceUID"])
        name = f"{sop[:SOP_DIGITS]}-{digest.hexdigest()[:CONTENT_DIGITS]}.dcm"
        with self._lock:
            series = self._series.get(key)
            if series is None:
                series = self._begun(key, sender, rule, found)
            if name not in series.names and len(series.names) >= self.config.limits.slices:
                series.about = self._too_many(self.state.arriving / key, series.about)
                raise TooMuch(series.about["refused"])
            os.replace(path, self.state.arriving / key / name)
            series.names.add(name)
            series.last = self.clock()
            if origin in self._open:
                series.origins.add(origin)
            announced = found["NumberOfSeriesRelatedInstances"]
            if announced.isascii() and announced.isdecimal() and len(announced) < 6:
                series.announced = int(announced)
        sync_folder(self.state.arriving / key)  # if it has been moved meanwhile, it was flushed before that
        return Instance(found["SOPClassUID"], found["SOPInstanceUID"])

    def _begun(self, key: str, sender: str, rule: Rule, found: dict[str, str]) -> Series:
        """Begin with a series. What lies in its folder counts, if it could not be queued or told whose it is."""
        folder = self.state.arriving / key
        about = {
            "sender": sender,
            "rule": rule.name,
            "series": found["SeriesInstanceUID"],
            "study": found["StudyInstanceUID"],
            "patient": person_in(found, found["StudyInstanceUID"]),
            "refused": "",
        }
        folder.mkdir(exist_ok=True)
        write_json(folder / ABOUT, about)
        sync_folder(self.state.arriving)
        series = self._series[key] = Series(about, self.clock(), names=_names_in(folder))
        self.journal.say("series begins", sender=sender, rule=rule.name, arrival=key)
        return series

    def _too_many(self, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
        """Refuse a series, in its record too, and return what is known of it then."""
        if not about["refused"]:
            about = {**about, "refused": self._surplus}
            write_json(folder / ABOUT, about)
        return about

    @property
    def _surplus(self) -> str:
        return f"the series has more than {self.config.limits.slices} objects"

    def gather(self, at_once: bool = False) -> list[Job]:
        """Put the series that are whole into the queue, and return their jobs.

        Args:
            at_once: do not wait for the quiet time.
        """
        jobs = []
        with self._lock:
            now, quiet_s = self.clock(), self.config.quiet.total_seconds()
            for key, series in list(self._series.items()):
                if not series.names:
                    continue  # its first object could not be put there, and its sender knows
                there = len({name[:SOP_DIGITS] for name in series.names})
                complete = 0 < series.announced <= there
                still = series.last <= now - quiet_s and not series.origins
                due = at_once or series.not_before <= now
                if not due or not (complete or still or (at_once and not series.origins)):
                    continue
                try:
                    jobs.append(self._whole(key, series))
                except Exception as error:  # the disk, or the ledger; other series go on
                    series.not_before = now + quiet_s
                    self.journal.say("series not queued, tried again", "error", arrival=key, why=told(error))
                else:
                    del self._series[key]
        return jobs

    @property
    def arriving(self) -> int:
        """How many series are coming in."""
        with self._lock:
            return len(self._series)

    @property
    def connections(self) -> int:
        """How many associations are open."""
        with self._lock:
            return len(self._open)

    def _whole(self, key: str, series: Series) -> Job:
        folder, about = self.state.arriving / key, series.about
        earlier = self._earlier(about)
        own = _names_in(folder)
        names = set(own)
        with ExitStack() as undo:  # after a failure the folder is as it was, to be tried again
            fresh = {name[:SOP_DIGITS] for name in own}
            for job in earlier[:1]:
                there = list((self.state.folder / job.folder).glob("*.dcm"))
                if self._is_mended(job, own, {path.name for path in there}):
                    continue
                for path in there:
                    if path.name[:SOP_DIGITS] not in fresh:
                        undo.callback((folder / path.name).unlink, missing_ok=True)
                        self._link(path, folder / path.name)
                        names.add(path.name)
            # Some of an input that was refused as too large may never have been taken.
            lacks = names != own and self._refused_before(earlier[0]) == self._surplus
            if lacks or len(names) > self.config.limits.slices:
                about = self._too_many(folder, about)
            recipe = self.recipe(about["rule"])
            digest = _digest(about, recipe, names)
            target = self.state.scans / digest[:CASE_DIGITS]
            known = next((job for job in earlier if job.folder == self._relative(target)), None)
            if known is not None:  # equal names are equal bytes
                if not about["refused"] and self._refused_before(known) not in ("", self._surplus):
                    write_json(target / ABOUT, about)  # it was refused by a limit that is another one now
                job = known if about["refused"] else self._repeated(known)
                shutil.rmtree(folder, ignore_errors=True)
            else:
                sync_folder(folder)
                shutil.rmtree(target, ignore_errors=True)  # of a job that was deleted
                os.rename(folder, target)
                undo.callback(os.rename, target, folder)
                sync_folder(self.state.scans)
                sync_folder(self.state.arriving)
                job = self._enqueue(target, about, recipe, digest)
            undo.pop_all()
        return job

    def _is_mended(self, job: Job, own: set[str], before: set[str]) -> bool:
        """Tell whether a series was refused, and is sent once more without slices that were not to be in it."""
        refused_as_scan = job.state == "refused" and not self._refused_before(job)
        return refused_as_scan and len(own) >= FEWEST_SLICES and own < before

    def _refused_before(self, job: Job) -> str:
        """Return why the series of a job was refused when it came in; empty where it was not."""
        return str((_read_about(self.state.folder / job.folder) or {"refused": ""})["refused"])

    def _link(self, source: Path, target: Path) -> None:
        """Give a slice that was there before a second name, or a copy that is whole from the beginning."""
        try:
            os.link(source, target)
        except OSError:  # a file system without hard links
            copy = self.state.receiving / f"{uuid4().hex}.dcm"
            shutil.copyfile(source, copy)
            with copy.open("rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(copy, target)

    def _enqueue(self, folder: Path, about: dict[str, Any], recipe: str, digest: str) -> Job:
        """Put a series into the queue; what waits of it with fewer slices is refused in the very moment."""
        files = [path for path in folder.iterdir() if path.suffix == ".dcm"]
        with self.queue.ledger.writing():
            job = self.queue.receive(
                recipe,
                series=about["series"],
                study=about["study"],
                patient=about["patient"],
                sender=about["sender"],
                folder=self._relative(folder),
            )
            self.queue.count(job.input_id, files=len(files), size=sum(path.stat().st_size for path in files))
            if about["refused"]:
                job = self.queue.move(job.id, "refused", about["refused"])
            else:
                job = self.queue.whole(job.id, digest=digest)
            for old in self._earlier(about):
                if old.id < job.id and old.state == "waiting":
                    self.queue.move(old.id, "refused", f"slices came later: see case {folder.name}")
        self.journal.say(
            "series is whole", case=folder.name, job=job.id, slices=len(files), sender=about["sender"]
        )
        return job

    def _repeated(self, job: Job) -> Job:
        """Answer a series that came once more, unchanged: what was made of it is sent again, as it was."""
        self.journal.say("series repeated", case=Path(job.folder).name, job=job.id, state=job.state)
        with suppress(StateChanged):
            if job.state in ("refused", "set aside") or (job.state == "failed" and job.case_id is None):
                return self.queue.again(job.id, job.sender)
            if job.state in ("sent", "failed"):
                return self.queue.send_again(job.id, job.sender)
        return job

    def _earlier(self, about: dict[str, Any]) -> list[Job]:
        """Return the jobs of earlier inputs of the series whose files are there, the last first."""
        series = self.queue.ledger.key.hashed("series", about["series"])
        return [job for job in self.queue.of_series(series) if job.sender == about["sender"]]

    def _recover(self) -> None:
        """Take up what an earlier process left: series that were coming in, and whole ones that are not queued."""
        now = self.clock()
        for folder in sorted(self.state.arriving.iterdir()):
            about, names = _read_about(folder), _names_in(folder)
            if about is not None and names:
                self._series[folder.name] = Series(about, now, names=names)
            elif names:
                self._say_unknown("arrival", folder, names)
            else:
                shutil.rmtree(folder, ignore_errors=True)  # it was killed before the first object lay there
        known = self.queue.folders()
        for folder in sorted(self.state.scans.iterdir()):
            if self._relative(folder) in known:
                continue
            about, names = _read_about(folder), _names_in(folder)
            if about is not None:
                recipe = self.recipe(about["rule"])
                self._enqueue(folder, about, recipe, _digest(about, recipe, names))
            elif names:
                self._say_unknown("case", folder, names)

    def delete_unknown(self, clock: Callable[[], float] = time.time) -> int:
        """Delete slices of unknown origin that are older than the node keeps things; return how many folders went.

        No case is theirs, so they would never go with one.

        Args:
            clock: wall clock in seconds, as files have it.
        """
        before = clock() - self.config.keep.total_seconds()
        gone = 0
        with self._lock:
            known = self.queue.folders()
            arriving = [one for one in self.state.arriving.iterdir() if one.name not in self._series]
            scans = [one for one in self.state.scans.iterdir() if self._relative(one) not in known]
            for kind, folder in (*(("arrival", one) for one in arriving), *(("case", one) for one in scans)):
                objects = len(_names_in(folder))
                if not objects and not (folder / ABOUT).is_file():
                    continue  # it is none of ours
                try:
                    if max(path.stat().st_mtime for path in (folder, *folder.iterdir())) >= before:
                        continue
                    shutil.rmtree(folder)
                except OSError as error:
                    why = error.strerror or type(error).__name__
                    self.journal.say("not deleted", "error", why=why, **{kind: folder.name})
                else:
                    gone += 1
                    self.journal.say("deleted", "info", objects=objects, **{kind: folder.name})
        return gone

    def _say_unknown(self, kind: str, folder: Path, names: set[str]) -> None:
        self.journal.say(
            "slices of unknown origin", "error", slices=len(names), why=NO_RECORD, **{kind: folder.name}
        )

    def _relative(self, folder: Path) -> str:
        return folder.relative_to(self.state.folder).as_posix()

    def _say_once(self, key: str, reason: str, **facts: str) -> None:
        with self._lock:
            if (key, reason) in self._said:
                return
            self._said[key, reason] = None
            while len(self._said) > REMEMBERED:
                self._said.popitem(last=False)
        self.journal.say("not taken", "info", why=reason, **facts)


def instance_of(path: Path) -> Instance | None:
    """Return which object a file is that was not taken; None where it does not say so."""
    try:
        dataset = _read(path)
    except NotTaken:
        return None
    found = Instance(_text(dataset, "SOPClassUID"), _text(dataset, "SOPInstanceUID"))
    return found if all(0 < len(uid) <= LONGEST_UID for uid in (found.sop_class, found.sop_uid)) else None


def _read(path: Path) -> Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd values; what matters is checked
            return read_readable(path, stop_before_pixels=True, specific_tags=list(KEYWORDS))
    except Exception as error:  # whatever pydicom raises for bytes that are none of DICOM's
        raise Unreadable("its header cannot be read") from error


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except Exception:  # whatever its converters raise
        return ""
    return "" if value is None else str(value).strip("\0 ")


def _read_about(folder: Path) -> dict[str, Any] | None:
    """Return the record of a series; None where there is none that is whole."""
    try:
        content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.keys() >= FIELDS else None


def _names_in(folder: Path) -> set[str]:
    """Return the names of the objects in a folder."""
    return {path.name for path in folder.glob("*.dcm")}


def _digest(about: dict[str, Any], recipe: str, names: set[str]) -> str:
    """Return what tells an input from others: equal names are equal bytes."""
    text = json.dumps([about["series"], about["sender"], recipe, sorted(names)])
    return hashlib.sha256(text.encode()).hexdigest()
