"""One generative model for four jobs of a speech front end, told apart by a learned task embedding."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="uniflow",
    title="UniFlow: Unifying Speech Front-End Tasks via Continuous Generative Modeling",
    authors=(
        "Ziqian Wang",
        "Zikai Liu",
        "Yike Zhu",
        "Xingchen Li",
        "Boyi Kang",
        "Jixun Yao",
        "Xianjun Xia",
        "Chuanzeng Huang",
        "Lei Xie",
    ),
    published=date(2025, 8, 10),
    arxiv="2508.07558",
    summary=(
        "A voice call needs noise and reverberation removed, the enrolled speaker picked out, the loudspeaker's echo "
        "cancelled, or a described sound kept, and today these are four systems. Here one diffusion transformer does "
        "all four on the latents of a waveform autoencoder, and only a learned embedding says which job is meant; "
        "diffusion, flow matching and mean flow are tried as its objective. For engineers of conferencing and hearing "
        "aids and for people who clean data sets."
    ),
    package="audio",
    extra="audio",
    claims=(
        Claim(
            name="one-model-four-tasks",
            says="Enhancement, speaker extraction, echo cancellation and text-queried separation share all weights but "
            "one embedding per task.",
            published="four tasks, one network",
            where="abstract",
            read_in="abstract",
            published_setting="shared waveform-autoencoder latents, diffusion transformer; four separate systems",
            kind="exact",
        ),
        Claim(
            name="beats-specialists",
            says="The one model improves on the state of the art of the single tasks.",
            published=None,
            where="abstract; the tables were not found",
            read_in="abstract",
            published_setting="several public benchmarks",
        ),
        Claim(
            name="objectives-trade-off",
            says="The three objectives give different balances of quality and cost on the same network.",
            published=None,
            where="abstract; the tables were not found",
            read_in="abstract",
            published_setting="denoising diffusion, flow matching, mean flow",
        ),
        Claim(
            name="new-tasks-are-cheap",
            says="A further task is added with one more embedding.",
            published=None,
            where="abstract, not quantified",
            read_in="abstract",
            published_setting="one more row of the task embedding",
        ),
    ),
)
