"""A learned solver for very large routing and selection problems: divide, conquer the pieces, rejoin, repeat."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="udc",
    title="UDC: A Unified Neural Divide-and-Conquer Framework for Large-Scale Combinatorial Optimization Problems",
    authors=("Zhi Zheng", "Changliang Zhou", "Xialiang Tong", "Mingxuan Yuan", "Zhenkun Wang"),
    published=date(2024, 6, 29),
    arxiv="2407.00312",
    repository="CIAM-Group/NCO_code",
    summary=(
        "A light graph network looks once at a whole problem of up to ten thousand variables and draws a rough solution; "
        "it is cut in pieces of fixed length, a small network re-solves all pieces in one batch, the improved ones are "
        "put back, the cuts are moved, and so on. Both networks learn together, and the first is not blamed for bad "
        "joins, because a second round with shifted cuts comes before its reward. One recipe covers ten routing, tour, "
        "knapsack and independent-set problems; for researchers and for planners who need an anytime improver of very "
        "large instances."
    ),
    package="optimization",
    extra="optimization",
    claims=(
        Claim(
            name="tours-of-500",
            says="Tours of 500 cities come within two percent of LKH3.",
            published="16.78, gap 1.58 %, 4 min (LKH3 16.52, 5.5 min)",
            where="Table 2",
            read_in="paper",
            published_setting="TSP500, 128 uniform instances, 50 rounds, 50 starts, RTX 3090",
        ),
        Claim(
            name="tours-of-2000",
            says="Tours of 2,000 cities are the best of the learned solvers.",
            published="33.26, gap 2.49 %, 15 min (LKH3 32.45, 1 h; GLOP 3.89 %; LEHD 6.98 %)",
            where="Table 2",
            read_in="paper",
            published_setting="TSP2000, 50 rounds",
        ),
        Claim(
            name="vehicle-routing",
            says="On vehicle routing with 1,000 and 2,000 customers it beats every solver compared, given a limited "
            "time.",
            published="43.00 and 60.01 (LKH3 46.40 in 14 min and 64.90 in 40 min)",
            where="Table 2",
            read_in="paper",
            published_setting="CVRP1000 and CVRP2000, capacities 200 and 300, 250 rounds, 1.2 h and 2.15 h",
        ),
        Claim(
            name="prize-collecting",
            says="On prize-collecting tours it is the best solver of all at each size.",
            published="13.17, 18.29, 25.04 (OR-Tools 14.40, 20.60; GLOP 14.30, 19.80, 27.25)",
            where="Table 3",
            read_in="paper",
            published_setting="PCTSP 500, 1000, 2000, 250 rounds",
        ),
        Claim(
            name="knapsack",
            says="Knapsacks of 500 to 5,000 items are packed almost perfectly.",
            published="gap 0.01 % at each size",
            where="Table 11",
            read_in="paper",
            published_setting="KP 500, 1000, 2000, 5000, 250 rounds; optimum by OR-Tools",
        ),
        Claim(
            name="independent-sets",
            says="Independent sets of random graphs come closer to the best known than another learned solver's.",
            published="42.88, gap 4.44 %, 21 min (KaMIS 44.87, 52 min; DIFUSCO 41.12)",
            where="Table 9",
            read_in="paper",
            published_setting="random graphs of 700 to 800 nodes, p = 0.15, 50 rounds",
        ),
        Claim(
            name="very-large-routing",
            says="Routes for 5,000 and 7,000 customers take minutes and are shorter than LKH3's of hours.",
            published="136.7 in 16 min, 188.2 in 21.4 min (LKH3 175.7 in 4.2 h, 245.0 in 14 h)",
            where="Table 15",
            read_in="paper",
            published_setting="CVRP5000 and CVRP7000, 100 instances, 250 rounds",
        ),
        Claim(
            name="solver-is-replaceable",
            says="Another network for the pieces gives nearly the same tours.",
            published="gap 1.58 % with ICAM, 1.64 % with POMO",
            where="Table 5",
            read_in="paper",
            published_setting="TSP500, 50 rounds",
        ),
    ),
)
