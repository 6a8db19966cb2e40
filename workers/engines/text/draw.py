"""Draws random tokens for many rows at once, by the Gumbel trick."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engines.text.gumbel import gumbel_noise
from workers.engines.text.sampling_params import upload
from workers.engines.text.truncation import Truncation, more_candidates, untypical

_NEVER = float("-inf")
#: The token of a row whose nucleus is larger than the candidates that were looked at.
UNDECIDED = -2


@dataclass(slots=True, frozen=True)
class Draw:
    """Draws the arg max of scaled logits plus Gumbel noise, over the tokens that may be drawn.

    Tokens that are ruled out become -inf in ``noisy``; an undecided row can be chosen again.
    """

    scaled: Tensor  #: [rows, vocab] float32, the largest of each row is 0
    noisy: Tensor  #: [rows, vocab] float32, the same with the noise added
    truncation: Truncation

    @classmethod
    def of(
        cls, logits: Tensor, temperature: Tensor, keys: Tensor, truncation: Truncation
    ) -> "Draw":
        """Set a draw up; logits: [rows, vocab] float32, temperature: [rows], keys: [rows, 2]."""
        scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature.unsqueeze(1)
        noisy = gumbel_noise(keys.int(), logits.shape[-1]).add_(scaled)
        return cls(scaled, noisy, truncation)

    def choose(self, groups: dict[int, Tensor | None]) -> Tensor:
        """Choose a token per row, -2 where undecided. -> [rows] int64

        groups: the indices of the rows by how many candidates they need; None for all rows.
        """
        if not groups and self.truncation.min_p is None:
            return self.noisy.argmax(dim=-1)
        threshold, undecided = self._thresholds(groups)
        self.noisy.masked_fill_(self.scaled < threshold, _NEVER)
        if self.truncation.typical is not None:
            self._keep_typical(threshold, *self.truncation.typical)
        tokens = self.noisy.argmax(dim=-1)
        return tokens if undecided is None else tokens.masked_fill_(undecided[:, 0], UNDECIDED)

    def _keep_typical(self, threshold: Tensor, rows: Tensor, typical_p: Tensor) -> None:
        """Rule out what is not typical in some rows, of what their thresholds leave."""
        scaled, threshold = self.scaled[rows], threshold[rows]
        out = untypical(scaled.masked_fill(scaled < threshold, _NEVER), typical_p)
        self.noisy[rows] = self.noisy[rows].masked_fill_(out, _NEVER)

    def choose_again(self, rows: Sequence[int]) -> list[int]:
        """Choose for undecided rows, among more and more candidates. -> their tokens

        Reads the device, once for each number of candidates.
        """
        tokens = dict.fromkeys(rows, UNDECIDED)
        for candidates in more_candidates(self.scaled.shape[-1]):
            left = [row for row, token in tokens.items() if token == UNDECIDED]
            if not left:
                break
            some = self if len(left) == len(self.scaled) else self._of(left)
            tokens.update(zip(left, some.choose({candidates: None}).tolist(), strict=True))
        return list(tokens.values())

    def _thresholds(self, groups: dict[int, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """Return the smallest value that stays in each row, and which are undecided, [rows, 1]."""
        if None in groups.values():
            (candidates,) = groups
            return self.truncation.thresholds(self.scaled, candidates)
        threshold = self.truncation.least(self.scaled)
        undecided = torch.zeros_like(threshold, dtype=torch.bool)
        for candidates, rows in groups.items():
            assert rows is not None
            some, beyond = self.truncation.of(rows).thresholds(self.scaled[rows], candidates)
            threshold.index_copy_(0, rows, some)
            if beyond is not None:
                undecided.index_copy_(0, rows, beyond)
        return threshold, undecided

    def _of(self, rows: Sequence[int]) -> "Draw":
        index = upload(self.scaled.device, ints={"rows": rows})["rows"]
        return Draw(self.scaled[index], self.noisy[index], self.truncation.of(index))
