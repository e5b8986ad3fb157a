"""Average velocities learned from an algebraic identity: a jump over an interval is the sum of the jumps over its parts."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="splitmeanflow",
    title="SplitMeanFlow: Interval Splitting Consistency in Few-Step Generative Modeling",
    authors=(
        "Yi Guo",
        "Wei Wang",
        "Zhihang Yuan",
        "Rong Cao",
        "Kuan Chen",
        "Zhengyang Chen",
        "Yuanyuan Huo",
        "Yang Zhang",
        "Yuping Wang",
        "Shouda Liu",
        "Yuxuan Wang",
    ),
    published=date(2025, 7, 22),
    arxiv="2507.16884",
    summary=(
        "A network that knows the mean velocity over any stretch of time jumps from noise to data in one or two calls. "
        "MeanFlow trains it through a derivative, which costs a Jacobian-vector product in every training step; here "
        "two short jumps must add up to the long one, and ordinary forward passes are enough. For anyone who serves a "
        "flow-matching model of speech, images or robot actions and wants one to four steps on kernels or accelerators "
        "without forward-mode differentiation."
    ),
    package="generative",
    extra="generative",
    claims=(
        Claim(
            name="two-steps-equal-ten",
            says="Two unguided steps match ten guided flow-matching steps in speaker similarity, word errors and "
            "listeners' preference.",
            published="SIM 0.789, WER 0.0561, CMOS -0.01 (ten steps: 0.787, 0.0551, 0)",
            where="Table 1, from reading notes",
            read_in="secondary",
            published_setting="Seed-TTS fine-tuned to fixed speakers, token diffusion replaced; 10 steps with guidance",
        ),
        Claim(
            name="one-step-equals-ten",
            says="In zero-shot voice cloning a single unguided step matches ten guided ones.",
            published="SIM 0.685, WER 0.0286, CMOS 0 (ten steps: 0.686, 0.0286, 0)",
            where="Table 2, from reading notes",
            read_in="secondary",
            published_setting="Seed-TTS in-context; 10 flow-matching steps with guidance",
        ),
        Claim(
            name="sampling-compute",
            says="One call replaces the twenty that ten guided steps take.",
            published="20x (20 network calls to 1)",
            where="abstract; the count of calls from section 5.3",
            read_in="abstract",
            published_setting="Seed-TTS, deployed in Doubao; 10 flow-matching steps with guidance",
            kind="exact",
        ),
        Claim(
            name="meanflow-is-the-limit",
            says="When the split point moves into the end of the interval, the splitting identity turns into MeanFlow's "
            "differential one.",
            published="proof",
            where="abstract; section 4.3.1",
            read_in="abstract",
            published_setting="theory",
            kind="exact",
        ),
        Claim(
            name="no-jacobian-vector-product",
            says="Leaving out the Jacobian-vector product makes a training step cheaper and steadier than MeanFlow's.",
            published=None,
            where="section 4.3.2, without a figure in version 1",
            read_in="abstract",
            published_setting="theory; a later version reports MeanFlow at batch size 1 for want of memory on F5-TTS",
            kind="timing",
        ),
        Claim(
            name="diffusion-is-the-bottleneck",
            says="At ten steps the diffusion module takes the larger part of the system's inference cost.",
            published="more than 50 %",
            where="section 5.2, from reading notes",
            read_in="secondary",
            published_setting="Seed-TTS",
            kind="timing",
        ),
    ),
)
