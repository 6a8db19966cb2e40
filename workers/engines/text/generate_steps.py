"""Computes one sequence as the library's ``generate()`` does: by what it calls between its passes.

So masks, positions and what a model reads besides tokens are those of the library, for each model
in its own way: pictures (Qwen2-VL counts positions along their sides), or a prompt that an encoder
has read.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from workers.engines.numbers import no_numbers
from workers.engines.text.loading import LoadedModel
from workers.engines.text.plan import Sequence
from workers.engines.text.rounding import Rounding, distances
from workers.engines.torch_env import load_failed

ENCODED = "prompt"  #: the input that names the tokens which an encoder reads
_TYPES = "token_type_ids"
_LENGTHS = 12, 5  #: tokens of the prompt and the answer that try a model
#: Inputs that say something of each token; what comes after a prompt is plain text.
_OF_TOKENS = (_TYPES, "mm_token_type_ids")


class GenerateSteps:
    """Calls one model. What a sequence's tokens have left is a dictionary of arguments."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._encodes = loaded.family == "seq2seq"
        forward = signature(loaded.model.forward).parameters
        #: a prompt's tokens look at all of it, so what comes after it is to be told from them
        self._has_prefix = has_prefix(loaded)
        self._counts = "position_ids" in forward and not self._encodes
        self._settings = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}
        self._never = _never_said(loaded)

    def inputs_of(self, sequence: Sequence) -> Mapping[str, Any]:
        """Return what the model reads beside a sequence's tokens."""
        found = sequence.inputs or {}
        if self._has_prefix and _TYPES not in found:
            return {**found, _TYPES: torch.zeros(1, sequence.prompt_length, dtype=torch.long)}
        return found

    def begin(self, tokens: list[int], inputs: Mapping[str, Any]) -> tuple[Any, Tensor]:
        """Compute a whole sequence. -> what it leaves, the logits after it [vocab]

        ``inputs``: what the model reads beside the tokens; of an encoder, the prompt.
        """
        ids = torch.tensor([tokens], device=self._device)
        if self._encodes:
            given = self._encoded(inputs.get(ENCODED) or tokens)  # a warm-up has no prompt
        else:
            given = {"attention_mask": torch.ones_like(ids)}
            placed = {
                name: each.to(self._device) if isinstance(each, Tensor) else each
                for name, each in inputs.items()
            }
            given |= {name: self._stretched(name, e, len(tokens)) for name, e in placed.items()}
            if self._counts:
                given["position_ids"] = self._model._prepare_position_ids_for_generation(ids, given)
        given |= {"use_cache": True, **self._settings}
        if self._model._supports_default_dynamic_cache():
            given["past_key_values"] = self._cache()
        prepared = self._model.prepare_inputs_for_generation(ids, is_first_iteration=True, **given)
        return self._run(prepared, given)

    def go_on(self, tokens: list[int], given: Any) -> tuple[Any, Tensor]:
        """Compute the last of a sequence's tokens after the others, which have left ``given``."""
        ids = torch.tensor([tokens], device=self._device)
        prepared = self._model.prepare_inputs_for_generation(ids, next_sequence_length=1, **given)
        return self._run(prepared, given)

    def _run(self, prepared: dict[str, Any], given: dict[str, Any]) -> tuple[Any, Tensor]:
        output = self._model(**prepared, return_dict=True)
        given = self._model._update_model_kwargs_for_generation(
            output, given, is_encoder_decoder=self._encodes
        )
        logits = output.logits[0, -1].clone()  # a row of a tensor would keep all of it
        if self._never is not None:
            logits[self._never] = -torch.inf
        return given, logits

    def _encoded(self, prompt: list[int]) -> dict[str, Any]:
        ids = torch.tensor([prompt], device=self._device)
        mask = torch.ones_like(ids)
        encoder = self._model.get_encoder()
        output = encoder(input_ids=ids, attention_mask=mask, return_dict=True)
        return {"attention_mask": mask, "encoder_outputs": output}

    def _stretched(self, name: str, value: Any, length: int) -> Any:
        """Return an input of a prompt for a sequence that has gone on: computed again."""
        if name not in _OF_TOKENS or value.shape[-1] >= length:
            return value
        rest = int(self._has_prefix and name == _TYPES)
        return torch.nn.functional.pad(value, (0, length - value.shape[-1]), value=rest)

    def _cache(self) -> Any:
        own = DynamicCache(config=self._model.config.get_text_config(decoder=True))
        # All of a prompt is kept, also where the decoder looks back through windows.
        return EncoderDecoderCache(own, DynamicCache()) if self._encodes else own


def has_prefix(loaded: LoadedModel) -> bool:
    """Return whether a model's prompts are read in both directions (PaliGemma's)."""
    config = loaded.model.config.get_text_config(decoder=True)
    both = getattr(config, "use_bidirectional_attention", None)
    return loaded.family == "vision" and both is True


@torch.inference_mode()
def check_steps(loaded: LoadedModel) -> None:
    """Compare an answer's logits, token after token, with those of one pass.

    It is for models that read a prompt otherwise than what they say after it. Raises Refused where
    they differ.
    """
    steps = GenerateSteps(loaded)
    prompt, said = (
        [(17 + 31 * place) % loaded.vocab_size for place in range(count)] for count in _LENGTHS
    )
    before: list[int] = []
    if loaded.family == "seq2seq":
        inputs: dict[str, Any] = {ENCODED: prompt}
        given = {"input_ids": prompt, "decoder_input_ids": said}
    else:
        before = prompt
        inputs = {_TYPES: torch.zeros(1, len(prompt), dtype=torch.long)}
        given = {"input_ids": prompt + said, _TYPES: [0] * len(prompt) + [1] * len(said)}
    placed = {name: torch.tensor([each], device=loaded.device) for name, each in given.items()}

    def of_one_pass() -> list[Tensor]:
        output = loaded.model(**placed, use_cache=False)
        return [output.logits[0, len(before) :].float()]

    expected = of_one_pass()[0]
    if not bool(expected.isfinite().all()):
        raise no_numbers(loaded.dtype)
    rounding = Rounding(loaded, [expected], of_one_pass)
    state, found = steps.begin([*before, *said[:1]], inputs)
    off: list[Tensor] = []
    for place in range(len(said)):
        if place:
            state, found = steps.go_on([*before, *said[: place + 1]], state)
        said_ever = found.isfinite()
        off.append(distances(found[said_ever], expected[place][said_ever]))
    if not rounding.passes(torch.stack(off)):
        raise load_failed("The text engine does not compute this model as its library does.")


def _never_said(loaded: LoadedModel) -> Tensor | None:
    """Return the tokens that ``generate()`` never lets this encoder-decoder say; None: all may be.

    Those are its padding, and what else its generation config names by single tokens.
    """
    if loaded.family != "seq2seq":
        return None
    settings = loaded.model.generation_config
    alone = [each[0] for each in settings.bad_words_ids or () if len(each) == 1]
    banned = {*alone, *(settings.suppress_tokens or ())}
    return torch.tensor(sorted(banned), device=loaded.device) if banned else None
