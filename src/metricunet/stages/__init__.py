"""The two stages, each defined once for the cache, training, prediction, studies and benchmarks.

`locate` is stage 1 and `segment` is stage 2: the grid and the field. `read` is how a scan reaches either, `tiles`
how windows cover a field, `classes` how probabilities become one class for each voxel. These need no torch.
`forward` and `network_input` are the forward pass with networks of torch, `array_forward` the same with networks
that take and return arrays. What sets one model's stage apart from another's is a value of `metricunet.specs`.
"""
