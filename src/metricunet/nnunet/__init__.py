"""The metric branch in nnU-Net: trainers that `nnUNetv2_train -tr` finds by name once they are installed."""
