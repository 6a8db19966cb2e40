"""Builds the tensors of one step, which every layer uses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from workers.engines.text.blocks import NULL_BLOCK
from workers.engines.text.cache import BlockTable
from workers.engines.text.lora_layers import LoraRows, places_of
from workers.engines.text.plan import Chunk, Plan
from workers.engines.text.plan import Sequence as Text
from workers.engines.text.ragged import RaggedPrompts
from workers.engines.text.row_table import RowTable
from workers.engines.text.sampling_params import upload

#: A mask per window size in use; None stands for no window, a value of None for plain causality.
Masks = dict[int | None, Tensor | None]


@dataclass(slots=True, frozen=True)
class DecodeGroup:
    """Groups rows of similar length, of equally many tokens each: one attention call. They are
    ``start:end`` of the step's tokens. A row has its last token, and drafts after it."""

    start: int
    end: int
    table: BlockTable
    masks: Masks  #: each [rows, 1, tokens of a row, tokens], added to the scores


@dataclass(slots=True, frozen=True)
class PagedRows:
    """Describes tokens ``0:count`` of the step, for a kernel that reads the cache in place. A row's
    drafts are rows of their own to it, longer by one each."""

    count: int
    table: Tensor  #: [count, blocks] int32, padded with block 0
    lengths: Tensor  #: [count] int32, tokens with the row's own
    longest: int  #: of the lengths

    def to(self, device: torch.device) -> "PagedRows":
        return replace(self, table=self.table.to(device), lengths=self.lengths.to(device))


@dataclass(slots=True, frozen=True)
class PromptPiece:
    """Describes rows ``start:end`` of the step: consecutive tokens of one sequence."""

    start: int
    end: int
    length: int  #: tokens of the sequence up to and with this piece
    table: BlockTable  #: of one sequence
    masks: Masks  #: each [rows, length]; None: the piece is the beginning, causality is enough


@dataclass(slots=True, frozen=True)
class Carry:
    """Holds the tokens that the step before has chosen, which only the device knows yet."""

    tokens: Tensor  #: [rows] int64; negative where there is none
    rows: Mapping[Text, int]  #: where each sequence's is


@dataclass(slots=True, frozen=True)
class Batch:
    """Holds all tokens of one step, one after the other."""

    ids: Tensor  #: [tokens]
    positions: Tensor  #: [tokens]
    slots: Tensor  #: [tokens], where in the cache their keys and values go
    decodes: list[DecodeGroup]
    prompts: list[PromptPiece]
    #: [rows] tokens whose logits are wanted, first those that are sampled from; None: all of them
    sampled: Tensor | None
    order: list[Chunk]  #: the chunks that sample, in the order of their logits
    paged: PagedRows | None = None  #: in place of ``decodes``
    ragged: RaggedPrompts | None = None  #: in place of ``prompts``
    #: [chunks of ``order``] bool, those that are computed from no token; None: there is none
    void: Tensor | None = None
    lora: LoraRows | None = None  #: None: no token has a LoRA
    elsewhere: "dict[torch.device, Batch]" = field(default_factory=dict)  #: copies, see ``on``

    def on(self, device: torch.device) -> "Batch":
        """Return the batch with what layers read on a layer's device; copied once per step."""
        if device == self.slots.device:
            return self
        if device not in self.elsewhere:
            self.elsewhere[device] = replace(
                self,
                slots=self.slots.to(device),
                sampled=None if self.sampled is None else self.sampled.to(device),
                paged=self.paged and self.paged.to(device),
                ragged=self.ragged and self.ragged.to(device),
                decodes=[
                    replace(each, table=each.table.to(device), masks=_moved(each.masks, device))
                    for each in self.decodes
                ],
                prompts=[
                    replace(each, table=each.table.to(device), masks=_moved(each.masks, device))
                    for each in self.prompts
                ],
            )
        return self.elsewhere[device]


