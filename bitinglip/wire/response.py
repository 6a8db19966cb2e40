"""Describes jobs and tasks: the design's InferenceResponse, and the rows of a list."""

from datetime import datetime
from typing import Any

import msgspec

from bitinglip.scheduling.event_log import EventLog
from bitinglip.tasks.store import Task
from bitinglip.wire.errors import error_body, error_object, timestamp
from bitinglip.wire.kinds import result_of, usage_of
from workers import protocol

_json = msgspec.json.Encoder()


def inference_response(event_log: EventLog, result: dict[str, Any] | None = None) -> dict[str, Any]:
    """Describe a job in any state as InferenceResponse; unknown values are null.

    result: of a job that succeeded, where it is made already.
    """
    job, final = event_log.job, event_log.final
    answer = _state_of(event_log)
    if isinstance(final, protocol.Succeeds):
        answer["result"] = result_of(job, final) if result is None else result
    return answer


def _state_of(event_log: EventLog) -> dict[str, Any]:
    """Describe a job without its result, in the order of InferenceResponse."""
    job, final = event_log.job, event_log.final
    began, ended = event_log.dispatched or event_log.submitted, event_log.ended
    return {
        "task_id": job.id,
        "status": event_log.status,
        "result": None,
        "processing_time": round(ended - began, 6) if ended else None,
        "worker_id": event_log.worker_id,
        "created_at": timestamp(job.created_at),
        "completed_at": _moment(event_log.completed_at),
        "usage": usage_of(job, final),
        "model": job.model,
        "queue_time": round(event_log.queue_time, 6),
    }


def task_info(task: Task, request_id: str) -> dict[str, Any]:
    """Describe a task: InferenceResponse, kind, error, and place in the queue if it waits."""
    return {**(task.answer or _answer_of(task)), **_members_of(task, request_id)}


def listed_task(task: Task, request_id: str) -> dict[str, Any]:
    """Describe a task as ``task_info`` does, without its result: lists would have no bound."""
    if task.event_log is not None:
        described = _state_of(task.event_log)
    else:
        described = {**(task.answer or _blank(task))}
    described.pop("result", None)
    return {**described, **_members_of(task, request_id)}


def _members_of(task: Task, request_id: str) -> dict[str, Any]:
    place = task.event_log.place if task.event_log is not None else None
    return {
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
    return inference_response(task.event_log) if task.event_log is not None else _blank(task)


def _blank(task: Task) -> dict[str, Any]:
    """Describe a task of which no more is known than its row."""
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


def _moment(value: datetime | None) -> str | None:
    return timestamp(value) if value else None
