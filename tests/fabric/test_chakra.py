"""Communication nodes from JSON."""

import json

import numpy as np
import pytest

from anabranch.fabric import collective, read_chakra

NODES = [
    {"comm_type": "ALL_REDUCE", "comm_size": 800, "group": [0, 2, 4, 6]},
    {"comm_type": "send", "comm_size": 50, "comm_src": 1, "comm_dst": 3},
    {"comm_type": "ALL_TO_ALL", "comm_size": 400, "group": [1, 3]},
]


def write(tmp_path, data):
    path = tmp_path / "trace.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_nodes_follow_one_another(tmp_path):
    for data in (NODES, {"nodes": NODES}):
        traffic = read_chakra(write(tmp_path, data), algorithms={"all-reduce": "halving-doubling"})
        first = collective(
            "all-reduce", ranks=4, message_bytes=800, algorithm="halving-doubling", placement=[0, 2, 4, 6]
        )
        assert np.array_equal(traffic.src[: first.n_flows], first.src)
        assert np.array_equal(traffic.step[: first.n_flows], first.step)
        rest = slice(first.n_flows, None)
        assert traffic.src[rest].tolist() == [1, 1, 3]
        assert traffic.dst[rest].tolist() == [3, 3, 1]
        assert traffic.size_bytes[rest].tolist() == [50, 200, 200]
        assert traffic.step[rest].tolist() == [4, 5, 5]
        assert traffic.group.tolist() == [0] * first.n_flows + [1, 2, 2]


def test_placement_applies_to_all_nodes(tmp_path):
    traffic = read_chakra(write(tmp_path, NODES[1:2]), placement=[10, 11, 12, 13])
    assert (traffic.src.tolist(), traffic.dst.tolist()) == ([11], [13])


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"comm_type": "BARRIER", "comm_size": 1, "group": [0, 1]},
            r"nodes\[1\]: comm_type must be one of .*, got 'BARRIER'",
        ),
        ({"comm_type": "ALL_REDUCE", "comm_size": 0, "group": [0, 1]}, r"nodes\[1\]: comm_size must be .* >= 1, got 0"),
        ({"comm_type": "ALL_REDUCE", "comm_size": 1.5, "group": [0, 1]}, r"nodes\[1\]: comm_size must be .*, got 1.5"),
        (
            {"comm_type": "ALL_REDUCE", "comm_size": 8, "group": "0"},
            r"nodes\[1\]: group must be a list of ranks, got '0'",
        ),
        (
            {"comm_type": "ALL_REDUCE", "comm_size": 8, "group": [0, 0]},
            r"nodes\[1\]: placement must put every rank on its own",
        ),
        ({"comm_type": "ALL_REDUCE", "comm_size": 8, "group": [0]}, r"nodes\[1\]: ranks must be >= 2, got 1"),
        ({"comm_type": "SEND", "comm_size": 8, "comm_src": 0}, r"nodes\[1\]: comm_src and comm_dst must be ranks"),
        (3, r"nodes\[1\]: expected an object, got 3"),
    ],
)
def test_wrong_nodes_are_named(tmp_path, node, message):
    with pytest.raises(ValueError, match=message):
        read_chakra(write(tmp_path, [NODES[0], node]))


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="line 1, column 2"):
        read_chakra(write(tmp_path, "{"))
    with pytest.raises(ValueError, match="expected a list of nodes"):
        read_chakra(write(tmp_path, {"graph": []}))
    with pytest.raises(ValueError, match=r"algorithms must map .* got 'all-reduce': 'magic'"):
        read_chakra(write(tmp_path, NODES), algorithms={"all-reduce": "magic"})
