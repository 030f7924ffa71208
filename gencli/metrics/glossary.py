"""Glossary of the metrics: full name, meaning, and which way is better; for reports and for the gate."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Term:
    """A metric, for a reader who does not know it.

    Attributes:
        title: its full name.
        topic: the heading it stands under.
        better: which way is better; None where neither is, so that nothing is a regression.
        says: one sentence that explains it.
    """

    title: str
    topic: str
    better: Literal["less", "more"] | None
    says: str


_COMPONENTS = [digit * 10**power for power in range(4) for digit in (1, 2, 5)]  # of which explained variance is told

# The first one measured of a topic represents it at the head of a report.
_TABLE: dict[str, dict[str, tuple[str, Literal["less", "more"] | None, str]]] = {
    "Likelihood": {
        "nll": ("Negative log-likelihood", "less", "How surprised the model is by an example it has not seen."),
        "nll_estimate": ("Estimated negative log-likelihood", "less", "The same without the slack of a bound, but "
                                                                      "with more noise."),
        "solver_error": ("Error of the solver", "less", "How far the likelihood by a differential equation is from "
                                                        "that with half as many steps."),
        "bound_gap": ("Slack of the bound", None, "How much of the bound is not surprise, but slack."),
        "iw_bound": ("Importance-weighted bound", "less", "At most this many nats of surprise per unseen example."),
        "elbo": ("Negative ELBO", "less", "The bound that the model was trained on, on unseen examples."),
        "perplexity": ("Perplexity", "less", "Between how many equally likely tokens the model hesitates, on average."),
        "word_nll": ("Surprise of a word", "less", "The same for the words of a text alone, whatever is between them."),
        "word_perplexity": ("Perplexity of a word", "less", "Between how many equally likely words the model "
                                                            "hesitates, on average."),
        "topics_in_use": ("Topics in use", None, "How many topics the texts are about, if all were as frequent."),
        "bpc": ("Bits per character", "less", "How many bits the model would compress a character to."),
        "bits_per_byte": ("Bits per byte", "less", "The same of a byte, whatever a token of the model is."),
        "nats_per_step": ("Nats per step", "less", "The same for one step of a series."),
        "nats_per_point": ("Nats per point", "less", "The same for one point of a drawing."),
        "bpd": ("Bits per dimension", "less", "How many bits the model would compress one number of an example to."),
        "codec_bits": ("Bits of a symbol in a compressed file", "less", "What a symbol really takes when the model "
                                                                        "compresses examples, and they come back."),
        "codec_excess": ("Excess of a compressed file", "less", "How much longer it is than the likelihood says; of a "
                         "model with a latent code, than the ELBO."),
        "codec_start": ("Start of a compressed file", "less", "What the first code takes, by bits-back, once a block."),
        "codec_speed": ("Symbols a second", "more", "How fast the model compresses and decompresses here."),
        "reconstruction": ("Reconstruction term", None, "The part of the ELBO that is spent on the example itself."),
        "kl": ("KL term", None, "The part of the ELBO that is spent on the code: how much the code tells."),
        "active_units": ("Active units", None, "Dimensions of the code that tell something about the example."),
        "codes_in_use": ("Codes in use", None, "How many of the discrete codes the examples need."),
        "code_perplexity": ("Perplexity of the codes", None, "How many codes are in use, if all were as frequent."),
        "active_share": ("Share of active units", None, "How many units of a sparse code an example switches on."),
        "log_z": ("Log partition function", None, "The constant that makes the probabilities sum to one."),
        "log_z_reverse": ("The same, from the model's side", None, "Far above it, neither can be trusted."),
        "log_z_from_data": ("The same, from the data's side", None, "As a check: chains that begin at examples."),
        "autocorrelation_time": ("Autocorrelation time", None, "Steps of the chain until a sample is as good as new."),
    },
    "Classification": {
        "accuracy": ("Accuracy", "more", "Share of the examples that are classified correctly."),
        "class_nll": ("Cross-entropy", "less", "How surprised the classifier is by the true class."),
        "calibration_error": ("Calibration error", "less", "How far the predicted probabilities are from how often "
                                                           "they are right."),
        "worst_class_accuracy": ("Accuracy of the worst class", "more", "The same in the class that does worst."),
    },
    "Reconstruction": {
        "psnr": ("Peak signal-to-noise ratio", "more", "How closely pictures come back from their codes."),
        "reconstruction_mse": ("Squared error", "less", "How closely examples come back from their codes."),
        "squared_error": ("Squared error of an example", "less", "The same, summed over all numbers of an example."),
        "residual": ("Squared distance from the components", "less", "What of an example the components cannot say."),
        **{f"explained_variance{of}": (f"Explained variance{by}", "more", "Share of the variance of unseen examples "
                                                                          "that lies along components.")
           for of, by in (("", ""), *((f"_{n}", f" by {n}") for n in _COMPONENTS))},
        "wrong_tokens": ("Wrong tokens", "less", "The share of the tokens of a text that come back as others."),
        "noise_removed": ("Noise removed", "more", "How much closer to the example than its noisy copy what the model "
                                                   "makes of that is, in decibels."),
    },
    "Codes": {
        "code_accuracy": ("Two-sample test of the codes", "less", "How often a critic tells codes from draws of the "
                                                                  "prior; 0.5 is chance, the ideal."),
        "code_ks": ("Distance of codes from the prior", "less", "Kolmogorov-Smirnov distance of the dimension where it "
                                                                "is largest; 0 to 1."),
        "smallest_mode_share": ("Rarest mode", "more", "Share of the codes in the emptiest mode of the prior."),
    },
    "Pairs": {
        "pair_l1": ("Absolute error", "less", "How far what is made from a source lies from its target; black to "
                                              "white is 1."),
        "pair_psnr": ("Peak signal-to-noise ratio of pairs", "more", "The same in decibels of the squared error."),
        "pair_ssim": ("Structural similarity", "more", "How alike the two are in brightness, contrast and structure, "
                                                       "window by window; 1 is the same picture."),
    },
    "Translations and captions": {
        "bleu": ("BLEU", "more", "How many runs of up to four words a text shares with its target; 100 is "
                                 "the same text."),
        "chrf": ("chrF", "more", "The same of runs of up to six characters, as what is found of the target too."),
        "exact_match": ("Exact match", "more", "Share of the texts that are their target to the letter."),
        "length_ratio": ("Length ratio", None, "How long the texts are, over how long their targets are."),
    },
    "Forecasts": {
        "forecast_mse": ("Mean squared error of the forecast", "less", "Of the point forecast, in squared deviations "
                                                                       "of the training data."),
        "forecast_mae": ("Mean absolute error of the forecast", "less", "The same in deviations."),
        "mase": ("Mean absolute scaled error", "less", "Error of the median, over that of the value a season before "
                                                       "in the training data; the protocol has naive forecasts."),
        "weighted_quantile_loss": ("Weighted quantile loss", "less", "How far the quantiles 0.1 to 0.9 are off, as a "
                                                                     "share of the absolute values."),
        "crps": ("Continuous ranked probability score", "less", "The same of the whole distribution of each value, in "
                                                                "deviations of the training data."),
        "energy_score": ("Energy score", "less", "The same of whole paths, with what their steps have to do with each "
                                                 "other."),
        "coverage_80": ("Coverage of the 80% band", None, "Share of the values between the quantiles 0.1 and 0.9; 0.8 "
                                                          "is the ideal."),
    },
    "Samples against data": {
        "frechet_distance": ("Fréchet distance (FID with features inception)", "less",
                             "How far the samples as a whole lie from real examples."),
        "kernel_distance": ("Kernel distance", "less", "The same by another measure, without bias; near 0 is ideal."),
        "coverage": ("Coverage", "more", "Share of the real examples with a sample nearby: variety."),
        "precision": ("Precision", "more", "Share of the samples that look real."),
        "recall": ("Recall", "more", "Share of the real examples that the samples reach."),
        "density": ("Density", "more", "How densely real examples lie around the samples; real data has 1."),
        "inception_score": ("Inception score", "more",
                            "How clearly each sample shows one class, and how many classes there are."),
        "cluster_coverage": ("Clusters covered", "more", "Share of the clusters of real examples that are reached."),
        "class_coverage": ("Classes covered", "more", "Share of the classes that turn up among the samples."),
        "class_agreement": ("Class agreement", "more", "Share of the samples that show the class they were drawn for."),
        "smallest_class_share": ("Rarest class", "more", "Share of the samples in the class that is drawn least."),
    },
    "Columns": {
        "motion_distance": ("Distance of motion", "less", "How far the amount of change from frame to frame lies from "
                                                          "that of real films; 0 the same, 1 nothing in common."),
        "consistency_distance": ("Distance of consistency", "less", "The same of how alike neighbouring frames are."),
        "column_distance": ("Distance of columns", "less", "How far the values of a column lie from real ones, on "
                                                           "average over the columns; 0 to 1."),
        "worst_column_distance": ("Distance of the worst column", "less", "The same in the column that does worst."),
        "correlation_difference": ("Difference of correlations", "less", "How differently columns are correlated."),
        "autocorrelation_difference": ("Difference of autocorrelations", "less", "How differently a column follows "
                                       "from its own past."),
        "cross_correlation_difference": ("Difference of cross-correlations", "less", "How differently columns move "
                                         "together."),
        "c2st": ("Classifier two-sample test", "more", "How little boosted trees tell samples from held-out rows; 1 "
                                                       "not at all, 0 always."),
        "c2st_training": ("The same against training rows", "more", "With as many of these as there are samples."),
        "shape": ("Shape", "more", "How alike the columns are one by one, as SDMetrics has it; 1 is the best."),
        "shape_independent": ("Shape of independent columns", None, "What columns reach that know nothing of each "
                                                                    "other."),
        "trend": ("Trend", "more", "How alike pairs of columns go together, as SDMetrics has it; 1 is the best."),
        "trend_independent": ("Trend of independent columns", None, "What columns reach that know nothing of each "
                                                                    "other."),
        "missing_difference": ("Difference of gaps", "less", "How far the share of missing cells is off."),
    },
    "Tracks": {
        "min_ade": ("Best ADE of 20", "less", "How far each player's best of 20 predictions is from what came, the "
                                              "mean over the steps."),
        "min_fde": ("Best FDE of 20", "less", "The same at the last step, best for itself."),
        "joint_min_ade": ("Joint best ADE of 20", "less", "The same of the best of 20 predictions of the whole court."),
        "joint_min_fde": ("Joint best FDE of 20", "less", "The same at the last step, best for itself."),
        "first_ade": ("ADE of one", "less", "How far a single prediction is from what came."),
        "first_fde": ("FDE of one", "less", "The same at the last step."),
        **{f"{short}_constant_{what}": (f"{short.upper()} {title}", None, "What is reached without a model.")
           for what, title in (("velocity", "at constant velocity"), ("position", "where nobody moves"))
           for short in ("ade", "fde")},
        "on_court": ("On the court", "more", "Share of the places of players that are on the court."),
        "on_court_real": ("Real ones on the court", None, "The same of real plays."),
        **{f"{name}_distance{of}": (title if not of else f"{title}, of two halves", None if of else "less",
                                    "How far apart two halves of the real plays are." if of else says)
           for name, title, says in (
               ("speed", "Distance of speeds", "How far the speeds of players lie from real ones; 0 to 1."),
               ("acceleration", "Distance of accelerations", "The same of accelerations."),
               ("spacing", "Distance of spacing", "The same of how far the nearest player of the same team is."),
               ("ball", "Distance of the ball", "The same of how far the nearest player is from the ball."),
               ("possession", "Distance of possession", "The same of how long one player is the nearest to the ball."))
           for of in ("", "_of_halves")},
    },
    "Drawings": {
        "strokes_distance": ("Distance of drawings", "less", "How far strokes, points, lengths, extents and turns lie "
                                                             "from real ones, on average; 0 to 1."),
        "worst_strokes_distance": ("Distance of the worst statistic", "less", "The same where it is largest."),
    },
    "Texts": {
        **{f"distinct_{n}": (f"Distinct runs of {n} words" if n > 1 else "Distinct words", None,
                             "Share of those in the samples that are distinct; low means repetitive samples.")
           for n in (1, 2, 3, 4, 8)},
        **{f"copied_{n}": (f"Copied runs of {n} words" if n > 1 else "Copied words", None,
                           "Share of those in the samples that occur in the training data.") for n in (1, 2, 3, 4, 8)},
        "entropy_rate": ("Surprise of its own samples", None,
                         "Nats a token under the model that wrote them; that of held-out text if the model is right."),
    },
    "Usefulness": {
        "usefulness": ("Usefulness", "more",
                       "Accuracy of a classifier trained on samples, relative to one trained on data."),
        "synthetic_accuracy": ("Accuracy, trained on samples", "more", "Tested on real examples."),
        "real_accuracy": ("Accuracy, trained on data", None, "With equally many real examples."),
        "synthetic_auc": ("Area under the curve, trained on samples", "more", "How well boosted trees that learnt from "
                                                                              "samples tell the class of real rows."),
        "real_auc": ("Area under the curve, trained on data", None, "The same from equally many real rows."),
        "two_sample_accuracy": ("Two-sample test", "less", "How often a classifier tells samples from data; 0.5 is "
                                                           "chance, the ideal."),
    },
    "Linear probe": {
        **{f"probe_{n}": (f"Accuracy by {n} labels a class, from codes", "more",
                          "Of a linear classifier, on examples it has not seen.") for n in (10, 100)},
        **{f"probe_{n}_plain": (f"Accuracy by {n} labels a class, from plain features", None,
                                "The same from the examples themselves, e.g. pixels.") for n in (10, 100)},
        **{f"probe_{n}_pca": (f"Accuracy by {n} labels a class, from principal components", None,
                              "The same from as many of them as a code has numbers.") for n in (10, 100)},
    },
    "Variety": {
        "support_size": ("Support", "more", "How many different examples the model draws, by the birthday paradox."),
    },
    "Parzen window": {
        "parzen_nll": ("Parzen window estimate", None, "Misleading: it ranks cluster centres, the control below, "
                                                       "above real data."),
        "parzen_nll_training": ("The same of training examples", None, "With real examples in place of samples."),
        "parzen_nll_kmeans": ("The same of cluster centres", None, "Cluster centres often beat all models: the "
                                                                   "estimate does not reward good samples."),
    },
    "Memorisation": {
        "nearest_training_ratio": ("Distance to training data, relative", None,
                                   "Samples to their nearest training example, over the same for unseen examples; "
                                   "far below 1, the samples are copies."),
        "nearest_training_distance": ("Distance to training data", None,
                                      "From a sample to its nearest training example."),
    },
}

OTHER = "Further numbers"
GLOSSARY = {name: Term(title, topic, better, says) for topic, names in _TABLE.items()
            for name, (title, better, says) in names.items()}


def term(name: str) -> Term:
    """The entry of a metric; without one, its name as title."""
    if name.startswith("auroc_"):
        return Term(f"AUROC by {name.removeprefix('auroc_')}", "Anomalies", "more",
                    "How often an anomaly looks less normal than a normal example; 0.5 is chance.")
    for own in ("accuracy", "class_nll", "kl"):  # of one of several labels, of one of several parts of a code
        if name not in GLOSSARY and name.startswith(f"{own}_"):
            entry = GLOSSARY[own]
            return replace(entry, title=f"{entry.title}: {name.removeprefix(f'{own}_')}")
    return GLOSSARY.get(name) or Term(name.replace("_", " ").capitalize(), OTHER, None, "")
