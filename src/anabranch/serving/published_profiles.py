"""Timings published with Splitwise, as medians: what a simulation needs when nothing was measured.

Two models on a DGX with eight A100 or H100, or H100 held to half their power (tensor parallel 8). From the measurements of
Mutinifni/splitwise-sim (MIT; copyright 2024 Pratyush Patel), to four digits.
"""

import numpy as np

from anabranch.serving.performance import Curve, PerformanceModel

# Milliseconds of a prompt, milliseconds of a token, share of the power while reading prompts (where it was measured),
# against the prompt tokens of the batch.
_TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_MEDIANS: dict[tuple[str, str], tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]] = {
    ("bloom-176b", "a100-80gb"): (
        (79.67, 99.16, 174.4, 287.5, 536.1, 1333.0, 3591.0, 5782.0, 11250.0),
        (47.61, 47.71, 49.31, 49.44, 50.19, 51.63, 54.27, 65.38, 96.58),
        (0.6909, 0.7234, 0.8764, 1.006, 1.017, 1.017, 1.025),
    ),
    ("bloom-176b", "h100-80gb"): (
        (48.28, 51.18, 76.14, 132.2, 252.0, 649.6, 1412.0, 2522.0, 4996.0),
        (35.74, 36.15, 36.17, 36.33, 36.74, 37.53, 39.02, 45.84, 63.82),
        (),
    ),
    ("bloom-176b", "h100-80gb-pcap"): (
        (62.77, 66.53, 98.98, 171.9, 327.6, 844.5, 1835.0, 3278.0, 6495.0),
        (35.74, 36.15, 36.17, 36.33, 36.74, 37.53, 39.02, 45.84, 63.82),
        (),
    ),
    ("llama2-70b", "a100-80gb"): (
        (65.35, 66.76, 93.02, 160.9, 282.7, 708.4, 1781.0, 3525.0, 7554.0),
        (43.03, 43.48, 45.03, 44.56, 45.7, 46.47, 48.47, 53.02, 71.61),
        (0.4605, 0.6578, 0.7488, 0.7537, 0.954, 0.9869, 0.9743),
    ),
    ("llama2-70b", "h100-80gb"): (
        (58.19, 51.66, 53.86, 77.68, 134.4, 376.2, 831.5, 1552.0, 2936.0),
        (29.87, 28.27, 30.56, 29.97, 31.63, 31.33, 32.59, 38.62, 50.16),
        (),
    ),
    ("llama2-70b", "h100-80gb-pcap"): (
        (75.64, 67.16, 70.02, 101.0, 174.8, 489.1, 1081.0, 2017.0, 3817.0),
        (29.87, 28.27, 30.56, 29.97, 31.63, 31.33, 32.59, 38.62, 50.16),
        (),
    ),
}


def published_performance(model: str, hardware: str, *, by: str = "context") -> PerformanceModel:
    """Of "bloom-176b" or "llama2-70b" on eight "a100-80gb", "h100-80gb" or "h100-80gb-pcap".

    Args:
        by: see :class:`PerformanceModel`.

    Raises:
        ValueError: another model or device.
    """
    if (model, hardware) not in _MEDIANS:
        there = "; ".join(f"{one} on {device}" for one, device in _MEDIANS)
        raise ValueError(f"there are no published times of {model} on {hardware}; there are {there}")
    prompt, decode, power = (np.array(values, np.float64) for values in _MEDIANS[model, hardware])
    tokens = np.array(_TOKENS, np.float64)
    drawn = Curve(tokens[: len(power)], power) if len(power) else Curve(np.zeros(1), np.ones(1))
    return PerformanceModel(Curve(tokens, 1e-3 * prompt), Curve(tokens, 1e-3 * decode), drawn, by=by)
