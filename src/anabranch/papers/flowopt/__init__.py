"""Editing and inversion by moving the starting noise until the finished picture fits, with no back-propagation."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="flowopt",
    title="FlowOpt: Fast Optimization Through Whole Flow Processes for Training-Free Editing",
    authors=("Or Ronai", "Vladimir Kulikov", "Tomer Michaeli"),
    published=date(2025, 10, 24),
    arxiv="2510.22010",
    repository="orronai/FlowOpt",
    summary=(
        "Sampling with a flow model is one long function from noise and prompt to a picture; this method optimises its "
        "input as if the function were a black box. The error of the finished picture itself is the update of the "
        "noise, again and again, no gradient needed: with the source prompt that inverts a real photo, with the target "
        "prompt it edits one, and the user may stop at any round. For people who edit photos with SD3 or FLUX without "
        "training."
    ),
    package="editing",
    extra="editing",
    claims=(
        Claim(
            name="inversion-quality",
            says="For about the same number of network calls a photo is reconstructed as well as by the best inversion "
            "methods, or better.",
            published=None,
            where="abstract, inversion section; the numbers were not found",
            read_in="abstract",
            published_setting="FLUX.1-dev and SD3-medium, 1024x1024, 10 steps, 30 rounds; Uni-Inv, FireFlow, ReNoise",
        ),
        Claim(
            name="editing-trade-off",
            says="Edits balance the target prompt and the likeness to the source better than editors that invert.",
            published=None,
            where="abstract, editing section; the numbers were not found",
            read_in="abstract",
            published_setting="FLUX.1-dev and SD3-medium, 15 steps, 8 rounds",
        ),
        Claim(
            name="convergence-bound",
            says="Below a bound on the step size the rounds converge to the global optimum.",
            published="proof",
            where="theorem 1, appendix F; reviewers found its condition too strong for some functions",
            read_in="abstract",
            published_setting="theory",
            kind="exact",
        ),
        Claim(
            name="bound-from-samples",
            says="The bound can be estimated from samples, which gives a step size for each model.",
            published="0.0025 (FLUX), 0.01 (SD3)",
            where="appendix C; the authors' settings",
            read_in="code",
            published_setting="FLUX.1-dev, SD3-medium",
        ),
    ),
)
