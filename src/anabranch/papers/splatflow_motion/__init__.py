"""Optical flow over three frames: the motion seen before is splatted forward to help where pixels get hidden."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="splatflow-motion",
    title="SplatFlow: Learning Multi-frame Optical Flow via Splatting",
    authors=("Bo Wang", "Yifan Zhang", "Jian Li", "Yang Yu", "Zhenping Sun", "Li Liu", "Dewen Hu"),
    published=date(2023, 6, 15),
    arxiv="2306.08887",
    repository="wwsource/SplatFlow",
    summary=(
        "Two images cannot say where a pixel went that the second one hides, but a third, earlier frame has seen it "
        "move. The last motion feature of the previous pair is carried forward by a splat that gradients pass through, "
        "and handed to every refinement step of the current pair; a video needs one pass per frame and nothing is "
        "computed backwards in time. For video interpolation, stabilisation, tracking and driving, wherever optical "
        "flow has to hold at occlusion borders."
    ),
    package="motion",
    extra="motion",
    claims=(
        Claim(
            name="sintel-clean",
            says="The endpoint error on Sintel's clean pass is below the best submitted before.",
            published="1.12 px, 19.4 % lower",
            where="abstract; the baseline 1.39 px (GMA with warm start) from the StreamFlow paper's table",
            read_in="abstract",
            published_setting="Sintel test; trained on Chairs, Things, Sintel, KITTI and HD1K",
        ),
        Claim(
            name="sintel-final",
            says="The endpoint error on Sintel's final pass is below the best submitted before.",
            published="2.07 px, 16.2 % lower",
            where="abstract; the baseline 2.47 px (GMA) from the StreamFlow paper's table",
            read_in="abstract",
            published_setting="Sintel test; trained on Chairs, Things, Sintel, KITTI and HD1K",
        ),
        Claim(
            name="kitti-outliers",
            says="Fewer pixels of KITTI 2015 are outliers than with the two-frame backbone.",
            published="Fl-all 4.61 % (GMA 5.15, RAFT 5.10)",
            where="the StreamFlow paper's table",
            read_in="secondary",
            published_setting="KITTI 2015 test",
        ),
        Claim(
            name="sintel-zero-shot",
            says="Without having seen Sintel it beats its backbone on the clean pass and loses to it on the final pass.",
            published="1.22 and 2.97 px (GMA 1.30 and 2.74, RAFT 1.43 and 2.71)",
            where="the StreamFlow paper's table",
            read_in="secondary",
            published_setting="Sintel training set, clean and final; trained on Chairs and Things",
        ),
        Claim(
            name="kitti-zero-shot",
            says="Without having seen KITTI it beats its backbone clearly.",
            published="3.70 px, Fl-all 15.3 % (GMA 4.69, 17.1 %; RAFT 5.04, 17.4 %)",
            where="the StreamFlow paper's table",
            read_in="secondary",
            published_setting="KITTI 2015 training set; trained on Chairs and Things",
        ),
        Claim(
            name="gain-where-hidden",
            says="The gain over two frames is largest among the pixels that get occluded.",
            published=None,
            where="abstract and the authors' README; the table was not found",
            read_in="code",
            published_setting="Sintel, KITTI 2015; GMA",
        ),
        Claim(
            name="stays-fast",
            says="Inference stays about as fast as the two-frame backbone's.",
            published=None,
            where="the authors' README; the table was not found",
            read_in="code",
            published_setting="Sintel, KITTI 2015; GMA",
            kind="timing",
        ),
    ),
)
