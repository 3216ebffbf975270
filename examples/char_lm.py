"""Write Python: a small GPT learns, character by character, from the source code of the standard library.

    python examples/char_lm.py
    python examples/char_lm.py --devices 2 --strategy fsdp
    torchrun --nproc-per-node 2 examples/char_lm.py

Nothing is downloaded: the text is the standard library of the Python that runs the script. After two to three minutes
on two CPU cores, the model writes keywords, indentation, `self.` and docstrings that sound familiar. Run the script
again: it reports that the run had finished and writes the same text; with more `--steps` it resumes the training. With
`--strategy fsdp`, each process holds only its part of the weights and of the optimizer's state.
"""

import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from command_line import run
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer, schedules

INDENT = "    "  # The model sees an indent as one tab, because it would lose count of many single spaces.
CHARACTERS = "\n\t" + "".join(map(chr, range(32, 127)))
NUMBERS = {character: number for number, character in enumerate(CHARACTERS)}


def encode(text: str) -> Tensor:
    """Return the numbers of the characters, int64 of shape (length,). Unknown characters are left out."""
    return torch.tensor([NUMBERS[character] for character in text.replace(INDENT, "\t") if character in NUMBERS])


class Block(nn.Module):
    """A transformer layer: causal self-attention, then a network that is applied to each position separately."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(len(CHARACTERS), width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02)  # As in GPT-2: small enough that no layer dominates at first.

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.tokens(numbers) + self.positions.weight[: numbers.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)  # The output layer shares the weights of the embedding.


class CharLM(Model):
    def __init__(
        self, width: int = 128, layers: int = 4, heads: int = 4, context: int = 128, learning_rate: float = 2e-3
    ) -> None:
        super().__init__("char_lm")
        self.hparams = {"width": width, "layers": layers, "heads": heads, "context": context}
        self.learning_rate = learning_rate

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.parallelize(GPT(**self.hparams), blocks=(Block,))
        if fast_init:
            return
        # Only matrices get weight decay; it does not help biases and the parameters of the norms.
        matrices = [p for p in self.net.parameters() if p.ndim >= 2]
        others = [p for p in self.net.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98))
        steps = self.trainer.max_steps
        self.scheduler = schedules.cosine(self.optimizer, steps // 10, steps, final_factor=0.05)

    def loss(self, batch) -> Tensor:
        """Return the mean loss per character, in nats."""
        numbers, targets = batch
        with self.autocast():
            scores = self.net(numbers)
        return F.cross_entropy(scores.float().flatten(0, 1), targets.flatten())

    def train_step(self, batch, state) -> None:
        loss = self.loss(batch)
        self.backward(loss)
        # Called after every batch: on the batch that completes a step, it clips the gradients and steps the optimizer.
        self.optimizer_step(self.optimizer, self.scheduler)
        self.log("loss", loss)

    def valid_step(self, batch, step) -> None:
        loss = self.loss(batch)
        self.log("loss", loss)
        self.log("bits_per_character", loss / math.log(2))

    @torch.no_grad()
    def generate(self, prompt: str, length: int, temperature: float = 0.7, seed: int = 0) -> str:
        """Return the prompt and `length` characters after it, sampled one by one."""
        generator = torch.Generator().manual_seed(seed)
        numbers = encode(prompt)[None]
        self.eval()
        for _ in range(length):
            # Half of the context: the last position of a full one learns slowest, since no other attends to it.
            scores = self.net(numbers[:, -(self.hparams["context"] // 2) :].to(self.device))[:, -1]
            probabilities = (scores.cpu() / temperature).softmax(-1)
            numbers = torch.cat([numbers, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
        return "".join(CHARACTERS[number] for number in numbers[0].tolist()).replace("\t", INDENT)


class SourceData(DataModule):
    """Windows of text. The target of each window is the same text shifted by one character."""

    def __init__(self, context: int = 128, batch_size: int = 4, files: int = 80) -> None:
        super().__init__()
        self.context, self.batch_size, self.files = context, batch_size, files

    def setup(self) -> None:
        # Files whose names begin with an underscore are left out: some are tables of the machine's settings.
        paths = sorted(Path(os.__file__).parent.glob("[a-z]*.py"))[: self.files]
        valid = paths[9::20]  # Whole files, so that no part of them is in the training data.
        train = [path for path in paths if path not in valid]
        self.train = Split(self.windows(train), batch_size=self.batch_size, shuffle=True)
        self.valid = Split(self.windows(valid), batch_size=64)

    def windows(self, paths: list[Path]) -> TensorDataset:
        numbers = encode("\n".join(path.read_text(encoding="utf-8") for path in paths))
        length = (len(numbers) - 1) // self.context * self.context
        return TensorDataset(*(numbers[start : start + length].view(-1, self.context) for start in (0, 1)))


def main(
    steps: int = 1500,
    batch_size: int = 4,
    width: int = 128,
    layers: int = 4,
    context: int = 128,
    files: int = 80,
    prompt: str = "    def ",
    length: int = 600,
    precision: str = "bf16",
    strategy: str = "ddp",
    **options,
) -> None:
    """Train the model, then let it write.

    Args:
        steps: number of steps
        batch_size: number of windows of text in a batch of each process; a step takes two batches
        width: size of the vector of a character
        layers: number of layers
        context: number of characters of a window
        files: number of files of the standard library to use
        prompt: the text that the model continues
        length: number of characters to write
        precision: "fp32", "bf16" or "fp16"
        strategy: "ddp" or "fsdp"
        options: other options of the Trainer
    """
    trainer = Trainer(
        strategy=strategy,
        precision=precision,
        accumulation_steps=2,
        clip_norm=1.0,
        max_steps=steps,
        valid_every_epochs=None,
        valid_every_steps=max(1, steps // 4),
        monitor="valid/loss",
        log_every_steps=50,
        **options,
    )
    model = CharLM(width, layers, context=context)
    trainer.fit(model, SourceData(context, batch_size, files))

    # After processes that the trainer started, this model holds all weights. A process that torchrun started holds
    # only its own part of them under "fsdp", so it cannot write.
    if model.global_rank == 0 and (model.world_size == 1 or strategy == "ddp"):
        print(model.generate(prompt, length, seed=trainer.seed))


if __name__ == "__main__":
    run(main)
