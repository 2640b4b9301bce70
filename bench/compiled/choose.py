"""Choosing the next tokens inside the graph: greedy, sampling and beam search, as transformers' `generate` does it.

A chooser keeps what it has chosen in tensors that stay where they are. Each call takes the scores of the next token,
shape [rows, vocabulary] with rows = batch x beams, and returns the row that each row continues, or None where every row
continues itself. `tokens` then holds the next input, shape [rows, 1].
"""

from __future__ import annotations

from typing import Any

import torch

from .cache import Place, stay

LOW = -1e9
"""What transformers' beam search uses for minus infinity; the same here, because it is added to scores."""


class Choice(torch.nn.Module):
    """What all choosers share: the next tokens, those chosen so far, and whether everything has ended."""

    def __init__(self, place: Place, eos: tuple[int, ...], pad: int) -> None:
        super().__init__()
        self.place = place
        device = place.step.device
        self.eos = torch.tensor(eos, device=device) if eos else None
        self.pad = pad
        self.tokens = stay(torch.zeros(place.rows, 1, dtype=torch.int64, device=device))
        self.ended = stay(torch.zeros(1, dtype=torch.bool, device=device))
        """Whether nothing is left to generate; stays false without EOS."""
        self.finite = stay(torch.ones(1, dtype=torch.bool, device=device))
        """Whether the best score of every step was a number: NaN and +infinity are higher than all others."""

    def begin(self, length: int) -> None:
        """Forget the last generation; `length` tokens are to come."""
        self.ended.zero_()
        self.finite.fill_(True)

    def _see(self, best: torch.Tensor) -> None:
        self.finite.logical_and_(best.isfinite().all())

    def so_far(self, length: int) -> torch.Tensor:
        """The ids of each row after `length` calls, shape [rows, length]."""
        raise NotImplementedError

    def result(self, length: int) -> torch.Tensor:
        """The generated ids after `length` calls, shape [batch, at most length]."""
        raise NotImplementedError

    def _is_eos(self, ids: torch.Tensor) -> torch.Tensor:
        if self.eos is None:
            return torch.zeros_like(ids, dtype=torch.bool)
        return (ids[..., None] == self.eos).any(-1)


class Single(Choice):
    """One sequence per prompt: the most probable token, or one drawn from the distribution that `warpers` leave."""

    def __init__(self, place: Place, eos: tuple[int, ...], pad: int, warpers: list[Any] | None = None) -> None:
        super().__init__(place, eos, pad)
        self.warpers = warpers
        device = place.step.device
        self.chosen = stay(torch.zeros(place.rows, place.capacity + 1, dtype=torch.int64, device=device))
        self.finished = stay(torch.zeros(place.rows, dtype=torch.bool, device=device))

    def begin(self, length: int) -> None:
        """Forget the last generation."""
        super().begin(length)
        self.finished.zero_()
        self.chosen.fill_(self.pad)

    def forward(self, scores: torch.Tensor, count: torch.Tensor) -> None:
        """Choose token number `count` (int64 of one element)."""
        best, ids = scores.max(-1)
        self._see(best)
        if self.warpers is not None:
            for warper in self.warpers:
                scores = warper(self.chosen, scores)
            # The token that a race of exponential clocks ends with is distributed as torch.multinomial's, without
            # the synchronisation of the latter.
            chances = scores.softmax(-1)
            ids = (chances / torch.empty_like(chances).exponential_(1)).argmax(-1)
        if self.eos is not None:
            ids = torch.where(self.finished, self.pad, ids)
            self.finished.logical_or_(self._is_eos(ids))
            self.ended.copy_(self.finished.all(0, keepdim=True))
        self.tokens.copy_(ids[:, None])
        self.chosen.index_copy_(1, count, ids[:, None])

    def so_far(self, length: int) -> torch.Tensor:
        """The generated ids, padded after EOS."""
        return self.chosen[:, :length]

    result = so_far


