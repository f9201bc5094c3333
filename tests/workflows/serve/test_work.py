"""What a worker makes of a case: with exported models, where torch cannot be imported, and once more."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from metricunet.files.nifti import read_labels
from metricunet.inference.predict import predict
from metricunet.ledger import Ledger, Queue
from metricunet.workflows.export import export
from metricunet.workflows.serve import serve
from metricunet.workflows.serve.config import read_node
from metricunet.workflows.serve.decided import Decisions
from metricunet.workflows.serve.journal import Journal
from metricunet.workflows.serve.work import Workshop
from tests.support.dicom_series import write_series
from tests.support.threshold_model import GLAND_HU, ball, bands_known, drawn_scan, write_bands_model
from tests.workflows.serve.conftest import Clock, doors_in, write_node, write_review

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

#: A worker on a machine without torch.
WITHOUT_TORCH = (
    "import sys\nfrom pathlib import Path\nsys.modules['torch'] = None\n"
    "from metricunet.workflows.serve.worker import main\nmain(Path(sys.argv[1]), sys.argv[2])"
)


def test_an_exported_model_makes_what_predict_makes_of_it(tmp_path: Path) -> None:
    with bands_known():
        model = write_bands_model(tmp_path / "model.safetensors", crop_voxels=(40, 40, 40))
        exported = export(model, tmp_path / "exported", to="onnx").folder
    scan = drawn_scan((ball((4, 0, 0), (16, 12, 14)), GLAND_HU), shape=(30, 60, 66), spacing_mm=(3.0, 2.0, 2.0))
    x, y, z = (float(v) for v in scan.geometry.origin_mm)

    def woman(k: int, dataset: Dataset) -> None:
        dataset.PatientSex = "F"

    write_series(tmp_path / "ct", scan.array, spacing_mm=scan.spacing_mm, origin_mm=(x, y, z), edit=woman)
    file = write_node(
        tmp_path,
        state=str(tmp_path / "state"),
        port=None,
        watch={"folder": str(tmp_path / "ct")},
        model=str(exported),
        runtime="onnx",
        provider="cpu",
        rules=[{"name": "any"}],
    )
    serve(file, once=True, command=[sys.executable, "-c", WITHOUT_TORCH])
    (job,) = Queue(Ledger(tmp_path / "state" / "ledger.sqlite")).jobs()
    assert (job.state, job.why) == ("kept", "no destination")
    predict([tmp_path / "ct"], [exported], tmp_path / "out", formats=["nifti"])
    (wanted,) = (tmp_path / "out").glob("*.nii.gz")
    found = tmp_path / "state" / "predictions" / f"{Path(job.folder).name}.nii.gz"
    assert read_labels(found).array.any()
    np.testing.assert_array_equal(read_labels(found).array, read_labels(wanted).array)
    said, other = (
        json.loads((path.parent / f"{path.name.partition('.')[0]}.quality.json").read_text())
        for path in (found, wanted)
    )
    for name in ("model_sha256", "verdict", "structures", "flags"):
        assert said[name] == other[name], name
    assert "patient_sex" in [flag["code"] for flag in said["flags"]]


def test_a_case_that_is_segmented_again_with_one_model(tmp_path: Path) -> None:
    scan = drawn_scan((ball((4, 0, 0), (16, 12, 14)), GLAND_HU), shape=(30, 60, 66), spacing_mm=(3.0, 2.0, 2.0))
    x, y, z = (float(v) for v in scan.geometry.origin_mm)
    written = write_series(tmp_path / "ct", scan.array, spacing_mm=scan.spacing_mm, origin_mm=(x, y, z))
    with bands_known():
        write_bands_model(tmp_path / "model.safetensors", crop_voxels=(40, 40, 40))
        destination = {"name": "pacs", "ae_title": "PEER", "host": "127.0.0.1", "port": 104}
        file = write_node(
            tmp_path,
            state="state",
            model="model.safetensors",
            rules=[{"name": "any"}],
            destinations=[destination],
        )
        config = read_node(file)
        doors = doors_in(config.state, config, Clock())
        for path in written.files:
            doors.bring(path)
        (job,) = doors.arrivals.gather(at_once=True)
        queue, workshop = doors.queue, Workshop(config, "cpu")

        def worked() -> str:
            taken = queue.take("cpu")
            assert taken is not None
            return workshop.work(taken).state

        assert worked() == "sending"
        (first,) = queue.due()
        queue.give_up(first.id, "nobody there")
        queue.again(job.id, "A. Reader")
        assert worked() == "sending"
        (second,) = queue.due()
        assert (second.id, second.sop_uid) == (first.id, first.sop_uid)
        # What somebody has rejected is not sent since another run gives it once more.
        queue.give_up(second.id, "nobody there")
        write_review(doors.state.predictions, Path(job.folder).name, "rejected")
        queue.again(job.id, "A. Reader")
        assert worked() == "review"
    assert queue.due() == []
    assert Decisions(config, doors.state, queue, Journal(None, None)).look() == 1
    assert queue.job(job.id).state == "rejected"
