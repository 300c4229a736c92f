"""Time per atom pair of the shared trunk, beside the same network in e3nn and beside PaiNN.

    pip install --no-deps --target /tmp/painn schnetpack==2.1.1
    taskset -c 1 python benchmarks/trunk.py --painn /tmp/painn

Every network sees all ordered pairs of the same batch of molecules. Times are CPU seconds of one thread (process time,
not wall time: the machine may be shared), the median over rounds in which the networks take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the e3nn peer is the tests' oracle: both are held equal there

from e3nn_trunk import E3nnTrunk  # noqa: E402

from molgen.files import write_atomic  # noqa: E402
from molgen.nn.trunk import Trunk, TrunkConfig  # noqa: E402

SIZES = {15: 24, 40: 4, 80: 1}  # atoms -> molecules a batch, 5,000 to 6,300 pairs
WIDTHS = {"scalars": 96, "vectors": 32, "pair": 64, "layers": 5, "node_inputs": 8, "time": False}
CUTOFF = 1e3  # Angstrom: PaiNN, too, works on all pairs


def molecules(atoms: int, batch: int) -> Tensor:
    """(B, N, 3) atoms at the density of organic matter, 0.1 per cubic Angstrom."""
    generator = torch.Generator().manual_seed(atoms)
    return torch.rand(batch, atoms, 3, generator=generator) * (atoms / 0.1) ** (1 / 3)


def trunk_call(network: Trunk | E3nnTrunk, x: Tensor, geometries: int) -> Callable[[], Tensor]:
    nodes, mask = torch.randn(*x.shape[:2], 8), torch.ones(x.shape[:2], dtype=torch.bool)
    sides = [x + 0.1 * k for k in range(geometries)]

    def call() -> Tensor:
        s, v, _ = network(nodes, sides, mask)
        return s.float().square().mean() + v.float().square().mean()

    return call


def load_painn(folder: str) -> tuple[types.ModuleType, types.ModuleType]:
    """schnetpack's PaiNN and layers as installed in `folder`, without the training stack its __init__ would import."""
    package = types.ModuleType("schnetpack")
    package.__path__ = [str(Path(folder) / "schnetpack")]
    sys.modules["schnetpack"] = package
    sys.path.append(folder)
    return importlib.import_module("schnetpack.representation.painn"), importlib.import_module("schnetpack.nn")


def painn_call(network: torch.nn.Module, x: Tensor) -> Callable[[], Tensor]:
    b, n = x.shape[:2]
    row, i, j = (~torch.eye(n, dtype=torch.bool)).expand(b, n, n).nonzero(as_tuple=True)
    i, j, flat = row * n + i, row * n + j, x.flatten(0, 1)
    numbers = torch.full((b * n,), 6)

    def call() -> Tensor:
        given = {"_atomic_numbers": numbers, "_Rij": flat[j] - flat[i], "_idx_i": i, "_idx_j": j}
        out = network(given)
        return (
            out["scalar_representation"].float().square().mean() + out["vector_representation"].float().square().mean()
        )

    return call


def networks(painn: str | None) -> dict[str, Callable[[Tensor], Callable[[], Tensor]]]:
    """name -> function that ties the network to a batch."""
    torch.manual_seed(0)
    made: dict[str, Callable[[Tensor], Callable[[], Tensor]]] = {}
    for geometries in (1, 3):
        ours = Trunk(TrunkConfig(**WIDTHS, geometries=geometries))
        theirs = E3nnTrunk(ours)
        label = f"{geometries} geometr{'y' if geometries == 1 else 'ies'}"
        made[f"molgen trunk, {label}"] = lambda x, m=ours, g=geometries: trunk_call(m, x, g)
        made[f"same network in e3nn, {label}"] = lambda x, m=theirs, g=geometries: trunk_call(m, x, g)
    if painn:
        module, layers = load_painn(painn)
        model = module.PaiNN(
            n_atom_basis=WIDTHS["scalars"],
            n_interactions=WIDTHS["layers"],
            radial_basis=layers.GaussianRBF(n_rbf=16, cutoff=6.0),
            cutoff_fn=layers.CosineCutoff(CUTOFF),
        )
        made["PaiNN (schnetpack), 1 geometry"] = lambda x, m=model: painn_call(m, x)
    return made


def seconds(call: Callable[[], Tensor], backward: bool, bf16: bool) -> float:
    """CPU seconds of one call."""
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
    start = time.process_time()
    with torch.set_grad_enabled(backward), autocast:
        loss = call()
    if backward:
        loss.backward()
    return time.process_time() - start


def measure(painn: str | None, rounds: int) -> list[dict]:
    made = networks(painn)
    rows = []
    for atoms, batch in SIZES.items():
        x = molecules(atoms, batch)
        pairs = batch * atoms * (atoms - 1)
        calls = {name: tie(x) for name, tie in made.items()}
        for bf16 in (False, True):
            for backward in (False, True):
                times: dict[str, list[float]] = {name: [] for name in calls}
                for k in range(rounds + 2):
                    for name, call in calls.items():
                        spent = seconds(call, backward, bf16)
                        if k >= 2:  # the first two warm up caches and e3nn's compiler
                            times[name].append(spent)
                for name, spent in times.items():
                    rows.append(
                        {
                            "network": name,
                            "atoms": atoms,
                            "molecules": batch,
                            "precision": "bf16 autocast" if bf16 else "fp32",
                            "pass": "forward + backward" if backward else "forward",
                            "microseconds_per_pair": 1e6 * statistics.median(spent) / pairs,
                            "relative_spread": (max(spent) - min(spent)) / statistics.median(spent),
                        }
                    )
                print(f"{atoms} atoms, bf16 {bf16}, backward {backward}: done", file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: microseconds a pair, and how many times the trunk of as many geometries is faster."""
    reference = {
        (r["network"].split(", ")[1], r["atoms"], r["precision"], r["pass"]): r["microseconds_per_pair"]
        for r in rows
        if r["network"].startswith("molgen")
    }
    names = list(dict.fromkeys(r["network"] for r in rows))
    lines = ["| precision | pass | atoms | " + " | ".join(names) + " |", "|---|---|---|" + "---|" * len(names)]
    for key in dict.fromkeys((r["precision"], r["pass"], r["atoms"]) for r in rows):
        cells = []
        for name in names:
            row = next(r for r in rows if (r["network"], r["precision"], r["pass"], r["atoms"]) == (name, *key))
            value = row["microseconds_per_pair"]
            ratio = value / reference[(name.split(", ")[1], key[2], key[0], key[1])]
            cells.append(f"{value:.2f}" if name.startswith("molgen") else f"{value:.2f} ({ratio:.1f}x)")
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--painn", metavar="DIR", help="folder that holds schnetpack; without it PaiNN is left out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "trunk.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.painn, options.rounds)
    import e3nn

    machine = {
        "processor": processor(),
        "threads": 1,
        "amx": "amx_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else None,
    }
    versions = {"torch": torch.__version__, "e3nn": e3nn.__version__, "python": platform.python_version()}
    result = {
        "date": date.today().isoformat(),
        "machine": machine,
        "versions": versions,
        "widths": WIDTHS,
        "rows": rows,
    }
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
