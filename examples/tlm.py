"""Guess hidden words of a German sentence from its other words and its English translation.

    python examples/tlm.py

A translation language model (Conneau and Lample, "Cross-lingual language model pretraining", 2019) is trained on the
names of the numbers below 10,000, such as "three hundred twenty-one" and "dreihunderteinundzwanzig", split into their
parts. It is trained twice, with and without the English sentence, and a table compares both. The script takes half a
minute on one core.

The example shows how to weight batches. The loss of a batch is the mean over its hidden words, and batches have
different numbers of them. With this number as the weight of `backward` and the count of `log`, all results are means
over all hidden words: an accumulation window equals one large batch, and the validation loss does not depend on the
batch size. `process_metrics` computes the perplexity from it.
"""

import math

import torch
import torch.nn.functional as F
from command_line import run
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
    """Return the words of a number: three, hundred, twenty, one for 321."""
    if number < 20:
        return [ENGLISH[number]]
    if number < 100:
        first, rest = [ENGLISH[number // 10 + 18]], number % 10
    else:
        power, name = (100, "hundred") if number < 1000 else (1000, "thousand")
        first, rest = [ENGLISH[number // power], name], number % power
    return first + (english(rest) if rest else [])


def german(number: int) -> list[str]:
    """Return the parts of a number's name: drei, hundert, ein, und, zwanzig for 321.

    Units come before tens, and the word for 1 is "eins" at the end and "ein" before other words.
    """
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
NOT_MASKED = -100  # The label that cross_entropy ignores.


class Sentences(Dataset):
    """Pairs of an English and a German sentence; random words of the German one are hidden.

    The random numbers need no generator of their own: the trainer seeds each sample from (seed, epoch, index). So every
    epoch hides other words, a resumed run hides the same words as an uninterrupted one, and all validations hide the
    same words.
    """

    def __init__(self, numbers: list[int], mask_share: float = 0.4) -> None:
        self.pairs = [[torch.tensor([INDEX[word] for word in side(n)]) for side in (english, german)] for n in numbers]
        self.mask_share = mask_share

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        source, target = self.pairs[index]
        masked = torch.rand(len(target)) < self.mask_share
        masked[torch.randint(len(target), ())] = True  # Hide at least one word.
        return source, target.where(~masked, MASK), target.where(masked, NOT_MASKED)


def pad(samples: list) -> tuple[torch.Tensor, ...]:
    """Return a batch of samples of different lengths, padded at the end."""
    sources, targets, answers = zip(*samples, strict=True)
    return (
        pad_sequence(sources, batch_first=True, padding_value=PAD),
        pad_sequence(targets, batch_first=True, padding_value=PAD),
        pad_sequence(answers, batch_first=True, padding_value=NOT_MASKED),
    )


class Encoder(nn.Module):
    """A transformer that reads both sentences at once and scores all words for each position of the German one."""

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
        """Return the mean loss over the hidden words of a batch and their number; log the loss and the accuracy."""
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

    def valid_step(self, batch, step) -> None:
        self.hidden_words(batch)

    def process_metrics(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
        """Add the perplexity: exp of the mean loss of all hidden words of all processes, not a mean over batches."""
        loss = metrics.get(f"{phase}/loss")  # A row of what hooks have logged at the end would have none.
        return {} if loss is None else {f"{phase}/perplexity": math.exp(loss)}

    @torch.no_grad()
    def filled(self, sample) -> list[str]:
        """Return the German words of a sample; hidden words are replaced by the model's guesses."""
        source, target, _ = self.batch_to_device(pad([sample]), "test")
        guesses = self.net(source, target).argmax(-1)
        return words(guesses.where(target == MASK, target)[0])


def words(sentence: torch.Tensor) -> list[str]:
    return [WORDS[i] for i in sentence.tolist()]


def main(epochs: int = 20, sentences: int = 3000, seed: int = 0, root: str = "runs") -> None:
    """Train with and without the English sentence, then compare.

    Args:
        epochs: maximum number of epochs
        sentences: number of pairs of sentences to train on, at most 9000
        seed: seed of all random numbers
        root: folder for the files of both runs
    """
    torch.set_num_threads(1)  # More threads would not make networks of this size faster.

    numbers = torch.randperm(10_000, generator=torch.Generator().manual_seed(0)).tolist()
    data = DataModule(
        train=Split(Sentences(numbers[1000:][:sentences]), batch_size=32, shuffle=True, collate_fn=pad),
        valid=Split(Sentences(numbers[:500]), batch_size=100, collate_fn=pad),
        test=Split(Sentences(numbers[500:1000]), batch_size=100, collate_fn=pad),
    )
    trainer = Trainer(
        root=root,
        seed=seed,
        max_epochs=epochs,
        accumulation_steps=2,
        monitor="valid/loss",  # The perplexity grows with it, so both choose the same checkpoint.
        patience=3,
        min_delta=0.002,
    )
    table = Table("hidden words", "perplexity", "accuracy", box=box.SIMPLE_HEAD)
    models = {"with the English sentence": TranslationLanguageModel(True), "without": TranslationLanguageModel(False)}
    for name, model in models.items():
        trainer.fit(model, data)
        metrics = trainer.test(model, data, checkpoint="best")
        table.add_row(name, f"{metrics['test/perplexity']:.3f}", f"{metrics['test/accuracy']:.1%}")

    torch.manual_seed(seed)
    for sample in (data.test.dataset[i] for i in range(3)):
        print(" ".join(words(sample[0])))
        print("  hidden   ", " ".join(words(sample[1])))
        print("  with     ", " ".join(models["with the English sentence"].filled(sample)))
        print("  without  ", " ".join(models["without"].filled(sample)))
    Console().print(table)


if __name__ == "__main__":
    run(main)