class Beams(Choice):
    """Beam search with transformers' scores, length penalty and stopping (`GenerationMixin._beam_search`, 5.x)."""

    def __init__(self, place: Place, eos: tuple[int, ...], pad: int, penalty: float, early: bool | str) -> None:
        super().__init__(place, eos, pad)
        self.fill = (pad or eos[0]) if eos else -1
        self.penalty, self.early = penalty, early
        batch, beams, device = place.batch, place.beams, place.step.device
        room = place.capacity + 1

        def make(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return stay(torch.zeros(batch, *shape, dtype=dtype, device=device))

        self.keep = max(2, 1 + len(eos)) * beams
        self.running, self.finished = (make(beams, room, dtype=torch.int64) for _ in range(2))
        self.running_scores, self.finished_scores = (make(beams, dtype=torch.float32) for _ in range(2))
        self.is_finished = make(beams, dtype=torch.bool)
        self.finished_length = make(beams, dtype=torch.int64)
        self.hope = make(1, dtype=torch.bool)
        """Whether a running beam of the prompt may still beat the finished ones."""
        self.powers = stay(torch.tensor([float(n) ** penalty for n in range(1, room + 1)], device=device))
        self.last = stay(torch.zeros(1, dtype=torch.int64, device=device))
        """Number of the token after which the length is used up."""

    def begin(self, length: int) -> None:
        """Only one beam of each prompt counts at first, because all are equal."""
        super().begin(length)
        self.running.fill_(self.fill)
        self.finished.fill_(self.fill)
        self.running_scores.fill_(LOW)[:, 0] = 0
        self.finished_scores.fill_(LOW)
        self.is_finished.zero_()
        self.finished_length.zero_()
        self.hope.fill_(True)
        self.last.fill_(length - 1)

    def forward(self, scores: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """Choose token number `count`; returns the row of the best beams, int64 of shape [rows]."""
        batch, beams = self.place.batch, self.place.beams
        vocabulary = scores.shape[-1]
        totals = scores.log_softmax(-1).view(batch, beams, vocabulary) + self.running_scores[:, :, None]
        best, index = totals.view(batch, -1).topk(self.keep)
        self._see(best)
        beam, ids = index // vocabulary, index % vocabulary
        longer = _of(self.running, beam).index_copy(2, count, ids[:, :, None])
        over = self._is_eos(ids) | (count == self.last)

        next_best, chosen = (best + over.float() * LOW).topk(beams)
        self.running_scores.copy_(next_best)
        self.running.copy_(_of(longer, chosen))
        parents = beam.gather(1, chosen)
        self._finish(longer, best, over, count)

        best_possible = self.running_scores[:, :1] / (
            self.powers[self.last] if self.early == "never" and self.penalty > 0 else self.powers[count]
        )
        worst = torch.where(self.is_finished, self.finished_scores.amin(1, keepdim=True), LOW)
        self.hope.logical_and_((best_possible > worst).any(-1, keepdim=True))
        if self.eos is not None:
            open_beam = ~self.is_finished.all() if self.early is True else torch.ones_like(self.ended)
            self.ended.copy_(~(self.hope.any() & open_beam & ~over.all()).view(1))
        self.tokens.copy_(self.running.index_select(2, count).view(-1, 1))
        rows: torch.Tensor = (parents + torch.arange(batch, device=ids.device)[:, None] * beams).view(-1)
        return rows

    def _finish(self, longer: torch.Tensor, best: torch.Tensor, over: torch.Tensor, count: torch.Tensor) -> None:
        """Keep the best of the sequences that had ended and those that end now, among the first `beams`."""
        beams = self.place.beams
        ends = over & (torch.arange(self.keep, device=over.device) < beams)
        final = best / self.powers[count]
        if self.early is True:
            final = final + self.is_finished.all(-1, keepdim=True).float() * LOW
        final = final + (~self.hope).float() * LOW
        final = final + (~ends).float() * LOW
        merged, chosen = torch.cat([self.finished_scores, final], 1).topk(beams)
        lengths = torch.cat([self.finished_length, (count + 1).expand_as(final)], 1)
        self.finished.copy_(_of(torch.cat([self.finished, longer], 1), chosen))
        self.is_finished.copy_(torch.cat([self.is_finished, ends], 1).gather(1, chosen))
        self.finished_length.copy_(lengths.gather(1, chosen))
        self.finished_scores.copy_(merged)

    def so_far(self, length: int) -> torch.Tensor:
        """Those that are still growing."""
        return self.running[:, :, :length].flatten(0, 1)

    def result(self, length: int) -> torch.Tensor:
        """The best sequence of each prompt, padded after its end."""
        return self.finished[:, 0, : int(self.finished_length[:, 0].max())]


def _of(sequences: torch.Tensor, beam: torch.Tensor) -> torch.Tensor:
    """Sequences [batch, n, length] of `beam` [batch, m]: shape [batch, m, length]."""
    return sequences.gather(1, beam[:, :, None].expand(-1, -1, sequences.shape[2]))
