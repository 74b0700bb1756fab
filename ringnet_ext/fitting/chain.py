"""Block-tridiagonal systems of long chains of frames, with a border: what all frames of a chain depend on.

    D_i x_i - T_i x_{i+1} - T_{i-1} x_{i-1} = right_i,     T_i diagonal

A chain is cut in segments, with one frame, a separator, between each two. The frames of a segment are eliminated from
its first to its last, the same position of all segments at once: the batches are large however long a chain is. Then
the separators are eliminated, one after the other. Equations are asked for when they are needed and not kept. What is
kept of a frame are two blocks, ``factor`` and ``solved``: memory is linear in the number of frames, and small.

With W the inverse Cholesky factor of a frame's block when its turn comes, ``factor`` is W and ``solved`` W [F, right]:
F is its tie to the separator before its segment, or of a separator to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .levenberg_marquardt import Block, cholesky

#: Frames (n,) -> their blocks (n, P, P) and right sides (n, P, R).
Rows = Callable[[Tensor], tuple[Tensor, Tensor]]


class Layout:
    """How chains are cut. Segments are in order of their length, the longest first: those that have a frame at a
    position are the first ones. So are the chains of separators.

    Args:
        problem: (N,) int64, ascending: the frames of a problem are a chain.
        segment: frames between two separators; None for the root of the longest chain's length.
    """

    def __init__(self, problem: Tensor, segment: int | None = None):
        lengths = torch.unique_consecutive(problem, return_counts=True)[1].tolist()
        size = segment or max(1, round(max(lengths, default=1) ** 0.5))
        segments: list[tuple[int, int, int, int]] = []
        separators: list[int] = []
        runs: list[tuple[int, int]] = []  # of separators: the first, how many
        begin = 0
        for length in lengths:
            first, end_of_chain = len(separators), begin + length
            for start in range(begin, end_of_chain, size + 1):
                end = min(start + size, end_of_chain)
                left = len(separators) - 1 if start > begin else -1
                right = len(separators) if end < end_of_chain else -1
                segments.append((start, end - start, left, right))
                if right >= 0:
                    separators.append(end)
            runs.append((first, len(separators) - first))
            begin = end_of_chain
        segments.sort(key=lambda each: -each[1])
        self._runs = sorted((run for run in runs if run[1]), key=lambda run: -run[1])

        columns = torch.tensor(segments, dtype=torch.int64, device=problem.device).view(-1, 4)
        self.problem, self.start = problem, columns[:, 0]
        #: (C,) numbers of the separators before and after a segment, -1 where there is none.
        self.left, self.right = columns[:, 2], columns[:, 3]
        #: (Q,) frames.
        self.separators = torch.tensor(separators, dtype=torch.int64, device=problem.device)
        #: How many segments have a frame at each position, and how many chains a separator.
        self.count = [sum(each[1] > k for each in segments) for k in range(segments[0][1] if segments else 0)]
        self.separator_count = [
            sum(run[1] > k for run in self._runs) for k in range(self._runs[0][1] if self._runs else 0)
        ]

    def at(self, position: int) -> Tensor:
        """The frames at a position of the segments."""
        return self.start[: self.count[position]] + position

    def separators_at(self, position: int) -> Tensor:
        """Numbers of the separators at a position of their chains."""
        found = [run[0] + position for run in self._runs[: self.separator_count[position]]]
        return torch.tensor(found, dtype=torch.int64, device=self.start.device)


def _transposed(blocks: Tensor) -> Tensor:
    return blocks.transpose(1, 2)


class Eliminated:
    """Chains whose frames are eliminated.

    Args:
        layout: of the chains.
        tie: (N, P), between a frame and the next, 0 at a chain's end.
        rows: the equations; each frame is asked for once.
        width: R, columns of the right side.
        problems: G. border: (G, R, R), what the elimination takes from the border: right^T A^-1 right, in double.
        keep: dtype of what is kept; that of the rows' may have more digits.
        frames_at_once: how many are asked for together.
    """

    def __init__(
        self, layout: Layout, tie: Tensor, rows: Rows, width: int, problems: int, *,
        keep: torch.dtype, frames_at_once: int = 256,
    ):  # fmt: skip
        N, P = tie.shape
        self._layout, self._tie, self._rows, self._frames_at_once = layout, tie, rows, frames_at_once
        self.factor = tie.new_empty((N, P, P), dtype=keep)
        self.solved = tie.new_empty((N, P, P + width), dtype=keep)
        self.border = tie.new_zeros((problems, width, width), dtype=torch.float64)
        gram, carried_block, carried = self._segments(width)
        self._separators(gram, carried_block, carried)

    def _eliminate(self, frames: Tensor, block: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
        factor = torch.linalg.solve_triangular(cholesky(block), one.expand_as(block), upper=False)
        solved = factor @ right
        self.factor[frames], self.solved[frames] = factor.to(self.factor), solved.to(self.solved)
        return factor, solved

    def _asked(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Positions and the equations there, several positions asked for together."""
        layout, k = self._layout, 0
        while k < len(layout.count):
            some = max(1, self._frames_at_once // layout.count[k])
            positions = range(k, min(k + some, len(layout.count)))
            blocks, right = self._rows(torch.cat([layout.at(position) for position in positions]))
            sizes = [layout.count[position] for position in positions]
            yield from zip(positions, blocks.split(sizes), right.split(sizes), strict=True)
            k += some

    def _segments(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Eliminates them; the sum of ``solved^T solved`` over each (C, P + R, P + R), and what each passes on to the
        frame after it: of its block (C, P, P), and of its tie to the separator before and its right side (C, P,
        P + R)."""
        layout, tie, P = self._layout, self._tie, self._tie.shape[1]
        C, whole = len(layout.start), P + width
        gram = carried_block = carried = tie.new_zeros(0)
        factor = solved = tie
        for k, block, right in self._asked():
            frames, n = layout.at(k), layout.count[k]
            if k == 0:
                gram, carried_block = block.new_zeros(C, whole, whole), block.new_zeros(C, P, P)
                carried = block.new_zeros(C, P, whole)
                before = torch.where(layout.left[:, None] >= 0, tie[frames - 1], 0).to(block)
                right = torch.cat([torch.diag_embed(before), right], dim=2)
            else:
                tied = factor[:n] * tie[frames - 1].to(block)[:, None]
                block = torch.baddbmm(block, _transposed(tied), tied, alpha=-1)
                passed = _transposed(tied) @ solved[:n]
                passed[..., P:] += right
                right = passed
            factor, solved = self._eliminate(frames, block, right)
            gram[:n].baddbmm_(_transposed(solved), solved)
            ended = slice(layout.count[k + 1] if k + 1 < len(layout.count) else 0, n)
            if ended.start < n:
                tied = factor[ended] * tie[frames[ended]].to(block)[:, None]
                carried_block[ended], carried[ended] = _transposed(tied) @ tied, _transposed(tied) @ solved[ended]
        return gram, carried_block, carried

    def _separators(self, gram: Tensor, carried_block: Tensor, carried: Tensor) -> None:
        layout, P, problem = self._layout, self._tie.shape[1], self._layout.problem
        self.border += _by_problem(gram[:, P:, P:], problem[layout.start], len(self.border))
        if not len(layout.separators):
            return
        parts = [self._rows(frames) for frames in layout.separators.split(self._frames_at_once)]
        block, right = (torch.cat(column) for column in zip(*parts, strict=True))
        has_left, has_right = (layout.left >= 0).nonzero()[:, 0], (layout.right >= 0).nonzero()[:, 0]
        left, after = layout.left[has_left], layout.right[has_right]
        block = block.index_add(0, after, carried_block[has_right], alpha=-1)
        block = block.index_add(0, left, gram[has_left, :P, :P], alpha=-1)
        right = right.index_add(0, after, carried[has_right][..., P:])
        right = right.index_add(0, left, gram[has_left, :P, P:])
        coupling = torch.zeros_like(block)  # of a separator to the next one
        both = has_left[layout.right[has_left] >= 0]
        coupling[layout.left[both]] = _transposed(carried[both][..., :P])
        solved = block
        for k, n in enumerate(layout.separator_count):
            these = layout.separators_at(k)
            D, r = block[these], right[these]
            if k:
                by_coupling, by_right = solved[:n, :, :P], solved[:n, :, P:]
                D = torch.baddbmm(D, _transposed(by_coupling), by_coupling, alpha=-1)
                r = torch.baddbmm(r, _transposed(by_coupling), by_right)
            frames = layout.separators[these]
            solved = self._eliminate(frames, D, torch.cat([coupling[these], r], dim=2))[1]
            by_right = solved[..., P:]
            self.border += _by_problem(_transposed(by_right) @ by_right, problem[frames], len(self.border))

    def solution(self, combination: Tensor) -> Tensor:
        """x (N, P) for the right side times a vector per problem (G, R)."""
        layout, tie, (N, P) = self._layout, self._tie, self._tie.shape
        by_frame = combination.to(self.solved)
        x = by_frame.new_zeros(N + 1, P)

        def solve(frames, other, rest):
            vector = torch.cat([other, by_frame[layout.problem[frames]]], dim=1)
            reduced = self.solved[frames] @ vector[..., None]
            factor = self.factor[frames]
            if rest is not None:
                reduced = reduced + factor @ rest[..., None]
            x[frames] = (_transposed(factor) @ reduced)[..., 0]

        for k in reversed(range(len(layout.separator_count))):
            frames = layout.separators[layout.separators_at(k)]
            following = x.new_zeros(len(frames), P)
            if k + 1 < len(layout.separator_count):
                n = layout.separator_count[k + 1]
                following[:n] = x[layout.separators[layout.separators_at(k + 1)]]
            solve(frames, following, None)
        left = self._of_separators(x[layout.separators], layout.left)
        for k in reversed(range(len(layout.count))):
            frames = layout.at(k)
            solve(frames, left[: len(frames)], tie[frames] * x[frames + 1])
        return x[:N]

    @staticmethod
    def _of_separators(values: Tensor, index: Tensor) -> Tensor:
        """Rows of separators' values; zero where the index is -1."""
        return torch.cat([values, values.new_zeros(1, *values.shape[1:])])[index]

    def covariance(self, shared: Tensor) -> Iterator[Block]:
        """Of all frames, given the covariance of what the border's unknowns are (G, R, R); in its dtype."""
        layout, tie, P = self._layout, self._tie.to(shared), self._tie.shape[1]
        separators, answers, following = self._separators_covariance(shared)
        of = self._of_separators
        # Of each segment: covariance of the frame after the one at hand, of that with the separator before the
        # segment, and of this; and what both do when the border's unknowns move.
        after, before = of(separators, layout.right), of(separators, layout.left)
        together = _transposed(of(following, torch.where(layout.right >= 0, layout.left, -1)))
        answer_after, answer_before = of(answers, layout.right), of(answers, layout.left)
        beside_separators = shared.new_zeros(len(separators), P)
        for k in reversed(range(len(layout.count))):
            frames, n = layout.at(k), layout.count[k]
            factor, solved = self.factor[frames].to(shared), self.solved[frames].to(shared)
            turned = _transposed(factor)
            by_next, by_left = turned @ (factor * tie[frames][:, None]), turned @ solved[..., :P]
            with_next = by_next @ after[:n] + by_left @ _transposed(together[:n])
            with_left = by_next @ together[:n] + by_left @ before[:n]
            own = with_next @ _transposed(by_next) + with_left @ _transposed(by_left) + turned @ factor
            answer = by_next @ answer_after[:n] + by_left @ answer_before[:n] + turned @ solved[..., P:]
            spread = answer @ shared[layout.problem[frames]]
            yield Block(
                frames,
                own + spread @ _transposed(answer),
                with_next.diagonal(dim1=1, dim2=2) + (spread * answer_after[:n]).sum(2),
            )
            after[:n], together[:n], answer_after[:n] = own, with_left, answer
            if k == 0:
                has_left = layout.left >= 0
                beside = with_left.diagonal(dim1=1, dim2=2) + (spread * answer_before).sum(2)
                beside_separators[layout.left[has_left]] = beside[has_left]
        if len(separators):
            spread = answers @ shared[layout.problem[layout.separators]]
            yield Block(layout.separators, separators + spread @ _transposed(answers), beside_separators)

    def _separators_covariance(self, shared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Given the border's unknowns: of the separators (Q, P, P), what they do when these move (Q, P, R), and their
        covariance with the next one (Q, P, P)."""
        layout, P = self._layout, self._tie.shape[1]
        Q, R = len(layout.separators), self.solved.shape[2] - P
        own, following, answers = (shared.new_zeros(Q, P, width) for width in (P, P, R))
        for k in reversed(range(len(layout.separator_count))):
            these = layout.separators_at(k)
            frames = layout.separators[these]
            factor, solved = self.factor[frames].to(shared), self.solved[frames].to(shared)
            turned = _transposed(factor)
            own[these], answers[these] = turned @ factor, turned @ solved[..., P:]
            if k + 1 < len(layout.separator_count):
                n, then = layout.separator_count[k + 1], layout.separators_at(k + 1)
                by_next = turned[:n] @ solved[:n, :, :P]
                with_next = by_next @ own[then]
                own[these[:n]] += with_next @ _transposed(by_next)
                answers[these[:n]] += by_next @ answers[then]
                following[these[:n]] = with_next
        return own, answers, following


def _by_problem(blocks: Tensor, problem: Tensor, problems: int) -> Tensor:
    return blocks.new_zeros((problems, *blocks.shape[1:]), dtype=torch.float64).index_add_(0, problem, blocks.double())
