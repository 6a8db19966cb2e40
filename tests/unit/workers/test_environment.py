"""Environment of a worker: what it inherits from the operator's, and what is set for it."""

import os

import pytest

from workers import process
from workers.environment import ignored_variables, worker_environment

LINUX = "6.1.0-18-amd64"


@pytest.mark.parametrize(
    "name",
    [
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_NVML_BASED_CUDA_CHECK",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "CUBLAS_WORKSPACE_CONFIG",
        "CUDNN_LOGINFO_DBG",
        "NCCL_P2P_DISABLE",
        "MALLOC_ARENA_MAX",
        "XDG_CACHE_HOME",
        "CC",
        "GLIBC_TUNABLES",
        "GOMP_CPU_AFFINITY",
        "ONEDNN_MAX_CPU_ISA",
    ],
)
def test_environment_settings_of_torch_and_its_libraries_reach_the_worker(name: str) -> None:
    assert worker_environment({name: "operator's"}, LINUX)[name] == "operator's"


def test_environment_allocator_joins_freed_memory_unless_the_operator_chose() -> None:
    assert worker_environment({}, LINUX)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    environ = worker_environment({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, LINUX)
    assert "PYTORCH_ALLOC_CONF" not in environ
    assert environ["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:64"


def test_environment_allocator_is_left_alone_under_wsl() -> None:
    """The Windows driver has no virtual memory management of this kind."""
    environ = worker_environment({}, "5.15.153.1-microsoft-standard-WSL2")
    assert "PYTORCH_ALLOC_CONF" not in environ


def test_environment_bounds_the_arenas_of_the_heap_unless_the_operator_chose() -> None:
    assert worker_environment({}, LINUX)["MALLOC_ARENA_MAX"] == "2"
    chosen = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}
    assert "MALLOC_ARENA_MAX" not in worker_environment(chosen, LINUX)
    other = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    assert worker_environment(other, LINUX)["MALLOC_ARENA_MAX"] == "2"


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_environment_bounds_how_long_threads_spin_unless_the_operator_chose(name: str) -> None:
    assert worker_environment({}, LINUX)["GOMP_SPINCOUNT"] == "3000"
    chosen = worker_environment({name: "operator's"}, LINUX)
    assert chosen[name] == "operator's"
    assert {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & chosen.keys() == {name}


def test_environment_asks_nvml_whether_there_is_a_card() -> None:
    assert worker_environment({}, LINUX)["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


@pytest.mark.parametrize(
    "name", ["NVIDIA_API_KEY", "TORCH_HUB_TOKEN", "PYTHON_KEYRING_PASSWORD", "CUDA_SECRET"]
)
def test_environment_secrets_stay_behind_whatever_their_prefix(name: str) -> None:
    assert name not in worker_environment({name: "canary"}, LINUX)
    assert ignored_variables({name: "canary"}) == []


def test_environment_names_the_variables_that_have_no_effect() -> None:
    environ = {
        "VLLM_ATTENTION_BACKEND": "FLASHINFER",
        "TOKENIZERS_PARALLELISM": "true",  # set otherwise for workers
        "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
        "TRANSFORMERS_OFFLINE": "1",  # as they have it anyway
        "NCCL_DEBUG": "INFO",
        "HF_HUB_OFFLINE": "0",  # the gateway's
        "EDITOR": "vi",
    }
    assert ignored_variables(environ) == [
        "CUDA_DEVICE_ORDER",
        "TOKENIZERS_PARALLELISM",
        "VLLM_ATTENTION_BACKEND",
    ]


class StandInDriver:
    """Stands in for libcuda.so.1, of which one function is called."""

    def __init__(self, answer: int) -> None:
        self._answer = answer

    def cuDeviceGetCount(self, _count: object) -> int:  # noqa: N802  the driver's name
        return self._answer


@pytest.mark.parametrize(("answer", "chosen"), [(3, True), (0, False), (100, False)])
def test_cards_are_chosen_only_while_the_driver_has_not_started(
    monkeypatch: pytest.MonkeyPatch, answer: int, chosen: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("ctypes.CDLL", lambda _name: StandInDriver(answer))
    assert process._choose_cards("1") is chosen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("1" if chosen else "0,1")


def test_cards_given_at_the_launch_need_no_driver_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr("ctypes.CDLL", lambda _name: StandInDriver(0))
    assert process._choose_cards("1")


def test_cards_are_hidden_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert process._choose_cards("")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
