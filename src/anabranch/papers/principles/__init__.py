"""The shared core of diffusion, score and flow models as checkable statements: paths, predictions, solvers, guidance."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="principles",
    title="The Principles of Diffusion Models",
    authors=("Chieh-Hsin Lai", "Yang Song", "Dongjun Kim", "Yuki Mitsufuji", "Stefano Ermon"),
    published=date(2025, 10, 23),
    arxiv="2510.21890",
    summary=(
        "A textbook of more than 400 pages that shows denoising models, score models and flow matching to be one thing: "
        "a velocity that changes with time and carries simple noise to data. Noise, clean data, score and velocity are "
        "four names for the same prediction, any differential-equation solver samples it, guidance steers it, and flow "
        "maps jump along it. For students who want to see each statement of generative modelling run, and for "
        "researchers who need one trusted set of paths, conversions and samplers."
    ),
    package="generative",
    extra="generative",
    claims=(
        Claim(
            name="kernel-and-equation",
            says="The Gaussian forward kernel and the linear stochastic equation determine each other in closed form.",
            published="identity",
            where="section 4.4, from notes",
            read_in="secondary",
            published_setting="theory",
            kind="exact",
        ),
        Claim(
            name="same-marginals",
            says="The reverse-time stochastic equation and the probability-flow equation share every marginal.",
            published="theorem",
            where="section 4.5, from notes",
            read_in="secondary",
            published_setting="theory",
        ),
        Claim(
            name="conditional-targets-suffice",
            says="Regressing on conditional targets has the same minimiser as regressing on the marginal ones.",
            published="theorem",
            where="chapters 3 and 5 (5 from general knowledge of the field)",
            read_in="secondary",
            published_setting="theory",
        ),
        Claim(
            name="four-predictions",
            says="Predictions of noise, clean data, score and velocity convert into each other exactly.",
            published="identity",
            where="chapter 6 (from general knowledge of the field)",
            read_in="secondary",
            published_setting="theory",
            kind="exact",
        ),
        Claim(
            name="likelihood-bound",
            says="The terms of the likelihood bound reduce to the error of the clean prediction, weighted by the change "
            "of the signal-to-noise ratio.",
            published="1/2 (SNR(t) - SNR(s)) |x - x_hat|^2",
            where="section 4.4, equation 4.4.7, from notes",
            read_in="secondary",
            published_setting="theory",
            kind="exact",
        ),
        Claim(
            name="posterior-step",
            says="The ancestral posterior step has a closed form for any schedule.",
            published="identity",
            where="lemma 4.4.2, equation 4.4.8, from notes",
            read_in="secondary",
            published_setting="theory",
            kind="exact",
        ),
        Claim(
            name="higher-order-solvers",
            says="Solvers of higher order reach the accuracy of first-order ones in fewer network calls.",
            published=None,
            where="chapter on solvers (from general knowledge of the field)",
            read_in="secondary",
            published_setting="Heun, DPM-Solver, multistep; DDIM",
        ),
        Claim(
            name="flow-maps-in-few-calls",
            says="Maps between any two times compose, and sample in one to four calls.",
            published="1 to 4 calls",
            where="last chapters (from general knowledge of the field)",
            read_in="secondary",
            published_setting="consistency models, CTM, MeanFlow",
        ),
    ),
)
