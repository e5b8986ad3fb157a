"""Optical flow from an event camera: correlation volumes along the window instead of one at its end."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="tma",
    title="TMA: Temporal Motion Aggregation for Event-based Optical Flow",
    authors=(
        "Haotian Liu",
        "Guang Chen",
        "Sanqing Qu",
        "Yanping Zhang",
        "Zhijun Li",
        "Alois Knoll",
        "Changjun Jiang",
    ),
    published=date(2023, 3, 21),
    arxiv="2303.11629",
    repository="ispc-lab/TMA",
    summary=(
        "An event camera reports brightness changes the moment they happen, yet the usual network squeezes a tenth of a "
        "second of them into one tensor. This one cuts the window into short groups, matches each against the start, "
        "looks the matches up along the motion estimated so far and lets them reinforce each other by attention, so "
        "that the flow is good after a few refinements. For robots, drones and cars that need dense motion from a DVS "
        "sensor at low latency."
    ),
    package="motion",
    extra="motion",
    claims=(
        Claim(
            name="endpoint-error",
            says="The mean endpoint error on DSEC-Flow is lower than E-RAFT's.",
            published="6 % lower",
            where="abstract; 0.74 px against 0.79 px in the table of a follow-up paper (EDCFlow)",
            read_in="abstract",
            published_setting="DSEC-Flow test server, 640x480, windows of 100 ms; E-RAFT",
        ),
        Claim(
            name="inference-time",
            says="One flow field takes less time than with E-RAFT.",
            published="40 % less",
            where="abstract; 58 ms against 102 ms in the table of a follow-up paper (EDCFlow)",
            read_in="abstract",
            published_setting="DSEC-Flow, one GPU of a type we did not find; E-RAFT",
            kind="timing",
        ),
        Claim(
            name="fewer-refinements",
            says="The first estimates are already good, so half as many refinements as E-RAFT's are enough.",
            published="6 refinements instead of 12",
            where="abstract without the numbers; the curve per iteration was not found",
            read_in="secondary",
            published_setting="DSEC-Flow; E-RAFT",
        ),
        Claim(
            name="angular-error",
            says="The flow's direction is more exact than E-RAFT's.",
            published="2.68 deg against 2.85 deg",
            where="table of a follow-up paper (EDCFlow)",
            read_in="secondary",
            published_setting="DSEC-Flow; E-RAFT",
        ),
        Claim(
            name="bad-pixels",
            says="Fewer pixels are wrong by more than one or two pixels.",
            published="1PE 10.9 %, 2PE 4.0 % (E-RAFT 12.7 %, 4.7 %)",
            where="table of a follow-up paper (EDCFlow)",
            read_in="secondary",
            published_setting="DSEC-Flow; E-RAFT",
        ),
        Claim(
            name="short-gaps",
            says="Over one frame interval of MVSEC the error is lower than E-RAFT's indoors and slightly higher "
            "outdoors.",
            published="0.25, 1.06, 1.81, 1.58 px (E-RAFT 0.24, 1.10, 1.94, 1.66)",
            where="table of a follow-up paper (EDCFlow)",
            read_in="secondary",
            published_setting="MVSEC dt=1: outdoor_day1, indoor 1 to 3; trained on outdoor_day2; E-RAFT",
        ),
        Claim(
            name="long-gaps",
            says="Over four frame intervals of MVSEC the error is lower than E-RAFT's everywhere.",
            published="0.70, 2.43, 4.32, 3.60 px (E-RAFT 0.72, 2.81, 5.09, 4.46)",
            where="table of a follow-up paper (EDCFlow)",
            read_in="secondary",
            published_setting="MVSEC dt=4: outdoor_day1, indoor 1 to 3; trained on outdoor_day2; E-RAFT",
        ),
        Claim(
            name="size-and-operations",
            says="The network is larger than E-RAFT and does more arithmetic per field.",
            published="6.9 M parameters, 344 G operations (E-RAFT 5.3 M, 256 G)",
            where="table of a follow-up paper (EDCFlow)",
            read_in="secondary",
            published_setting="DSEC-Flow; E-RAFT",
            kind="exact",
        ),
    ),
)
