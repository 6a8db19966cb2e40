"""Configs of every engine's library with number formats that are none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from workers.engines.base import Refused
from workers.engines.library_config import library_config


def written(folder: Path, **fields: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("config", "config_class"),
    [
        ({"model_type": "bert"}, transformers.AutoConfig),
        ({"model_type": "whisper"}, transformers.WhisperConfig),
        ({"model_type": "vits"}, transformers.VitsConfig),
    ],
)
@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"dtype": "auto"}, None),
        ({"torch_dtype": "auto"}, None),
        ({"dtype": 7}, None),
        ({"dtype": "float16"}, torch.float16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": None}, None),
    ],
)
def test_library_config_has_the_format_that_there_is(
    tmp_path: Path,
    config: dict[str, Any],
    config_class: Any,
    fields: dict[str, Any],
    dtype: torch.dtype | None,
) -> None:
    found = library_config(written(tmp_path, **config, **fields), config_class)
    assert (found.model_type, found.dtype) == (config["model_type"], dtype)


def test_library_config_of_a_model_inside_is_read_alike(tmp_path: Path) -> None:
    inner = {"model_type": "bert", "dtype": "auto", "hidden_size": 24, "num_attention_heads": 2}
    folder = written(tmp_path, model_type="bark", semantic_config={"dtype": "auto"}, x=inner)
    assert library_config(folder, transformers.BarkConfig).semantic_config.dtype is None


def test_library_config_with_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="own code"):
        library_config(written(tmp_path, model_type="bert", auto_map={"AutoConfig": "a.B"}))
