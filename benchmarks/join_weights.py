"""Checkpoints of TS-GEN joined into one that averages where their flows end, in half precision: the shipped weights.

    python benchmarks/join_weights.py OUT MEMBER...

The first member says how many steps the flow takes; `benchmarks/ts.py --stages calibrate` fits the confidence anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from molgen.checkpoint import load_checkpoint, save_checkpoint
from molgen.tsgen.ensemble import TSEnsemble


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("members", type=Path, nargs="+")
    o = parser.parse_args()
    found = [load_checkpoint(folder) for folder in o.members]
    model = TSEnsemble([checkpoint.config["config"] for checkpoint in found])
    for member, checkpoint in zip(model.networks, found, strict=True):
        member.load_state_dict(checkpoint.tensors)
    atoms = [checkpoint.config["atoms"] for checkpoint in found]
    config = {
        "model": "tsgen",
        "config": model.config,
        "flow": found[-1].config["flow"],
        "atoms": [max(low for low, _ in atoms), min(high for _, high in atoms)],
        "sampling": found[0].config["sampling"],
        "members": [checkpoint.hash for checkpoint in found],
    }
    save_checkpoint(o.out, {name: value.half() for name, value in model.state_dict().items()}, config)


if __name__ == "__main__":
    main()
