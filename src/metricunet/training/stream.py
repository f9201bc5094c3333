"""Training on phantoms that are made beside it: a pool of patients, some of whom make room for new ones.

After each epoch the oldest patients of the pool leave it and as many new ones come, made meanwhile in processes
of their own. Who is in the pool depends on the seed and the number of the epoch alone, neither on the speed nor on
the number of processes: the same seed gives the same weights, and a resumed run sees what an unbroken one would.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial

from metricunet.cohort.layout import DatasetInfo
from metricunet.cohort.prepare import PreparedCase
from metricunet.engine import Engine
from metricunet.errors import InputError, WorkerDied, argument
from metricunet.phantom.cohort import is_absent
from metricunet.phantom.make import STRUCTURES, check_structures
from metricunet.phantom.stream import Part, StreamedCase, StreamRecipe, Use, streamed_case
from metricunet.phantom.variety import STILL_GROUPS, Variety
from metricunet.phantom.workers import NEEDS, end_with_parent, killed
from metricunet.progress import Progress
from metricunet.structures import class_of
from metricunet.training.batches import Batches
from metricunet.training.config import TrainConfig
from metricunet.training.run import FEWEST_CASES, prepare_settings

#: What the boxes of stage 2 and of the organs' network lie around; what is far from it is not drawn for them.
TARGET = "prostate"


class PhantomStream:
    """Patients by their numbers, made in worker processes.

    Args:
        config: configuration of the training, with a section `phantoms`.
        workers: number of processes that make patients.
        engine: makes them in place of these processes.

    Raises:
        InputError: structures, groups or sizes that cannot be.
    """

    def __init__(self, config: TrainConfig, workers: int, engine: Engine | None = None) -> None:
        assert config.phantoms is not None
        self.config, self.phantoms = config, config.phantoms
        _check(config)
        anew = self.phantoms.tissues_anew
        groups = dict.fromkeys(self.phantoms.without, False) | {"tissues": anew == "all"}
        coarse = groups | dict.fromkeys(self.phantoms.locate_without, False) | {"tissues": anew != "none"}
        self.recipe = StreamRecipe(
            config.seed,
            self.phantoms.difficulty,
            self.phantoms.structures,
            config.target,
            self.phantoms.absent_fraction,
            Variety(**groups) if self.phantoms.difficulty == "varied" else None,
            Variety(**coarse) if coarse != groups else None,
            self.phantoms.mistaken,
        )
        self.settings = prepare_settings(config)
        self._workers, self._engine = workers, engine
        self._submitted: Callable[..., Future[StreamedCase]] | None = None

    @contextmanager
    def open(self) -> Iterator[PhantomStream]:
        """Hold the worker processes; they end with the block, those of an engine with the engine.

        Raises:
            InputError: a machine of the engine has another version of the program, which may make other patients.
        """
        if self._engine is not None:
            self._engine.check_folders(None, [])
            self._submitted = partial(self._engine.submit, NEEDS)
            yield self
            return
        with (
            _one_thread_each(),
            ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), initializer=_stay_with_parent
            ) as executor,
        ):
            self._submitted = executor.submit
            try:
                yield self
            finally:
                self._submitted = None
                executor.shutdown(cancel_futures=True)

    @property
    def info(self) -> DatasetInfo:
        """What dataset.json would say of a cohort of these patients."""
        return DatasetInfo(
            labels={name: value for value, name in enumerate(self.phantoms.structures, start=1)},
            trained_on="synthetic",
            description=f"synthetic pelvic CT, difficulty {self.phantoms.difficulty}, made beside the training",
        )

    @property
    def sha256(self) -> str:
        """Hash of all that decides which patients a training sees."""
        sizes = self.phantoms.model_dump(mode="json", include={"pool", "new_per_epoch", "validation"})
        return self.recipe.sha256(**sizes)

    def first(self, progress: Progress | None) -> tuple[list[PreparedCase], list[PreparedCase]]:
        """Make the patients of the first epoch and those of the validation, as both stages see them.

        Args:
            progress: called with (done, all) after each.

        Raises:
            InputError: a process that makes them was killed.
        """
        wanted: list[tuple[Use, int]] = [("train", n) for n in self.numbers(0)]
        wanted += [("validate", n) for n in range(self.phantoms.validation)]
        cases = []
        parts: list[Part] = ["coarse", "fine"]
        if self.settings.organs is not None:
            parts.append("organs")
        for done, future in enumerate(self._submit(wanted, parts), start=1):
            cases.append(self._prepared(made(future, "Run the same command again")))
            if progress is not None:
                progress(done, len(wanted))
        return cases[: self.phantoms.pool], cases[self.phantoms.pool :]

    def _prepared(self, case: StreamedCase) -> PreparedCase:
        assert case.coarse is not None
        assert case.coarse_labels is not None
        fine, organs = case.box("fine"), case.box("organs")
        return PreparedCase(
            case.name,
            case.coarse,
            case.coarse_labels,
            None if fine is None else fine.hu,
            None if fine is None else fine.labels,
            case.facts,
            f"{self.sha256}:{case.name}",
            organs=None if organs is None else organs.hu,
            organs_labels=None if organs is None else organs.labels,
            organs_classes=tuple(class_of(self.info.labels, s) for s in self.settings.organs_structures),
        )

    def numbers(self, epoch: int) -> range:
        """Return the numbers of the patients in the pool of an epoch."""
        first = epoch * self.phantoms.new_per_epoch
        return range(first, first + self.phantoms.pool)

    def order(self, numbers: Sequence[int], part: Part) -> dict[int, Future[StreamedCase]]:
        """Order patients for a training stage, the first first; they are made meanwhile."""
        wanted: list[tuple[Use, int]] = [("train", n) for n in numbers]
        return dict(zip(numbers, self._submit(wanted, (part,)), strict=True))

    def _submit(self, wanted: Sequence[tuple[Use, int]], parts: Sequence[Part]) -> list[Future[StreamedCase]]:
        """Order patients. Where the processes were lost meanwhile, their futures say so."""
        assert self._submitted is not None, "the stream is not open"
        make = partial(streamed_case, self.recipe, self.settings)
        ordered: list[Future[StreamedCase]] = []
        for use, number in wanted:
            try:
                ordered.append(self._submitted(make, use, number, parts))
            except BrokenProcessPool as error:
                ordered.append(Future())
                ordered[-1].set_exception(error)
        return ordered


class StreamedBatches:
    """What a stage is trained on, from a stream: batches from the pool of each epoch.

    Args:
        stream: the stream, open.
        part: what the stage sees of a patient.
        epochs: number of epochs of the stage.
        first: the patients of the first epoch.
        build: makes the batches from a pool.
    """

    def __init__(
        self,
        stream: PhantomStream,
        part: Part,
        epochs: int,
        first: Sequence[PreparedCase],
        build: Callable[[Sequence[PreparedCase | StreamedCase]], Batches],
    ) -> None:
        self.stream, self.part, self.epochs, self.build = stream, part, epochs, build
        self._pool: dict[int, PreparedCase | StreamedCase] = dict(zip(stream.numbers(0), first, strict=True))
        self._ordered: dict[int, Future[StreamedCase]] = {}

    def at_epoch(self, epoch: int) -> Batches:
        """Return the batches of an epoch, and order the patients of the next.

        Raises:
            InputError: a process that makes them was killed.
        """
        numbers = self.stream.numbers(epoch)
        self._order(numbers)
        what_then = f"The epochs before are kept: go on with {argument('resume', True)}"
        self._pool = {
            n: self._pool[n] if n in self._pool else made(self._ordered.pop(n), what_then) for n in numbers
        }
        if epoch + 1 < self.epochs:
            self._order(self.stream.numbers(epoch + 1))
        return self.build(list(self._pool.values()))

    def _order(self, numbers: range) -> None:
        missing = [n for n in numbers if n not in self._pool and n not in self._ordered]
        self._ordered |= self.stream.order(missing, self.part)


def made(patient: Future[StreamedCase], what_then: str) -> StreamedCase:
    """Return a patient who was ordered, when he is made.

    Args:
        patient: as he was ordered.
        what_then: what to do where the process that makes him is killed.

    Raises:
        InputError: that is so.
    """
    try:
        return patient.result()
    except BrokenProcessPool as error:
        raise killed(what_then) from error
    except WorkerDied as error:
        raise InputError(f"a phantom could not be made: {error}. {what_then}") from error


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that start within the block compute in one thread: they are as many as there is work for."""
    before = {
        name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    }
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _stay_with_parent() -> None:
    """Let a worker leave Ctrl-C to its parent, and end when that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _check(config: TrainConfig) -> None:
    """Refuse what cannot be made or learnt from.

    Raises:
        InputError: it names the setting.
    """
    phantoms = config.phantoms
    assert phantoms is not None
    names = list(phantoms.structures)
    if not names or len(set(names)) < len(names) or not set(names) <= STRUCTURES.keys():
        raise InputError(
            f"setting phantoms.structures is {names}; expected different names out of {', '.join(STRUCTURES)}"
        )
    try:
        check_structures(names, phantoms.difficulty)
    except InputError as error:
        raise InputError(f"setting phantoms.structures: {error}") from error
    if config.target not in names:
        raise InputError(f"setting target is {config.target!r}; it must be one of phantoms.structures, {names}")
    if config.target != TARGET:
        raise InputError(
            f"setting target is {config.target!r}; phantoms made beside a training are drawn around the {TARGET} "
            f"alone, so it must be that: for another make a cohort with `metricunet phantom`, and train on it"
        )
    for setting, groups, known in (
        ("phantoms.without", phantoms.without, Variety().groups),
        ("phantoms.locate_without", phantoms.locate_without, STILL_GROUPS),
    ):
        if groups and phantoms.difficulty != "varied":
            raise InputError(
                f"setting {setting} is {list(groups)}; groups can be left out of varied phantoms alone, and "
                f"phantoms.difficulty is {phantoms.difficulty}"
            )
        if unknown := set(groups) - set(known):
            raise InputError(
                f"setting {setting} names {', '.join(sorted(unknown))}; it can name {', '.join(known)}"
            )
    if phantoms.tissues_anew != "none" and phantoms.difficulty != "varied":
        raise InputError(
            f"setting phantoms.tissues_anew is {phantoms.tissues_anew}; tissues are drawn anew in varied phantoms "
            f"alone, and phantoms.difficulty is {phantoms.difficulty}"
        )
    if phantoms.new_per_epoch > phantoms.pool:
        raise InputError(
            f"setting phantoms.new_per_epoch is {phantoms.new_per_epoch}; expected at most phantoms.pool, "
            f"{phantoms.pool}, or some patients would never be seen"
        )
    holding = sum(not is_absent(number, phantoms.absent_fraction) for number in range(phantoms.pool))
    if holding < FEWEST_CASES:
        raise InputError(
            f"setting phantoms.absent_fraction is {phantoms.absent_fraction:g}: {holding} of the first "
            f"{phantoms.pool} patients (phantoms.pool) would have a {TARGET}, and at least {FEWEST_CASES} are "
            "needed; lower it, or enlarge the pool"
        )
    if config.teacher.share:
        raise InputError(
            f"setting teacher.share is {config.teacher.share:g}; all phantoms made beside a training have "
            "their contours, so set it to 0, or train on a cohort with scans without contours"
        )
    if config.metric.mode == "offline" and config.metric.weight:
        raise InputError(
            "setting metric.mode is offline; its patches are drawn once from a cohort, and these phantoms come "
            "and go: use metric.mode=online, or make a cohort with `metricunet phantom`"
        )
