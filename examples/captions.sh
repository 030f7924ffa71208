#!/bin/sh
# Captions of pictures: a model of the set `scenes` names what is where in combinations that training never showed, and
# the grammar of the set says of how many pictures that is true, and of how many if each has the caption of another.
# Usage: sh captions.sh [RUN]
set -eu
run=${1:-captions}

# With --resume a second start has nothing left to train.
gencli train seq2seq scenes --preset scenes -o "$run" ${STEPS:+--steps "$STEPS"} --resume
gencli sample "$run" --given scenes:test -f jsonl |
    python3 -c '
import json, sys
from gencli.data.scenes import scenes

shown, captions = scenes("test"), [json.loads(line)["text"] for line in sys.stdin]
for scene, caption in zip(shown[:5], captions):
    print(("true  " if scene.fits(caption) else "false ") + caption)
for name, others in (("its own", shown), ("another", shown[1:] + shown[:1])):
    true = sum(scene.fits(caption) for scene, caption in zip(others, captions, strict=True))
    print(f"{true} of {len(captions)} captions are true of {name} picture")'
