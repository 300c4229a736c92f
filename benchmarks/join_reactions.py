"""Join several runs of `molgen data reactions` on one level into one set, duplicates left out.

    python benchmarks/join_reactions.py RUN [RUN ...] --exclude rdb7_ts.npz:test,val --out data/sets/gfn2_reactions.npz

Reads their journals (`attempts.jsonl`) in the order given, so that all rows are described by the code of today,
whatever version made the runs. A reaction of --exclude, or one that an earlier run holds, is left out and counted.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from molgen.data.exclusion import excluded_keys
from molgen.files import json_text
from molgen.potentials.ase import level_name
from molgen.workflows.journal import read_journal
from molgen.workflows.reaction_attempt import VERIFIED
from molgen.workflows.reaction_set import ReactionSet


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--exclude", nargs="+", default=[])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    levels = set()
    for run in args.runs:
        settings = json.loads((run / "manifest.json").read_text())["settings"]
        levels.add(level_name(settings["calculator"], settings["calculator_kwargs"]))
    if len(levels) != 1:
        parser.error(f"the runs are on several levels: {', '.join(sorted(levels))}")
    joined = ReactionSet(levels.pop(), excluded_keys(args.exclude))
    parts: list[dict[str, object]] = []
    for run in args.runs:
        before, outcomes = len(joined), Counter(joined.outcomes)
        for attempt, record in sorted(read_journal(run / "attempts.jsonl", "attempt").items()):
            if record["outcome"] in VERIFIED:
                joined.add({**record, "attempt": f"{record['seed']}-{attempt}"})
        lost = {key: joined.outcomes[key] - outcomes[key] for key in ("duplicate", "excluded")}
        parts.append({"run": str(run), "kept": len(joined) - before, **lost})
    joined.write(args.out)
    print(json_text({"rows": len(joined), "reactions": joined.reactions, "parts": parts}), end="")


if __name__ == "__main__":
    main()
