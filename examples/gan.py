"""Draw handwritten digits: a generator and a discriminator, two optimizers in one training step.

    python examples/gan.py
    python examples/gan.py --devices 2

Both networks are conditional: the generator is told which digit to draw, and the discriminator which digit an image
should show. Validation uses an exponential moving average of the generator's weights. Every few epochs, a picture of
generated digits is written to runs/gan/samples, with one column for each digit. The training takes at most two minutes
on two cores. Run the script again: it reports that the run had finished; with more `--epochs` it resumes the training.
"""

import struct
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from command_line import run
from optdigits import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from helios_lite import DataModule, Model, Split, Trainer
from helios_lite.callbacks import EMA


class Generator(nn.Module):
    """Maps noise and a digit to an image of 8x8 pixels from -1 to 1."""

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
    """Maps an image and a digit to a score: positive for real images, negative for generated ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Dropout(0.3),  # Without dropout, it would soon memorize the few images.
            nn.Linear(2 * width * 4 * 4, 128),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
        )
        self.score = nn.Linear(128, 1)
        self.digits = nn.Embedding(10, 128)

    def forward(self, images: Tensor, digits: Tensor) -> Tensor:
        features = self.net(images)
        # A projection discriminator: how real the image looks, plus how well it matches the digit.
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
            # Detached, because this loss does not train the generator.
            scores = self.discriminator(torch.cat([real, fake.detach()]), digits.repeat(2))
            real_scores, fake_scores = scores.float().chunk(2)
            discriminator_loss = (F.softplus(-real_scores) + F.softplus(fake_scores)).mean()
        self.backward(discriminator_loss)
        self.optimizer_step(self.discriminator_optimizer)

        self.discriminator.requires_grad_(False)  # Gradients only pass through it to the generator.
        with self.autocast():
            generator_loss = F.softplus(-self.discriminator(fake, digits).float()).mean()
        self.backward(generator_loss)
        self.discriminator.requires_grad_(True)
        self.optimizer_step(self.generator_optimizer)
        self.log("discriminator_loss", discriminator_loss)
        self.log("generator_loss", generator_loss)

    def valid_step(self, batch, step) -> None:
        """Log how well both networks do. No metric measures how good the images look; the distance comes closest."""
        real, digits = batch
        fake = self.generator(self.noise(len(real)), digits)
        self.log("real_score", self.discriminator(real, digits).mean())
        self.log("fake_score", self.discriminator(fake, digits).mean())
        # The energy distance: 0 if generated images have the same distribution as these, which are not trained on.
        real, fake = real.flatten(1), fake.flatten(1)
        count = len(real)
        within = (torch.pdist(real).sum() + torch.pdist(fake).sum()) * 2 / (count * (count - 1))
        self.log("distance", 2 * torch.cdist(real, fake).mean() - within)

    def on_validation_end(self, validation_cycle: int) -> None:
        # This hook runs before those of callbacks, so the generator still has the averaged weights.
        last = validation_cycle == self.trainer.max_epochs
        if self.global_rank == 0 and (last or validation_cycle % self.picture_every == 0):
            path = Path(self.run_folder or ".") / "samples" / f"epoch_{validation_cycle:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Every validation has the same seed, so all pictures are made from the same noise.
            images = self.generator(self.noise(80), torch.arange(10, device=self.device).repeat(8))
            write_png(path, grid(images.squeeze(1).cpu(), columns=10))


def grid(images: Tensor, columns: int, scale: int = 6) -> Tensor:
    """Return one large image, dark on white, made of small images with values from -1 to 1."""
    pixels = F.pad(((1 - images) * 127.5).round(), (1, 1, 1, 1), value=255).to(torch.uint8)
    rows = [torch.cat(list(row), dim=1) for row in pixels.split(columns)]
    return torch.cat(rows).repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def write_png(path: Path, pixels: Tensor) -> None:
    """Write a grayscale image, uint8 of shape (height, width)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, gray, default methods, not interlaced.
    lines = b"".join(b"\0" + bytes(row) for row in pixels.tolist())  # Every row begins with its filter, 0: none.
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


class DigitsData(DataModule):
    def setup(self) -> None:
        images, labels = load_digits()
        images = 2 * images - 1
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        train, valid = (TensorDataset(images[part], labels[part]) for part in order.split([1497, 300]))
        self.train = Split(train, batch_size=64, shuffle=True, drop_last=True)
        self.valid = Split(valid, batch_size=300)


def main(epochs: int = 80, width: int = 32, picture_every: int = 10, **options) -> None:
    """Train the generator and the discriminator.

    Args:
        epochs: number of epochs
        width: number of channels of both networks, a multiple of 8
        picture_every: number of epochs from one picture to the next
        options: other options of the Trainer
    """
    trainer = Trainer(
        max_epochs=epochs,
        monitor="valid/distance",
        save_every_epochs=picture_every,
        callbacks=[EMA(decay=0.995, name="generator")],
        **options,
    )
    model = GAN(width=width, picture_every=picture_every)
    result = trainer.fit(model, DigitsData())
    if model.global_rank == 0:
        samples = Path(result.run_folder or ".") / "samples"
        print(f"what it draws: {samples / f'epoch_{result.state.epoch:04}.png'}")


if __name__ == "__main__":
    run(main)
