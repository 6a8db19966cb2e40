"""Finds the traits of a job's kind: each kind has a module here and a row in these tables."""

from typing import Any, assert_never

from bitinglip.work.embedding import EmbeddingTraits
from bitinglip.work.image import ImageTraits
from bitinglip.work.speech import SpeechTraits
from bitinglip.work.text import TextTraits
from bitinglip.work.traits import Traits
from bitinglip.work.transcription import TranscriptionTraits
from workers import protocol

#: filled by the first job of each kind: a look-up is quicker than ``match``
_found: dict[type[protocol.Job], type[Traits[Any]]] = {}


def traits_of(work: protocol.Job) -> Traits[Any]:
    """Return what differs between kinds of jobs, for this one."""
    found = _found.get(type(work))
    if found is None:
        found = _found[type(work)] = _class_of(work)
    return found(work)


def _class_of(work: protocol.Job) -> type[Traits[Any]]:
    match work:
        case protocol.TextJob():
            return TextTraits
        case protocol.ImageJob():
            return ImageTraits
        case protocol.SpeechJob():
            return SpeechTraits
        case protocol.TranscriptionJob():
            return TranscriptionTraits
        case protocol.EmbeddingJob():
            return EmbeddingTraits
        case _:
            assert_never(work)


def traits_of_success(done: protocol.Success) -> type[Traits[Any]]:
    """Return the traits of the kind of jobs that end so."""
    match done:
        case protocol.TextDone():
            return TextTraits
        case protocol.ImageDone():
            return ImageTraits
        case protocol.SpeechDone():
            return SpeechTraits
        case protocol.TranscriptionDone():
            return TranscriptionTraits
        case protocol.EmbeddingDone():
            return EmbeddingTraits
        case _:
            assert_never(done)
