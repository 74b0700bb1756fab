"""Rotations between their forms, for tensors of any number of dimensions."""

import pytest
import torch

from ringnet_ext.geometry.rotations import axis_angle_from_matrix, matrix_from_axis_angle, matrix_from_six


@pytest.mark.parametrize("shape", [(), (4,), (2, 5), (6, 1, 3)], ids=str)
def test_any_leading_dimensions(shape):
    generator = torch.Generator().manual_seed(len(shape))
    columns = torch.randn(*shape, 6, generator=generator, dtype=torch.float64)
    matrix = matrix_from_six(columns)
    assert matrix.shape == (*shape, 3, 3)
    torch.testing.assert_close(matrix @ matrix.transpose(-1, -2), torch.eye(3, dtype=torch.float64).expand_as(matrix))
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(shape, dtype=torch.float64))
    # The first column keeps its direction, the second its half plane.
    first, second = columns[..., :3], columns[..., 3:]
    torch.testing.assert_close((matrix[..., 0] * first).sum(-1), first.norm(dim=-1))
    assert ((matrix[..., 1] * second).sum(-1) > 0).all()
    flat = matrix.reshape(-1, 3, 3)
    torch.testing.assert_close(matrix_from_axis_angle(axis_angle_from_matrix(flat)), flat)


@pytest.mark.parametrize("shape", [(5,), (6, 5), (6, 7)])
def test_six_numbers_are_six(shape):
    with pytest.raises(ValueError, match=r"numbers: expected shape \(\.\.\., 6\)"):
        matrix_from_six(torch.ones(shape))
