"""What a run waits for besides its steps: plans of epochs, compilation, digests of weights.

python scripts/benchmark_loop.py [--rows 1000000] [--gigabytes 2]

Each figure stands beside that of the plain way, in the same run: a plan made by every thread that
asks for it when it is needed, programs compiled one after the other, files read by every command.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

BATCH, STEP = 32, 0.002  # examples, and seconds that a step takes
LENGTHS = (16, 32, 48, 64, 96, 128)


def plans(rows: int) -> None:
    """The longest wait for a batch where an epoch ends, and the usual one."""
    from ftjax.data.encode import Examples, Ragged
    from ftjax.data.loading import Loader
    from ftjax.data.packed_layout import packed_layout
    from ftjax.data.planning import plan_epoch

    lengths = np.clip(np.random.default_rng(0).gamma(3, 8, rows).astype(int) + 2, 3, 128)
    offsets = np.cumsum([0, *lengths])
    data = Examples(Ragged(np.ones(offsets[-1], np.int32), offsets))
    layout = packed_layout(lengths[:20_000], BATCH)
    start = time.perf_counter()
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(partial(plan_epoch, lengths, layout, BATCH, 0), range(1, 4)))
    plain = time.perf_counter() - start
    loader = Loader(data, BATCH, layout, 0)
    each, waits = loader.steps_per_epoch, []
    iterator = loader.iterate(2 * each)
    iterator.set_state({**iterator.get_state(), "next_index": max(each - 8000, 0)})
    next(iterator)
    for _ in range(8000):
        start = time.perf_counter()
        next(iterator)
        waits.append(time.perf_counter() - start)
        time.sleep(STEP)
    print(f"plan of {rows:,} packed examples: {plain:.1f} s by three threads at once")
    print(
        f"batches: usually {1e3 * np.median(waits):.2f} ms, where the epoch ends at most "
        f"{1e3 * max(waits[-1000:]):.0f} ms"
    )


def programs() -> None:
    """Seconds until the first of a model's steps, and all, are compiled."""
    import jax
    import jax.numpy as jnp

    from ftjax.config import check, default_config
    from ftjax.forecast.least_work import Least
    from ftjax.forecast.lowering import abstract_batch, abstract_recipe, abstract_state
    from ftjax.parallel.mesh import logical_axes, make_mesh
    from ftjax.training.programs import Programs
    from ftjax.training.step import lower_step

    config = default_config("lora", "classification")
    config.model.path = "bert-base"
    config = check(config)
    recipe, mesh = abstract_recipe(config), make_mesh()
    state, frozen = abstract_state(recipe, mesh)
    step = recipe.step(recipe.tuned.at_step(0))

    def batch(length: int) -> dict[str, jax.ShapeDtypeStruct]:
        config.data.max_length = length
        return abstract_batch(config, recipe.task)

    def lower(length: int) -> jax.stages.Lowered:
        with logical_axes(mesh):
            return lower_step(step, state, frozen, batch(length), mesh)

    jnp.zeros(()).block_until_ready()
    start = time.perf_counter()
    for length in LENGTHS:
        lower(length).compile()
    plain = time.perf_counter() - start
    jax.clear_caches()  # or nothing would be compiled again
    several, start = Programs(), time.perf_counter()
    for length in LENGTHS:
        several.begin(length, partial(lower, length))
    while not several.ready(LENGTHS[0]):
        time.sleep(0.01)
    first = time.perf_counter() - start
    for length in LENGTHS:
        several(length)
    print(
        f"programs of {len(LENGTHS)} lengths, {os.cpu_count()} cores: {plain:.1f} s one after the "
        f"other; in threads {time.perf_counter() - start:.1f} s, the first after {first:.1f} s"
    )
    start = time.perf_counter()
    least = [Least(config)(batch(length)) for length in LENGTHS]
    plain, start = time.perf_counter() - start, time.perf_counter()
    counted = Least(config)
    again = [counted(batch(length)) for length in LENGTHS]
    assert least == again
    seconds = time.perf_counter() - start
    print(f"least FLOPs of them: {plain:.1f} s anew each, {seconds:.1f} s by one count")


def digests(gigabytes: float) -> None:
    """Seconds that a command takes to tell whether a model is what it was."""
    from ftjax.formats import digests

    with tempfile.TemporaryDirectory() as folder:
        os.environ["FTJAX_CACHE"] = str(Path(folder) / "cache")
        files = [Path(folder) / f"model-{number}.safetensors" for number in range(4)]
        block = os.urandom(2**20)
        for file in files:
            with file.open("wb") as stream:
                for _ in range(round(gigabytes * 2**10 / len(files))):
                    stream.write(block)
        time.sleep(2 * digests.SETTLED / 1e9)
        for name in ("first", "next"):
            digests._digest_of.cache_clear()  # as in another process
            start = time.perf_counter()
            digests.digests(files)
            print(f"digests of {gigabytes} GB, {name} command: {time.perf_counter() - start:.4f} s")


def saves() -> None:
    """Milliseconds that the loop of a run stands still for each of its checkpoints."""
    import ftjax
    from ftjax.runs.saver import Saver

    rows = [{"text": f"a film of {number} parts", "label": number % 2} for number in range(200)]
    plain, waits = Saver.__call__, []

    def timed(self: Saver, state: object) -> None:
        int(state.step)  # the step itself is waited for anyway
        self.wait()  # and the save before, where it is still being written
        start, busy = time.perf_counter(), time.thread_time()
        plain(self, state)
        waits.append((1e3 * (time.perf_counter() - start), 1e3 * (time.thread_time() - busy)))

    Saver.__call__ = timed
    for method in ("lora", "full"):
        keys = {"train.steps": 30, "train.checkpoint_every": 10, "train.eval_every": 30}
        config = ftjax.config(task="classification", method=method, model="minilm", **keys)
        waits.clear()
        with tempfile.TemporaryDirectory() as folder:
            ftjax.train(config, folder, {"train": rows, "validation": rows[:32]})
        each = ", ".join(f"{wait:.0f} ({busy:.0f} of work)" for wait, busy in waits)
        print(f"{method}: the loop stands still {each} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--gigabytes", type=float, default=2)
    arguments = parser.parse_args()
    plans(arguments.rows)
    programs()
    digests(arguments.gigabytes)
    saves()


if __name__ == "__main__":
    main()
