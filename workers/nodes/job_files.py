"""Finds the files that jobs and loads name, and renames them for another machine."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from workers.confinement import model_files
from workers.nodes.files import MOST_FILE_BYTES
from workers.protocol import (
    ChatMessage,
    Command,
    Failed,
    ImageDone,
    ImageJob,
    Job,
    JobEvent,
    Load,
    SpeechDone,
    SpeechJob,
    TextJob,
    TranscriptionJob,
    audio_file_name,
    image_file_name,
)


def inputs_of(command: Command) -> Iterator[str]:
    """Yield the paths of the files that a job reads."""
    match command:
        case TranscriptionJob(path=path):
            yield path
        case ImageJob(image=image, mask=mask):
            yield from filter(None, (image, mask))
        case TextJob(messages=messages) if messages is not None:
            for message in messages:
                yield from (each.source for each in message.pictures)


def with_files(command: Command, local: Callable[[str], str], folder: str) -> Command:
    """Return a job with the files that it reads renamed, and its results in ``folder``."""
    replace = msgspec.structs.replace
    match command:
        case TranscriptionJob(path=path):
            return replace(command, path=local(path))
        case ImageJob(image=image, mask=mask):
            return replace(
                command,
                image=local(image) if image else image,
                mask=local(mask) if mask else mask,
                folder=folder,
            )
        case SpeechJob():
            return replace(command, folder=folder)
        case TextJob(messages=messages) if messages is not None:
            if any(message.pictures for message in messages):
                return replace(command, messages=tuple(_local(each, local) for each in messages))
    return command


def with_models(command: Command, local: Callable[[str], str | None], lent: str) -> Command:
    """Return a command with the models' files that it names where they were copied to.

    ``lent``: the folder that holds those which jobs name. What has not come keeps its name, which
    is refused later; a job's LoRA that has not come counts as gone.
    """
    replace = msgspec.structs.replace
    match command:
        case Load(image=image, speech=speech, text=text):

            def placed(path: str) -> str:
                return local(path) or path

            def all_placed(paths: dict[str, str]) -> dict[str, str]:
                return {name: placed(path) for name, path in paths.items()}

            return replace(
                command,
                path=placed(command.path),
                adapter=command.adapter and placed(command.adapter),
                image=image and replace(image, loras=all_placed(image.loras)),
                speech=speech
                and replace(
                    speech,
                    vocoder=speech.vocoder and placed(speech.vocoder),
                    voices=all_placed(speech.voices),
                ),
                text=text and replace(text, lora_folder=lent if text.lora_folder else ""),
            )
        case TextJob(lora=lora) if lora is not None:
            # Their times of change are other ones here; the gateway has compared its own.
            return replace(command, lora=replace(lora, path=local(lora.path) or "", stamps={}))
    return command


def copied_files(load: Load) -> list[str]:
    """Return the folders and files of a load that have to be on its node."""
    lent = load.text.lora_folder if load.text is not None else ""
    return [path for path in model_files(load) if path != lent]


def _local(message: ChatMessage, local: Callable[[str], str]) -> ChatMessage:
    pictures = (
        msgspec.structs.replace(each, source=local(each.source)) for each in message.pictures
    )
    return msgspec.structs.replace(message, pictures=tuple(pictures))


def unsendable(job: Job, path: Path) -> Failed:
    """Return the end of a job whose upload cannot be sent to another machine, with the reason."""
    try:
        too_large = path.stat().st_size > MOST_FILE_BYTES
    except OSError:
        too_large = False
    if too_large:
        most = MOST_FILE_BYTES >> 20
        text = f"The model runs on another machine, which takes files of at most {most} MiB."
        return Failed(id=job.id, code="PAYLOAD_TOO_LARGE", message=text)
    return Failed(id=job.id, code="INFERENCE_FAILED", message="The file of the request is gone.")


def results_of(event: JobEvent) -> list[tuple[str, int]]:
    """Return the names and sizes of the files that an event says were made."""
    match event:
        case SpeechDone():
            return [(audio_file_name(event.id, event.format), event.bytes)]
        case ImageDone():
            return [
                (image_file_name(event.id, index, image.format), image.bytes)
                for index, image in enumerate(event.images)
            ]
    return []


def load_refusal(load: Load, node: str, roots: tuple[str, ...]) -> str | None:
    """Say why a load cannot be done on this machine, and what to do; None if it can.

    ``node`` is what the gateway calls the machine; ``roots``: where it may load from.
    """
    for path in model_files(load):
        if not is_within(path, roots):
            return (
                f"The node {node} may not load {load.model} from where its files are: the folders "
                "that it reads models from are others than the gateway's."
            )
        if not os.path.exists(path):
            return (
                f"The node {node} does not have the files of {load.model}. Nodes read models from "
                "a shared file system (workers.ray.models): mount the folder of models there, at "
                "the same path as on the gateway's machine."
            )
    return None


def is_within(path: str, roots: tuple[str, ...]) -> bool:
    """Return True for a path at or below one of the roots, links resolved."""
    real = os.path.realpath(path)
    return any(
        real == root or real.startswith(os.path.join(root, ""))
        for root in map(os.path.realpath, roots)
    )
