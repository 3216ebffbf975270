"""Write Python: a small GPT that learns, character by character, from the source text of the standard library.

    python examples/char_lm.py
    python examples/char_lm.py --devices 2 --strategy fsdp
    torchrun --nproc-per-node 2 examples/char_lm.py

Nothing is downloaded: the text is what this Python has been installed with. Two to three minutes on two CPU cores are
enough for keywords, indentation, `self.` and docstrings that sound familiar. Run it twice: the second run says that the
first had finished, and writes the same again; with more `--steps` it goes on. With "fsdp" each of several processes
holds its part of the weights and of the optimizer's state.
"""

import argparse
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer

INDENT = "    "  # One character for the model, a tab: in a row of many single spaces it would lose count.
CHARACTERS = "\n\t" + "".join(map(chr, range(32, 127)))
NUMBERS = {character: number for number, character in enumerate(CHARACTERS)}


def encode(text: str) -> Tensor:
    """Return the numbers of the characters; those that the model does not know are left out."""
    return torch.tensor([NUMBERS[character] for character in text.replace(INDENT, "\t") if character in NUMBERS])


class Block(nn.Module):
    """A layer of the transformer: causal self-attention, then a network for every position by itself."""

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
                nn.init.normal_(parameter, std=0.02)  # As GPT-2: at first no layer drowns what the embedding says.

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.tokens(numbers) + self.positions.weight[: numbers.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)  # The head is the embedding, read the other way.


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
        # Weight decay is for matrices: pulling biases and the gains of norms towards zero helps nobody.
        matrices = [p for p in self.net.parameters() if p.ndim >= 2]
        others = [p for p in self.net.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98))
        steps = self.trainer.max_steps
        warmup = max(1, steps // 10)

        def factor(step: int) -> float:
            """From near 0 up to 1, then along a cosine down to 0.05."""
            progress = max(0, step - warmup) / max(1, steps - warmup)
            return min(1.0, (step + 1) / warmup) * (0.525 + 0.475 * math.cos(math.pi * progress))

        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def loss(self, batch) -> Tensor:
        """Return the mean loss of a character, in nats."""
        numbers, following = batch
        with self.autocast():
            scores = self.net(numbers)
        return F.cross_entropy(scores.float().flatten(0, 1), following.flatten())

    def train_step(self, batch, state) -> None:
        loss = self.loss(batch)
        self.backward(loss)
        # After every batch: the trainer knows which one completes an update, and clips the gradients then.
        self.optimizer_step(self.optimizer, self.scheduler)
        self.log("loss", loss)

    def valid_step(self, batch, step) -> None:
        loss = self.loss(batch)
        self.log("loss", loss)
        self.log("bits_per_character", loss / math.log(2))

    @torch.no_grad()
    def generate(self, prompt: str, length: int, temperature: float = 0.7, seed: int = 0) -> str:
        """Return the prompt and `length` characters after it, drawn one by one."""
        generator = torch.Generator().manual_seed(seed)
        numbers = encode(prompt)[None]
        self.eval()
        for _ in range(length):
            # Half a window: the last place of a whole one, which no other looks back at, learns late.
            scores = self.net(numbers[:, -(self.hparams["context"] // 2) :].to(self.device))[:, -1]
            probabilities = (scores.cpu() / temperature).softmax(-1)
            numbers = torch.cat([numbers, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
        return "".join(CHARACTERS[number] for number in numbers[0].tolist()).replace("\t", INDENT)


class SourceData(DataModule):
    """Windows of text, and the same moved on by one character: what to predict at every place."""

    def __init__(self, context: int = 128, batch_size: int = 4, files: int = 80) -> None:
        super().__init__()
        self.context, self.batch_size, self.files = context, batch_size, files

    def setup(self) -> None:
        # The names that begin with an underscore are left out: among them are tables of the machine's settings.
        paths = sorted(Path(os.__file__).parent.glob("[a-z]*.py"))[: self.files]
        valid = paths[9::20]  # Whole files, so that nothing of them has been seen.
        train = [path for path in paths if path not in valid]
        self.train = Split(self.windows(train), batch_size=self.batch_size, shuffle=True)
        self.valid = Split(self.windows(valid), batch_size=64)

    def windows(self, paths: list[Path]) -> TensorDataset:
        numbers = encode("\n".join(path.read_text(encoding="utf-8") for path in paths))
        length = (len(numbers) - 1) // self.context * self.context
        return TensorDataset(*(numbers[start : start + length].view(-1, self.context) for start in (0, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="updates (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="windows; two make an update (default: %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="of the network (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--context", type=int, default=128, help="characters of a window (default: %(default)s)")
    parser.add_argument("--files", type=int, default=80, help="to learn from (default: %(default)s)")
    parser.add_argument("--prompt", default="    def ", help="what the text begins with (default: %(default)r)")
    parser.add_argument("--length", type=int, default=600, help="of the text written (default: %(default)s)")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16", "fp16"], help="(default: %(default)s)")
    parser.add_argument("--strategy", default="ddp", choices=["ddp", "fsdp"], help="(default: %(default)s)")
    parser.add_argument("--devices", type=int, default=1, help="processes to start (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--root", default="runs", help="folder for the run's files (default: %(default)s)")
    options = parser.parse_args()

    trainer = Trainer(
        root=options.root,
        seed=options.seed,
        devices=options.devices,
        accelerator="cpu" if options.devices > torch.cuda.device_count() else "auto",
        strategy=options.strategy,
        precision=options.precision,
        accumulation_steps=2,
        clip_norm=1.0,
        max_steps=options.steps,
        valid_every_epochs=None,
        valid_every_steps=max(1, options.steps // 4),
        monitor="valid/loss",
        log_every_steps=50,
    )
    model = CharLM(options.width, options.layers, context=options.context)
    trainer.fit(model, SourceData(options.context, options.batch_size, options.files))

    # Processes that the trainer started are gone, and the model here holds the whole of what came of them. Those that
    # torchrun started are still there: under fsdp none of them has all weights, so nothing is written.
    if model.global_rank == 0 and (model.world_size == 1 or options.strategy == "ddp"):
        print(model.generate(options.prompt, options.length, seed=options.seed))


if __name__ == "__main__":
    main()
