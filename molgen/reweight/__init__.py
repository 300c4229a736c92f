"""What samples are worth: importance weights, ensembles that carry them, and the numbers estimated from both."""

from molgen.reweight.ensemble import Ensemble
from molgen.reweight.estimate import Estimate, autocorrelation_time
from molgen.reweight.free_energy import FES, CVValues
from molgen.reweight.importance import WeightDiagnostics, diagnose, normalised, psis, verdict

__all__ = [
    "FES",
    "CVValues",
    "Ensemble",
    "Estimate",
    "WeightDiagnostics",
    "autocorrelation_time",
    "diagnose",
    "normalised",
    "psis",
    "verdict",
]
