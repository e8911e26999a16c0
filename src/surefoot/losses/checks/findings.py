"""Every finding of the lint by name, and how one is shown."""

from __future__ import annotations

from ...finding import Finding

# Each name has a section in explanations/lint.md. "error" means that training cannot go on, or is undefined from here.
FINDINGS = {
    "softmax-before-cross-entropy": "the model ends in Softmax and the loss applies it again",
    "log-softmax-before-cross-entropy": "the model ends in LogSoftmax and the loss applies it again",
    "sigmoid-before-cross-entropy": "the model ends in Sigmoid, and the loss wants logits",
    "relu-before-loss": "the model ends in ReLU, and the loss wants logits of both signs",
    "single-class": "one output for a loss that compares classes",
    "too-few-outputs": "fewer outputs than the data has classes",
    "raw-logits-to-nll": "logits where log-probabilities are meant",
    "probabilities-to-nll": "probabilities where log-probabilities are meant",
    "softmax-over-wrong-dimension": "normalised over another dimension than that of the classes",
    "raw-logits-to-bce": "logits where probabilities are meant",
    "probabilities-to-bce-with-logits": "probabilities where logits are meant",
    "probabilities-to-margin-loss": "probabilities where scores are meant",
    "kl-given-probabilities": "probabilities where log-probabilities are meant",
    "kl-given-logits": "logits where log-probabilities are meant",
    "kl-reduction-mean": "reduction='mean', which is not the KL divergence",
    "kl-target-not-a-distribution": "targets that do not sum to 1",
    "negative-rate": "expected counts below 0",
    "negative-variance": "a variance that is, or can become, negative",
    "negative-distance": "distances below 0",
    "target-out-of-range": "targets outside of what the loss can use",
    "target-dtype": "targets of a type that the loss refuses",
    "one-hot-targets": "one-hot targets where class indices are meant",
    "targets-not-signs": "targets other than 1 and -1",
    "negative-counts": "counts below 0",
    "ctc-blank-in-targets": "the blank among the labels",
    "ctc-input-too-short": "fewer input steps than labels",
    "constant-target": "every target of the batch is the same",
    "broadcast": "outputs and targets of different shapes, silently broadcast",
    "shape-mismatch": "outputs and targets whose shapes do not fit together",
    "loss-refused": "the loss, or its backward pass, raised an error",
    "inputs-not-normalised": "inputs far from zero mean and unit variance",
    "constant-inputs": "every input of the batch is the same",
    "nan-in-data": "inputs or targets that are not finite",
    "nan-at-start": "a loss or a gradient that is not finite before the first update",
    "last-batch": "a short last batch of the epoch that model or loss cannot be run on",
    "dead-outputs": "outputs that do not depend on the inputs, or a layer that gives only zeros",
    "no-gradient": "parameters that the loss does not reach",
    "zero-gradient": "a gradient that is exactly zero everywhere",
    "not-in-optimizer": "parameters that the optimizer does not hold",
    "loss-far-from-chance": "a first loss far above that of guessing",
}


def error(name: str, message: str, fix: str) -> Finding:
    """A finding after which training cannot go on."""
    assert name in FINDINGS, name
    return Finding(name, "error", message, fix)


def warning(name: str, message: str, fix: str) -> Finding:
    """A finding that a user may have reasons for."""
    assert name in FINDINGS, name
    return Finding(name, "warning", message, fix)
