"""Any sentence-transformers model by name or folder: its own pooling, its own vectors, clear errors."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from datetime import date
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
import torch
import transformers

from anabranch.hub import Entry
from anabranch.hub.encoder_files import find_encoder
from anabranch.hub.meaning import Remembering, VectorStore, vectors_path
from anabranch.hub.site import Site
from anabranch.hub.views import ranker_by_meaning
from anabranch.lab import LabError
from anabranch.language import SentenceEmbedder
from support import CommandLine

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "river", "splits", "joins", "flow", ".", "query", ":"]
TEXTS = ["a river splits.", "flow", "", "a river joins a flow. " * 20, "the river"]
D, DAY = 16, date(2026, 1, 1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT in a folder of ``transformers``."""
    return _tiny(tmp_path_factory.mktemp("plain") / "tiny", seed=0)


def _tiny(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=D, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def layout(
    plain: Path, folder: Path, *modes: str, normalized: bool = False, dense: bool = False, prompts: dict[str, str] | None = None,
    older: bool = True, most: int = 24,
) -> Path:  # fmt: skip
    """The same model in the layout of sentence-transformers."""
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalized else [])]
    folder.mkdir()
    for file in plain.iterdir():
        os.link(file, folder / file.name)
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": most, "do_lower_case": False}))
    own = {"prompts": prompts or {}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own))
    keys = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
            "weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken"}  # fmt: skip
    pooling: dict[str, object] = {"word_embedding_dimension": D}
    pooling |= (
        {f"pooling_mode_{key}": mode in modes for mode, key in keys.items()} if older else {"pooling_mode": [*modes]}
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if dense:
        from safetensors.torch import save_file

        place = folder / "2_Dense"
        place.mkdir()
        said = {"in_features": D * len(modes), "out_features": 6, "bias": True, "activation_function": "torch.nn.Tanh"}
        (place / "config.json").write_text(json.dumps(said))
        torch.manual_seed(5)
        weights = {"linear.weight": torch.randn(6, D * len(modes)), "linear.bias": torch.randn(6)}
        save_file(weights, place / "model.safetensors")
    return folder


def reference(
    folder: Path, text: str, *modes: str, normalized: bool = False, dense: bool = False, most: int = 24
) -> np.ndarray:
    """One text alone, without padding, by the definitions."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=most)["input_ids"]])
        states = model(input_ids=ids).last_hidden_state[0].double().numpy()
    n = len(states)
    rising = np.arange(1, n + 1)[:, None]
    pooled = {
        "cls": states[0], "mean": states.sum(0) / n, "max": states.max(0), "mean_sqrt_len_tokens": states.sum(0) / n**0.5,
        "weightedmean": (states * rising).sum(0) / rising.sum(), "lasttoken": states[-1],
    }  # fmt: skip
    vector = np.concatenate([pooled[mode] for mode in modes])
    if dense:
        from safetensors.torch import load_file

        weights = {
            name: value.double().numpy() for name, value in load_file(folder / "2_Dense/model.safetensors").items()
        }
        vector = np.tanh(weights["linear.weight"] @ vector + weights["linear.bias"])
    return vector / np.linalg.norm(vector) if normalized else vector


@pytest.mark.parametrize("older", [True, False], ids=["flags", "names"])
@pytest.mark.parametrize(
    ("modes", "normalized", "dense"),
    [
        (("mean",), True, False), (("mean",), False, False), (("cls",), True, False), (("cls",), False, False),
        (("max",), False, False), (("mean_sqrt_len_tokens",), False, False), (("weightedmean",), False, False),
        (("lasttoken",), False, False), (("cls", "mean"), True, True), (("mean",), False, True),
    ],
)  # fmt: skip
def test_vectors_are_those_of_the_definitions(
    plain: Path, tmp_path: Path, modes: tuple[str, ...], normalized: bool, dense: bool, older: bool
) -> None:
    folder = layout(plain, tmp_path / "st", *modes, normalized=normalized, dense=dense, older=older)
    embed = SentenceEmbedder(folder, unit=False)
    found = embed(TEXTS)
    wanted = np.stack([reference(folder, text, *modes, normalized=normalized, dense=dense) for text in TEXTS])
    assert np.abs(found - wanted).max() <= 1e-5
    unit = SentenceEmbedder(folder)(TEXTS)  # what a search by cosines takes
    assert np.abs(unit - wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).max() <= 1e-5
    assert embed.dimensions == wanted.shape[1]


def test_the_library_itself_says_the_same(plain: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    prompts = {"query": "query: ", "document": "flow "}
    folder = layout(plain, tmp_path / "st", "cls", "mean", normalized=True, dense=True, prompts=prompts)
    theirs, ours = library.SentenceTransformer(str(folder)), SentenceEmbedder(folder)
    assert np.abs(theirs.encode_document(TEXTS) - ours(TEXTS)).max() <= 1e-6
    assert np.abs(theirs.encode_query("a river") - ours.query("a river")).max() <= 1e-6


def test_a_question_begins_with_its_own_prompt(plain: Path, tmp_path: Path) -> None:
    folder = layout(plain, tmp_path / "st", "mean", prompts={"query": "query: ", "passage": "flow "})
    bare = SentenceEmbedder(layout(plain, tmp_path / "bare", "mean"))
    embed = SentenceEmbedder(folder)
    assert np.abs(embed(["river"]) - bare(["flow river"])).max() <= 1e-6
    assert np.abs(embed.query("river") - bare(["query: river"])[0]).max() <= 1e-6
    assert np.abs(Remembering(embed).query("river") - embed.query("river")).max() == 0
    assert np.abs(embed.query("river") - embed(["river"])[0]).max() > 1e-3


def test_every_difference_of_two_encoders_shows_in_their_names(plain: Path, tmp_path: Path) -> None:
    """All are folders of the name ``st``, most with the same weights."""
    made = [
        plain,
        layout(plain, _new(tmp_path, 0), "mean"),
        layout(plain, _new(tmp_path, 1), "cls"),
        layout(plain, _new(tmp_path, 2), "mean", normalized=True),
        layout(plain, _new(tmp_path, 3), "mean", prompts={"query": "query: "}),
        layout(plain, _new(tmp_path, 4), "mean", most=12),
        layout(_tiny(tmp_path / "other" / "st", seed=1), _new(tmp_path, 5), "mean"),
        layout(plain, _new(tmp_path, 6), "mean", dense=True),
    ]
    names = [SentenceEmbedder(folder).name for folder in made]
    assert len({*names}) == len(names)
    assert SentenceEmbedder(made[1]).name == names[1]


def _new(root: Path, i: int) -> Path:
    (root / str(i)).mkdir()
    return root / str(i) / "st"


def test_another_encoder_embeds_again_and_never_mixes(plain: Path, tmp_path: Path, home: Path) -> None:
    first = layout(plain, tmp_path / "first", "mean", normalized=True)
    second = layout(_tiny(tmp_path / "tiny2", seed=1), tmp_path / "second", "cls", dense=True)
    entries = [Entry(title="A river splits", published=DAY), Entry(title="flow joins", published=DAY)]
    vectors = []
    for folder in (first, second, first):
        index = ranker_by_meaning(entries, folder)
        alone = SentenceEmbedder(folder)
        assert np.abs(index._whole - alone(["A river splits. ", "flow joins. "])).max() <= 1e-3  # kept as float16
        store = VectorStore(alone, vectors_path(alone))
        assert store.missing(["A river splits. ", "A river splits"]) == []
        store.close()
        vectors.append(index._whole)
    assert vectors[0].shape != vectors[1].shape
    assert np.array_equal(vectors[0], vectors[2])


def test_the_page_searches_with_the_encoder_it_is_given(
    plain: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the usual one is not here, and where thousands are embedded in a process of their own."""
    monkeypatch.setattr("anabranch.hub.meaning_builder.MANY", 1)
    monkeypatch.setenv("ANABRANCH_DATA", str(tmp_path / "no-data"))
    folder = layout(plain, tmp_path / "st", "cls")
    site = Site(encoder=folder)
    assert site.builder.has_encoder
    site.build_meaning()
    assert site.builder.fault == ""
    assert site.ranker_name() == "meaning"
    embed = SentenceEmbedder(folder)
    known = site.known()
    whole = embed([f"{doc.title}. {doc.text}" for doc in known.documents[:5]])
    assert np.abs(known.by_meaning._whole[:5] - whole).max() <= 5e-3
    site.close()


def test_from_the_command_line(plain: Path, tmp_path: Path, home: Path, anabranch: CommandLine) -> None:
    folder = layout(plain, tmp_path / "st", "mean", normalized=True)
    done = anabranch("papers", "a river splits", "--encoder", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) > 0
    assert [path.name[:13] for path in (home / "cache").glob("embeddings-*")] == ["embeddings-st"]
    home.mkdir(exist_ok=True)
    (home / "hub.toml").write_text(f'[search]\nencoder = "{tmp_path / "nowhere"}"\n')
    done = anabranch("papers", "a river splits")
    assert done.returncode == 2
    assert "hub.toml: search.encoder" in done.stderr
    assert "no such folder" in done.stderr
    assert anabranch("papers", "a river splits", "--words").returncode == 0
    assert anabranch("papers", "x", "--words", "--encoder", "y").returncode == 2


def test_what_cannot_be_had_is_told_at_once(plain: Path, tmp_path: Path, home: Path, anabranch: CommandLine) -> None:
    with socket.socket() as taken:  # a port that nobody answers
        taken.bind(("127.0.0.1", 0))
        away = {"HF_ENDPOINT": f"http://127.0.0.1:{taken.getsockname()[1]}", "HF_HOME": str(tmp_path / "hf")}
        for command in (("papers", "rivers"), ("serve", "--port", "0")):
            done = anabranch(*command, "--encoder", "all-mpnet-base-v2", env=away, timeout=60)
            assert done.returncode == 2
            assert "--encoder all-mpnet-base-v2: no folder here, sentence-transformers/all-mpnet-base-v2" in done.stderr
            assert "cannot be reached" in done.stderr
            assert len(done.stderr.splitlines()) == 1
    for name, words in (
        ("/no/where", "no such folder"),
        (str(tmp_path), "expected a folder with modules.json or config.json"),
        ("a//b", "no name of a model"),
    ):
        with pytest.raises(LabError, match=words):
            find_encoder(name)
    broken = layout(plain, tmp_path / "broken", "mean")
    (broken / "model.safetensors").unlink()
    with pytest.raises(LabError, match=r"the sentence encoder: path=.*no encoder"):
        ranker_by_meaning([Entry(title="x", published=DAY)], broken)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "magic"}, "pooling magic: expected cls"),
        ("modules.json", [{"idx": 0, "path": "", "type": "a.StaticEmbedding"}], "StaticEmbedding: expected Transformer"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
        ("2_Dense/config.json", {"in_features": D, "out_features": 6, "activation_function": "a.SELU"}, "activation SELU"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(plain: Path, tmp_path: Path, file: str, content: object, words: str) -> None:
    folder = layout(plain, tmp_path / "st", "mean", dense=True, prompts={"query": "query: "})
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        SentenceEmbedder(folder)


class _Hub(SimpleHTTPRequestHandler):
    """The part of a hub's interface that fetching a model takes: its files with their names, and each of them."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        commit, model = "c" * 40, "/someone/rivers"
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models{model}/revision/") or path == f"/api/models{model}":
            files = [{"rfilename": str(p.relative_to(self.folder))} for p in self.folder.rglob("*") if p.is_file()]
            return self._send(json.dumps({"id": model[1:], "sha": commit, "siblings": files}).encode(), {})
        if path.startswith(f"/api/models{model}/tree/"):
            files = [
                {"type": "file", "path": str(p.relative_to(self.folder)), "size": p.stat().st_size, "oid": f"{i:040x}"}
                for i, p in enumerate(sorted(self.folder.rglob("*"))) if p.is_file()
            ]  # fmt: skip
            return self._send(json.dumps(files).encode(), {})
        name = path.partition(f"/resolve/{commit}/")[2]
        if not path.startswith(model) or not (self.folder / name).is_file():
            return self._send(b"Repository not found", {"x-error-code": "RepoNotFound"}, 404)
        return self._send(
            (self.folder / name).read_bytes(), {"x-repo-commit": commit, "etag": f'"{name.replace("/", "-")}"'}
        )

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(plain: Path, tmp_path: Path) -> Iterator[str]:
    folder = layout(plain, tmp_path / "remote", "cls", normalized=True)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"not wanted")
    handler = type("Handler", (_Hub,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_name_is_fetched_once_and_then_works_without_the_hub(
    hub: str, tmp_path: Path, home: Path, anabranch: CommandLine
) -> None:
    there = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    done = anabranch("papers", "a river splits", "--encoder", "someone/rivers", "--json", env=there)
    assert done.returncode == 0, done.stderr
    assert not [*(tmp_path / "hf").rglob("*.onnx")]
    (kept,) = (home / "cache").glob("embeddings-*")
    assert kept.name.startswith("embeddings-someone-rivers-")
    done = anabranch(
        "papers", "a river splits", "--encoder", "someone/rivers", "--json", env={**there, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    done = anabranch("papers", "rivers", "--encoder", "someone/lakes", env=there)
    assert done.returncode == 2
    assert f"no model someone/lakes at {hub}" in done.stderr
