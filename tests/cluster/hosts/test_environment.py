import json

import pytest

from cluster.hosts.environment import forwarded, start_input


@pytest.mark.parametrize(
    "name",
    [
        *(
            "NCCL_DEBUG",
            "GLOO_SOCKET_IFNAME",
            "FI_PROVIDER",
            "UCX_TLS",
            "TORCH_NCCL_TRACE_BUFFER_SIZE",
            "TORCHINDUCTOR_CACHE_DIR",
        ),
        *(
            "CUDA_DEVICE_MAX_CONNECTIONS",
            "AWS_ENDPOINT_URL",
            "LD_LIBRARY_PATH",
            "VIDEOAR_RESTARTS",
            "PYTHONPATH",
            "OMP_NUM_THREADS",
        ),
    ],
)
def test_what_ranks_need_is_passed_on(name: str) -> None:
    assert forwarded({name: "1", "HOME": "/root", "PATH": "/bin", "SSH_AUTH_SOCK": "x"}) == {name: "1"}


def test_what_holds_for_one_host_is_not(name: str = "CUDA_VISIBLE_DEVICES") -> None:
    assert forwarded({name: "0", "TORCHELASTIC_RUN_ID": "7"}) == {}


def test_the_input_is_one_line_whatever_the_values() -> None:
    line = start_input(["a", "b c"], {"NCCL_X": "one\ntwo", "HOME": "/root"})
    assert line.count(b"\n") == 1 and json.loads(line) == {"words": ["a", "b c"], "env": {"NCCL_X": "one\ntwo"}}
