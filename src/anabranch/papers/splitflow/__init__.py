"""Text-driven picture editing: one flow for each part of the prompt, projected on the whole and mixed."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="splitflow",
    title="SplitFlow: Flow Decomposition for Inversion-Free Text-to-Image Editing",
    authors=(
        "Sung-Hoon Yoon",
        "Minghan Li",
        "Gaspard Beaudouin",
        "Congcong Wen",
        "Muhammad Rafay Azhar",
        "Mengyu Wang",
    ),
    published=date(2025, 10, 29),
    arxiv="2510.25970",
    repository="Harvard-AI-and-Robotics-Lab/SplitFlow",
    summary=(
        "FlowEdit changes a picture by following the difference of two prompts' velocities, without inverting the "
        "picture to noise first; when the instruction asks for several things at once, they pull against each other. "
        "Here a language model cuts the target text into parts, each part gets its own trajectory over the first steps, "
        "and the trajectories are projected on the one of the whole text and blended where they agree. No training; for "
        "people who edit real photos with long instructions."
    ),
    package="editing",
    extra="editing",
    claims=(
        Claim(
            name="prompt-agreement",
            says="The edited pictures agree better with the target text than FlowEdit's, on the whole and inside the "
            "edited region.",
            published="CLIP x100: whole 26.96, edited 23.83 (FlowEdit 26.83, 23.67)",
            where="main table, from a published reading note",
            read_in="secondary",
            published_setting="PIE-Bench, 700 pictures, SD3-medium, 50 steps; FlowEdit",
        ),
        Claim(
            name="preservation",
            says="At that agreement the picture is kept at least as well as by FlowEdit.",
            published="structure x1000 25.96, PSNR 22.45, LPIPS x1000 102.14, SSIM x100 83.91 "
            "(FlowEdit 27.24, 22.13, 105.46, 83.48)",
            where="main table, from a published reading note",
            read_in="secondary",
            published_setting="PIE-Bench, 700 pictures, SD3-medium, 50 steps; FlowEdit",
        ),
        Claim(
            name="fidelity-setting",
            says="A setting that favours fidelity beats an editor on the stronger SD3.5 in structure, LPIPS and prompt "
            "agreement, though not in PSNR or SSIM.",
            published="structure 14.55, PSNR 25.22, LPIPS 68.53, SSIM 87.54, CLIP 26.23 and 23.01 "
            "(FTEdit on SD3.5: 18.17, 26.62, 80.55, 91.50, 25.74, 22.27)",
            where="main table, from a published reading note; the setting itself was not found",
            read_in="secondary",
            published_setting="PIE-Bench, 700 pictures, SD3-medium; FTEdit on SD3.5",
        ),
        Claim(
            name="larger-backbone",
            says="On SD3.5 itself it beats that editor in every measure but SSIM.",
            published="structure 11.68, PSNR 27.12, LPIPS 52.93, SSIM 89.76, CLIP 26.29 and 22.89 "
            "(FTEdit 18.17, 26.62, 80.55, 91.50, 25.74, 22.27)",
            where="main table, from a published reading note",
            read_in="secondary",
            published_setting="PIE-Bench, 700 pictures, SD3.5; FTEdit on SD3.5",
        ),
        Claim(
            name="projection-and-mixing",
            says="Projection restores the agreement that a plain average of the parts gives up, and the weighted mix "
            "adds a little more.",
            published="CLIP whole 26.81 average, 26.93 with projection, 26.96 with both (FlowEdit 26.83)",
            where="ablation table, from a published reading note",
            read_in="secondary",
            published_setting="PIE-Bench, 700 pictures, SD3-medium",
        ),
        Claim(
            name="cost",
            says="Editing the benchmark takes about half as long again as FlowEdit, the language model's time not "
            "counted.",
            published="about 83 min plus 20 min of language model (FlowEdit 57 min)",
            where="appendix, from a published reading note",
            read_in="secondary",
            published_setting="700 pictures on one GPU of a type we did not find",
            kind="timing",
        ),
        Claim(
            name="mix-no-worse-than-mean",
            says="The weighted mix of velocities is at least as aligned with the whole prompt's as their plain mean.",
            published="proof",
            where="appendix, from a published reading note",
            read_in="secondary",
            published_setting="theory",
            kind="exact",
        ),
    ),
)
