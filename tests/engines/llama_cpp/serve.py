"""llama.cpp's own HTTP server (the C++ one, linked into the wheel `xllamacpp`) with a tiny vision model.

usage: serve.py FOLDER PORT ALIAS SLOTS
The model is written into FOLDER where it is not there yet; port 0 takes a free one. The first line on standard output
is `listening on http://ADDRESS`.
"""

import os
import signal
import sys

import xllamacpp

import tiny_model

# Split over the slots, and far more than a test says.
CONTEXT = 65_536


def main(folder, port, alias, slots):
    model, projector = (os.path.join(folder, name) for name in ("model.gguf", "projector.gguf"))
    if not os.path.exists(projector):
        tiny_model.write_model(model)
        tiny_model.write_projector(projector)
    server = xllamacpp.Server(parameters(model, projector, int(port), alias, int(slots)))
    print("listening on", server.listening_address, flush=True)
    signal.pause()


def parameters(model, projector, port, alias, slots):
    wanted = xllamacpp.CommonParams()
    wanted.model.path = model
    wanted.mmproj.path = projector
    wanted.mmproj_use_gpu = False
    wanted.model_alias = {alias}
    wanted.hostnames = ["127.0.0.1"]
    wanted.port = port
    wanted.n_parallel = slots
    wanted.n_ctx = CONTEXT
    # The machine has other things to do.
    wanted.cpuparams.n_threads = 1
    wanted.cpuparams_batch.n_threads = 1
    wanted.warmup = False
    wanted.endpoint_metrics = True
    wanted.endpoint_slots = True
    return wanted


main(*sys.argv[1:])
