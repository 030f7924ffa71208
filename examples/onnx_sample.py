"""Draw from a model that `gencli export RUN -o model.onnx` wrote. Needs onnxruntime and numpy, but no gencli.

    python onnx_sample.py model.onnx [SEED]        a text to stdout, or samples.npy
"""

import json
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map  # the graph says what it is
spec, random = json.loads(about["spec"]), np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
inputs = {i.name: (np.int64 if "int" in i.type else np.float32, [1, *i.shape[1:]]) for i in session.get_inputs()}
outputs = [output.name for output in session.get_outputs()]

if "start" not in about:  # a decoder: from a code, standard normal, to an example
    code = random.standard_normal([16, *inputs["code"][1][1:]], np.float32)
    np.save("samples.npy", session.run(None, {"code": code})[0])
elif spec["kind"] == "text":  # one step: from a token and a state to the next token's chances and the next state
    now = {name: np.full(inputs[name][1], value, inputs[name][0]) for name, value in json.loads(about["start"]).items()}
    for _ in range(spec["length"]):
        found = dict(zip(outputs, session.run(None, now), strict=True))
        chances = np.exp(found[outputs[0]][0].astype(np.float64))
        token = random.choice(len(chances), p=chances / chances.sum())
        print(spec["vocabulary"][token] if token > 1 else "\n" if token == 1 else "?", end="")
        now = {name: found.get(f"next_{name}", np.full(shape, token, kind)) for name, (kind, shape) in inputs.items()}
else:
    sys.exit(f"this is one step of {about['family']}: {about['about']}")
