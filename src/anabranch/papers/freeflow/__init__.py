"""A one-step student of a flow model, distilled from its prior alone: no training data."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="freeflow",
    title="Flow Map Distillation Without Data",
    authors=("Shangyuan Tong", "Nanye Ma", "Saining Xie", "Tommi Jaakkola"),
    published=date(2025, 11, 24),
    arxiv="2511.19428",
    repository="ShangyuanTong/FreeFlow",
    summary=(
        "Distilling a slow flow model into a one-call student usually feeds it noised data, which teaches the wrong "
        "process where the data set is not what the teacher makes. FreeFlow needs no data: starting from the prior, the "
        "student's own path must move with the teacher's velocity, and its outputs, noised again, must have the "
        "teacher's velocity field. For owners of an image, sound, molecule or simulation model who have the weights "
        "but not, or not fitting, training data."
    ),
    package="generative",
    extra="generative",
    claims=(
        Claim(
            name="one-step-256",
            says="One call comes close to the teacher's hundreds and beats students distilled with data.",
            published="FID 1.45 (teacher 1.37 with 434 calls; with data 2.85 at 1 call, 1.52 at 2)",
            where="Table 2; abstract",
            read_in="paper",
            published_setting="ImageNet 256x256, SiT-XL/2+REPA, FID-50K; pi-Flow, FACM",
        ),
        Claim(
            name="one-step-512",
            says="The same holds at twice the resolution.",
            published="FID 1.49 (teacher 1.37 with 460 calls)",
            where="Table 2; abstract",
            read_in="paper",
            published_setting="ImageNet 512x512, SiT-XL/2+REPA, FID-50K",
        ),
        Claim(
            name="better-than-its-teacher",
            says="The student of a plainer teacher surpasses it.",
            published="FID 1.69 (teacher 2.06 with 250x2 calls)",
            where="Table 2",
            read_in="paper",
            published_setting="ImageNet 256x256, SiT-XL/2, FID-50K",
        ),
        Claim(
            name="fast-training",
            says="About twenty epochs' worth of training already give a good student.",
            published="FID 1.84 after 100,000 iterations",
            where="text",
            read_in="paper",
            published_setting="ImageNet 256x256",
        ),
        Claim(
            name="both-signals-needed",
            says="Prediction alone drifts; correcting the outputs' distribution halves the FID when gradients are "
            "normalised.",
            published="FID 12.40 prediction only, 5.58 with correction (k = 1); 43.53 with it, not normalised (k = 0)",
            where="Table 1",
            read_in="paper",
            published_setting="ablation, DiT-B/2",
        ),
        Claim(
            name="correct-at-high-noise",
            says="The correction must reach the highest noise levels.",
            published="FID 91.82 up to noise 0.6, 6.02 over the whole range, 5.63 leaning to high noise",
            where="Table 1",
            read_in="paper",
            published_setting="ablation, DiT-B/2",
        ),
        Claim(
            name="search-for-noise",
            says="Good noise found with the cheap student serves the teacher: fewer calls in all than plain guided "
            "sampling.",
            published="80 calls against 128",
            where="text",
            read_in="paper",
            published_setting="ImageNet; best of several draws",
        ),
        Claim(
            name="data-mismatch-hurts",
            says="Distillation with data gets worse the more the data are changed by augmentation.",
            published=None,
            where="figure; numbers not found",
            read_in="paper",
            published_setting="augmented training data; no data",
        ),
    ),
)
