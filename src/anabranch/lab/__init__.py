"""Runs experiments: settings, seeds, progress, timing, figures, verdicts."""

from anabranch.lab.contract import Claim, Paper

__all__ = ["Claim", "Paper"]
