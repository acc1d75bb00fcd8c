"""Runs on the device: executes a model file on the inputs that were sent, and says what it found there.

This file is copied to the device and run by its own Python (3.9 or newer, numpy and the runtime's wheel). It imports
nothing of cactus-edge. It reads job.json beside itself and checks the SHA-256 of everything it was given, its own included.
Events go to standard output, one line each, `MARK` then JSON; whatever else is printed goes to standard error.

    job: agent_sha256, runtime (of RUNTIMES), threads, chunk, warmup_s, measure_s,
         inputs {path, sha256, dtype, shape [N, *input]}, models [{path, sha256}]
    events, in this order:
        device   what this computer is: model, cpu, kernel, governor, throttled, emulated, runtime and its version ...
        chunk    model, first, count, path, sha256, dtype, shape: outputs [count, *output] as raw bytes in a file here; us of each
        timing   us: {runs, p50, p90, p99} of single runs of the first model after warm-up, where measure_s > 0; first_us
        done     peak_bytes (VmHWM), throttled, governor, temperature_c after the work
        error    kind ("python", "numpy", "wheel", "provider", "digest", "model", "disk", "run") and message; then exit status 1

With the word "state" as its argument it says the event `device`, without a runtime, and ends.

Standard input stays open as long as somebody listens: after "bye" the program ends and leaves the folder to the other side;
at the end of input without it, it removes the folder itself. Under emulation there is no timing and no memory figure.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable  # noqa: UP035  # for Python 3.9

MARK = "@cactus-edge "
HERE = Path(__file__).resolve().parent
OLDEST = (3, 9)
EMULATED = "/etc/cactus-edge-emulated"
"""The root folder of an emulation says what it is by holding this file."""

PROVIDER = "TensorrtExecutionProvider"

MOST_RUNS = 100_000
"""Enough for a 99th percentile; a network of half a microsecond would fill the memory in the meantime."""

Say = Callable[..., None]


class Failure(Exception):
    """Something that ends the work: `kind` as in the table above."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def events() -> Say:
    """Standard output, kept for ourselves: what libraries print there goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(event: str, **values: Any) -> None:
        stream.write(MARK + json.dumps(dict(values, event=event)) + "\n")
        stream.flush()

    return say


def watch_input() -> threading.Event:
    """Set when the other side says goodbye. When it hangs up without a word, this folder is removed and the program ends."""
    goodbye = threading.Event()

    def wait() -> None:
        while not goodbye.is_set():
            said = os.read(0, 4096)
            if b"bye" in said:
                goodbye.set()
            elif not said:
                break
        if goodbye.is_set():
            return
        for _ in range(100):  # the work goes on meanwhile, and may put one more file there
            shutil.rmtree(HERE, ignore_errors=True)
            if not HERE.exists():
                break
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()
    return goodbye


def checked(path: str, sha256: str) -> bytes:
    """The bytes of a file here, if they are the right ones."""
    data = (HERE / path).read_bytes()
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise Failure("digest", f"{path} arrived changed: sha256 {got}, sent {sha256}")
    return data


def words(path: str | Path) -> str:
    """What a file of the system says, or ''."""
    try:
        with open(path, "rb") as stream:
            return stream.read(65536).decode("utf-8", "replace").replace("\0", " ").strip()
    except OSError:
        return ""


def field(path: str, name: str, separator: str = ":") -> str:
    """The first value of `name : value` in a file such as /proc/cpuinfo, or ''."""
    for line in words(path).splitlines():
        key, found, value = line.partition(separator)
        if found and key.strip() == name:
            return value.strip().strip('"')
    return ""


def throttled() -> str:
    """vcgencmd's word (0x0: never since boot), else which cooling devices slow processor or GPU down now, else 'unknown'.

    A Jetson's are called cpufreq-cpu0, devfreq-17000000.gpu, gpu-throttle-alert, hot-surface-alert; its fan is none of them.
    """
    for program in ("vcgencmd", "/usr/bin/vcgencmd", "/opt/vc/bin/vcgencmd"):
        try:
            done = subprocess.run([program, "get_throttled"], capture_output=True, timeout=5, check=False)
        except (OSError, subprocess.SubprocessError):
            continue
        key, _, value = done.stdout.decode("ascii", "replace").strip().partition("=")
        if done.returncode == 0 and key == "throttled" and value.startswith("0x"):
            return value
    devices = sorted(Path("/sys/class/thermal").glob("cooling_device*"))
    states = [(words(d / "type"), words(d / "cur_state")) for d in devices]
    slow = [(kind, at) for kind, at in states if re.search("cpu|gpu|alert", kind.lower()) and at.isdigit()]
    return (", ".join(f"{kind} at {at}" for kind, at in slow if at != "0") or "no") if slow else "unknown"


def state() -> dict[str, Any]:
    """What may change while we work. temperature_c: of the first thermal zone, None where there is none."""
    degrees = words("/sys/class/thermal/thermal_zone0/temp")
    return {
        "throttled": throttled(),
        "governor": words("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "temperature_c": int(degrees) / 1000 if degrees.lstrip("-").isdigit() else None,
    }


def emulation() -> str:
    """Why this is no real board, in words, or ''."""
    kernel, compatible = words("/proc/sys/kernel/arch"), words("/proc/device-tree/compatible")
    if declared := words(EMULATED):
        return declared
    if kernel and kernel != platform.machine():
        return f"a program for {platform.machine()} on a {kernel} kernel"
    return f"a virtual machine ({compatible})" if "dummy-virt" in compatible or "qemu" in compatible else ""


def about() -> dict[str, Any]:
    """What this computer is."""
    info = "/proc/cpuinfo"
    part = field(info, "CPU part")
    return dict(
        state(),
        machine=platform.machine(),
        model=words("/proc/device-tree/model") or field(info, "Model") or "unknown",
        cpu=field(info, "model name") or (part and f"part {part}") or "unknown",
        cores=os.cpu_count(),
        kernel=platform.release(),
        system=field("/etc/os-release", "PRETTY_NAME", "=") or "unknown",
        python=platform.python_version(),
        emulated=emulation(),
    )


def version_of(distribution: str) -> str:
    """The installed version of a wheel, with its name."""
    from importlib import metadata

    try:
        return f"{distribution} {metadata.version(distribution)}"
    except metadata.PackageNotFoundError:
        return f"{distribution} of unknown version"


class Litert:
    """A .tflite file in LiteRT as it is by default: XNNPACK, and its own kernels for the rest."""

    def __init__(self, data: bytes, threads: int) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise Failure("wheel", f"ai-edge-litert: {error}") from error
        self.version = version_of("ai-edge-litert")
        try:
            self.interpreter = Interpreter(model_content=data, num_threads=threads)
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise Failure("model", str(error)) from error
        self.source = self.interpreter.get_input_details()[0]["index"]
        self.result = self.interpreter.get_output_details()[0]["index"]

    def load(self, sample: Any) -> None:
        """Copies an input [*input] in."""
        self.interpreter.set_tensor(self.source, sample[None])

    def invoke(self) -> None:
        """One inference."""
        self.interpreter.invoke()

    def output(self) -> Any:
        """The output [*output] of the last one, a copy."""
        return self.interpreter.get_tensor(self.result)[0]


class OnnxRuntime:
    """An ONNX file in ONNX Runtime on the CPU: what optimisation level EXTENDED makes of it is kept in optimised.onnx, for
    whoever wants to see which kernels run, and run as it is."""

    def __init__(self, data: bytes, threads: int) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise Failure("wheel", f"onnxruntime: {error}") from error
        self.version = f"onnxruntime {ort.__version__}"
        path = HERE / "optimised.onnx"
        levels = ort.GraphOptimizationLevel
        try:
            self.session(ort, data, levels.ORT_ENABLE_EXTENDED, threads, str(path))
            kept = self.session(ort, path.read_bytes(), levels.ORT_DISABLE_ALL, threads, "")
        except Exception as error:  # the wheel's own exceptions share no other base
            raise Failure("model", str(error)) from error
        self.run, self.source = kept.run, kept.get_inputs()[0].name
        self.feed: dict[str, Any] = {}
        self.results: list[Any] = []

    @staticmethod
    def session(ort: Any, data: bytes, level: Any, threads: int, path: str) -> Any:
        """Opens the file; path: where the optimised one goes."""
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if path:
            options.optimized_model_filepath = path
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def load(self, sample: Any) -> None:
        """Takes an input [*input]."""
        self.feed = {self.source: sample[None]}

    def invoke(self) -> None:
        """One inference."""
        self.results = self.run(None, self.feed)

    def output(self) -> Any:
        """The output [*output] of the last one."""
        return self.results[0][0]


class TensorRt(OnnxRuntime):
    """An ONNX file in ONNX Runtime's TensorRT provider, as it stands, all of it: ONNX Runtime runs what that provider does not
    take, or all where it does not load, in another one without a word; here that is a failure."""

    def __init__(self, data: bytes, threads: int) -> None:
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # products of 10 bits are another network's
        try:
            import numpy
            import onnxruntime as ort
        except ImportError as error:
            raise Failure("wheel", f"onnxruntime-gpu: {error}") from error
        self.version = f"onnxruntime {ort.__version__} with {PROVIDER}"
        if PROVIDER not in ort.get_available_providers():
            raise Failure(
                "provider", f"onnxruntime {ort.__version__} has no {PROVIDER}: {ort.get_available_providers()}"
            )
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.enable_profiling, options.profile_file_prefix = True, str(HERE / "profile")
        # Sparse kernels are tried on layers whose weights have zeros where they must be, and on no other.
        how = {"trt_int8_enable": True, "trt_fp16_enable": False, "trt_sparsity_enable": True}
        chosen = [(PROVIDER, how)]
        try:
            kept = ort.InferenceSession(data, options, providers=chosen, enable_fallback=0)
            if kept.get_providers()[:1] != [PROVIDER]:
                raise Failure("provider", f"{PROVIDER} did not load: {kept.get_providers()} are left")
            source = kept.get_inputs()[0]
            one = [n if isinstance(n, int) else 1 for n in source.shape]
            kept.run(None, {source.name: numpy.zeros(one, numpy.float32)})  # builds the engine
            require_provider(json.loads(Path(kept.end_profiling()).read_text(encoding="utf-8")))
        except Failure:
            raise
        except Exception as error:  # the wheel's own exceptions share no other base
            raise Failure("model", str(error)) from error
        self.run, self.source = kept.run, source.name


def require_provider(profile: Any) -> None:
    """Looks up who ran each node in a profile of ONNX Runtime: a list of events, those of nodes with args.provider."""
    nodes = [e["args"] for e in profile if e.get("cat") == "Node" and e.get("args", {}).get("provider")]
    others = sorted({f"{a['op_name']} in {a['provider']}" for a in nodes if a["provider"] != PROVIDER})
    if others or not nodes:
        raise Failure("model", f"{PROVIDER} did not run all of it: {', '.join(others) or 'no node was run at all'}")


RUNTIMES: dict[str, Callable[[bytes, int], Any]] = {
    "litert": Litert,
    "onnxruntime": OnnxRuntime,
    "onnxruntime-tensorrt": TensorRt,
}


def timed(engine: Any, sample: Any) -> float:
    """Microseconds of one inference, the input copied in before."""
    engine.load(sample)
    start = time.perf_counter_ns()
    engine.invoke()
    return (time.perf_counter_ns() - start) / 1000


def outputs(numpy: Any, engine: Any, number: int, x: Any, chunk: int, say: Say) -> None:
    """Runs every input, a chunk at a time; each chunk is a file and an event."""
    for first in range(0, len(x), chunk):
        spent, results = [], []
        for sample in x[first : first + chunk]:
            spent.append(timed(engine, sample))
            results.append(numpy.array(engine.output()))
        y = numpy.stack(results)
        data, path = y.tobytes(), f"out-{number}-{first:06d}.bin"
        (HERE / path).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        where = {"path": path, "sha256": digest, "dtype": str(y.dtype), "shape": list(y.shape)}
        say("chunk", model=number, first=first, count=len(y), us=spent, **where)


def timing(numpy: Any, engine: Any, x: Any, warmup_s: float, measure_s: float) -> dict[str, float]:
    """Microseconds of single inferences over the inputs in turn, for measure_s, after warmup_s that do not count."""
    spent: list[float] = []
    for seconds in (warmup_s, measure_s):
        spent, until = [], time.perf_counter() + seconds
        while not spent or (len(spent) < MOST_RUNS and time.perf_counter() < until):
            spent.append(timed(engine, x[len(spent) % len(x)]))
    p50, p90, p99 = numpy.percentile(spent, [50, 90, 99])
    return {"runs": len(spent), "p50": float(p50), "p90": float(p90), "p99": float(p99)}


def work(say: Say) -> None:
    """The whole job."""
    if sys.version_info < OLDEST:
        raise Failure("python", f"Python {platform.python_version()}, at least {OLDEST[0]}.{OLDEST[1]} is needed")
    job = json.loads((HERE / "job.json").read_text(encoding="utf-8"))
    checked(Path(__file__).name, job["agent_sha256"])
    models = [checked(m["path"], m["sha256"]) for m in job["models"]]
    data = checked(job["inputs"]["path"], job["inputs"]["sha256"])
    try:
        import numpy
    except ImportError as error:
        raise Failure("numpy", f"numpy: {error}") from error
    x = numpy.frombuffer(data, job["inputs"]["dtype"]).reshape(job["inputs"]["shape"])
    emulated = emulation()
    engines = [RUNTIMES[job["runtime"]](model, job["threads"]) for model in models]
    say("device", runtime=engines[0].version, numpy=numpy.__version__, **about())
    first_us = timed(engines[0], x[0])
    for number, engine in enumerate(engines):
        outputs(numpy, engine, number, x, job["chunk"], say)
    if job["measure_s"] > 0 and not emulated:
        say("timing", us=timing(numpy, engines[0], x, job["warmup_s"], job["measure_s"]), first_us=first_us)
    peak = field("/proc/self/status", "VmHWM").split()
    say("done", peak_bytes=1024 * int(peak[0]) if peak and not emulated else None, **state())


def main() -> int:
    """Runs the job, says how it ended, and stays until that was heard."""
    say = events()
    if sys.argv[1:] == ["state"]:
        say("device", **about())
        return 0
    goodbye = watch_input()
    failed = True
    try:
        work(say)
        failed = False
    except Failure as failure:
        say("error", kind=failure.kind, message=str(failure))
    except OSError as error:
        say("error", kind="disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "run", message=str(error))
    except (RuntimeError, ValueError, MemoryError) as error:
        say("error", kind="run", message=f"{type(error).__name__}: {error}")
    goodbye.wait()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
