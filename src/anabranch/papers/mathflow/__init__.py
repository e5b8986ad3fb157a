"""Visual mathematics in two stages: one model reads the diagram into facts, another solves from text."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="mathflow",
    title="MathFlow: Enhancing the Perceptual Flow of MLLMs for Visual Mathematical Problems",
    authors=(
        "Felix Chen",
        "Hangjie Yuan",
        "Yunqiu Xu",
        "Tao Feng",
        "Jun Cen",
        "Pengwei Liu",
        "Zeying Huang",
        "Yi Yang",
    ),
    published=date(2025, 3, 19),
    arxiv="2503.16549",
    repository="MathFlow-zju/MathFlow",
    summary=(
        "A benchmark moves the facts of a maths question between its words and its drawing in six versions, which tells "
        "whether a multimodal model fails at seeing or at reasoning. A pipeline then separates the two: perception "
        "first, turning the diagram into text facts, then inference by any language model. For builders and evaluators "
        "of multimodal tutors and solvers."
    ),
    package="reasoning",
    extra="reasoning",
    claims=(
        Claim(
            name="pipeline-gain",
            says="Solving from perceived facts beats the same model end to end, for open and closed models.",
            published="52.3 to 58.3 (Qwen2-VL-72B), 56.2 to 59.3 (GPT-4V), 64.0 to 68.1 (Claude-3.5), 68.9 to 70.4 "
            "(Gemini-2.5-pro)",
            where="Table 4",
            read_in="paper",
            published_setting="FlowVerse, raw version, CoT-E score; same model end to end",
        ),
        Claim(
            name="gain-on-mathverse",
            says="The gain carries over to MathVerse.",
            published="38.9 to 48.1 (Qwen2-VL-72B; 40.5 in Table 2), 54.4 to 56.7 (GPT-4V), 57.4 to 60.8 (Claude-3.5)",
            where="Tables 2 and 4",
            read_in="paper",
            published_setting="MathVerse, CoT-E score; same model end to end",
        ),
        Claim(
            name="gain-where-the-picture-speaks",
            says="The gain is largest where the facts stand only in the drawing.",
            published="31.0 to 39.1 dense vision, 42.2 to 46.0 over all versions",
            where="Table 1",
            read_in="paper",
            published_setting="FlowVerse accuracy, Qwen2.5-VL-7B",
        ),
        Claim(
            name="strong-models-gain-too",
            says="Even a very strong model gains on such questions.",
            published="44.7 to 54.1 dense vision",
            where="Table 1",
            read_in="paper",
            published_setting="FlowVerse accuracy, GPT-5",
        ),
        Claim(
            name="perception-quality",
            says="The trained perception model reads diagrams more completely than general models.",
            published="F1 97.2 % stated facts, 85.6 % reasoned properties (GPT-4o 87.7, 70.1)",
            where="Table 5",
            read_in="paper",
            published_setting="FlowVerse, structured F1",
        ),
        Claim(
            name="perception-limits-the-rest",
            says="With one fixed solver the score rises with the quality of perception.",
            published="49.0, 53.3, 58.9 with facts read by Qwen2-VL-2B, Qwen2-VL-7B, MathFlow-P",
            where="Table 6",
            read_in="paper",
            published_setting="FlowVerse, GPT-4V as the solver",
        ),
        Claim(
            name="better-solver-better-score",
            says="With one fixed perception the score rises with the strength of the solver.",
            published="59.3 GPT-4V, 69.6 GPT-4o, 73.4 DeepSeek-V3, 75.6 DeepSeek-R1",
            where="Table 6",
            read_in="paper",
            published_setting="FlowVerse, facts read by MathFlow-P",
        ),
        Claim(
            name="text-beats-image",
            says="With all facts in the text, taking the image away helps most models.",
            published="59.4 to 63.7 (Qwen2-VL-72B)",
            where="Table 1, section 5.2",
            read_in="paper",
            published_setting="FlowVerse, text centric and text plus versions",
        ),
    ),
)
