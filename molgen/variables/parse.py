"""Collective variables as people write them: "rc = distance 0 4 - distance 0 5", "phi 1", "rg", "rmsd ref.xyz".

Atoms and residues count from 0 (caps are residues too); a group of atoms is an mdtraj selection. Lengths are in
Angstrom, angles in radians; `path-z` is in Angstrom^2, `volume` in Angstrom^3.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from molgen.errors import InputError
from molgen.variables import of_atoms, of_residues
from molgen.variables.cv import CV, linear
from molgen.variables.molecule import Molecule
from molgen.variables.of_structures import path_s, path_z, rmsd

Build = Callable[[str, Molecule], CV]  # arguments as they are written -> the variable

_TERM = re.compile(r"(?:(?P<factor>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*)?(?P<kind>\S+)(?:\s+(?P<rest>.*))?")


def parse_cv(text: str, molecule: Molecule, called: str = "collective variable") -> CV:
    """The collective variable that `text` names.

    One of the kinds in `KINDS`, or a sum "0.5*distance 0 4 - angle 0 1 2" (angles in radians; spaces around + and -),
    after an optional label "rc = ". Its name is the label, or the text. "phi_1" is "phi 1".

    Args:
        called: what messages call it.

    Raises:
        InputError: unknown kind, atoms or residues that do not exist or repeat, a selection that is empty, a file that
            cannot be read or does not fit, or no topology where one is needed.
    """
    where = f"{called} {text!r}"
    label = re.match(r"\s*([^\s=]+)\s*=\s*", text)
    body = " ".join((text[label.end() :] if label else text).split())
    if re.fullmatch(r"[A-Za-z-]+(_\d+)+", body) and body.split("_")[0].lower() in KINDS:
        body = body.replace("_", " ")
    lead = body[0] if body[:1] in ("+", "-") else ""
    terms, factors = [], []
    for sign, piece in _pieces(lead, body.removeprefix(lead).strip()):
        match = _TERM.fullmatch(piece)
        kind = _kind(piece)
        if not match or kind not in KINDS:
            raise InputError(
                f"no kind of variable {kind!r}" if kind else "a variable is missing",
                where=where,
                expected="; ".join(usage for usage, _ in KINDS.values()),
                remedy="write one of these, or a sum of them with spaces around + and -; atoms count from 0",
            )
        usage, build = KINDS[kind]
        try:
            cv = build(match["rest"] or "", molecule)
        except InputError as error:
            remedy = error.remedy or f"write {usage}; atoms and residues count from 0"
            raise InputError(error.what, where=where, expected=error.expected or usage, remedy=remedy) from error
        written = f"{kind} {match['rest'] or ''}".strip()
        of_atoms_alone = kind in EITHER_WAY and ";" not in written
        terms.append(replace(cv, name=written, definition=cv.definition if of_atoms_alone else written))
        factors.append(float(match["factor"] or 1) * (-1 if sign == "-" else 1))
    try:
        cv = terms[0] if factors == [1] else linear(terms, factors)
    except InputError as error:
        raise InputError(error.what, where=where, expected=error.expected, remedy=error.remedy) from error
    return replace(cv, name=label[1] if label else body)


def _pieces(lead: str, body: str) -> list[tuple[str, str]]:
    """Sign and text of each term; a " - " in the name of a file, before what is no kind, is no sign."""
    first, *others = re.split(r"\s([-+])\s", body)
    pieces = [(lead, first)]
    for sign, piece in zip(others[0::2], others[1::2], strict=True):
        if _kind(pieces[-1][1]) in FROM_FILES and _kind(piece) not in KINDS:
            pieces[-1] = pieces[-1][0], f"{pieces[-1][1]} {sign} {piece}"
        else:
            pieces.append((sign, piece))
    return pieces


def _kind(piece: str) -> str:
    """The kind that a term is of, or would be; "" where there is none."""
    match = _TERM.fullmatch(piece)
    return match["kind"].lower() if match else ""


def _of_atoms(build: Callable[..., CV], count: int) -> Build:
    """Builder of a kind that takes `count` atoms."""
    return lambda rest, molecule: build(*molecule.atoms(rest.split(), count))


def _distance(rest: str, molecule: Molecule) -> CV:
    """Of two atoms, or of the centres of mass of two selections."""
    if ";" not in rest:
        return of_atoms.distance(*molecule.atoms(rest.split(), 2))
    groups = rest.split(";")
    if len(groups) != 2:
        raise InputError(f"{len(groups)} groups of atoms instead of 2")
    a, b = (molecule.selected(group.strip()) for group in groups)
    if sorted(a) == sorted(b):
        raise InputError("both groups are the same atoms", expected="two groups")
    return of_residues.centre_distance(a, b, molecule.numbers)


def _coordination(rest: str, molecule: Molecule) -> CV:
    words = rest.split()
    groups, options = [w for w in words if "=" not in w], dict(w.split("=", 1) for w in words if "=" in w)
    if len(groups) + len(options) < len(words) or len(groups) != 2 or not {"r0"} <= options.keys() <= {"r0", "n", "m"}:
        raise InputError(f"cannot read {rest!r}")
    a, b = (molecule.atoms(group.split(",")) for group in groups)
    try:
        r0, n, m = float(options["r0"]), int(options.get("n", 6)), int(options.get("m", 12))
    except ValueError as error:
        raise InputError(str(error), expected="a number r0 and whole numbers n and m") from error
    return of_atoms.coordination(a, b, r0, n, m)


def _backbone(name: str) -> Build:
    return lambda rest, molecule: of_residues.backbone(name, rest, molecule.residues())


def _rg(rest: str, molecule: Molecule) -> CV:
    atoms = molecule.selected(rest) if rest else range(len(molecule))
    return of_residues.radius_of_gyration(atoms, molecule.numbers)


def _end_to_end(rest: str, molecule: Molecule) -> CV:
    if rest:
        raise InputError(f"does not take {rest!r}")
    return of_residues.end_to_end(molecule.residues())


def _helicity(rest: str, molecule: Molecule) -> CV:
    kinds = {"": of_residues.helicity, "dssp": of_residues.helicity_dssp}
    if rest.lower() not in kinds:
        raise InputError(f"does not take {rest!r}")
    return kinds[rest.lower()](molecule.residues())


def _from_file(build: Callable[[np.ndarray, list[int] | None], CV]) -> Build:
    """Builder of a kind that takes "FILE [atoms]", the brackets optional."""

    def read(rest: str, molecule: Molecule) -> CV:
        match = re.fullmatch(r"(\S.*?)(?:\s+\[(.*)\]|\s+([\d,]+))?", rest)
        if not match:
            raise InputError("no file given")
        listed = match[2] if match[2] is not None else match[3]
        chosen = None if listed is None else molecule.atoms(re.split(r"[\s,]+", listed.strip()))
        frames = molecule.frames(match[1])
        return replace(build(frames, chosen), references={match[1]: frames})

    return read


def _rmsd_of_one(frames: np.ndarray, atoms: list[int] | None) -> CV:
    if len(frames) != 1:
        raise InputError(f"the file holds {len(frames)} structures", expected="one")
    return rmsd(frames[0], atoms)


# What people write, and its builder.
KINDS: dict[str, tuple[str, Build]] = {
    "distance": ("distance I J, or distance SELECTION ; SELECTION (centres of mass)", _distance),
    "angle": ("angle I J K", _of_atoms(of_atoms.angle, 3)),
    "torsion": ("torsion I J K L", _of_atoms(of_atoms.torsion, 4)),
    "volume": ("volume I J K L", _of_atoms(of_atoms.volume, 4)),
    "coordination": ("coordination I,... J,... r0=R [n=6 m=12]", _coordination),
    "phi": ("phi RESIDUE", _backbone("phi")),
    "psi": ("psi RESIDUE", _backbone("psi")),
    "rg": ("rg, or rg SELECTION", _rg),
    "end-to-end": ("end-to-end", _end_to_end),
    "helicity": ("helicity, or helicity dssp", _helicity),
    "rmsd": ("rmsd FILE [I,J,...]", _from_file(_rmsd_of_one)),
    "path-s": ("path-s FILE [I,J,...]", _from_file(path_s)),
    "path-z": ("path-z FILE [I,J,...]", _from_file(path_z)),
}
EITHER_WAY = ("distance", "angle", "torsion")  # kinds that know their definition, of atoms read from either end
FROM_FILES = ("rmsd", "path-s", "path-z")
