"""Prose: a transferable normalizing flow for peptides."""

from molgen.prose.generate import propose
from molgen.prose.layout import Layout
from molgen.prose.model import ProseFlow
from molgen.prose.weights import load_flow

__all__ = ["Layout", "ProseFlow", "load_flow", "propose"]
