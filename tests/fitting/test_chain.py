"""Chains of frames with a border: solved, and their inverse, against the dense matrix."""

import pytest
import torch

from ringnet_ext.fitting.chain import Eliminated, Layout

P, R = 5, 4


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(blocks):
    return blocks @ blocks.transpose(-1, -2) + 6 * torch.eye(blocks.shape[-1], dtype=blocks.dtype)


@pytest.mark.parametrize("segment", [None, 1, 2, 100])
@pytest.mark.parametrize("lengths", [[1], [2], [3], [7], [16], [50], [5, 1, 9, 30], [2, 2, 2]], ids=str)
def test_a_chain_is_solved_and_inverted(lengths, segment):
    N = sum(lengths)
    problem = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    blocks, right = positive(random(N, P, P, seed=1)), random(N, P, R, seed=2)
    tie = random(N, P, seed=3).abs()
    tie[:-1][problem[1:] != problem[:-1]] = 0
    tie[-1] = 0
    dense = torch.block_diag(*blocks)
    for i in range(N - 1):
        here, there = slice(i * P, (i + 1) * P), slice((i + 1) * P, (i + 2) * P)
        dense[here, there] = dense[there, here] = -torch.diag(tie[i])
    dense = dense + 4 * torch.eye(len(dense), dtype=dense.dtype)
    blocks = blocks + 4 * torch.eye(P, dtype=dense.dtype)
    asked = []

    def rows(frames):
        asked.extend(frames.tolist())
        return blocks[frames], right[frames]

    layout = Layout(problem, segment)
    chain = Eliminated(layout, tie, rows, R, len(lengths), keep=torch.float64, frames_at_once=3)
    assert sorted(asked) == list(range(N))
    combination = random(len(lengths), R, seed=4)
    x = torch.linalg.solve(dense, right.flatten(0, 1)).view(N, P, R)
    expected = (x @ combination[problem][..., None])[..., 0]
    assert torch.allclose(chain.solution(combination), expected, atol=1e-11)
    border = torch.zeros(len(lengths), R, R, dtype=x.dtype).index_add(0, problem, right.transpose(1, 2) @ x)
    assert torch.allclose(chain.border, border, atol=1e-10)

    shared = positive(random(len(lengths), R, R, seed=5))
    spread = x @ shared[problem]
    inverse, seen = torch.linalg.inv(dense).view(N, P, N, P), []
    for block in chain.covariance(shared):
        for i, frame in enumerate(block.frames.tolist()):
            seen.append(frame)
            assert torch.allclose(block.local[i], inverse[frame, :, frame] + spread[frame] @ x[frame].T, atol=1e-10)
            if frame + 1 < N and problem[frame + 1] == problem[frame]:
                beside = inverse[frame, :, frame + 1] + spread[frame] @ x[frame + 1].T
                assert torch.allclose(block.beside[i], beside.diagonal(), atol=1e-10)
    assert sorted(seen) == list(range(N))
