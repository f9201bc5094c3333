"""The queue of a node: what came in, what is done with it, and what goes out, in the ledger's file.

One `Queue` serves one process; threads may share it. What belongs together is put into one transaction:

    ledger = Ledger(state / "ledger.sqlite")
    queue = Queue(ledger)
    job = queue.receive("pelvis", series=uid, study=study_uid, patient=("id", issuer, number), sender="SCANNER",
                        folder="incoming/0001")
    queue.count(job.input_id, files=120, size=63_000_000)         # now and then, while slices come in
    job = queue.whole(job.id, digest=sha256_of_all_files)         # received -> waiting, or the earlier job
    job = queue.take("cpu:0")                                     # waiting -> segmenting, the oldest; None if none
    with ledger.writing():                                        # one transaction
        case = record_case(ledger, CaseFacts(...))                # the verdict, from metricunet.ledger.records
        queue.send(job.id, [Outgoing("archive", "rtstruct", "out/0001/x.dcm", sop_uid)], case_id=case)
    for delivery in queue.due():                                  # waiting, and their time has come
        queue.delivered(delivery.id)                              # the last one moves its job to sent
        queue.put_off(delivery.id, error, next_attempt=moment)    # or later again
        queue.give_up(delivery.id, error)                         # or never: its job has failed
        queue.stored(delivery.id, next_attempt=moment)            # or taken, and the peer is asked to commit to it
    queue.give_back("cpu:0", died=True)                           # a worker died; twice on one case: set aside
    queue.give_back()                                             # at the start: nobody works yet
    queue.note("A. Reader", "saw", job_id=job.id)                 # audit; each move notes itself

Identifiers that are passed in (series, study, patient) are kept as keyed hashes alone. What the files are called
(`folder`, `file`) and who sent them is kept as it is, and must name no patient. A case that is under review is in
state `review`; after `metricunet.workflows.review` has recorded a decision, the node moves its job on.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from metricunet.errors import InputError
from metricunet.ledger.job import (
    ARRIVED,
    NEXT,
    SENT_AGAIN,
    STATES,
    TRIED_NOW,
    UNDER_WAY,
    Delivery,
    DeliveryState,
    Job,
    Outgoing,
    State,
    StateChanged,
)
from metricunet.ledger.store import Ledger, stamp

#: A case that has killed its worker so often is set aside.
MOST_DEATHS = 2
#: Who notes what the program does by itself.
PROGRAM = "metricunet"
#: What is noted where a person was told of a job's bad end, and where a review of a case was followed.
NOTICE, FOLLOWED = "notice", "review followed"


class Queue:
    """The queue in a ledger.

    Args:
        ledger: the ledger; several processes may have one queue each on the same file.
        clock: tells the moment, with its time zone.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.ledger, self._clock = ledger, clock

    def receive(
        self, recipe: str, *, series: str, study: str, patient: Sequence[str], sender: str, folder: str
    ) -> Job:
        """Note that an input begins to come in; its job is `received`. A folder that is known gives its job.

        Args:
            recipe: name of what is to be done with it.
            series: SeriesInstanceUID.
            study: StudyInstanceUID.
            patient: what tells the patient from others.
            sender: who sends it.
            folder: where its files lie, relative to the node's folder of state.
        """
        key = self.ledger.key
        with self.ledger.writing() as db:
            moment = self._now()
            db.execute(
                "INSERT INTO inputs (series, study, patient, sender, folder, received) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (folder) DO NOTHING",
                (
                    key.hashed("series", series),
                    key.hashed("study", study),
                    key.hashed("patient", *patient),
                    sender,
                    folder,
                    moment,
                ),
            )
            (number,) = db.execute("SELECT id FROM inputs WHERE folder = ?", (folder,)).fetchone()
            added = db.execute(
                "INSERT INTO jobs (input_id, recipe, state, not_before, created, changed) "
                "VALUES (?, ?, 'received', ?, ?, ?) ON CONFLICT (input_id, recipe) DO NOTHING",
                (number, recipe, moment, moment, moment),
            )
            job = self._one(db, "WHERE jobs.input_id = ? AND recipe = ?", number, recipe)
            if added.rowcount:
                self.note(PROGRAM, "received", job_id=job.id, detail=f"from {sender}" if sender else "")
            return job

    def count(self, input_id: int, *, files: int, size: int) -> None:
        """Note how much of an input is there.

        Args:
            input_id: number of the input.
            files: how many files there are.
            size: of all of them, in bytes.
        """
        with self.ledger.writing() as db:
            db.execute("UPDATE inputs SET files = ?, bytes = ? WHERE id = ?", (files, size, input_id))

    def whole(self, job_id: int, *, digest: str) -> Job:
        """Note that all of an input is there; its job waits for a worker.

        Args:
            job_id: number of the job, which is `received`.
            digest: of the whole input. Where an earlier input has it, and is in hand for the same recipe, this one
                is dropped from the ledger and the earlier job returned: the caller deletes the files of this one.

        Raises:
            StateChanged: the job is not `received`.
        """
        with self.ledger.writing() as db:
            job = self.job(job_id)
            if job.state != "received":
                raise StateChanged(job, "waiting")
            earlier = db.execute(
                "SELECT jobs.id FROM jobs JOIN inputs ON inputs.id = jobs.input_id "
                "WHERE digest = ? AND recipe = ? AND inputs.id != ?",
                (digest, job.recipe, job.input_id),
            ).fetchone()
            if earlier is not None:
                self.note(PROGRAM, "repeated", job_id=earlier[0])
                db.execute("DELETE FROM inputs WHERE id = ?", (job.input_id,))
                return self.job(earlier[0])
            db.execute("UPDATE inputs SET digest = ?, whole = ? WHERE id = ?", (digest, self._now(), job.input_id))
            return self.move(job_id, "waiting")

    def take(self, worker: str) -> Job | None:
        """Give the oldest job that waits to a worker; it is `segmenting` then. None where none waits.

        Args:
            worker: name of the worker, such as its device.
        """
        with self.ledger.writing() as db:
            moment = self._now()
            # What was not put off waits for no moment, and what has changed later than now was put off by a clock
            # that was set back since.
            found = db.execute(
                "SELECT id FROM jobs WHERE state = 'waiting' AND (not_before = created OR not_before <= ? "
                "OR changed > ?) ORDER BY id LIMIT 1",
                (moment, moment),
            ).fetchone()
            if found is None:
                return None
            db.execute("UPDATE jobs SET attempts = attempts + 1 WHERE id = ?", (found[0],))
            return self.move(found[0], "segmenting", worker=worker)

    def move(
        self,
        job_id: int,
        state: State,
        why: str = "",
        *,
        actor: str = PROGRAM,
        worker: str | None = None,
        case_id: int | None = None,
        not_before: datetime | None = None,
    ) -> Job:
        """Let a job go on to another state, and note who did it.

        Args:
            job_id: number of the job.
            state: where it goes.
            why: a sentence, where the state needs one.
            actor: who moves it.
            worker: that works on it from now on; None for none.
            case_id: row of the verdict; None leaves it as it is.
            not_before: when a worker may take it at the earliest; None leaves it as it is.

        Raises:
            StateChanged: it may not go there from where it is, for example since another process has moved it.
        """
        with self.ledger.writing() as db:
            job = self.job(job_id)
            if state not in NEXT[job.state]:
                raise StateChanged(job, state)
            db.execute(
                "UPDATE jobs SET state = ?, why = ?, worker = ?, changed = ?, case_id = coalesce(?, case_id), "
                "not_before = coalesce(?, not_before) WHERE id = ?",
                (
                    state,
                    why,
                    worker,
                    self._now(),
                    case_id,
                    None if not_before is None else stamp(not_before),
                    job_id,
                ),
            )
            self.note(actor, state, job_id=job_id, detail=why)
            return self.job(job_id)

    def give_back(self, worker: str | None = None, *, died: bool = False) -> list[Job]:
        """Let jobs wait again that a worker, or any, has left unfinished; return them as they are then.

        Args:
            worker: name of the worker; None for all, when the node starts.
            died: whether the worker died of its job. One that killed `MOST_DEATHS` workers is set aside.
        """
        with self.ledger.writing() as db:
            rows = db.execute(
                "SELECT id, deaths FROM jobs WHERE state = 'segmenting' AND (worker = ? OR ? IS NULL)",
                (worker, worker),
            ).fetchall()
            left = []
            for number, deaths in rows:
                deaths += died
                db.execute("UPDATE jobs SET deaths = ? WHERE id = ?", (deaths, number))
                if deaths >= MOST_DEATHS:
                    left.append(self.move(number, "set aside", f"its worker died of it {deaths} times"))
                else:
                    left.append(self.move(number, "waiting", "its worker died" if died else "it was interrupted"))
            return left

    def again(self, job_id: int, actor: str) -> Job:
        """Let a job wait for a worker once more, as a person wishes; earlier deaths of workers are forgotten.

        Its deliveries are dropped, those that arrived too: they are of the earlier segmentation, whose files are
        about to be replaced. Where the new one gives the very instance, `send` takes its delivery up again.

        Raises:
            StateChanged: it is in hand already, or has ended well.
        """
        with self.ledger.writing() as db:
            job = self.move(job_id, "waiting", actor=actor)
            db.execute("UPDATE jobs SET deaths = 0 WHERE id = ?", (job_id,))
            for one in self.deliveries(job_id):
                if one.state != "dropped":
                    before = f"it was {one.state}" + (f": {one.error}" if one.error else "")
                    self._drop(db, one, f"the case was segmented again; {before}")
            return replace(job, deaths=0)

    def send_again(self, job_id: int, actor: str) -> Job:
        """Let all files of a job that were sent, or not, be sent once more: the same instances.

        Of one kind to one destination it is the last one: what a correction has replaced stays replaced.

        Args:
            job_id: number of the job.
            actor: who wishes it.

        Raises:
            StateChanged: it is in hand, nothing of it was ever to be sent, a reviewer has rejected it, or none has
                decided yet.
        """
        with self.ledger.writing() as db:
            moment = self._now()
            if (job := self.job(job_id)).state not in SENT_AGAIN:
                raise StateChanged(job, "sending", SENT_AGAIN)
            last = {
                (one.destination, one.kind): one.id
                for one in sorted(self.deliveries(job_id), key=lambda one: (one.created, one.id))
                if one.state != "dropped"
            }
            if not last:
                raise StateChanged(job, "sending")
            db.executemany(
                "UPDATE deliveries SET state = 'waiting', attempts = 0, next_attempt = ?, created = ?, "
                "changed = ? WHERE id = ?",
                [(moment, moment, moment, number) for number in last.values()],
            )
            return self.move(job_id, "sending", actor=actor)

    def send(
        self,
        job_id: int,
        files: Sequence[Outgoing],
        *,
        actor: str = PROGRAM,
        case_id: int | None = None,
        nothing: str = "there is nothing to send",
    ) -> Job:
        """Let files of a job go out; it is `sending` then, or as `sent`, `kept` or `failed` as its deliveries are.

        Args:
            job_id: number of the job.
            files: what goes where. What waits for the destination, or could not be sent to it, and is of the kind
                of one of them, is dropped.
            actor: who wishes it.
            case_id: row of the verdict; None leaves it as it is.
            nothing: why nothing is sent, where there are neither files nor deliveries; the job is `kept` then.

        Raises:
            StateChanged: it may not be sent from the state that it is in.
        """
        with self.ledger.writing() as db:
            earlier = [one for one in self.deliveries(job_id) if one.state != "dropped"]
            if not files and not earlier:
                return self.move(job_id, "kept", nothing, actor=actor, case_id=case_id)
            if self.job(job_id).state != "sending":
                self.move(job_id, "sending", actor=actor, case_id=case_id)
            for new in files:
                for one in earlier:
                    replaced = (one.destination, one.kind) == (new.destination, new.kind)
                    if replaced and one.sop_uid != new.sop_uid and one.state in ("waiting", "failed"):
                        self._drop(db, one, "another one is sent in its place")
                self.deliver(job_id, new.destination, new.kind, new.file, new.sop_uid)
            return self._settled(job_id)

    def drop(self, job_id: int, why: str) -> list[Delivery]:
        """Send no more of a job what has not arrived; return its deliveries, and how they are now.

        What has arrived stays as it is, but nobody is asked any more to commit to keep it. The job's state is not
        changed.

        Args:
            job_id: number of the job.
            why: a sentence.
        """
        with self.ledger.writing() as db:
            for one in self.deliveries(job_id):
                if one.state in ("waiting", "failed"):
                    self._drop(db, one, why)
                elif one.state == "stored":
                    self._drop(db, one, why, "sent")
            return self.deliveries(job_id)

    def deliver(self, job_id: int, destination: str, kind: str, file: str, sop_uid: str) -> Delivery:
        """Ask for a file to be sent; asked for again, the delivery stays as it is.

        One that was given up or dropped is taken up again, and has its whole time before it.

        Args:
            job_id: number of the job.
            destination: name of the destination.
            kind: `rtstruct` or `seg`.
            file: relative to the node's folder of state.
            sop_uid: SOPInstanceUID of the file.
        """
        with self.ledger.writing() as db:
            moment = self._now()
            db.execute(
                "INSERT INTO deliveries (job_id, destination, kind, file, sop_uid, state, next_attempt, created, "
                "changed) VALUES (?, ?, ?, ?, ?, 'waiting', ?, ?, ?) "
                "ON CONFLICT (job_id, destination, sop_uid) DO UPDATE SET state = 'waiting', "
                "file = excluded.file, attempts = 0, error = '', next_attempt = excluded.next_attempt, "
                "created = excluded.created, changed = excluded.changed WHERE state IN ('failed', 'dropped')",
                (job_id, destination, kind, file, sop_uid, moment, moment, moment),
            )
            return self._deliveries(
                db, "WHERE job_id = ? AND destination = ? AND sop_uid = ?", job_id, destination, sop_uid
            )[0]

    def due(self, state: DeliveryState = "waiting") -> list[Delivery]:
        """Return the deliveries in a state whose time has come, those that wait longest first.

        The time has come also where the clock was set back since it was stated.
        """
        with self.ledger.reading() as db:
            moment = self._now()
            return self._deliveries(
                db,
                "WHERE state = ? AND (next_attempt <= ? OR changed > ?) ORDER BY next_attempt, id",
                state,
                moment,
                moment,
            )

    def under_way(self) -> list[Delivery]:
        """Return the deliveries that wait to be sent, or for a commitment, whether their time has come or not."""
        with self.ledger.reading() as db:
            return self._deliveries(db, "WHERE state IN (?, ?) ORDER BY id", *UNDER_WAY)

    def taken(self) -> list[Delivery]:
        """Return the deliveries that are `stored` or `confirmed`, the last first."""
        with self.ledger.reading() as db:
            return self._deliveries(db, "WHERE state IN ('stored', 'confirmed') ORDER BY id DESC")

    def delivered(self, delivery_id: int, *, confirmed: bool = False) -> Delivery:
        """Note that a destination has taken a file; when all of a job are there, it is `sent`, or `failed` where
        another one of its files was given up.

        Args:
            delivery_id: number of the delivery.
            confirmed: whether the destination has committed to keep it.
        """
        with self.ledger.writing() as db:
            delivery = self._tried(db, delivery_id, "confirmed" if confirmed else "sent", "", None)
            self._settled(delivery.job_id)
            return delivery

    def stored(self, delivery_id: int, error: str = "", *, next_attempt: datetime) -> Delivery:
        """Note that a destination has taken a file, and has yet to commit to keep it. Its commitment stands.

        Args:
            delivery_id: number of the delivery.
            error: why it could not be asked, or has not answered; empty where it can be asked.
            next_attempt: when to ask it, or to ask again.
        """
        with self.ledger.writing() as db:
            (delivery,) = self._deliveries(db, "WHERE id = ?", delivery_id)
            if delivery.state == "confirmed":  # it was faster
                return delivery
            if delivery.state == "dropped":  # it arrived all the same, and need not be kept
                return self.delivered(delivery_id)
            return self._tried(db, delivery_id, "stored", error, next_attempt)

    def retry(self, delivery_id: int, actor: str) -> Delivery:
        """Try a delivery at once that was given up or put off, as a person wishes; its job is `sending` then.

        Raises:
            InputError: there is none with this number.
            StateChanged: its file was taken already or is sent no more, or its job is neither `sending` nor
                `failed`: what a reviewer has rejected or has yet to decide on is not sent by this.
        """
        with self.ledger.writing() as db:
            found = self._deliveries(db, "WHERE id = ?", delivery_id)
            if not found:
                raise InputError(f"{self.ledger.path}: has no delivery {delivery_id}")
            delivery, moment = found[0], self._now()
            job = self.job(delivery.job_id)
            if delivery.state in ("sent", "confirmed", "dropped") or job.state not in TRIED_NOW:
                raise StateChanged(job, "sending", TRIED_NOW)
            state = "waiting" if delivery.state == "failed" else delivery.state
            db.execute(
                "UPDATE deliveries SET state = ?, next_attempt = ?, created = ?, changed = ? WHERE id = ?",
                (state, moment, moment if delivery.state == "failed" else delivery.created, moment, delivery_id),
            )
            self.note(actor, "delivery again", job_id=job.id, subject=delivery.destination, detail=delivery.kind)
            if job.state != "sending":
                self.move(job.id, "sending", actor=actor)
            return self._deliveries(db, "WHERE id = ?", delivery_id)[0]

    def put_off(self, delivery_id: int, error: str, *, next_attempt: datetime) -> Delivery:
        """Note that an attempt failed, and when to try again. What was dropped meanwhile stays so.

        Args:
            delivery_id: number of the delivery.
            error: what went wrong, a sentence.
            next_attempt: when to try at the earliest.
        """
        with self.ledger.writing() as db:
            return self._tried(db, delivery_id, "waiting", error, next_attempt)

    def give_up(self, delivery_id: int, error: str) -> Delivery:
        """Note that a file will not be sent; its job has `failed`. What was dropped meanwhile stays so.

        Args:
            delivery_id: number of the delivery.
            error: what went wrong, a sentence.
        """
        with self.ledger.writing() as db:
            delivery = self._tried(db, delivery_id, "failed", error, None)
            if delivery.state == "failed" and self.job(delivery.job_id).state == "sending":
                self.move(delivery.job_id, "failed", _not_sent(delivery))
            return delivery

    def note(
        self, actor: str, action: str, *, job_id: int | None = None, subject: str = "", detail: str = ""
    ) -> None:
        """Write a line of the audit trail.

        Args:
            actor: who; personal data where it is a person.
            action: what was done, in a word or two.
            job_id: with which job; None for none.
            subject: with what else, such as a keyed hash or a destination's name.
            detail: more of it; nothing that names a patient.
        """
        with self.ledger.writing() as db:
            db.execute(
                "INSERT INTO events (moment, actor, action, job_id, subject, detail) VALUES (?, ?, ?, ?, ?, ?)",
                (self._now(), actor, action, job_id, subject, detail),
            )

    def job(self, job_id: int) -> Job:
        """Return a job.

        Raises:
            InputError: there is none with this number.
        """
        with self.ledger.reading() as db:
            return self._one(db, "WHERE jobs.id = ?", job_id)

    def jobs(self, *states: State) -> list[Job]:
        """Return the jobs in these states, or all, the oldest first."""
        wanted = states or STATES
        with self.ledger.reading() as db:
            holes = ", ".join("?" * len(wanted))
            return self._jobs(db, f"WHERE state IN ({holes}) ORDER BY jobs.id", *wanted)

    def deliveries(self, job_id: int) -> list[Delivery]:
        """Return the deliveries of a job, the oldest first."""
        with self.ledger.reading() as db:
            return self._deliveries(db, "WHERE job_id = ? ORDER BY id", job_id)

    def of_series(self, series: str) -> list[Job]:
        """Return the jobs of a series, by its keyed hash, the last first."""
        with self.ledger.reading() as db:
            return self._jobs(db, "WHERE series = ? ORDER BY jobs.id DESC", series)

    def of_folder(self, folder: str) -> Job | None:
        """Return the last job of the input in a folder; None where there is none."""
        with self.ledger.reading() as db:
            return next(iter(self._jobs(db, "WHERE folder = ? ORDER BY jobs.id DESC LIMIT 1", folder)), None)

    def folders(self) -> set[str]:
        """Return the folders of all inputs."""
        with self.ledger.reading() as db:
            return {row[0] for row in db.execute("SELECT folder FROM inputs")}

    def noticed(self) -> dict[int, str]:
        """Return for each job that somebody was told of when that was."""
        with self.ledger.reading() as db:
            rows = db.execute(
                "SELECT job_id, max(moment) FROM events WHERE action = ? AND job_id IS NOT NULL GROUP BY job_id",
                (NOTICE,),
            )
            return dict(rows.fetchall())

    def followed(self) -> dict[int, int]:
        """Return for each job a review of whose case was followed the number of the last such review."""
        with self.ledger.reading() as db:
            rows = db.execute(
                "SELECT job_id, max(cast(subject AS INTEGER)) FROM events WHERE action = ? AND job_id IS NOT NULL "
                "GROUP BY job_id",
                (FOLLOWED,),
            )
            return dict(rows.fetchall())

    def out_though_rejected(self) -> dict[int, dict[str, str]]:
        """Return for each rejected job which destinations have something of it, and when that last came there."""
        with self.ledger.reading() as db:
            rows = db.execute(
                "SELECT job_id, destination, max(deliveries.changed) FROM deliveries "
                "JOIN jobs ON jobs.id = deliveries.job_id "
                "WHERE jobs.state = 'rejected' AND deliveries.state IN (?, ?, ?) GROUP BY job_id, destination",
                ARRIVED,
            )
            found: dict[int, dict[str, str]] = {}
            for number, destination, moment in rows:
                found.setdefault(number, {})[destination] = moment
            return found

    def undelivered(self, destination: str) -> int:
        """Return how many files wait to be sent to a destination, or for its commitment to keep them."""
        with self.ledger.reading() as db:
            (count,) = db.execute(
                "SELECT count(*) FROM deliveries WHERE destination = ? AND state IN ('waiting', 'stored')",
                (destination,),
            ).fetchone()
            return int(count)

    def forget(self, input_id: int) -> None:
        """Delete an input with its jobs and deliveries; the journal's lines of them stay, without numbers."""
        with self.ledger.writing() as db:
            db.execute("DELETE FROM inputs WHERE id = ?", (input_id,))

    def forget_events(self, before: datetime) -> int:
        """Delete the journal's lines of earlier than a moment; return how many there were."""
        with self.ledger.writing() as db:
            return db.execute("DELETE FROM events WHERE moment < ?", (stamp(before),)).rowcount

    def counts(self) -> dict[State, int]:
        """Return how many jobs are in each state, those that are 0 among them."""
        with self.ledger.reading() as db:
            found = dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def _now(self) -> str:
        return stamp(self._clock())

    def _one(self, db: sqlite3.Connection, where: str, *values: object) -> Job:
        found = self._jobs(db, where, *values)
        if not found:
            raise InputError(f"{self.ledger.path}: has no such job ({', '.join(map(str, values))})")
        return found[0]

    def _jobs(self, db: sqlite3.Connection, where: str, *values: object) -> list[Job]:
        rows = db.execute(
            "SELECT jobs.*, series, study, patient, sender, folder, digest, files, bytes, whole "
            f"FROM jobs JOIN inputs ON inputs.id = jobs.input_id {where}",
            values,
        )
        return [Job(**dict(row)) for row in rows]

    def _deliveries(self, db: sqlite3.Connection, where: str, *values: object) -> list[Delivery]:
        return [Delivery(**dict(row)) for row in db.execute(f"SELECT * FROM deliveries {where}", values)]

    def _settled(self, job_id: int) -> Job:
        """Let a job that is `sending` go on if none of its deliveries is under way; return it as it is then."""
        job, states = self.job(job_id), {one.state: one for one in self.deliveries(job_id)}
        if job.state != "sending" or not states.keys().isdisjoint(UNDER_WAY):
            return job
        if "failed" in states:
            return self.move(job_id, "failed", _not_sent(states["failed"]))
        return self.move(job_id, "sent")

    def _drop(
        self, db: sqlite3.Connection, delivery: Delivery, why: str, state: DeliveryState = "dropped"
    ) -> None:
        db.execute(
            "UPDATE deliveries SET state = ?, error = ?, changed = ? WHERE id = ?",
            (state, why, self._now(), delivery.id),
        )
        subject = delivery.destination
        self.note(PROGRAM, "delivery dropped", job_id=delivery.job_id, subject=subject, detail=why)

    def _tried(
        self,
        db: sqlite3.Connection,
        delivery_id: int,
        state: DeliveryState,
        error: str,
        next_attempt: datetime | None,
    ) -> Delivery:
        found = self._deliveries(db, "WHERE id = ?", delivery_id)
        if not found:
            raise InputError(f"{self.ledger.path}: has no delivery {delivery_id}")
        if found[0].state == "dropped" and state in ("waiting", "failed"):
            return found[0]
        db.execute(
            "UPDATE deliveries SET state = ?, error = ?, attempts = attempts + 1, changed = ?, "
            "next_attempt = coalesce(?, next_attempt) WHERE id = ?",
            (state, error, self._now(), None if next_attempt is None else stamp(next_attempt), delivery_id),
        )
        (delivery,) = self._deliveries(db, "WHERE id = ?", delivery_id)
        words = {"waiting": "put off", "failed": "given up"}.get(state, state)
        self.note(PROGRAM, f"delivery {words}", job_id=delivery.job_id, subject=delivery.destination, detail=error)
        return delivery


def _not_sent(delivery: Delivery) -> str:
    return f"not sent to {delivery.destination}: {delivery.error}"
