"""Search for settings with Optuna, by ask and tell: python optuna_search.py FOLDER [TRIALS]   (pip install optuna)

Every trial is a run in FOLDER, and the study is kept there: the same command again goes on with it.
"""

import json
import sys
from pathlib import Path

import optuna

import gencli
from gencli.errors import DivergedError

folder, trials = Path(sys.argv[1]), int(sys.argv[2] if len(sys.argv) > 2 else 8)
folder.mkdir(parents=True, exist_ok=True)
study = optuna.create_study(study_name="vae", storage=f"sqlite:///{folder}/study.db", load_if_exists=True,
                            sampler=optuna.samplers.TPESampler(seed=len(list(folder.iterdir()))))
for _ in range(trials):
    trial = study.ask()
    run = folder / f"trial-{trial.number}"
    settings = {"lr": trial.suggest_float("lr", 1e-4, 3e-2, log=True), "latent": trial.suggest_int("latent", 2, 32)}
    try:
        gencli.train("vae", "digits", run, net="mlp", width=64, steps=200, validation=0.1, validate_every=200,
                     preview_every=0, seed=0, **settings)
    except DivergedError:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        continue
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    (*_, last) = (value for line in lines for name, value in line.items() if name.startswith("validation/"))
    study.tell(trial, last)  # nats of held-out training examples; less is better
print(f"{folder}/trial-{study.best_trial.number}: {study.best_value:.4g} with {study.best_params}")
