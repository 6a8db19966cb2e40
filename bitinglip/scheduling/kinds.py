"""Tells the scheduler how kinds of jobs differ, by their traits. Pure."""

import hashlib

import msgspec

from bitinglip.scheduling.job import Job
from workers import protocol


def cost(job: Job) -> float:
    """Estimate what a job will take."""
    return job.traits.cost(job.file_bytes)


def cost_done(job: Job, final: protocol.Success | protocol.Cancelled) -> float:
    """Return what a job took in the end; the estimate where its final event does not tell."""
    done = job.traits.cost_done(final)
    return cost(job) if done is None else done


def affinity(job: Job) -> bytes:
    """Return the same digest for jobs of a key that a worker's caches make cheaper together.

    These are texts that begin alike (the turns of a conversation), images of one prompt, and speech
    in one voice; audio files and texts to embed share nothing.
    """
    whole = f"{job.key_id}\0{job.traits.affinity()}".encode("utf-8", "replace")
    return hashlib.blake2b(whole, digest_size=8).digest()


def input_bytes(job: Job) -> int:
    """Count what the client sent and the gateway keeps until the job has ended."""
    return job.traits.input_bytes()


def without_input(job: Job) -> Job:
    """Return an ended job without its prompts, which nothing asks for any more."""
    work = job.traits.without_input()
    return job if work is job.work else msgspec.structs.replace(job, work=work)
