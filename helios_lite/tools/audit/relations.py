"""The relations that hold for every right training program, as a specification that one can read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from helios_lite.tools.audit import bits, looks, sums
from helios_lite.tools.audit.processes import Trials


@dataclasses.dataclass(frozen=True)
class Relation:
    """One relation.

    Attributes:
        name: a short name, for `only`.
        statement: what holds.
        reason: why it holds for every right program.
        exceptions: when it is said to be not applicable.
        causes: what usually causes a break.
        check: tries it; returns what was compared, or raises `Break` or `NotApplicable`.
    """

    name: str
    statement: str
    reason: str
    exceptions: str
    causes: str
    check: Callable[[Trials], str]


RELATIONS = (
    Relation(
        "finite",
        "all samples are finite",
        "a NaN in one sample makes the loss, and then all weights, NaN",
        "",
        "a division by a standard deviation of zero, a logarithm of zero, missing values of a table",
        looks.check_finite,
    ),
    Relation(
        "overlap",
        "no sample of the validation is in the train split",
        "a validation measures what was not trained on",
        "the datasets have no indices, or are augmented and not Subsets of one dataset",
        "a split that is cut after samples were repeated or sorted, slices that overlap, random_split with two seeds",
        looks.check_overlap,
    ),
    Relation(
        "constant_data",
        "a sample that is read again under the same seed is the same",
        "a sample is a function of seed, epoch and index, and training does not write to the data",
        "the splits have no indices",
        "an operation in place (x -= mean) on a batch that is a view of the dataset or in a cache, a generator of the "
        "dataset's own that goes on",
        looks.check_constant_data,
    ),
    Relation(
        "repeat",
        "the same seed gives the same bits",
        "initial weights, order, augmentation and dropout are functions of the seed",
        "",
        "a generator without a seed (numpy.random.default_rng()), the order of a set of strings, the time, algorithms "
        "that are not deterministic (deterministic=True)",
        bits.check_repeat,
    ),
    Relation(
        "resume",
        "a training that crashes and resumes ends with the bits of one that did not",
        "a checkpoint holds all that the next step depends on",
        "",
        "a counter, a hidden state or an average in a plain attribute, gradients that are not cleared (zero_grad), a "
        "generator of one's own, weights that are tied before a load and not after it",
        bits.check_resume,
    ),
    Relation(
        "workers",
        "num_workers=0 and 2 give the same bits",
        "which process reads a sample does not change it",
        "the train split is a loader of its own or has an IterableDataset",
        "a generator that the dataset keeps, so that all workers have copies in the same state; a counter or cache in "
        "the dataset",
        bits.check_workers,
    ),
    Relation(
        "validation",
        "a training with validations has the bits of one without",
        "a validation only looks",
        "there is no validation split; the learning rate depends on the validation by intention",
        "random numbers from a generator that the training uses too, batch normalization in training mode, weights or "
        "counters that are changed in valid_step",
        bits.check_validation,
    ),
    Relation(
        "samples_alone",
        "in evaluation mode the loss of a batch is the weighted mean of the losses of its samples",
        "no sample looks at another, and the loss is a mean",
        "the train split is a loader of its own, or there are several; a state is carried over batches; no loss is "
        "passed to Model.backward",
        "a softmax, mean or reshape over the wrong axis, a loss that is summed or also counts padding, padding that is "
        "not masked, weight= that is not the number of items of the mean. A loss that compares samples (contrastive) "
        "breaks it by intention",
        sums.check_samples_alone,
    ),
    Relation(
        "accumulation",
        "a window of micro-batches has the gradient and learning rate of one large batch",
        "both are the mean over the same samples",
        "as samples_alone; several optimizers step in turn",
        "a loss that is summed, or divided by accumulation_steps once more, a scheduler that steps per batch and not "
        "by optimizer_step, clipping or an optimizer step per micro-batch",
        sums.check_accumulation,
    ),
    Relation(
        "devices",
        "several processes have the gradient of one with the same samples",
        "each has its part of the batch, and the gradients are averaged",
        "the train split has no indices, or there are several; a state is carried over batches",
        "data that is chosen by something else than the sampler (rank 0's batch, a cache by position), networks "
        "without parallelize, a loss that is summed",
        sums.check_devices,
    ),
    Relation(
        "valid_batch_size",
        "metrics do not depend on the batch size of the validation",
        "they are a property of the weights and the samples",
        "valid_step draws random numbers; metrics that are reduced by min, max, last or std are not compared",
        "a mean of batch means with an uneven last batch, count= that is not the number of items, a ratio that is "
        "computed per batch (F1, perplexity), padding, batch normalization in training mode",
        sums.check_valid_batch_size,
    ),
    Relation(
        "parameters",
        "every trainable parameter is in one optimizer and gets gradients",
        "otherwise it keeps its initial value",
        "networks of which nothing is trained are left out",
        "an optimizer that was made before a layer, or of one part of the network, .detach(), no_grad or numpy in the "
        "forward pass, a layer that is never called",
        looks.check_parameters,
    ),
    Relation(
        "modes",
        "dropout and batch normalization are in training mode in train_step only, and frozen parts do not change",
        "validations are not random and do not change the network, and what is frozen is constant",
        "no module has modes",
        "F.dropout without training=self.training, net.train() or net.eval() at the wrong place, a frozen part that is "
        "not put in evaluation mode in setup",
        looks.check_modes,
    ),
    Relation(
        "checkpoint",
        "load_from_checkpoint gives a model with the metrics of the run",
        "hparams and checkpoint hold all that inference needs",
        "there is no validation split; hparams lack arguments of the constructor",
        "a table, statistic or threshold in a plain attribute, weights that are tied before a load and not after it, "
        "arguments that hparams do not hold and whose defaults differ",
        looks.check_checkpoint,
    ),
    Relation(
        "loss_scale",
        "the scale of the loss in fp16 changes no gradient",
        "gradients are divided by the scale before they are used",
        'precision is not "fp16"',
        "clipping, a penalty or a check of gradients before they are unscaled; use clip_norm",
        sums.check_loss_scale,
    ),
    Relation(
        "overfit",
        "one batch can be overfitted",
        "the loss of a batch that is repeated falls",
        "several optimizers; random numbers in train_step; it falls too slowly to tell",
        "a wrong sign, targets that do not belong to the inputs, a learning rate that is too high or zero, a loss that "
        "does not depend on the parameters",
        sums.check_overfit,
    ),
    Relation(
        "pairing",
        "what is learned from some samples helps with others",
        "inputs and targets of a sample belong together",
        "as overfit; fewer than 64 samples; the loss falls too slowly to tell",
        "inputs and targets that were shuffled, sorted or filtered apart, targets of another row, noise",
        sums.check_pairing,
    ),
)
"""In the order in which they are tried: what explains others comes first."""
