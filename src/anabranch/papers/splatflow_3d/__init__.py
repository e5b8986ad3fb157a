"""Text to a 3D scene of Gaussian splats: a flow over views, depths and cameras, and a decoder that makes the splats."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="splatflow-3d",
    title="SplatFlow: Multi-View Rectified Flow Model for 3D Gaussian Splatting Synthesis",
    authors=("Hyojun Go", "Byeongjun Park", "Jiho Jang", "Jin-Young Kim", "Soonwoo Kwon", "Changick Kim"),
    published=date(2024, 11, 25),
    arxiv="2411.16443",
    repository="gohyojun15/SplatFlow",
    summary=(
        "From a text to a 3D scene in one pass, with no optimisation per scene: a rectified flow makes eight views, their "
        "depths and their cameras as one joint sample, and a decoder turns every pixel into a Gaussian splat. Because "
        "the three belong together, whatever is known can be held fixed, which gives editing, camera estimation and new "
        "viewpoints without further training. For makers of games, augmented reality and robots who want scenes they "
        "can edit."
    ),
    package="scenes",
    extra="scenes",
    claims=(
        Claim(
            name="text-to-scene",
            says="Rendered scenes are closer to real views and to their text than Director3D's.",
            published="FID-10K 34.85, CLIPScore 31.43 (Director3D 39.55, 30.48)",
            where="Table 1",
            read_in="paper",
            published_setting="MVImgNet validation, 8 rendered views",
        ),
        Claim(
            name="text-to-scene-outdoors",
            says="The lead holds on larger scenes, in FID more than in agreement with the text.",
            published="FID-2.4K 79.91, CLIPScore 30.06 (Director3D 88.44, 30.04)",
            where="Table 1",
            read_in="paper",
            published_setting="DL3DV",
        ),
        Claim(
            name="object-replacement",
            says="Replacing an object follows the text better than a dedicated editor.",
            published="CLIPScore 28.47, directional 0.169 (DGE 27.43, 0.102)",
            where="Table 2",
            read_in="paper",
            published_setting="100 MVImgNet scenes",
        ),
        Claim(
            name="camera-rotation",
            says="Filling in the cameras of given images estimates rotations better than models made for it.",
            published="28.8, 54.5, 63.9 % within 5, 10, 15 deg (Ray Diffusion 17.5, 38.7, 59.6)",
            where="Table 3",
            read_in="paper",
            published_setting="MVImgNet, 8 views, without depth",
        ),
        Claim(
            name="camera-position",
            says="The same holds for the cameras' positions.",
            published="64.9, 94.0, 99.7 % within 0.05, 0.1, 0.2 of the scene's scale (Ray Diffusion 24.1, 60.9, 87.6)",
            where="Table 3",
            read_in="paper",
            published_setting="MVImgNet, 8 views, without depth",
        ),
        Claim(
            name="more-views-more-detail",
            says="Unseen views between known ones get better with the number of known ones.",
            published="PSNR 14.73, 17.05, 18.82 with 2, 4, 6 of 8 known",
            where="Table 4",
            read_in="paper",
            published_setting="MVImgNet, interpolation",
        ),
        Claim(
            name="depth-latents-help",
            says="Giving the decoder depth latents improves its reconstructions.",
            published="PSNR 26.19, LPIPS .2260, FID-50K 11.92 (without 25.64, .2507, 16.29)",
            where="Table 5",
            read_in="paper",
            published_setting="MVImgNet reconstruction, 200k steps",
        ),
        Claim(
            name="stop-the-rays-early",
            says="Freezing the cameras early in sampling improves the pictures.",
            published="FID 34.85 when stopped with 150 of 200 steps left, 47.32 when never stopped",
            where="Table 6 (t_stop = 150, 0)",
            read_in="paper",
            published_setting="MVImgNet",
        ),
    ),
)
