"""Changes weights in a model's files."""

from pathlib import Path

from safetensors.torch import load_file, save_file


def scale(folder: Path, tensor: str, factor: float) -> None:
    """Multiply a tensor of the one file of weights in a folder."""
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors[tensor] = (tensors[tensor].double() * factor).to(tensors[tensor].dtype)
    save_file(tensors, file, metadata={"format": "pt"})
