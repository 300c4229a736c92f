"""What every subcommand shares: option types, streams, and how an error becomes a message and an exit code.

Data and JSON go to stdout; logs and progress to stderr. Exit codes: 0 ok, 1 internal error, 2 bad input, 3 finished but
the quality gate failed, 4 partial (some samples failed), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from molgen.device import resolve_device as resolve_device
from molgen.errors import InputError, MolgenError, check_counts
from molgen.files import MANIFEST, json_text, read_manifest

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress


class ExitCode(IntEnum):
    """What the shell sees."""

    OK = 0
    INTERNAL = 1
    BAD_INPUT = 2
    GATE_FAILED = 3
    PARTIAL = 4
    INTERRUPTED = 130


Calculator = Annotated[
    str, typer.Option("--calculator", help="Energies: gfn2, gfn1, or module:Class of an ASE calculator.")
]
CalculatorKwargs = Annotated[
    str | None, typer.Option("--calculator-kwargs", help="Arguments of module:Class, as JSON.")
]
Solvent = Annotated[
    str | None, typer.Option("--solvent", help="Implicit solvent of xTB: water, thf, ...; default: gas phase.")
]


def _workers(text: str) -> int | None:
    """The number of `--workers`; None for "auto"."""
    count = int(text) if re.fullmatch(r"-?\d+", text) else text
    check_counts(workers=(None if count == "auto" else count, 1))
    return None if isinstance(count, str) else count


Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", parser=_workers, metavar="N", help="Number of processes; default auto: as many as are worthwhile."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Random seed. The same seed gives the same samples.")]
Device = Annotated[str, typer.Option("--device", help="Where the model runs: auto, cpu, cuda, cuda:1, mps.")]
FlowDevice = Annotated[str, typer.Option("--device", help="Where the flow runs: auto, cpu, cuda, cuda:1.")]
Dtype = Annotated[str, typer.Option("--dtype", help="Precision of the model: float32 or float64.")]
Out = Annotated[Path, typer.Option("--out", help="Output folder.", file_okay=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the output folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an earlier run in the output folder.")]
TimeBudget = Annotated[str | None, typer.Option("--time-budget", help="Stop after 30m, 2h, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")]

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}

# width: a log file or CI has no terminal to ask; 120 keeps tables whole there.
stderr = Console(stderr=True, highlight=False, width=None if sys.stderr and sys.stderr.isatty() else 120)


def log(message: str) -> None:
    """A line for the person watching, on stderr; rich markup is not interpreted."""
    stderr.print(message, markup=False)


def warn(message: str) -> None:
    """A warning on stderr."""
    stderr.print(f"[yellow]warning:[/yellow] {_escaped(message)}")


def print_json(value: Any) -> None:
    """`value` as JSON on stdout, the only thing there when --json is given."""
    sys.stdout.write(json_text(value))


def written(out: Path) -> str:
    """What a run wrote into its folder, for the last line of a report: "OUT/: a.xyz, b.png"; the folder if unknown."""
    manifest = read_manifest(out)
    if manifest is None:  # moved away, say: no reason to lose the report of a long run
        return f"{out}/"
    names = {*manifest["files"], MANIFEST}
    return f"{out}/: {', '.join(sorted(name for name in names if (out / name).is_file()))}"


def redrawn(reasons: dict[str, int], proposals: int) -> str:
    """Proposals drawn again, by reason: "2 x contact (0.5% of 402)"."""
    if not reasons:
        return f"none of {proposals}"
    listed = ", ".join(f"{count} x {reason}" for reason, count in reasons.items())
    return f"{listed} ({sum(reasons.values()) / proposals:.2%} of {proposals})"


def number(value: float | None, digits: int = 2) -> str:
    """To so many significant digits; "none" where there is none."""
    return "none" if value is None else f"{value:.{digits}g}"


def calculator_kwargs(text: str | None) -> dict[str, Any]:
    """The JSON object of `--calculator-kwargs`; empty where it is not given.

    Raises:
        InputError: not JSON, or not an object.
    """
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"{text!r} is not a JSON object", where="--calculator-kwargs",
            expected="""such as '{"method": "GFN1-xTB"}'""",
        )  # fmt: skip
    return value


def options_given(context: typer.Context, names: Collection[str], values: Mapping[str, Any] | None = None) -> list[str]:
    """Those of the parameters `names` that the user gave, as "--hill-width", in the order of the command.

    Args:
        values: of all parameters, with those of a file: one that is not the default was given there.
    """
    found = []
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        typed = source is not None and source.name == "COMMANDLINE"
        if name in names and (typed or (values is not None and values[name] != parameter.default)):
            found.append(f"--{name.rstrip('_').replace('_', '-')}")
    return found


def progress() -> Progress:
    """A progress bar on stderr that leaves nothing behind; silent when stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)


