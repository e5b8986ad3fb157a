"""Content and style of one picture, learned by adapters in different blocks of a large image model."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="splitflux",
    title="SplitFlux: Learning to Decouple Content and Style from a Single Image",
    authors=("Yitong Yang", "Yinglin Wang", "Changshuo Wang", "Yongjun Zhang", "Ziyang Chen", "Shuting He"),
    published=date(2025, 11, 19),
    arxiv="2511.15258",
    repository="yangyt46/SplitFlux",
    summary=(
        "Low-rank adapters (LoRA) are tuned on a single reference picture so that what it shows and how it is drawn end "
        "up in different blocks of FLUX: the first single-stream blocks take the content, the later ones the style. "
        "Either half can then be used alone, mixed with the half of another picture, or put in a new scene; a rank "
        "limit where the two meet and a saliency gate keep them from leaking. For designers who own one picture and "
        "want its subject or its look."
    ),
    package="editing",
    extra="editing",
    claims=(
        Claim(
            name="content-fidelity",
            says="The separated content stays closer to the reference than with adapters that ignore the blocks.",
            published="DINO-C .808 (LoRA on FLUX .756, UnZipLoRA .567, B-LoRA .547)",
            where="main table, from a published reading note",
            read_in="secondary",
            published_setting="FLUX.1-dev, 40 pictures, one L20 of 48 GB",
        ),
        Claim(
            name="content-preferred",
            says="A vision-language judge prefers its separated content.",
            published="67.5 % (LoRA on FLUX 17.5 %, UnZipLoRA 15 %, B-LoRA 0 %)",
            where="main table, from a published reading note",
            read_in="secondary",
            published_setting="Qwen3-VL as the judge, 40 pictures",
        ),
        Claim(
            name="merge-preferred",
            says="Merging the content of one picture with the style of another is preferred by a wide margin.",
            published="77.75 % (LoRA on FLUX 14 %, UnZipLoRA 8.25 %, B-LoRA 0 %)",
            where="main table, from a published reading note",
            read_in="secondary",
            published_setting="Qwen3-VL as the judge, 40 pictures",
        ),
        Claim(
            name="fewest-parameters",
            says="It trains the fewest parameters of the methods compared.",
            published="43.65 M (LoRA on FLUX 44.83 M, B-LoRA 56.36 M, UnZipLoRA 185.8 M)",
            where="main table, from a published reading note",
            read_in="secondary",
            published_setting="FLUX.1-dev; UnZipLoRA and B-LoRA on SDXL",
            kind="exact",
        ),
        Claim(
            name="rank-constraint-helps",
            says="Limiting the rank where content meets style improves both content and style.",
            published="CLIP-C .879, CLIP-S .666, DINO-C .784, DINO-S .370 (without: .859, .665, .756, .358)",
            where="ablation table, from a published reading note",
            read_in="secondary",
            published_setting="scale 2, blocks 30 and 31",
        ),
        Claim(
            name="blocks-have-roles",
            says="Blocks 20 to 29 carry the content and 30 to 57 the style; switching double-stream blocks changes "
            "nothing one can see.",
            published="qualitative",
            where="analysis part, from a published reading note",
            read_in="secondary",
            published_setting="FLUX.1-dev, 19 double-stream and 38 single-stream blocks numbered 1 to 57",
        ),
    ),
)
