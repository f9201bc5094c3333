"""The front door for Python: scans in, results out. It calls what the commands call, and adds nothing of its own.

Example:
    import metricunet as mu

    scan = mu.load_scan("scan.nii.gz")  # or a folder of DICOM, an image of nibabel or SimpleITK, an array
    result = mu.load_model("model.safetensors").predict(scan)
    result.mask("prostate"), result.quality.verdict
    result.save("out")

`scan` reads what is to be segmented, `model` is what segments it and what comes of that, and `save` writes this.
`prediction`, `evaluation` and `training` have the functions that stand for a command, `compared` the two sides of
an evaluation, and `plain` what all of them do with arguments and errors.
"""

from metricunet.api.evaluation import evaluate
from metricunet.api.model import Model, Result, load_model
from metricunet.api.prediction import predict
from metricunet.api.scan import Scan, load_scan
from metricunet.api.training import train

__all__ = ["Model", "Result", "Scan", "evaluate", "load_model", "load_scan", "predict", "train"]