@contextlib.contextmanager
def stages(first: str, every: float = 60.0) -> Iterator[Callable[[str, int, int], None]]:
    """A function of (stage, done, total) that says how far a run is: a bar on a terminal, a line now and then in a log.

    Args:
        first: what the bar says before the first call.
        every: seconds between lines in a log; a run that takes less writes none.
    """
    if stderr.is_terminal:
        with progress() as bar:
            task = bar.add_task(first, total=None)
            yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)
        return
    last = time.monotonic()

    def say(stage: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            log(f"{stage} ({done} of {total})")

    yield say


@contextlib.contextmanager
def live_line(every: float = 60.0) -> Iterator[Callable[[str], None]]:
    """A function that shows a line in place of its last one on a terminal; in a log, one line in `every` seconds.

    The first comes after as long: a rate of the first moment says nothing.
    """
    last = time.monotonic()
    if stderr.is_terminal:
        with stderr.status("") as status:
            yield lambda message: status.update(_escaped(message))
        return

    def say(message: str) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            log(message)

    yield say


def resolve_dtype(name: str) -> torch.dtype:
    """The torch dtype of `--dtype`.

    Raises:
        InputError: neither float32 nor float64.
    """
    import torch

    known = {"float32": torch.float32, "float64": torch.float64}
    if name not in known:
        raise InputError(f"unknown precision {name!r}", where="--dtype", expected=" or ".join(known))
    return known[name]


class Group(TyperGroup):
    """A command group that turns errors into a message on stderr and an exit code. For the outermost app only."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; click's own exceptions (usage errors, --help) pass through."""
        with error_to_exit(debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


@contextlib.contextmanager
def error_to_exit(debug: bool = False) -> Iterator[None]:
    """Raise `typer.Exit` with the code an error deserves, after saying what happened.

    Args:
        debug: print the traceback too.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        stderr.print("interrupted; what was finished is kept")
        raise typer.Exit(ExitCode.INTERRUPTED) from error
    except MolgenError as error:
        _report(str(error), error, debug)
        raise typer.Exit(error.exit_code) from error
    except Exception as error:
        # typer's own control flow (Exit, Abort, usage errors), and a closed pipe, which typer ends quietly.
        if isinstance(error, BrokenPipeError) or type(error).__module__.split(".")[0] in ("typer", "click"):
            raise
        if isinstance(error, OSError) and error.filename:  # a name too long, a folder that may not be read
            _report(f"{error.filename}: {error.strerror}", error, debug)
            raise typer.Exit(ExitCode.BAD_INPUT) from error
        advice = "" if debug else "\n  this is a fault in molgen; `molgen --debug ...` shows where, please report it"
        _report(f"{type(error).__name__}: {error}{advice}", error, debug)
        raise typer.Exit(ExitCode.INTERNAL) from error


def _report(message: str, error: BaseException, debug: bool) -> None:
    if debug:
        import traceback

        stderr.print("".join(traceback.format_exception(error)), markup=False, soft_wrap=True)
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    stderr.print(f"[bold red]error:[/bold red] {_escaped(message + notes)}", soft_wrap=True)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def sequences_of(text: str) -> list[str]:
    """The sequences of "AA, GPEV"."""
    return [part.strip() for part in text.split(",") if part.strip()]


def seconds_of(text: str) -> float:
    """Seconds of "90s", "30m", "2h", "1h30m" or a plain number of seconds.

    Raises:
        InputError: not a duration.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd]?)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.replace(" ", ""):
        raise InputError(f"{text!r} is not a duration", where="--time-budget", expected="such as 90s, 30m, 2h or 1h30m")
    total = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
    if total <= 0:
        raise InputError("no time given", where="--time-budget", expected="a positive duration, such as 2h")
    return total


def duration(seconds: float) -> str:
    """A time for people: "3e-07 s", "12 min", "4.1 years"."""
    for unit, size in (("years", 31_557_600), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
