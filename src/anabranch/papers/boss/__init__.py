"""The best time steps of a flow model by dynamic programming, then a network straightened on exactly those steps."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="boss",
    title="Bellman Optimal Step-size Straightening of Flow-Matching Models",
    authors=("Bao Nguyen", "Binh Nguyen", "Viet Anh Nguyen"),
    published=date(2023, 12, 27),
    arxiv="2312.16414",
    repository="nguyenngocbaocmt02/BOSS",
    summary=(
        "Given a trained flow-matching model and a budget of a few network calls, dynamic programming on a table of "
        "one-step errors chooses the time steps that cost the least, which improves any sampler for nothing. A short "
        "fine-tuning then teaches the network the chord of its own path on those steps only. For anyone who has to "
        "sample with four to ten calls and cannot afford to distil from scratch."
    ),
    package="generative",
    extra="generative",
    claims=(
        Claim(
            name="bellman-beats-uniform",
            says="At four calls the chosen steps give a lower FID than uniform ones, without training, on all five data "
            "sets.",
            published="CIFAR-10 51.95 to 47.57, CelebA-HQ 158.95 to 92.03, Church 106.94 to 80.91, AFHQ-Cat 68.95 to "
            "45.54, Bedroom 84.35 to 61.60",
            where="Table 1, from a third-party report",
            read_in="secondary",
            published_setting="official Rectified Flow checkpoints, Euler, 50k samples",
        ),
        Claim(
            name="gain-shrinks-with-steps",
            says="At eight calls the chosen steps still win on all five data sets.",
            published="CIFAR-10 16.82 to 15.74, CelebA-HQ 109.42 to 49.80, Church 34.74 to 33.22, AFHQ-Cat 56.96 to "
            "33.94, Bedroom 32.15 to 25.80",
            where="Table 1, from a third-party report",
            read_in="secondary",
            published_setting="official Rectified Flow checkpoints, Euler, 50k samples",
        ),
        Claim(
            name="straightening-beats-reflow",
            says="After the same number of fine-tuning steps it beats distilled and uniform reflow at 256 pixels and "
            "loses on CIFAR-10.",
            published="FID at 6 calls: CelebA-HQ 18.67 (34.56, 43.57), Church 17.43 (34.52, 40.45), AFHQ-Cat 26.10 "
            "(46.24, 51.24), Bedroom 18.45 (41.17, 45.13), CIFAR-10 4.80 (4.35, 4.33)",
            where="Table 2, from a third-party report",
            read_in="secondary",
            published_setting="12,000 fine-tuning steps; in brackets distilled reflow, uniform reflow",
        ),
        Claim(
            name="search-is-cheap",
            says="The whole search for the steps takes about two minutes.",
            published="about 115 s",
            where="Table 3 and appendix B, from a third-party report",
            read_in="secondary",
            published_setting="256x256, one RTX A5000",
            kind="timing",
        ),
        Claim(
            name="steps-look-alike",
            says="The chosen steps are small at both ends and large in the middle.",
            published=".02 .05 .11 .17 .21 .20 .16 .08",
            where="Tables 4 and 5, from a third-party report",
            read_in="secondary",
            published_setting="CelebA-HQ, 8 steps",
        ),
        Claim(
            name="steps-transfer",
            says="Steps chosen on one data set still beat uniform ones on another.",
            published="FID 132.04 (own steps 92.03, uniform 158.95)",
            where="Table 6, from a third-party report",
            read_in="secondary",
            published_setting="LSUN Church's steps on CelebA-HQ, 4 calls",
        ),
        Claim(
            name="low-rank-is-enough",
            says="Tuning a fiftieth of the parameters comes near the quality of tuning them all.",
            published="FID 36.70 with 2.02 % (all: 33.86)",
            where="Table 8, from a third-party report",
            read_in="secondary",
            published_setting="CelebA-HQ, LoRA of rank 4, 175k steps",
        ),
        Claim(
            name="close-to-adaptive-solver",
            says="Twenty Bellman steps with Heun come within about one percent of an adaptive solver.",
            published="within about 1 %, equal at 50 steps",
            where="Fig. 4, from a third-party report",
            read_in="secondary",
            published_setting="Heun against RK45",
        ),
    ),
)
