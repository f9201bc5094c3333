"""Results of a study that are kept apart from its folder: small files, from which it is continued elsewhere.

Of a run these are its key, its record and its tables; of a fold the record of what it came to, and stage 1. They
are small enough for version control, and lie under the names that they have in the study's folder, so that a copy
of them is one. On a machine where nothing else of the study is left, its cohort is made or brought anew, and what
was done before counts as long as the cohort has the same bytes.

What is kept is never replaced by other results, and never replaces any: where the two differ, only their owner can
tell which are wrong.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricunet.errors import InputError, argument, told
from metricunet.files.atomic import written_whole
from metricunet.files.claim import CLAIM_NAME, AlreadyClaimed, claimed
from metricunet.files.own import read_sealed
from metricunet.files.record import RECORD_NAME, hash_if_readable
from metricunet.progress import Say, silent
from metricunet.study.data import references_of
from metricunet.study.design import STUDY_NAME, Study, load_study
from metricunet.study.folds import LOCATE_NAME, PREPARED_NAME, PreparedFold, fold_folder, read_prepared
from metricunet.study.runs import KEY_NAME, has_results, run_folder, run_tables
from metricunet.training.run import is_scratch, state_file

#: Records, which may say other things of the same results: how long a run took, on which machine.
RECORDS = (RECORD_NAME, PREPARED_NAME)
#: How the names begin that version control has in any folder.
VERSION_CONTROL = ".git"


@dataclass(frozen=True)
class _Part:
    """A folder of a study of which files are kept: that of a run, or of a fold.

    Attributes:
        name: of the folder, relative to that of the study.
        files: names of the files in it, that first by which a run or a stage 1 is known as such.
        what: is worked on in the folder, for messages.
    """

    name: str
    files: tuple[str, ...]
    what: str


class KeptResults:
    """The small files of a study, in a folder of their own.

    Args:
        folder: that they are kept in.
        output: folder of the study.
        plan: the study file.
        say: told what is taken up, and what could not be kept.
    """

    def __init__(self, folder: Path, output: Path, plan: Study, say: Say = silent) -> None:
        self.folder, self.output, self.plan, self._say = folder, output, plan, say
        self._references = references_of(plan)
        self._left: list[_Part] = []

    def check(self) -> None:
        """Refuse a folder that cannot be that of this study, before anything is written.

        Raises:
            InputError: a folder of another study, or of other files, or one that holds the study's or lies in it.
        """
        here, output = self.folder.resolve(), self.output.resolve()
        if here == output or here in output.parents or output in here.parents:
            raise InputError(
                f"{argument('keep', str(self.folder))}: must lie apart from the study's folder {self.output}, "
                "neither in the other; choose another folder"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder}: is a file; expected a folder to keep results in")
        if not self.is_begun():
            if self.folder.is_dir() and not all(map(_is_nobodys, self.folder.iterdir())):
                raise InputError(
                    f"{self.folder}: holds other files and no results of a study; choose a new or empty folder to "
                    "keep results in"
                )
            return
        kept, asked = (_but_for_its_place(study) for study in (load_study(self.folder / STUDY_NAME), self.plan))
        if other := [name for name in asked if kept.get(name) != asked[name]]:
            raise InputError(
                f"{self.folder / STUDY_NAME}: results of another study are kept here than {self.plan.path} "
                f"describes (other {', '.join(other)}); choose another folder ({argument('keep')}), or give the "
                "study file that they are of"
            )

    def is_begun(self) -> bool:
        """Tell whether the folder holds the copy of a study file."""
        return (self.folder / STUDY_NAME).is_file()

    def take_up(self) -> None:
        """Bring what is kept to where the study's folder lacks it.

        What another process is working on is left to it.

        Raises:
            InputError: the study's folder holds other results of a run or fold than are kept, which is named.
        """
        parts = [*self._folds(), *self._runs()]
        for part in parts:
            for name in part.files:
                kept, here = self.folder / part.name / name, self.output / part.name / name
                if name not in RECORDS and kept.is_file() and os.path.lexists(here) and not _same(kept, here):
                    raise InputError(
                        f"{kept}: says something else than {here}; results must not be mixed: delete the folder "
                        f"of the two that is wrong, {self.folder / part.name} or {self.output / part.name}"
                    )
        taken = 0
        for part in parts:
            lacking = [name for name in part.files if not os.path.lexists(self.output / part.name / name)]
            wanted = [name for name in lacking if _is_whole(self.folder / part.name / name)]
            if not wanted:
                continue
            try:
                with claimed(self.output / part.name / CLAIM_NAME, part.what):
                    for name in wanted:
                        here = self.output / part.name / name
                        if not os.path.lexists(here):  # a rival may have written it since
                            _copy(self.folder / part.name / name, here)
            except AlreadyClaimed:
                continue
            taken += KEY_NAME in part.files
        if taken:
            self._say(f"runs taken up from {self.folder}: {taken}")

    def _folds(self) -> Iterator[_Part]:
        """List the stages 1 that are kept."""
        for labels in dict.fromkeys(map(self.plan.labels, self.plan.arms)):
            for fold in self.plan.folds:
                part = self._fold(fold_folder(self.output, labels, fold))
                if (self.folder / part.name / part.files[0]).is_file():
                    yield part

    def _runs(self) -> Iterator[_Part]:
        """List the runs that are kept with all their tables."""
        for arm in self.plan.arms:
            for fold in self.plan.folds:
                for seed in self.plan.seeds(arm):
                    part = self._run(run_folder(self.output, arm, fold, seed))
                    if has_results(self.folder / part.name, self._references):
                        yield part

    def _fold(self, folder: Path) -> _Part:
        state = state_file(folder).relative_to(folder).as_posix()
        name = folder.relative_to(self.output).as_posix()
        return _Part(name, (state, LOCATE_NAME, PREPARED_NAME), "stage 1 of a study")

    def _run(self, folder: Path) -> _Part:
        tables = (table.name for table in run_tables(self._references))
        return _Part(
            folder.relative_to(self.output).as_posix(), (KEY_NAME, RECORD_NAME, *tables), "a run of a study"
        )

    def keep_fold(self, folder: Path) -> None:
        """Keep what a fold came to.

        Args:
            folder: of the fold, in that of the study.
        """
        self._keep(self._fold(folder))

    def keep_run(self, folder: Path) -> None:
        """Keep the tables of a finished run.

        Args:
            folder: of the run, in that of the study.
        """
        self._keep(self._run(folder))

    def finish(self) -> None:
        """Keep what could not be kept before.

        Raises:
            InputError: it cannot be kept now.
        """
        while self._left:
            self._write(self._left[0])
            del self._left[0]

    def _keep(self, part: _Part) -> None:
        """Keep files of a part; what goes wrong must not cost the study its other runs."""
        try:
            self._write(part)
        except InputError as error:
            self._say(f"not kept yet: {told(error)}")
            self._left.append(part)

    def _write(self, part: _Part) -> None:
        """Keep the files of a part, all of one training.

        A part is kept when its first file is. Without that one, the others are what a process left that was
        killed while it kept them.
        """
        pairs = {name: (self.folder / part.name / name, self.output / part.name / name) for name in part.files}
        begun = os.path.lexists(pairs[part.files[0]][0])
        others = [
            (kept, here)
            for name, (kept, here) in pairs.items()
            if begun
            and name not in RECORDS
            and _is_whole(here)
            and os.path.lexists(kept)
            and not _same(kept, here)
        ]
        for kept, here in others:
            self._left_as_it_is(kept, here)
        if others:
            return
        for name, (kept, here) in reversed(pairs.items()):  # that last which says that the others are there
            if not _is_whole(here) or (os.path.lexists(kept) and _same(kept, here)):
                continue
            replaced = self._may_be_renewed(part, kept, here) if name == PREPARED_NAME else not begun
            if replaced or not os.path.lexists(kept):
                _copy(here, kept)
            elif name != RECORD_NAME:
                self._left_as_it_is(kept, here)

    def _may_be_renewed(self, part: _Part, kept: Path, here: Path) -> bool:
        """Tell whether the record of a fold may be replaced: no kept run is of other cases than it would name."""
        if read_sealed(kept) is None:  # somebody has changed it
            return False
        before, now = read_prepared(kept.parent), read_prepared(here.parent)
        alike = before is None or (now is not None and _of_what(before) == _of_what(now))
        return alike or not self._has_runs(part)

    def _has_runs(self, fold: _Part) -> bool:
        """Tell whether runs of a fold are kept with all their tables."""
        return any(
            has_results(self.folder / self._run(run_folder(self.output, arm, number, seed)).name, self._references)
            for arm in self.plan.arms
            for number in self.plan.folds
            for seed in self.plan.seeds(arm)
            if self._fold(fold_folder(self.output, self.plan.labels(arm), number)).name == fold.name
        )

    def _left_as_it_is(self, kept: Path, here: Path) -> None:
        self._say(f"{kept}: says something else than {here}, and is left as it is")


def _of_what(fold: PreparedFold) -> tuple[str, ...]:
    """Return the hashes of what the runs of a fold were made of."""
    return fold.data_sha256, fold.locate_sha256, fold.scored_sha256


def _but_for_its_place(study: Study) -> dict[str, Any]:
    """Return what a study file says; a cohort may lie elsewhere on another machine."""
    content = study.content.model_dump(mode="json")
    if study.cohort is not None:
        del content["data"]["cohort"]
    return content


def _is_nobodys(path: Path) -> bool:
    return is_scratch(path) or path.name.startswith(VERSION_CONTROL)


def _is_whole(path: Path) -> bool:
    """Whether a file is there; of the record of a fold, also that nobody has changed it."""
    return read_sealed(path) is not None if path.name == PREPARED_NAME else path.is_file()


def _same(one: Path, other: Path) -> bool:
    return hash_if_readable(one) == hash_if_readable(other)


def _copy(source: Path, target: Path) -> None:
    with written_whole(target) as temporary:
        shutil.copyfile(source, temporary)
