"""Describes jobs and tasks: the design's InferenceResponse, and the rows of a list."""

from datetime import datetime
from typing import Any, assert_never

import msgspec

from bitinglip.scheduling.event_log import EventLog
from bitinglip.scheduling.job import ImageJob, Job, SpeechJob, TextJob, TranscriptionJob
from bitinglip.tasks.store import Task
from bitinglip.wire.errors import error_body, error_object, timestamp
from bitinglip.wire.image.result import image_result, image_usage
from bitinglip.wire.speech.result import speech_result, speech_usage
from bitinglip.wire.text.result import text_result, text_usage
from bitinglip.wire.transcription.result import transcription_result, transcription_usage
from workers import protocol

_json = msgspec.json.Encoder()


def inference_response(event_log: EventLog) -> dict[str, Any]:
    """Describe a job in any state as InferenceResponse; unknown values are null."""
    job, final = event_log.job, event_log.final
    began, ended = event_log.dispatched or event_log.submitted, event_log.ended
    return {
        "task_id": job.id,
        "status": event_log.status,
        "result": _result(job, final) if isinstance(final, protocol.Success) else None,
        "processing_time": round(ended - began, 6) if ended else None,
        "worker_id": event_log.worker_id,
        "created_at": timestamp(job.created_at),
        "completed_at": _moment(event_log.completed_at),
        "usage": _usage(job, final),
        "model": job.model,
        "queue_time": round(event_log.queue_time, 6),
    }


def task_info(task: Task, request_id: str) -> dict[str, Any]:
    """Describe a task: InferenceResponse, kind, error, and place in the queue if it waits."""
    place = task.event_log.place if task.event_log is not None else None
    return {
        **(task.answer or _answer_of(task)),
        "kind": task.kind,
        "error": error_object(task.error, request_id) if task.error else None,
        "position": place.position if place else None,
        "eta": place.eta if place else None,
    }


def final_event(task: Task, request_id: str) -> tuple[str, bytes]:
    """Return the name and the JSON of the final event of a task from the database."""
    if task.error:
        return task.status, error_body(task.error, request_id)
    if task.status == "completed":
        return task.status, _json.encode(task.answer or _answer_of(task))
    return task.status, cancelled(task.id)


def cancelled(task_id: str) -> bytes:
    return _json.encode({"task_id": task_id, "status": "cancelled"})


def _answer_of(task: Task) -> dict[str, Any]:
    if task.event_log is not None:
        return inference_response(task.event_log)
    return {
        "task_id": task.id,
        "status": task.status,
        "result": None,
        "processing_time": None,
        "worker_id": None,
        "created_at": timestamp(task.created_at),
        "completed_at": _moment(task.completed_at),
        "usage": None,
        "model": task.model,
        "queue_time": None,
    }


def _result(job: Job, done: protocol.Success) -> dict[str, Any]:
    """Return ``result``; each kind of job has its own final event."""
    match job:
        case TextJob():
            assert isinstance(done, protocol.TextDone)
            return text_result(job, done)
        case ImageJob():
            assert isinstance(done, protocol.ImageDone)
            return image_result(job, done)
        case SpeechJob():
            assert isinstance(done, protocol.SpeechDone)
            return speech_result(job, done)
        case TranscriptionJob():
            assert isinstance(done, protocol.TranscriptionDone)
            return transcription_result(done)
        case _:
            assert_never(job)


def _usage(job: Job, final: protocol.Final | None) -> dict[str, Any] | None:
    """Return ``usage``; None for a job that has not ended, or has failed."""
    if final is None or isinstance(final, protocol.Failed):
        return None
    match job:
        case TextJob():
            assert isinstance(final, protocol.TextDone | protocol.Cancelled)
            return text_usage(final)
        case ImageJob():
            assert isinstance(final, protocol.ImageDone | protocol.Cancelled)
            return image_usage(job, final)
        case SpeechJob():
            assert isinstance(final, protocol.SpeechDone | protocol.Cancelled)
            return speech_usage(job, final)
        case TranscriptionJob():
            assert isinstance(final, protocol.TranscriptionDone | protocol.Cancelled)
            return transcription_usage(final)
        case _:
            assert_never(job)


def _moment(value: datetime | None) -> str | None:
    return timestamp(value) if value else None