class BatchBuilder:
    """Turns plans into batches for one cache."""

    def __init__(
        self,
        block_size: int,
        windows: Iterable[int | None],
        *,
        dtype: torch.dtype,
        device: torch.device,
        in_place: bool = False,
        ragged: bool = False,
    ) -> None:
        """``in_place``: a kernel reads the cache of decode rows where it lies. ``ragged``: one call
        computes all pieces of prompts."""
        self._in_place = in_place
        self._ragged = ragged
        self._block_size = block_size
        self._windows = tuple(windows)
        self._dtype = dtype
        self._device = device
        self._table = RowTable(0, 0, device)  #: of steps whose rows a kernel reads in place

    def build(self, plan: Plan, carry: Carry | None = None) -> Batch:
        """Return a plan's tensors; ``carry`` has the tokens that sequences are promised."""
        decodes = self._ordered(plan.decodes)
        decoded = len(decodes) + sum(len(chunk.drafts) for chunk in decodes)
        chunks = decodes + plan.prefills
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for chunk in chunks:
            self._add_tokens(chunk, ids, positions, slots)
        last = [*range(decoded), *_last_rows(decoded, plan.prefills)]
        last += _scored_rows(decoded, plan.prefills)
        loras = places_of(chunks)
        sent = upload(
            self._device,
            ints={
                "ids": ids,
                "positions": positions,
                "slots": slots,
                "sampled": last if plan.prefills else [],
                "loras": loras,
                **promised_rows(decodes, carry),
            },
        )
        order = [chunk for chunk in chunks if chunk.samples]
        return Batch(
            ids=sent["ids"],
            positions=sent["positions"],
            slots=sent["slots"],
            decodes=[] if self._in_place else self._groups(decodes, sent["positions"][:decoded]),
            paged=self._paged(decodes) if self._in_place and decodes else None,
            prompts=[] if self._ragged else self._pieces(decoded, plan.prefills),
            ragged=self._ragged_prompts(decoded, plan.prefills),
            sampled=sent["sampled"] if plan.prefills else None,
            order=order,
            void=None if carry is None else fill_in(sent["ids"], carry, sent, len(order)),
            lora=LoraRows.of(loras, sent["loras"]) if loras else None,
        )

    def _ordered(self, decodes: Sequence[Chunk]) -> list[Chunk]:
        """Return rows in their order in the step."""
        if self._keeps_rows(decodes):
            rows, width = len(decodes), max(len(chunk.sequence.blocks) for chunk in decodes)
            if rows > self._table.rows or width > self._table.width:
                self._table = RowTable(
                    max(2 * self._table.rows, rows), max(2 * self._table.width, width), self._device
                )
            return self._table.arrange(decodes)
        # The longest first, so that rows of similar length are neighbours.
        return sorted(decodes, key=lambda chunk: (-len(chunk.drafts), -chunk.end))

    def _keeps_rows(self, decodes: Sequence[Chunk]) -> bool:
        """Return whether a step's rows have a table that stays: of drafts there is a row each."""
        return self._in_place and bool(decodes) and not any(chunk.drafts for chunk in decodes)

    def _add_tokens(
        self, chunk: Chunk, ids: list[int], positions: list[int], slots: list[int]
    ) -> None:
        ids += chunk.tokens or [0]  # only the device knows it yet
        positions += range(chunk.start, chunk.end)
        slots += self._slots(chunk, chunk.start)

    def _slots(self, chunk: Chunk, first: int) -> list[int]:
        """Return where the tokens of a chunk's sequence are in the cache, up to the chunk's end."""
        size, blocks = self._block_size, chunk.sequence.blocks
        return [blocks[place // size] * size + place % size for place in range(first, chunk.end)]

    def _paged(self, chunks: Sequence[Chunk]) -> PagedRows:
        """Return the rows' blocks and lengths, a row for each token."""
        longest = max(len(chunk.sequence.blocks) for chunk in chunks)
        if self._keeps_rows(chunks):
            ends = [chunk.end for chunk in chunks]
            sent = upload(self._device, ints={"lengths": ends, **self._table.changes(chunks)})
            self._table.write(chunks, sent)
            own = self._table.part(len(chunks), longest)
            return PagedRows(len(chunks), own, sent["lengths"].int(), max(ends))
        table: list[int] = []
        lengths: list[int] = []
        for chunk in chunks:
            row = chunk.sequence.blocks
            row = [*row, *[NULL_BLOCK] * (longest - len(row))]
            table += row * (chunk.end - chunk.start)
            lengths += range(chunk.start + 1, chunk.end + 1)
        sent = upload(self._device, ints={"table": table, "lengths": lengths})
        return PagedRows(
            len(lengths),
            sent["table"].int().view(len(lengths), longest),
            sent["lengths"].int(),
            max(lengths),
        )

    def _groups(self, chunks: Sequence[Chunk], places: Tensor) -> list[DecodeGroup]:
        """Return rows of similar length together. places: of their tokens"""
        groups = []
        first = start = 0
        while first < len(chunks):
            blocks, drafts = len(chunks[first].sequence.blocks), len(chunks[first].drafts)
            last = first + 1
            # Padding may cost as much as the rows themselves, not more.
            while (
                last < len(chunks)
                and 2 * len(chunks[last].sequence.blocks) >= blocks
                and len(chunks[last].drafts) == drafts
            ):
                last += 1
            end = start + (last - first) * (1 + drafts)
            groups.append(self._group(start, end, chunks[first:last], places[start:end]))
            first, start = last, end
        return groups

    def _group(self, start: int, end: int, chunks: Sequence[Chunk], places: Tensor) -> DecodeGroup:
        table = BlockTable.of([chunk.sequence.blocks for chunk in chunks], self._device)
        tokens = table.blocks.shape[0] // table.sequences * self._block_size
        places = places.view(len(chunks), -1, 1)  # [rows, tokens of a row, 1]
        keys = torch.arange(tokens, device=self._device)
        masks: Masks = {
            window: mask_of(places, keys, window, self._dtype).unsqueeze(1)
            for window in self._windows
        }
        return DecodeGroup(start, end, table, masks)

    def _pieces(self, start: int, chunks: Sequence[Chunk]) -> list[PromptPiece]:
        pieces = []
        for chunk in chunks:
            end = start + chunk.end - chunk.start
            blocks = chunk.sequence.blocks[: -(-chunk.end // self._block_size)]
            table = BlockTable.of([blocks], self._device)
            masks: Masks = {window: self._piece_mask(chunk, window) for window in self._windows}
            pieces.append(PromptPiece(start, end, chunk.end, table, masks))
            start = end
        return pieces

    def _ragged_prompts(self, start: int, chunks: Sequence[Chunk]) -> RaggedPrompts | None:
        if not self._ragged or not chunks:
            return None
        slots = [slot for chunk in chunks for slot in self._slots(chunk, 0)]
        pieces = [(chunk.end - chunk.start, chunk.end) for chunk in chunks]
        return RaggedPrompts.of(start, pieces, slots, self._device)

    def _piece_mask(self, chunk: Chunk, window: int | None) -> Tensor | None:
        if chunk.start == 0 and (window is None or window >= chunk.end):
            return None
        places = torch.arange(chunk.start, chunk.end, device=self._device)[:, None]
        keys = torch.arange(chunk.end, device=self._device)
        return mask_of(places, keys, window, self._dtype)


def mask_of(places: Tensor, keys: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return a mask [.., tokens], 0 where seen; places: [.., 1], keys: [tokens]."""
    hidden = keys > places
    if window is not None:
        hidden |= keys <= places - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, float("-inf"))


def promised_rows(decodes: Sequence[Chunk], carry: Carry | None) -> dict[str, list[int]]:
    """Return the rows whose tokens only the device knows, and where it has them."""
    if carry is None:
        return {}
    rows = [row for row, chunk in enumerate(decodes) if chunk.start >= len(chunk.sequence.tokens)]
    return {"late": rows, "sources": [carry.rows[decodes[row].sequence] for row in rows]}


def fill_in(ids: Tensor, carry: Carry, sent: Mapping[str, Tensor], samples: int) -> Tensor:
    """Write the tokens that only the device knows into ``ids``; see ``promised_rows``.

    Returns which of the rows that sample, [samples] bool, have none.
    """
    tokens = carry.tokens.index_select(0, sent["sources"])
    ids.index_copy_(0, sent["late"], tokens.clamp(min=0))
    void = torch.zeros(samples, dtype=torch.bool, device=ids.device)
    return void.index_copy_(0, sent["late"], tokens < 0)


def _moved(masks: Masks, device: torch.device) -> Masks:
    return {window: None if mask is None else mask.to(device) for window, mask in masks.items()}


def _last_rows(start: int, chunks: Sequence[Chunk]) -> list[int]:
    """Return the row of the last token of each chunk that samples."""
    rows = []
    for chunk in chunks:
        start += chunk.end - chunk.start
        if chunk.samples:
            rows.append(start - 1)
    return rows


def _scored_rows(start: int, chunks: Sequence[Chunk]) -> list[int]:
    """Return the rows of the prompts' tokens whose logits are wanted, chunk after chunk."""
    rows: list[int] = []
    for chunk in chunks:
        rows += range(start, start + chunk.scored)
        start += chunk.end - chunk.start
    return rows
