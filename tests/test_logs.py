"""What a run writes of itself."""

from concurrent.futures import Future

import jax
import jax.numpy as jnp
import pytest

from ssl_diffusion.training import logs
from ssl_diffusion.training.logs import NonFinite, RunLog, read_metrics
from ssl_diffusion.training.state import NEVER


def totals(loss: float, bad_step: int = NEVER) -> dict:
    return {
        "loss": jnp.array([2 * loss, 2.0]),
        "rare": jnp.array([0.0, 0.0]),  # no example contributed
        "bad_step": jnp.int32(bad_step),
    }


class Machine:
    """A clock that only moves where the test says, and a device whose steps take so long."""

    def __init__(self, step_seconds: float):
        self.now, self._step_seconds = 0.0, step_seconds

    def perf_counter(self) -> float:
        return self.now

    def submit(self, *_) -> Future:
        return Step(self, self.now + self._step_seconds)

    def shutdown(self) -> None:
        pass


class Step(Future):
    def __init__(self, machine: Machine, end: float):
        super().__init__()
        self._machine, self._end = machine, end

    def done(self) -> bool:
        return self._machine.now >= self._end

    def result(self, timeout=None) -> float:
        self._machine.now = max(self._machine.now, self._end)
        return self._end


def run(log: RunLog, steps: int, read=lambda: None) -> None:
    for step in range(1, steps + 1):
        with log.waiting():
            read()
        log.advance(totals(0.5))
        if step == steps:
            log.metrics(step, totals(0.5))
    log.flush()
    log.close()


@pytest.mark.parametrize("reading, step, waited", [(5.0, 1.0, 8 * 4.0), (1.0, 5.0, 0.0)])
def test_waiting_for_data_is_what_the_devices_stand_still_for(
    tmp_path, monkeypatch, reading, step, waited
):
    machine = Machine(step)

    def read() -> None:
        machine.now += reading

    monkeypatch.setattr(logs, "time", machine)
    monkeypatch.setattr(logs, "ThreadPoolExecutor", lambda _: machine)
    run(RunLog(tmp_path, 0, 10, batch_size=4, flop=10**9, peak=1.0), 10, read)
    (line,) = read_metrics(tmp_path)
    # Ten steps, of which the first is not timed and the last is under way: eight are counted.
    assert line["data_wait"] * line["seconds"] == pytest.approx(waited)
    assert line["images_per_second"] == pytest.approx(8 * 4 / line["seconds"])
    assert line["of_peak"] == pytest.approx(line["images_per_second"] / 4 * 1e-3)


def test_a_line_holds_means_of_what_contributed(tmp_path):
    run(RunLog(tmp_path, 0, 3, batch_size=4, flop=1, peak=1.0), 3)
    (line,) = read_metrics(tmp_path)
    assert line["loss"] == 0.5 and "rare" not in line
    assert (line["step"], line["images_seen"]) == (3, 12)
    assert line["images_per_second_per_device"] == line["images_per_second"] / jax.device_count()


def test_the_first_bad_step_is_told_and_nothing_of_it_written(tmp_path):
    log = RunLog(tmp_path, 0, 5, batch_size=4, flop=1, peak=1.0)
    log.advance(totals(0.5))
    log.metrics(5, totals(float("nan"), bad_step=3))
    with pytest.raises(NonFinite) as raised:
        log.flush()
    assert raised.value.step == 3 and not read_metrics(tmp_path)
    with pytest.raises(NonFinite):
        log.held_out(5, {"held_out_loss": float("inf")})
    log.close()


def test_a_resumed_run_forgets_what_came_after_its_start(tmp_path):
    run(RunLog(tmp_path, 0, 9, batch_size=4, flop=1, peak=1.0), 9)
    assert [line["step"] for line in read_metrics(tmp_path)] == [9]
    RunLog(tmp_path, 8, 9, batch_size=4, flop=1, peak=1.0).close()
    assert read_metrics(tmp_path) == []
