"""Draw handwritten digits: a generator and a discriminator, two optimizers in one training step.

    python examples/gan.py
    python examples/gan.py --devices 2

The generator is told which digit to draw, the discriminator which one it is shown. Validation uses an exponential
moving average of the generator's weights, and every few epochs leaves a picture of what it draws in runs/gan/samples,
with a column for each digit. Two minutes at most on two cores. Run it twice: the second run says that the first had
finished; with more `--epochs` it goes on.
"""

import argparse
import csv
import gzip
import struct
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.callbacks import EMA

DATA = Path(__file__).parent / "data" / "optdigits.csv.gz"


class Generator(nn.Module):
    """From noise and a digit to an image of 8x8 pixels between -1 and 1."""

    def __init__(self, noise: int, width: int) -> None:
        super().__init__()
        self.digits = nn.Embedding(10, noise)
        self.net = nn.Sequential(
            nn.Linear(2 * noise, 2 * width * 4 * 4),
            nn.Unflatten(1, (2 * width, 4, 4)),
            nn.GroupNorm(8, 2 * width),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor, digits: Tensor) -> Tensor:
        return self.net(torch.cat([noise, self.digits(digits)], dim=1))


class Discriminator(nn.Module):
    """From an image and a digit to a score: above 0 for real ones, below for those that were made."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Dropout(0.3),  # A thousand images are soon known by heart.
            nn.Linear(2 * width * 4 * 4, 128),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
        )
        self.score = nn.Linear(128, 1)
        self.digits = nn.Embedding(10, 128)

    def forward(self, images: Tensor, digits: Tensor) -> Tensor:
        features = self.net(images)
        # How real it looks, and how much like this digit (a projection discriminator).
        return self.score(features).squeeze(1) + (features * self.digits(digits)).mean(1)


class GAN(Model):
    def __init__(self, noise: int = 32, width: int = 32, picture_every: int = 10) -> None:
        super().__init__("gan")
        self.hparams = {"noise": noise, "width": width}
        self.picture_every = picture_every

    def setup(self, fast_init: bool = False) -> None:
        width = self.hparams["width"]
        self.generator = self.parallelize(Generator(self.hparams["noise"], width))
        self.discriminator = self.parallelize(Discriminator(width))
        if not fast_init:
            self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
            self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=1e-3, betas=(0.5, 0.99))

    def noise(self, count: int) -> Tensor:
        return torch.randn(count, self.hparams["noise"], device=self.device)

    def train_step(self, batch, state) -> None:
        real, digits = batch
        with self.autocast():
            fake = self.generator(self.noise(len(real)), digits)
            # Detached: this loss is none of the generator's business.
            scores = self.discriminator(torch.cat([real, fake.detach()]), digits.repeat(2))
            real_scores, fake_scores = scores.float().chunk(2)
            discriminator_loss = (F.softplus(-real_scores) + F.softplus(fake_scores)).mean()
        self.backward(discriminator_loss)
        self.optimizer_step(self.discriminator_optimizer)

        self.discriminator.requires_grad_(False)  # The gradient passes through, but is not the discriminator's.
        with self.autocast():
            generator_loss = F.softplus(-self.discriminator(fake, digits).float()).mean()
        self.backward(generator_loss)
        self.discriminator.requires_grad_(True)
        self.optimizer_step(self.generator_optimizer)
        self.log("discriminator_loss", discriminator_loss)
        self.log("generator_loss", generator_loss)

    def valid_step(self, batch, step) -> None:
        """Tell how well the two do; no number says how good the images look, but the distance comes near."""
        real, digits = batch
        fake = self.generator(self.noise(len(real)), digits)
        self.log("real_score", self.discriminator(real, digits).mean())
        self.log("fake_score", self.discriminator(fake, digits).mean())
        # The energy distance: 0 if what is drawn is distributed as these images, which the generator never saw.
        real, fake = real.flatten(1), fake.flatten(1)
        count = len(real)
        within = (torch.pdist(real).sum() + torch.pdist(fake).sum()) * 2 / (count * (count - 1))
        self.log("distance", 2 * torch.cdist(real, fake).mean() - within)

    def on_validation_end(self, validation_cycle: int) -> None:
        # The model's hooks come before those of callbacks: the generator still has the averaged weights.
        last = validation_cycle == self.trainer.max_epochs
        if self.global_rank == 0 and (last or validation_cycle % self.picture_every == 0):
            path = Path(self.trainer.root) / self.save_name / "samples" / f"epoch_{validation_cycle:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Validations are seeded alike, so every picture is drawn from the same noise.
            images = self.generator(self.noise(80), torch.arange(10, device=self.device).repeat(8))
            write_png(path, grid(images.squeeze(1).cpu(), columns=10))


def grid(images: Tensor, columns: int, scale: int = 6) -> Tensor:
    """Return one large image, dark on white, of small ones between -1 and 1."""
    pixels = F.pad(((1 - images) * 127.5).round(), (1, 1, 1, 1), value=255).to(torch.uint8)
    rows = [torch.cat(list(row), dim=1) for row in pixels.split(columns)]
    return torch.cat(rows).repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def write_png(path: Path, pixels: Tensor) -> None:
    """Write a grayscale image of bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, gray, the usual methods, not interlaced.
    lines = b"".join(b"\0" + bytes(row) for row in pixels.tolist())  # Every line begins with its filter: none.
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


class DigitsData(DataModule):
    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self) -> None:
        with gzip.open(DATA, "rt") as file:
            rows = torch.tensor([[int(value) for value in row] for row in csv.reader(file)])
        images = rows[:, :64].float().reshape(-1, 1, 8, 8) / 8 - 1
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        train, valid = (TensorDataset(images[part], rows[part, 64]) for part in order.split([1497, 300]))
        self.train = Split(train, batch_size=self.batch_size, shuffle=True, drop_last=True)
        self.valid = Split(valid, batch_size=300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=80, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--width", type=int, default=32, help="of both networks (default: %(default)s)")
    parser.add_argument("--picture-every", type=int, default=10, help="epochs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--devices", type=int, default=1, help="processes to start (default: %(default)s)")
    parser.add_argument("--root", default="runs", help="folder for the run's files (default: %(default)s)")
    options = parser.parse_args()

    trainer = Trainer(
        root=options.root,
        seed=options.seed,
        devices=options.devices,
        accelerator="cpu" if options.devices > torch.cuda.device_count() else "auto",
        max_epochs=options.epochs,
        monitor="valid/distance",
        save_every_epochs=options.picture_every,
        callbacks=[EMA(decay=0.995, name="generator")],
    )
    model = GAN(width=options.width, picture_every=options.picture_every)
    result = trainer.fit(model, DigitsData(options.batch_size))
    if model.global_rank == 0:
        samples = Path(options.root) / model.save_name / "samples"
        print(f"what it draws: {samples / f'epoch_{result.state.epoch:04}.png'}")


if __name__ == "__main__":
    main()
