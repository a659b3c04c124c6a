"""The writer of ExecuTorch programs: places in memory, and what is stored once."""

from pathlib import Path

import numpy as np
from executorch.exir import schema
from executorch.exir._serialize._program import deserialize_pte_binary

from hrm_edge.export import export
from hrm_edge.export.to_executorch.program import Constants, Method
from tiny_models import Shape, write_model


def test_tensors_that_live_together_do_not_overlap_and_others_do() -> None:
    pick, method = np.random.default_rng(0), Method("m", Constants(), 100)
    values = [method.input(1, None)]
    for _ in range(60):
        width = int(pick.integers(1, 50))
        arguments = pick.choice(values[-6:], 2).tolist()
        values.append(method.compute("aten::add.out", *arguments, shape=(1, None, width)))
    method.output(values[-1])
    plan = method.plan([])
    lives = lifetimes(plan)
    assert len(lives) == 60
    for a, (low, high, first, last) in lives.items():
        for b, (low_b, high_b, first_b, last_b) in lives.items():
            if a != b and first <= last_b and first_b <= last:
                assert high <= low_b or high_b <= low, (a, b)
    total = sum(high - low for low, high, _, _ in lives.values())
    assert plan.non_const_buffer_sizes[1] < total / 3


def lifetimes(plan: schema.ExecutionPlan) -> dict[int, tuple[int, int, int, int]]:
    """Computed tensor -> the bytes it lies in, [low, high), and its first and last instruction."""
    found: dict[int, tuple[int, int, int, int]] = {}
    for at, instruction in enumerate(plan.chains[0].instructions):
        assert isinstance(instruction.instr_args, schema.KernelCall)
        for value in instruction.instr_args.args:
            tensor = plan.values[value].val
            if isinstance(tensor, schema.Tensor) and tensor.allocation_info is not None:
                low = tensor.allocation_info.memory_offset
                high = low + 4 * int(np.prod(tensor.sizes))
                found[value] = (low, high, found.get(value, (0, 0, at))[2], at)
    return found


def test_each_weight_and_each_delegate_is_there_once(tmp_path: Path) -> None:
    layers, columns = 3, 64
    shape = Shape(layers=layers, heads=2, head_dim=32, intermediate=96, H=2, L=3)
    bundle = export(
        write_model(tmp_path / "m", shape),
        tmp_path / "b",
        "executorch",
        bits=32,
        head_bits=32,
        embedding_bits=32,
        gate=None,
    )
    data = (bundle.path / "model.pte").read_bytes()
    program = deserialize_pte_binary(data).program
    forward = next(plan for plan in program.execution_plan if plan.name == "forward")
    calls = [i.instr_args for i in forward.chains[0].instructions]
    assert len(forward.delegates) == 2 * (layers + 1) + 1  # of two stacks, and the head
    assert sum(isinstance(call, schema.DelegateCall) for call in calls) == 8 * (layers + 1) + 1
    weights = sum(p for p in bundle.manifest.model.parameters.values()) * 4
    assert len(data) < weights + 2 * 256 * columns + 120_000  # constants and instructions
