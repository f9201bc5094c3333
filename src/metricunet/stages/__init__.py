"""The two stages, each defined once for the cache, training, prediction, studies and benchmarks.

`locate` is stage 1 and `segment` is stage 2: the grid, the field, and the forward pass. `network_input` is how HU
reach either network, `classes` how probabilities become one class for each voxel. What sets one model's stage
apart from another's is a value of `metricunet.specs`.
"""
