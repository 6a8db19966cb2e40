"""Checks the prompts of a request with the guard before its job is admitted."""

import msgspec
from starlette.types import Scope

from bitinglip.api.services import services_in
from bitinglip.errors import BitingLipError
from bitinglip.scheduling.job import Job
from bitinglip.wire.errors import name_as_openai


async def checked_job(scope: Scope, job: Job) -> Job:
    """Return the job as a model may have it; what the client sent with a refused one is removed.

    Raises PersonalDataDetected, ContentFiltered or GuardFailed.
    """
    services = services_in(scope)
    assert services is not None
    assert job.guard is not None
    try:
        work = await services.guard.checked(job.work, job.guard)
    except BitingLipError as error:
        services.uploads.discard(job)
        if scope["path"].startswith("/v1/"):
            name_as_openai(error, job.kind)
        raise
    return job if work is job.work else msgspec.structs.replace(job, work=work)
