"""The ledger's tables, as numbered migrations that are never changed once they are released.

Moments are text in UTC, ISO 8601 with milliseconds, so that they sort as they follow each other. What identifies a
patient, a study or a series is a keyed hash. Volumes are in mL, lengths in mm.
"""

from __future__ import annotations

#: What SQLite writes into the head of the file: `mnlg`.
APPLICATION_ID = 0x6D6E6C67

REVIEWS = (
    # A check of the key that made the hashes, so that another key is noticed.
    "CREATE TABLE keys (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, since TEXT NOT NULL)",
    """CREATE TABLE models (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        version TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        UNIQUE (sha256, version))""",
    """CREATE TABLE scanners (
        id INTEGER PRIMARY KEY,
        manufacturer TEXT NOT NULL,
        model TEXT NOT NULL,
        kernel TEXT NOT NULL,
        UNIQUE (manufacturer, model, kernel))""",
    # One scan as one model predicted it. Predicted again, the row says what was found last.
    """CREATE TABLE cases (
        id INTEGER PRIMARY KEY,
        scan TEXT NOT NULL,
        patient TEXT NOT NULL,
        scanner INTEGER REFERENCES scanners (id),
        model INTEGER NOT NULL REFERENCES models (id),
        verdict TEXT NOT NULL,
        doubt TEXT NOT NULL,
        codes TEXT NOT NULL,
        expected_error_mm REAL,
        recorded TEXT NOT NULL,
        UNIQUE (scan, model))""",
    "CREATE INDEX cases_by_patient ON cases (patient)",
    # reason and reviewer are personal data; pruning empties them.
    """CREATE TABLE decisions (
        id INTEGER PRIMARY KEY,
        case_id INTEGER NOT NULL REFERENCES cases (id) ON DELETE CASCADE,
        record TEXT NOT NULL UNIQUE,
        number INTEGER NOT NULL,
        decision TEXT NOT NULL,
        reason TEXT NOT NULL,
        reviewer TEXT NOT NULL,
        decided TEXT NOT NULL,
        seconds REAL NOT NULL,
        recorded TEXT NOT NULL)""",
    "CREATE INDEX decisions_by_case ON decisions (case_id)",
    "CREATE INDEX decisions_by_time ON decisions (decided)",
    """CREATE TABLE edits (
        decision_id INTEGER NOT NULL REFERENCES decisions (id) ON DELETE CASCADE,
        structure TEXT NOT NULL,
        dice REAL,
        added_path_length_mm REAL,
        shift_left_mm REAL,
        shift_back_mm REAL,
        shift_head_mm REAL,
        volume_ratio REAL,
        automatic_ml REAL NOT NULL,
        reviewed_ml REAL NOT NULL,
        added_ml REAL NOT NULL,
        removed_ml REAL NOT NULL,
        foot_ml REAL NOT NULL,
        middle_ml REAL NOT NULL,
        head_ml REAL NOT NULL,
        left_ml REAL NOT NULL,
        right_ml REAL NOT NULL,
        front_ml REAL NOT NULL,
        back_ml REAL NOT NULL,
        PRIMARY KEY (decision_id, structure)) WITHOUT ROWID""",
)

QUEUE = (
    # What came in. folder and sender name no patient; folder is relative to the node's folder of state.
    # deleted is no longer written: a row goes with its files.
    """CREATE TABLE inputs (
        id INTEGER PRIMARY KEY,
        series TEXT NOT NULL,
        study TEXT NOT NULL,
        patient TEXT NOT NULL,
        sender TEXT NOT NULL,
        folder TEXT NOT NULL UNIQUE,
        digest TEXT UNIQUE,
        files INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        received TEXT NOT NULL,
        whole TEXT,
        deleted TEXT)""",
    "CREATE INDEX inputs_by_series ON inputs (series)",
    """CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        input_id INTEGER NOT NULL REFERENCES inputs (id) ON DELETE CASCADE,
        recipe TEXT NOT NULL,
        state TEXT NOT NULL,
        why TEXT NOT NULL DEFAULT '',
        worker TEXT,
        attempts INTEGER NOT NULL DEFAULT 0,
        deaths INTEGER NOT NULL DEFAULT 0,
        not_before TEXT NOT NULL,
        created TEXT NOT NULL,
        changed TEXT NOT NULL,
        case_id INTEGER REFERENCES cases (id) ON DELETE SET NULL,
        UNIQUE (input_id, recipe))""",
    "CREATE INDEX jobs_by_state ON jobs (state, id)",
    """CREATE TABLE deliveries (
        id INTEGER PRIMARY KEY,
        job_id INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        destination TEXT NOT NULL,
        kind TEXT NOT NULL,
        file TEXT NOT NULL,
        sop_uid TEXT NOT NULL,
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        next_attempt TEXT NOT NULL,
        error TEXT NOT NULL DEFAULT '',
        created TEXT NOT NULL,
        changed TEXT NOT NULL,
        UNIQUE (job_id, destination, sop_uid))""",
    "CREATE INDEX deliveries_by_state ON deliveries (state, next_attempt)",
    # Who saw, decided and sent what. actor is personal data; subject is a keyed hash or the number of a row.
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        moment TEXT NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        job_id INTEGER REFERENCES jobs (id) ON DELETE SET NULL,
        subject TEXT NOT NULL DEFAULT '',
        detail TEXT NOT NULL DEFAULT '')""",
    "CREATE INDEX events_by_moment ON events (moment)",
)

#: The statements that bring a ledger from one version to the next; the first makes version 1 of an empty file.
MIGRATIONS: tuple[tuple[str, ...], ...] = (REVIEWS, QUEUE)
