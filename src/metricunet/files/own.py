"""Files that a command may replace: those it wrote itself, byte for byte, and no other.

A record is a JSON file that a command leaves beside its outputs. It states the SHA-256 of each of them, and seals
itself with the SHA-256 of its own content. A file is ours only while its bytes have the hash that a record states:
a mask that somebody corrected and saved in place is theirs from then on.

New files are staged in a hidden folder beside, and placed together. That folder holds a journal of what is about
to be placed, so that a process killed at any moment leaves nothing that a later one could not tell to be ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from metricunet.errors import InputError, argument
from metricunet.files.atomic import STAGING as STAGING
from metricunet.files.atomic import UNFINISHED, explained, write_json, written_whole
from metricunet.files.record import hash_if_readable, sha256

#: Field of a record: name of each output, relative to the record's folder, to the SHA-256 of its bytes.
FILES = "files"
#: Field of a record: the SHA-256 of its other fields.
SEAL = "seal"
JOURNAL = "journal.json"
#: Folder in such a folder, for commands that write a whole tree before it is placed.
WORK = "work"


def seal_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record's fields, its seal apart, in an order that does not matter."""
    plain = {name: value for name, value in content.items() if name != SEAL}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_sealed(path: Path, content: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all: its content, the hashes of its files, and its seal.

    Args:
        path: path of the record.
        content: fields that JSON can hold.
        files: name of each output, relative to the record's folder, to its SHA-256.
    """
    whole = json.loads(json.dumps({**content, FILES: dict(sorted(files.items()))}, allow_nan=False))
    write_json(path, {**whole, SEAL: seal_of(whole)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return a record of ours; None where there is none, or where anybody has changed it since."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(content, dict) and content.get(SEAL) == seal_of(content)
        return content if whole and isinstance(content.get(FILES), dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def record_of_staging(staging: Path) -> str | None:
    """Return the name of the record that a hidden folder of unfinished work belongs to.

    Args:
        staging: a path whose name begins with `STAGING`; None is returned where it is no such folder.
    """
    content = read_sealed(staging / JOURNAL)
    return None if content is None else str(content.get("record", ""))


@contextmanager
def rewritten(path: Path, record: Path) -> Iterator[Path]:
    """Yield a temporary path, as `written_whole`, for a file that a command rewrites while it works.

    The record states the hashes of the file as it will be and as it was, so that a process killed at any moment
    leaves none that looks like somebody else's.

    Args:
        path: path of the file.
        record: path of the record, in the same folder as all files that it states.

    Raises:
        InputError: as `written_whole`.
    """
    with written_whole(path) as temporary:
        yield temporary
        stated = (read_sealed(record) or {FILES: {}})[FILES]
        before = [value for value in stated.get(path.name, []) if hash_if_readable(path) == value]
        write_sealed(record, {}, {**stated, path.name: [*before, sha256([temporary])]})


def check_rewritten(paths: Iterable[Path], record: Path) -> None:
    """Refuse to rewrite files that somebody else put there, or changed since.

    Args:
        paths: paths of the files, in the record's folder.
        record: path of the record, as in `rewritten`.

    Raises:
        InputError: it names the first such file.
    """
    content = read_sealed(record)
    stated = {} if content is None else content[FILES]
    foreign = [record] if content is None and os.path.lexists(record) else []
    foreign += [p for p in paths if os.path.lexists(p) and hash_if_readable(p) not in stated.get(p.name, [])]
    if foreign:
        raise InputError(
            f"{foreign[0]}: is there already, and it was not written by this program or was changed since; going "
            "on would rewrite it: move it elsewhere and run again"
        )


class Inputs:
    """Files that are never replaced, by whatever name: through a link, a hard link, or in other capitals.

    Args:
        paths: paths of the files.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._identities = {found for path in paths if (found := _identity(path)) is not None}

    def __contains__(self, path: Path) -> bool:
        return _identity(path) in self._identities


class OwnFiles:
    """The outputs of one record in a folder: checked before any work, staged beside, placed together.

    Args:
        folder: folder that they are written into; made where it is missing.
        record: name of the record in it.
        command: name of the command that writes it. A record of another command under the same name is not ours to
            replace.
        overwrite: whether files of others may be replaced; None where the command has no such option. Inputs never
            are.
        inputs: files that the outputs are made from; an `Inputs` where many records share them.

    Example:
        own = OwnFiles(folder, "evaluate.json", "evaluate", inputs=[reference])
        own.check(["cases.csv"])                       # an error before any work
        write_text(own.stage("cases.csv"), "...")
        own.commit({"version": "1.0"})
    """

    def __init__(
        self,
        folder: Path,
        record: str,
        command: str,
        *,
        overwrite: bool | None = None,
        inputs: Iterable[Path] | Inputs = (),
    ) -> None:
        self.folder, self.record, self.command, self.overwrite = folder, record, command, overwrite
        self._staging = folder / f"{STAGING}{hashlib.sha256(os.fsencode(record)).hexdigest()[:16]}"
        self._inputs = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
        self._staged: dict[str, Path] = {}
        self._begun = False

    @property
    def path(self) -> Path:
        """Path of the record."""
        return self.folder / self.record

    @property
    def claim(self) -> Path:
        """Path of the claim that a process makes while it works on the record; see `metricunet.files.claim`."""
        return self._staging.with_name(f"{self._staging.name}.claim")

    def content(self) -> dict[str, Any] | None:
        """Return the record as it is; None where there is none of ours."""
        content = read_sealed(self.path)
        return content if content is not None and content.get("command") == self.command else None

    def stated(self) -> dict[str, set[str]]:
        """Return the hashes by which a name is ours: of the record, and of a journal that a kill left."""
        record, journal = self.content(), read_sealed(self._staging / JOURNAL)
        hashes: dict[str, set[str]] = {}
        for name, value in (record or {FILES: {}})[FILES].items():
            hashes.setdefault(name, set()).add(value)
        for name, values in (journal or {FILES: {}})[FILES].items():
            hashes.setdefault(name, set()).update(values)
        return hashes

    def is_whole(self) -> bool:
        """Whether the record is there, and every file that it states, with its bytes."""
        content = self.content()
        return content is not None and all(self._is(name, {value}) for name, value in content[FILES].items())

    def holds(self, name: str, value: str) -> bool:
        """Whether a file is there, no link, with this SHA-256."""
        return self._is(name, {value})

    def check(self, names: Iterable[str], advice: str = "") -> None:
        """Refuse outputs that would replace an input, or a file that is not ours.

        Args:
            names: names of all outputs, relative to the folder. The record counts among them.
            advice: what to do about a file that is not ours; default: what `overwrite` leaves to do.

        Raises:
            InputError: it names the first such file, and says what to do.
        """
        stated = self.stated()
        for name in (self.record, *names):  # without its record, no file is ours
            path = self.folder / name
            if not os.path.lexists(path):
                continue
            if path in self._inputs:
                raise InputError(f"{path}: is an input and would be overwritten; choose another folder")
            if path.is_dir():
                raise InputError(f"{path}: is a folder where a file is to be written; choose another folder")
            own = self.content() is not None if name == self.record else self._is(name, stated.get(name, ()))
            if not own and not self.overwrite:
                otherwise = "move it elsewhere and run again"
                if self.overwrite is not None:
                    otherwise = f"replace it with {argument('overwrite', True)}"
                raise InputError(
                    f"{path}: is there already, and it was not written by this program or was changed since; "
                    + (advice or f"choose another folder, or {otherwise}")
                )
        # Asked in this order: another process may remove its hidden folder at any moment.
        if not self._staging_is_ours() and os.path.lexists(self._staging):
            raise InputError(f"{self._staging}: holds files that are not this program's; move them elsewhere")

    def check_alone(self) -> None:
        """Refuse a folder that holds any file that is not ours, for commands that fill a folder as a whole.

        A claim, which says that somebody works there, does not count.

        Raises:
            InputError: it names the first such file.
        """
        stated = self.stated()
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if self._staging in path.parents or self._is_claim(path) or (path.is_dir() and not path.is_symlink()):
                continue
            own = self.content() is not None if name == self.record else self._is(name, stated.get(name, ()))
            if not own:
                raise InputError(
                    f"{path}: was not written by an earlier {self.command}, or was changed since; "
                    "choose another folder"
                )

    def is_new(self) -> bool:
        """Whether the folder is missing, or holds nothing but a claim and what a killed process left."""
        return not self.folder.exists() or not any(
            not self._is_claim(path) and (path != self._staging or not self._staging_is_ours())
            for path in self.folder.iterdir()
        )

    def _is_claim(self, path: Path) -> bool:
        """Whether a path is the claim, or what a process that was killed left of making it."""
        return path == self.claim or path.match(f"{UNFINISHED}{self.claim.name}")

    def work(self) -> Path:
        """Return a hidden folder to write a tree into, which `stage_tree` takes as it is then."""
        self._begin()
        folder = self._staging / WORK
        folder.mkdir(exist_ok=True)
        return folder

    def stage_tree(self) -> None:
        """Take every file below `work()` for an output, under its name there."""
        folder = self.work()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self._staged[path.relative_to(folder).as_posix()] = path

    def stage(self, name: str) -> Path:
        """Return a path to write an output to; it is placed under its name by `commit`."""
        self._begin()
        ending = "".join(Path(name).suffixes[-2:])[-24:]
        self._staged[name] = self._staging / f"{len(self._staged)}{ending}"
        return self._staged[name]

    def commit(self, content: Mapping[str, Any]) -> None:
        """Place what was staged, remove our files of earlier that are not among them, and write the record.

        While files are placed there is no record: where it is, its files are whole.

        Args:
            content: fields of the record beside the command, its files and its seal.

        Raises:
            InputError: the disk is full or may not be written, or a file of somebody else appeared meanwhile.
        """
        with self._placing() as new:
            stated = self.stated()
            for name, value in new.items():
                stated.setdefault(name, set()).add(value)
            self._journal(stated)
            if os.path.lexists(self.path):
                self.path.unlink()
            for name in stated.keys() - new.keys():
                self._remove(name, stated[name])
            for name in new:
                self._move_in(self._staged[name], self.folder / name)
            self._write_record(content, new)

    def add(self, content: Mapping[str, Any], *, drop: Iterable[str] = (), more: bool = False) -> None:
        """Place what was staged beside the files that the record states already, and write the record anew.

        For work that lasts: killed at any moment it loses no more than what was staged. The record stays where it
        is; what an earlier process placed and did not come to state is removed first, to be made again.

        Args:
            content: fields of the record beside the command, its files and its seal.
            drop: files of ours to remove.
            more: whether more is to come: what lies in `work()` then stays.

        Raises:
            InputError: as `commit`.
        """
        with self._placing(more) as new:
            self._remove_unstated()
            earlier = (self.content() or {FILES: {}})[FILES]
            gone = {name: earlier[name] for name in drop if name in earlier and name not in new}
            self._journal({name: {value} for name, value in (gone | new).items()})
            for name, value in gone.items():
                self._remove(name, {value})
            for name in new:
                self._move_in(self._staged[name], self.folder / name)
            kept = {name: value for name, value in earlier.items() if name not in gone}
            self._write_record(content, kept | new)

    @contextmanager
    def _placing(self, more: bool = False) -> Iterator[dict[str, str]]:
        """Yield name and hash of what was staged, once nothing of others is in the way; then end the work.

        Where there is more to come, only what was staged is removed, and the journal emptied.
        """
        self._begin()
        try:
            new = {name: sha256([path]) for name, path in self._staged.items() if path.exists()}
            self.check(new)
            yield new
            if more:
                for path in self._staged.values():
                    path.unlink(missing_ok=True)  # a second name of what was placed
                self._staged = {}
                self._journal({})
        except OSError as error:
            self.discard()
            raise explained(self.folder, error) from error
        except InputError:
            self.discard()
            raise
        if not more:
            self.settle()

    def clear(self) -> None:
        """Remove every file of ours, the record last."""
        stated = self.stated()
        for name, values in stated.items():
            self._remove(name, values)
        if self.content() is not None:
            self.path.unlink()
        self.settle()

    def _remove_unstated(self) -> None:
        """Remove what the journal states and the record does not: a process was killed before it could."""
        journal = read_sealed(self._staging / JOURNAL)
        stated = (self.content() or {FILES: {}})[FILES]
        for name, values in (journal or {FILES: {}})[FILES].items():
            self._remove(name, set(values) - {stated.get(name)})

    def discard(self) -> None:
        """Drop what was staged and not placed. The journal stays where files may have been placed."""
        self._staged, self._begun = {}, False
        if not self._staging_is_ours():
            return
        journal = read_sealed(self._staging / JOURNAL)
        if journal is None or not journal[FILES]:
            self.settle()
        else:
            self._empty_staging()

    def settle(self) -> None:
        """Remove the hidden folder, when the record states everything."""
        self._staged, self._begun = {}, False
        if not self._staging_is_ours():
            return
        self._empty_staging()
        with suppress(OSError):
            if any(path.name != JOURNAL for path in self._staging.iterdir()):
                with suppress(InputError):
                    self._journal({})  # what cannot be removed now, as a worker still writes there, stays ours
                return
            (self._staging / JOURNAL).unlink(missing_ok=True)  # last, for it says whose folder it is
            self._staging.rmdir()

    def tidy(self) -> None:
        """Remove what a killed process placed and did not come to state, and its hidden folder."""
        self._remove_unstated()
        self.settle()

    def _empty_staging(self) -> None:
        for path in self._staging.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != JOURNAL:
                with suppress(OSError):
                    path.unlink()

    def _begin(self) -> None:
        if self._begun:
            return
        try:
            self.discard()  # of a process that was killed
            if not self._staging.exists():
                self._staging.mkdir(parents=True)
                self._journal({})
            self._begun = True
        except OSError as error:
            raise explained(self.folder, error) from error

    def _remove(self, name: str, hashes: Collection[str]) -> None:
        """Remove a file that is ours by these hashes, unless it is an input now."""
        path = self.folder / name
        if self._is(name, hashes) and path not in self._inputs:
            path.unlink()

    def _move_in(self, staged: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            os.replace(staged, target)  # ours, or to be overwritten: it was checked
            return
        try:
            os.link(staged, target)  # fails, as a rename does not, where a file appeared since
        except FileExistsError as error:
            raise InputError(f"{target}: another program has just written it; choose another folder") from error
        except OSError:  # a file system without hard links
            os.replace(staged, target)

    def _write_record(self, content: Mapping[str, Any], files: Mapping[str, str]) -> None:
        whole = self._staging / "record"  # not beside: a process that is killed leaves its temporary file there
        write_sealed(whole, {**content, "command": self.command}, files)
        os.replace(whole, self.path)

    def _journal(self, stated: Mapping[str, Collection[str]]) -> None:
        write_sealed(
            self._staging / JOURNAL,
            {"record": self.record},
            {name: sorted(values) for name, values in stated.items()},
        )

    def _is(self, name: str, hashes: Collection[str]) -> bool:
        path = self.folder / name
        try:
            return bool(hashes) and not path.is_symlink() and path.is_file() and sha256([path]) in hashes
        except OSError:
            return False

    def _staging_is_ours(self) -> bool:
        """Whether the folder has our journal, or a process was killed before it could write one."""
        if self._staging.is_symlink() or not self._staging.is_dir():
            return False
        content = read_sealed(self._staging / JOURNAL)
        if content is not None:
            return bool(content.get("record") == self.record)
        try:
            return all(path.name.startswith(".partial-") for path in self._staging.iterdir())
        except OSError:  # another process has just removed it, or nobody may look into it
            return False


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what is equal for two names of one file: links, hard links and capitals included."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
