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
        explained_by: relations that most likely break of the same cause, if they break.
    """

    name: str
    statement: str
    reason: str
    exceptions: str
    causes: str
    check: Callable[[Trials], str]
    explained_by: tuple[str, ...] = ()


RELATIONS = (
    Relation(
        "finite",
        "all samples are finite, or the loss leaves out what is not",
        "a NaN in one sample makes the loss, and then all weights, NaN",
        "the loss and its gradient are finite with it, as with a mark for a missing label",
        "a division by a standard deviation of zero, a logarithm of zero, missing values of a table",
        looks.check_finite,
    ),
    Relation(
        "overlap",
        "no sample of the validation or the test, or half of one, is in the train split",
        "both measure what was not trained on",
        "the datasets have no indices, or are augmented and not Subsets of one dataset; as many are equal as by chance",
        "a split that is cut after samples were repeated or sorted, slices that overlap, random_split with two seeds, "
        "windows of one series that were split at random",
        looks.check_overlap,
    ),
    Relation(
        "preparation",
        "inputs of a validation are prepared as those of the training, and not augmented",
        "a network that is validated on other values, or on random ones, is measured wrongly",
        "inputs have no floats, or several shapes; values of another form of distribution, as where data drift",
        "a normalization of one split only, a random_split of a dataset that augments",
        looks.check_preparation,
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
        "targets",
        "a target is not in the input, targets differ, are mixed, and do not change their own score",
        "a network that gets what it is to predict learns to copy it, and one that sees a class at a time forgets",
        "no target is known: samples are no tuples and have no part with the name of one, and no loss of classes gets "
        "integers of the batch",
        "a window that ends one value too late, no mask or shift in a causal network, a column of the labels among the "
        "inputs, labels that were cast to integers too early, a missing shuffle=True",
        looks.check_targets,
    ),
    Relation(
        "shapes",
        "(N, 1) meets no (N,), and modules get batches in their order",
        "the first makes N x N differences, and the second mixes samples with time, both without an error",
        "the differences of all pairs of one tensor",
        "a missing squeeze(1) or unsqueeze(1), a missing batch_first=True or transpose",
        looks.check_shapes,
    ),
    Relation(
        "scores",
        "losses get what they want",
        "a softmax before a cross entropy, which has one, makes gradients small; it trains, only not as far",
        "",
        "a softmax or sigmoid at the end of the network, nll_loss in place of cross_entropy, kl_div without log",
        looks.check_scores,
    ),
    Relation(
        "modes",
        "dropout and batch normalization are in training mode in train_step only, and in trained parts only",
        "validations are not random and do not change the network, and what is not trained is constant",
        "no module has modes; a moving average; batch normalization alone is in evaluation mode",
        "F.dropout without training=self.training, net.train() or net.eval() at the wrong place or missing, a teacher "
        "or a frozen part that is not put in evaluation mode in setup, an average of parameters without buffers",
        looks.check_modes,
    ),
    Relation(
        "random_state",
        "no two steps end in the same random state",
        "otherwise each draws the same masks and noise",
        "",
        "torch.manual_seed in train_step or in what it calls",
        looks.check_random_state,
    ),
    Relation(
        "gradients",
        "no optimizer uses the gradient of a loss for which another one has stepped",
        "a step in turn follows its own loss",
        "one optimizer; gradients are accumulated",
        "a missing detach() of what another network has made, a missing zero_grad()",
        looks.check_gradients,
    ),
    Relation(
        "carried_state",
        "no recurrent module begins a shuffled batch with the hidden state of the batch before",
        "the samples of the two have nothing to do with each other",
        "the train split is not shuffled",
        "a hidden state in an attribute that is not set back, as for one long sequence",
        looks.check_carried_state,
    ),
    Relation(
        "growth",
        "as many tensors are alive after an epoch as after the epoch before",
        "otherwise memory runs out in the end",
        "a deque with a greatest length holds them, or steps use them again, as a buffer",
        "a missing detach() or item() of a loss that is kept in a list, a history without an end",
        looks.check_growth,
    ),
    Relation(
        "schedule",
        "a schedule ends where the training does, and is stepped once per step or once per epoch",
        "otherwise it raises an error, or never comes to its lowest rate",
        "the model holds no scheduler of PyTorch",
        "a length in epochs for a scheduler that is stepped per step, or the other way around; a length that was not "
        "changed with max_epochs; an optimizer that was made anew after its scheduler",
        looks.check_schedule,
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
        ("constant_data", "repeat", "modes", "carried_state", "gradients", "growth"),
    ),
    Relation(
        "workers",
        "num_workers=0 and 2 give the same bits, and a stream has as many samples with one worker as with several",
        "which process reads a sample does not change it",
        "the train split is a loader of its own; a stream without an end, or that one process reads",
        "a generator that the dataset keeps, so that all workers have copies in the same state; a counter or cache in "
        "the dataset; an IterableDataset that does not ask get_worker_info",
        bits.check_workers,
        ("repeat", "constant_data"),
    ),
    Relation(
        "validation",
        "a training with validations has the bits of one without",
        "a validation only looks",
        "there is no validation split; the learning rate depends on the validation by intention",
        "random numbers from a generator that the training uses too, batch normalization in training mode, weights or "
        "counters that are changed in valid_step",
        bits.check_validation,
        ("repeat", "modes", "carried_state"),
    ),
    Relation(
        "samples_alone",
        "in evaluation mode the loss of a batch is the weighted mean of the losses of its samples, after some updates",
        "no sample looks at another, and the loss is a mean",
        "the train split is a loader of its own, or there are several; a state or queue is carried over batches; no "
        "loss is passed to Model.backward; a loss of all pairs of samples (contrastive); random numbers in collate_fn "
        "(mixing); train_step moves the weights before it computes the loss (SAM); it differs, but couples samples by "
        "its form: an index that takes others (mixing), an order of them, or a statistic of the batch that does not "
        "enter linearly (a root of a mean, a variance, a product of means)",
        "a softmax, mean or reshape over the wrong axis, a loss that is summed or also counts padding, padding that is "
        "not masked, a mean over items of which samples have different numbers, without weight= that says how many",
        sums.check_samples_alone,
        ("finite", "shapes", "random_state"),
    ),
    Relation(
        "accumulation",
        "a window of micro-batches has the gradient and learning rate of one large batch",
        "both are the mean over the same samples",
        "as samples_alone; several optimizers step in turn; train_step moves an average itself, and there is no window",
        "a loss that is summed, or divided by accumulation_steps once more, a scheduler that steps per batch and not "
        "by optimizer_step, clipping or an optimizer step per micro-batch",
        sums.check_accumulation,
        ("finite", "shapes", "random_state", "samples_alone"),
    ),
    Relation(
        "devices",
        "several processes have the gradient of one with the same samples",
        "each has its part of the batch, and the gradients are averaged",
        "the train split has no indices, or there are several; as samples_alone",
        "data that is chosen by something else than the sampler (rank 0's batch, a cache by position), networks "
        "without parallelize, a loss that is summed",
        sums.check_devices,
        ("finite", "constant_data", "shapes", "random_state", "samples_alone", "accumulation"),
    ),
    Relation(
        "valid_batch_size",
        "metrics do not depend on the batch size of the validation",
        "they are a property of the weights and the samples",
        "valid_step draws random numbers; metrics reduced by min, max or std are not compared; all are 0; a loss that "
        "couples samples by its form",
        "a mean of batch means with an uneven last batch, count= that is not the number of items, a ratio that is "
        "computed per batch (F1, perplexity), the last batch only, padding, batch normalization in training mode",
        sums.check_valid_batch_size,
        ("modes", "shapes", "samples_alone"),
    ),
    Relation(
        "parameters",
        "every trainable parameter is in one optimizer, gets gradients and has its own memory",
        "otherwise it keeps its initial value",
        "networks of which nothing is trained are left out",
        "an optimizer that was made before a layer, or of one part of the network, .detach(), no_grad or numpy in the "
        "forward pass, a layer that is never called, a.weight.data = b.weight.data in place of a.weight = b.weight",
        looks.check_parameters,
    ),
    Relation(
        "evaluated",
        "what validations use is changed by the training",
        "otherwise all of them measure the same",
        "there is no validation split",
        "an average or a copy of the network that is never updated, the teacher in place of the student",
        looks.check_evaluated,
    ),
    Relation(
        "monitor",
        "a monitored metric goes the way its name says",
        "otherwise the worst checkpoint is kept as the best, and a training that improves is stopped",
        "no metric is monitored; a name that says nothing",
        'mode="min", the default, for an accuracy',
        looks.check_monitor,
    ),
    Relation(
        "checkpoint",
        "load_from_checkpoint gives a model with the metrics of the run",
        "hparams and checkpoint hold all that inference needs",
        "there is no validation split; hparams lack arguments of the constructor",
        "a table, statistic or threshold in a plain attribute, weights that are tied before a load and not after it, "
        "arguments that hparams do not hold and whose defaults differ",
        looks.check_checkpoint,
        ("finite",),
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
        "several optimizers; random numbers in train_step; it falls too slowly to tell; learning rates stay as they "
        "are from the middle of the planned training on",
        "a wrong sign, targets that do not belong to the inputs, a learning rate that is too high or zero, a loss that "
        "does not depend on the parameters",
        sums.check_overfit,
        ("finite", "shapes", "parameters"),
    ),
    Relation(
        "pairing",
        "what is learned from some samples helps with others",
        "inputs and targets of a sample belong together",
        "as overfit; samples have no target apart; fewer than 64 samples; a hard task, which cannot be told from this",
        "inputs and targets that were shuffled, sorted or filtered apart, targets of another row, noise",
        sums.check_pairing,
        ("finite", "shapes"),
    ),
)
"""In the order in which they are tried: what explains others comes first."""
