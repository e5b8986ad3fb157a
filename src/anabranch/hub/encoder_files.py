"""Which sentence encoder is searched with, and whether it is here: asked before anything heavy is imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from anabranch.lab.errors import LabError
from anabranch.lab.places import data_folder

MODEL = "all-minilm-l6-v2"
# What sentence-transformers needs of a model on the hub: no copies for other runtimes, no code.
_WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")
_OLDER = ("*.json", "*.txt", "*.model", "*.bin")  # models from before safetensors


def model_folder() -> Path:
    """Where ``anabranch data all-minilm-l6-v2`` puts the encoder."""
    return data_folder() / MODEL


def has_model() -> bool:
    """Whether the usual encoder and the libraries that run it are here; nothing is loaded to find out."""
    return (model_folder() / "model.safetensors").is_file() and has_libraries()


def has_libraries() -> bool:
    return all(find_spec(name) for name in ("torch", "transformers"))


def find_encoder(name: str, *, where: str = "--encoder") -> Path:
    """The folder of the encoder ``name``: a folder, or a model of sentence-transformers on the hub, which is fetched.

    A name without an owner is one of ``sentence-transformers``; ``all-minilm-l6-v2`` may be the one of our data.

    Args:
        where: what gave the name, for the error.

    Raises:
        LabError: there is no such folder or model, or the hub cannot be reached and the model is not in its cache.
    """
    if not has_libraries():
        raise LabError(f"{where} {name}: sentence encoders need torch and transformers: pip install 'anabranch[hub]'")
    place = Path(name).expanduser()
    if place.is_dir():
        if not any((place / file).is_file() for file in ("modules.json", "config.json")):
            raise LabError(f"{where} {name}: expected a folder with modules.json or config.json")
        return place.resolve()
    if name.lower() == MODEL and has_model():
        return model_folder()
    if place.is_absolute() or name.startswith((".", "~")):
        raise LabError(f"{where} {name}: there is no such folder")
    return _from_hub(name if "/" in name else f"sentence-transformers/{name}", f"{where} {name}")


def _from_hub(model: str, given: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        for wanted in (_WANTED, _OLDER):
            folder = Path(snapshot_download(model, allow_patterns=list(wanted), etag_timeout=10))
            if any(folder.rglob(f"*{wanted[-1][1:]}")):
                return folder
    except HFValidationError as error:
        raise LabError(f"{given}: no folder, and no name of a model ({str(error).splitlines()[0]})") from error
    except RepositoryNotFoundError as error:
        raise LabError(f"{given}: no folder here, and no model {model} at {constants.ENDPOINT}") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise LabError(
            f"{given}: no folder here, {model} is not in the hub's cache, and {constants.ENDPOINT} cannot be reached"
        ) from error
    raise LabError(f"{given}: {model} has no weights that can be read here")
