"""Architecture search with a supernet split only where its gradients disagree."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="gm-nas",
    title="Generalizing Few-Shot NAS with Gradient Matching",
    authors=("Shoukang Hu", "Ruochen Wang", "Lanqing Hong", "Zhenguo Li", "Cho-Jui Hsieh", "Jiashi Feng"),
    published=date(2022, 3, 28),
    arxiv="2203.15207",
    repository="skhu101/GM-NAS",
    summary=(
        "One-shot neural architecture search trains one supernet in which all candidates share weights, and the sharing "
        "makes their estimated accuracy wrong. GM-NAS splits the supernet only where it hurts: operations whose "
        "gradients on the shared weights agree stay together, a balanced cut of that similarity makes two groups in "
        "place of one per operation, and more edges can be split for the same money. For people who search vision, "
        "mobile or speech networks, or must decide which tasks or experts may share parameters."
    ),
    package="optimization",
    extra="optimization",
    claims=(
        Claim(
            name="darts-space-best",
            says="The best network found in the DARTS space is accurate on CIFAR-10.",
            published="97.65 % top-1",
            where="the authors' repository, trained model",
            read_in="code",
            published_setting="DARTS (first order) with splitting, 600 epochs from scratch, cutout, auxiliary head",
        ),
        Claim(
            name="nasbench-201",
            says="In NAS-Bench-201 the networks found are better than few-shot and one-shot search finds.",
            published=None,
            where="abstract; paper value not available offline",
            read_in="abstract",
            published_setting="CIFAR-10, CIFAR-100, ImageNet-16-120; DARTS, SNAS, RSPS",
        ),
        Claim(
            name="mobile-space",
            says="The gain carries over to the MobileNet space and to ImageNet.",
            published=None,
            where="abstract; paper value not available offline",
            read_in="abstract",
            published_setting="ProxylessNAS and OFA; few-shot search",
        ),
        Claim(
            name="branching-factor",
            says="Two groups per edge in place of one per operation let more edges be split with fewer supernets.",
            published="2 groups an edge (7 sub-supernets for one edge of the exhaustive split in the DARTS space)",
            where="the authors' scripts",
            read_in="code",
            published_setting="NAS-Bench-201: 2 splits, 4 sub-supernets; DARTS: 3 splits, 8; OFA: 2x2x2",
            kind="exact",
        ),
    ),
)
