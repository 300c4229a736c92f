"""A weighted mean of two checkpoints of one model, as Prose's shipped weights are (after Wortsman et al., CVPR 2022).

    python benchmarks/average_weights.py BEFORE AFTER SHARE OUT

SHARE of AFTER, the rest of BEFORE. Of use when AFTER was trained from BEFORE on other data, and forgot some of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from molgen.checkpoint import load_checkpoint, save_checkpoint

OWN = ("format", "molgen_version", "sha256", "bytes", "validation", "step")  # entries that belong to one of the two


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("out", type=Path)
    o = parser.parse_args()
    before, after = load_checkpoint(o.before), load_checkpoint(o.after)
    tensors = {name: o.share * value + (1 - o.share) * before.tensors[name] for name, value in after.tensors.items()}
    config = {key: value for key, value in after.config.items() if key not in OWN}
    averaged = {"before": before.hash, "after": after.hash, "share": o.share}
    save_checkpoint(o.out, tensors, {**config, "averaged": averaged})


if __name__ == "__main__":
    main()
