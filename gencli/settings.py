"""Settings that are options of the commands: how to train, whatever the family, and how data is read. No torch here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gencli.stopping import seconds

Precision = Literal["auto", "fp32", "bf16"]


class DataSettings(BaseModel):
    """How data is read. Each field is an option of every command that reads data, and travels inside the model file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int | None = Field(None, ge=1, description="Pictures: resize the short side to SIZE and crop to a square. "
                                                    "Default: as they are; if sizes differ, that of the smallest.")
    channels: Literal[1, 3] | None = Field(None, description="Pictures: 1 greyscale, 3 RGB. Default: as they are.")
    binarize: Literal["fixed", "dynamic", "threshold"] | None = Field(
        None, description="Pictures: fixed: drawn once, pixel is 1 with probability grey/255; dynamic: drawn anew "
                          "for each step; threshold: 1 where grey >= 128.")
    holdout: float = Field(0.1, gt=0, lt=1, description="Share of the examples kept for the test split where the data "
                                                        "names no splits.")
    lines: bool = Field(False, description="Text: one example a line, instead of one document.")
    unit: Literal["characters", "bytes", "words"] = Field("characters", description="Text: what a token is.")
    length: int | None = Field(None, ge=1, description="Text: tokens of a passage of a document (default 2048), or of "
                                                      "the longest line (longer ones are cut). Sound: samples of an "
                                                      "example (default one second); longer recordings become several.")
    label: str | None = Field(None, description="Tables: name of the column that holds the class, or its number "
                                                       "from 1. Sound: number of the part of the file name, between "
                                                       "underscores, that is the class (default 1).")
    rate: int | None = Field(None, ge=1, description="Sound: samples a second. Default: as they are; if rates differ, "
                                                     "the lowest.")
    levels: Literal[256, 65536] = Field(256, description="Sound: 256 mu-law levels, or all 65536 of 16 bits.")
    trim: float | None = Field(None, gt=0, description="Sound: cut off beginning and end where they are quieter than "
                                                       "the loudest part by more than TRIM dB.")


class TrainSettings(BaseModel):
    """How to train, whatever the family. Each field is an option of `gencli train FAMILY`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(None, ge=1, description="Training steps; instead of --epochs.")
    epochs: float = Field(20, gt=0, description="Passes over the data.")
    batch_size: int = Field(128, ge=1, description="Examples in a step, over all processes.")
    lr: float = Field(1e-3, gt=0, description="Learning rate of Adam.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay (AdamW).")
    schedule: Literal["constant", "cosine"] = Field("constant", description="Course of the learning rate.")
    warmup: int = Field(0, ge=0, description="Steps over which the learning rate grows from 0.")
    grad_clip: float = Field(0.0, ge=0, description="Largest norm of a player's gradient; 0: no limit.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the moving average of the weights that is saved and "
                                                    "sampled from; 0: the weights themselves.")
    precision: Precision = Field("auto", description="auto: bf16 where the processor computes in it.")
    compile: bool = Field(False, description="Compile the losses with torch.compile; plain where that fails.")
    seed: int = Field(0, ge=0, description="Seed of weights, order and noise.")
    validation: float = Field(0.0, ge=0, lt=1, description="Share of the training examples kept for validation.")
    patience: int = Field(0, ge=0, description="Stop after this many validations without improvement and keep the best "
                                               "weights; 0: never.")
    log_every: int = Field(50, ge=1, description="Steps between lines of metrics.jsonl.")
    validate_every: int = Field(500, ge=1, description="Steps between validations.")
    preview_every: int = Field(1000, ge=0, description="Steps between pictures in samples/; 0: none.")
    checkpoint_every: str = Field("60s", description="Time (60s, 5m, 1h) or steps (500) between checkpoints.")
    keep: int = Field(2, ge=1, description="Checkpoints kept.")
    time_limit: str | None = Field(None, description="Stop after this time (90s, 30m, 6h), save and exit with 75.")
    fail_on_collapse: bool = Field(False, description="Exit with 6 when the family raises its alarm.")

    @field_validator("checkpoint_every")
    @classmethod
    def _interval(cls, text: str) -> str:
        if not text.isdigit():
            seconds(text)
        return text

    @field_validator("time_limit")
    @classmethod
    def _duration(cls, text: str | None) -> str | None:
        if text is not None:
            seconds(text)
        return text
