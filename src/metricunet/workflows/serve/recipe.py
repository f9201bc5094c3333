"""What a job is to do: the rule that took its input, and what the result depends on beside the scan."""

from __future__ import annotations

import hashlib
import json

from metricunet.inference.case_files import provenance_of
from metricunet.inference.reruns import MOST_RERUNS
from metricunet.inference.structure_set import ContourOptions
from metricunet.workflows.serve.config import NodeConfig, Rule

#: What workers read of the node's file.
READ_BY_WORKERS = {
    *("state", "rules", "destinations", "model", "runtime", "provider", "structures", "allow_synthetic", "limits")
}


def settings_digest(config: NodeConfig) -> str:
    """Return a short hash of models, settings and version: another one makes other files of the same scan."""
    known = [provenance_of(config.model, MOST_RERUNS, ContourOptions()), config.structures, config.formats]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]


def begun_with(config: NodeConfig, digest: str) -> str:
    """Return what tells whether a worker would do with a case as the node and its other workers do.

    Args:
        config: of the node.
        digest: see `settings_digest`.
    """
    return f"{digest}-{hashlib.sha256(config.model_dump_json(include=READ_BY_WORKERS).encode()).hexdigest()[:8]}"


def recipe_of(rule: str, digest: str) -> str:
    """Return the name of a recipe.

    Args:
        rule: name of the rule.
        digest: see `settings_digest`.
    """
    return f"{rule}:{digest}"


def rule_of(config: NodeConfig, recipe: str) -> Rule | None:
    """Return the rule of a recipe; None where the node's file has it no longer."""
    return config.rule_named(recipe.rpartition(":")[0])


def why_no_rule(recipe: str) -> str:
    """Return what is said of a case whose rule the node's file has no longer."""
    return (
        f"the node's file has no rule {recipe.rpartition(':')[0]!r} any more, so nobody knows where it is to be "
        "sent; put the rule back and restart the node"
    )
