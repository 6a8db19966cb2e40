"""Prompts longer than their encoder reads: in chunks, each word of which is seen."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.image_harness import ImageHarness
from workers.engines.image.long_prompts import chunks_of
from workers.protocol import ImageJob

#: what diffusers' schedulers do with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
WORDS = [letter * 24 for letter in "abcdefg"]  #: each letter is a token: three words fill a chunk
LONG = " ".join(WORDS)
CHUNKING = {"sd", "sdxl"}  #: the pipelines whose prompts are read in chunks
CHUNKS = [" ".join(WORDS[start : start + 3]) for start in (0, 3, 6)]


@pytest.fixture
def chunking(harness: ImageHarness) -> ImageHarness:
    assert harness.engine._pipelines.chunks_prompts == (harness.name in CHUNKING)
    if harness.name not in CHUNKING:
        pytest.skip("this pipeline reads long prompts, or none")
    return harness


def expected(harness: ImageHarness, job: ImageJob, negatives: list[str]) -> Any:
    """Return what the library makes of the chunks' embeddings, joined."""
    each = [
        harness.bare.encode_prompt(
            prompt=chunk,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative or None,
        )
        for chunk, negative in zip(CHUNKS, negatives, strict=True)
    ]
    names = ("prompt_embeds", "negative_prompt_embeds")
    more: dict[str, Any] = {
        name: torch.cat([part[index] for part in each], dim=1) for index, name in enumerate(names)
    }
    pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    more |= dict(zip(pooled, each[0][2:], strict=False))
    plain = ImageJob(**{**vars_of(job), "negative_prompt": None})
    return harness.expected(plain, prompt=None, **more)


def vars_of(job: ImageJob) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__struct_fields__}


def test_long_prompt_is_the_library_s_of_its_chunks(chunking: ImageHarness) -> None:
    job = chunking.job(LONG)
    chunking.run(job)
    assert np.array_equal(chunking.pixels(job), expected(chunking, job, ["", "", ""]))


def test_long_prompt_counts_to_its_last_word(chunking: ImageHarness) -> None:
    jobs = [chunking.job(LONG), chunking.job(f"{LONG}x"), chunking.job(" ".join(WORDS[:3]))]
    chunking.run(*jobs)
    first, other, start = (chunking.pixels(job) for job in jobs)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, start)


def test_long_negative_prompt_is_honoured(chunking: ImageHarness) -> None:
    jobs = [chunking.job(negative_prompt=LONG), chunking.job(negative_prompt=f"{LONG}x")]
    chunking.run(*jobs)
    assert not np.array_equal(*(chunking.pixels(job) for job in jobs))


def test_long_prompt_changes_no_neighbour(chunking: ImageHarness) -> None:
    """Prompts of other lengths share no pass with it: padding would change them."""
    jobs = [chunking.job("a cat"), chunking.job(LONG), chunking.job("a dog", seeds=(8,))]
    chunking.run(*jobs)
    for job in (jobs[0], jobs[2]):
        assert np.abs(chunking.pixels(job) - chunking.expected(job)).max() <= 1
    assert np.array_equal(chunking.pixels(jobs[1]), expected(chunking, jobs[1], ["", "", ""]))


def test_long_prompt_chunks_are_cut_between_words_and_hold_all_of_them(
    chunking: ImageHarness,
) -> None:
    tokenizers, longest = chunking.engine._pipelines.tokenizers, 77
    assert [each.strip() for each in chunks_of(LONG, tokenizers, longest)] == CHUNKS
    assert chunks_of("a cat", tokenizers, longest) == ["a cat"]
    assert chunks_of("", tokenizers, longest) == [""]
    without_spaces = "y" * 500
    found = chunks_of(without_spaces, tokenizers, longest)
    assert "".join(found) == without_spaces
    for text in (LONG, without_spaces, "z" * 76 + " " + "é" * 40):
        for chunk in chunks_of(text, tokenizers, longest):
            assert all(len(each(chunk).input_ids) <= longest for each in tokenizers)
