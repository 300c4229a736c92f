"""Transition states on a potential: refinement of a guess, vibrational modes, and what lies on both sides."""

from molgen.saddle.modes import Modes, normal_modes
from molgen.saddle.refine import Refinement, calls_allowed, mode_overlap, reaction_direction, refine
from molgen.saddle.verify import Verification, verify

__all__ = [
    "Modes",
    "Refinement",
    "Verification",
    "calls_allowed",
    "mode_overlap",
    "normal_modes",
    "reaction_direction",
    "refine",
    "verify",
]
