"""Lets nnU-Net find the trainers of metricunet by name. Written by `metricunet nnunet install`.

nnU-Net imports the modules of its folder while it looks for a trainer, so this one imports nothing until one of
its own trainers is asked for.
"""

TRAINERS = ("nnUNetTrainerVoxelMetric", "nnUNetTrainerVoxelControl")


def __getattr__(name):  # type: ignore[no-untyped-def]
    """Return a trainer of metricunet (PEP 562)."""
    if name not in TRAINERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from metricunet.nnunet import trainers

    return getattr(trainers, name)
