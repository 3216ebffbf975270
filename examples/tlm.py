"""Guess hidden words of a German sentence from its other words and its English translation.

    python examples/tlm.py

A translation language model (Conneau and Lample, "Cross-lingual language model pretraining", 2019) on the names of the
numbers below 10,000: "three hundred twenty-one" and "dreihunderteinundzwanzig", cut into their parts. It is trained
twice, with and without the English sentence; a table shows what that sentence is worth. Half a minute on one core.

What is to be seen here: a batch's loss is the mean over its hidden words, and batches have different numbers of them.
So `backward` is told a weight and `log` a count, and what comes out is the mean over all hidden words: an accumulation
window equals one large batch, a validation loss does not depend on how the split is batched.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from helios_lite import DataModule, Model, Split, Trainer

ENGLISH_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety
"""
GERMAN_WORDS = """
null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn
achtzehn neunzehn zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig
"""
ENGLISH, GERMAN = ENGLISH_WORDS.split(), GERMAN_WORDS.split()


def english(number: int) -> list[str]:
    """321: three, hundred, twenty, one."""
    if number < 20:
        return [ENGLISH[number]]
    if number < 100:
        first, rest = [ENGLISH[number // 10 + 18]], number % 10
    else:
        power, name = (100, "hundred") if number < 1000 else (1000, "thousand")
        first, rest = [ENGLISH[number // power], name], number % power
    return first + (english(rest) if rest else [])


def german(number: int) -> list[str]:
    """321: drei, hundert, ein, und, zwanzig. Units come before tens, and a one that is not the last word is "ein"."""
    if number < 20:
        return [GERMAN[number]]
    if number < 100:
        return ([*_ein(number % 10), "und"] if number % 10 else []) + [GERMAN[number // 10 + 18]]
    power, name = (100, "hundert") if number < 1000 else (1000, "tausend")
    return [*_ein(number // power), name] + (german(number % power) if number % power else [])


def _ein(digit: int) -> list[str]:
    return ["ein"] if digit == 1 else [GERMAN[digit]]


PAD, MASK = 0, 1
WORDS = ["", "_", *sorted({word for n in range(10_000) for word in english(n) + german(n)})]
INDEX = {word: i for i, word in enumerate(WORDS)}
NOT_MASKED = -100  # What cross_entropy ignores.


class Sentences(Dataset):
    """Pairs of sentences; every time a pair is read, other words of its German half are hidden.

    The draws need no generator of their own: the trainer seeds each sample from (seed, epoch, index). So a run that was
    stopped goes on with the same masks, and all validations hide the same words.
    """

    def __init__(self, numbers: list[int], mask_share: float = 0.4) -> None:
        self.pairs = [[torch.tensor([INDEX[word] for word in side(n)]) for side in (english, german)] for n in numbers]
        self.mask_share = mask_share

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        source, target = self.pairs[index]
        masked = torch.rand(len(target)) < self.mask_share
        masked[torch.randint(len(target), ())] = True  # At least one.
        return source, target.where(~masked, MASK), target.where(masked, NOT_MASKED)


def pad(samples: list) -> tuple[torch.Tensor, ...]:
    """Make a batch of samples of different lengths."""
    sources, targets, answers = zip(*samples, strict=True)
    return (
        pad_sequence(sources, batch_first=True, padding_value=PAD),
        pad_sequence(targets, batch_first=True, padding_value=PAD),
        pad_sequence(answers, batch_first=True, padding_value=NOT_MASKED),
    )


class Encoder(nn.Module):
    """A transformer that sees all words of both sentences at once, and scores every word for every German place."""

    def __init__(self, with_source: bool, size: int, layers: int) -> None:
        super().__init__()
        self.with_source = with_source
        self.words = nn.Embedding(len(WORDS), size)
        self.places = nn.Embedding(16, size)
        self.languages = nn.Embedding(2, size)
        layer = nn.TransformerEncoderLayer(size, 4, 2 * size, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(size), enable_nested_tensor=False)
        self.scores = nn.Linear(size, len(WORDS))

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not self.with_source:
            source = source[:, :0]
        embedded = torch.cat([self._embed(source, 0), self._embed(target, 1)], 1)
        padding = torch.cat([source, target], 1) == PAD
        return self.scores(self.layers(embedded, src_key_padding_mask=padding)[:, source.shape[1] :])

    def _embed(self, sentence: torch.Tensor, language: int) -> torch.Tensor:
        return self.words(sentence) + self.places.weight[: sentence.shape[1]] + self.languages.weight[language]


class TranslationLanguageModel(Model):
    def __init__(self, with_source: bool, size: int = 64, layers: int = 2) -> None:
        super().__init__("tlm-with-source" if with_source else "tlm-without-source")
        self.hparams = {"with_source": with_source, "size": size, "layers": layers}

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(Encoder(**self.hparams))
        if not fast_init:
            self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=2e-3)

    def hidden_words(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss over the hidden words of a batch, and how many these are; log it and the accuracy."""
        source, target, answers = batch
        masked = answers != NOT_MASKED
        with self.autocast():
            scores = self.net(source, target)[masked]
            loss = F.cross_entropy(scores, answers[masked])
        tokens = masked.sum()
        self.log("loss", loss, count=tokens)
        self.log("accuracy", (scores.argmax(-1) == answers[masked]).float().mean(), count=tokens)
        return loss, tokens

    def train_step(self, batch, state) -> None:
        loss, tokens = self.hidden_words(batch)
        self.backward(loss, weight=tokens)
        self.optimizer_step(self.optimizer)

    def on_validation_start(self, validation_cycle: int) -> None:
        super().on_validation_start(validation_cycle)
        self.total_loss = self.total_tokens = 0.0

    def valid_step(self, batch, step) -> None:
        loss, tokens = self.hidden_words(batch)
        self.total_loss += loss.item() * tokens.item()
        self.total_tokens += tokens.item()

    def on_validation_end(self, validation_cycle: int) -> None:
        """Log the perplexity: exp of the loss of all words (of this process), no mean of the batches' perplexities."""
        super().on_validation_end(validation_cycle)
        self.log("perplexity", math.exp(self.total_loss / self.total_tokens))

    def test_step(self, batch, step) -> None:
        self.hidden_words(batch)

    @torch.no_grad()
    def filled(self, sample) -> list[str]:
        """Return the German words of a sample, the hidden ones as the model guesses them."""
        source, target, _ = self.batch_to_device(pad([sample]), "test")
        guesses = self.net(source, target).argmax(-1)
        return words(guesses.where(target == MASK, target)[0])


def words(sentence: torch.Tensor) -> list[str]:
    return [WORDS[i] for i in sentence.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="at most so many (default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=3000, help="to train on, up to 9000 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--root", default="runs", help="folder for the runs' files (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # The networks are so small that threads would mostly wait for each other.

    numbers = torch.randperm(10_000, generator=torch.Generator().manual_seed(0)).tolist()
    data = DataModule(
        train=Split(Sentences(numbers[1000:][: options.sentences]), batch_size=32, shuffle=True, collate_fn=pad),
        valid=Split(Sentences(numbers[:500]), batch_size=100, collate_fn=pad),
        test=Split(Sentences(numbers[500:1000]), batch_size=100, collate_fn=pad),
    )
    trainer = Trainer(
        root=options.root,
        seed=options.seed,
        max_epochs=options.epochs,
        accumulation_steps=2,
        monitor="valid/loss",  # As good as the perplexity, which grows with it.
        patience=3,
        min_delta=0.002,
    )
    table = Table("hidden words", "perplexity", "accuracy", box=box.SIMPLE_HEAD)
    models = {"with the English sentence": TranslationLanguageModel(True), "without": TranslationLanguageModel(False)}
    for name, model in models.items():
        trainer.fit(model, data)
        metrics = trainer.test(model, data, checkpoint="best")
        table.add_row(name, f"{math.exp(metrics['test/loss']):.3f}", f"{metrics['test/accuracy']:.1%}")

    torch.manual_seed(options.seed)
    for sample in (data.test.dataset[i] for i in range(3)):
        print(" ".join(words(sample[0])))
        print("  hidden   ", " ".join(words(sample[1])))
        print("  with     ", " ".join(models["with the English sentence"].filled(sample)))
        print("  without  ", " ".join(models["without"].filled(sample)))
    Console().print(table)


if __name__ == "__main__":
    main()
