"""A DICOM node: scans come in from the network, structure sets go back.

`config` is the node's file, `state` its folder, `journal` what it says. `scp`, `stow` and `watch` are the doors;
`arrivals` puts together what comes in. `pool` keeps `worker` processes going, in which `work` segments cases.
`deliveries` sends by `outbound`, `decided` follows what people decide, `notices` tells somebody, `keep` deletes
what is old. `node` joins them, `web` serves pages, and `run` is the command.
"""

from metricunet.workflows.serve.run import check_node, serve

__all__ = ["check_node", "serve"]
